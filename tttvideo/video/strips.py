"""Predictions to look at: a PNG strip and an MP4, truth above, prediction below, then where they differ."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..printing import printable

if TYPE_CHECKING:
    from PIL import Image, ImageFont

BRIGHTEST = 0.5
"""The error that is drawn brightest: mean over the channels of |truth - prediction|, pixels in 0..1."""
COLUMNS = 12
LAST = 2
"""Frames of the context that a strip begins with."""
LARGEST = 160
"""Pixels of the longer side of a frame in a report; larger ones are made smaller, which keeps reports small."""
_GAP, _LINE, _LEFT = 4, 16, 84
_PAPER, _INK, _EMPTY = (255, 255, 255), (51, 51, 51), (221, 221, 221)


def write_strip(
    path: str | Path, context: Tensor, truth: Tensor, predicted: Tensor, first: int = 0, note: str = ""
) -> None:
    """A picture of up to ``COLUMNS`` moments: the end of the context, then the horizon with its first and last frame.

    Args:
        context: true frames [C, 3, H, W] in 0..1.
        truth: the true frames after it [n, 3, H, W]; n may be less than K where the video ends.
        made: predicted frames [K, 3, H, W] in 0..1.
        first: the number of the first frame given.
        note: a line below.
    """
    _strip(context, truth, predicted, first, note).save(path)


def strip_png(context: Tensor, truth: Tensor, predicted: Tensor, first: int = 0) -> bytes:
    """The same as a PNG file for a report."""
    stream = io.BytesIO()
    _strip(context, truth, predicted, first, largest=LARGEST).save(stream, format="png", optimize=True)
    return stream.getvalue()


def _strip(
    context: Tensor, truth: Tensor, predicted: Tensor, first: int, note: str = "", largest: int | None = None
) -> "Image.Image":
    from PIL import Image

    ahead = np.unique(np.linspace(0, len(predicted) - 1, min(len(predicted), COLUMNS - 2)).round().astype(int))
    before = range(max(0, len(context) - LAST), len(context))
    columns = [_column(context[i], context[i]) for i in before]
    columns += [_column(truth[i] if i < len(truth) else None, predicted[i]) for i in ahead]
    scale = _scale(predicted)
    cells = [[_enlarged(cell, scale) for cell in column] for column in columns]
    if largest:
        cells = [[_reduced(cell, largest) for cell in column] for column in cells]
    height, width = cells[0][1].shape[:2]
    lines = 3 if note else 2
    legend = f"error: mean of channels, black 0, brightest {BRIGHTEST:g} and more (pixels in 0..1)"
    wide = max(_LEFT + len(cells) * (width + _GAP), *(8 + _length(text) for text in (legend, note)))
    image = Image.new("RGB", (wide, 3 * (height + _GAP) + lines * _LINE), _PAPER)
    for at, (number, column) in enumerate(zip([*before, *(len(context) + ahead)], cells)):
        left = _LEFT + at * (width + _GAP)
        _write(image, (left, 1), f"{first + number}" + (" given" if number < len(context) else ""))
        for row, cell in enumerate(column):
            image.paste(Image.fromarray(cell), (left, _LINE + row * (height + _GAP)))
    for row, name in enumerate(("truth", "prediction", "error")):
        _write(image, (4, _LINE + row * (height + _GAP) + height // 2 - 7), name)
    below = 3 * (height + _GAP) + _LINE
    _write(image, (4, below), legend)
    _write(image, (4, below + _LINE), note)
    return image


def write_film(path: str | Path, context: Tensor, truth: Tensor, predicted: Tensor, fps: float, first: int = 0) -> None:
    """The same as a film, one frame of it per frame of the video; while the context runs, both halves show it."""
    from PIL import Image

    from .mp4 import write_mp4

    count, scale = len(context), _scale(predicted)
    pictures = []
    for number in range(count + len(predicted)):
        if number < count:
            column = _column(context[number], context[number])
        else:
            i = number - count
            column = _column(truth[i] if i < len(truth) else None, predicted[i])
        cells = [_enlarged(cell, scale) for cell in column]
        height, width = cells[0].shape[:2]
        size = (max(width, 150), 3 * (height + _GAP) + _LINE)
        image = Image.new("RGB", (size[0] + size[0] % 2, size[1] + size[1] % 2), _PAPER)
        _write(image, (4, 1), f"frame {first + number}" + (" given" if number < count else " predicted"))
        for row, cell in enumerate(cells):
            image.paste(Image.fromarray(cell), ((size[0] - width) // 2, _LINE + row * (height + _GAP)))
        pictures.append(np.asarray(image))
    write_mp4(path, np.stack(pictures), fps)


def _column(truth: Tensor | None, predicted: Tensor) -> Sequence[np.ndarray]:
    """Truth, prediction and error as pictures uint8 [H, W, 3]; grey where there is no truth."""
    from matplotlib import colormaps

    picture = _pixels(predicted)
    if truth is None:
        empty = np.full_like(picture, _EMPTY[0])
        return empty, picture, empty
    error = (truth - predicted).abs().mean(0).div(BRIGHTEST).clamp(0, 1).cpu().numpy()
    return _pixels(truth), picture, (colormaps["magma"](error)[..., :3] * 255).round().astype(np.uint8)


def _pixels(frame: Tensor) -> np.ndarray:
    return (frame.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()


def _scale(frames: Tensor) -> int:
    """Small frames are enlarged by whole numbers, so that their pixels stay what they are."""
    return max(1, 96 // max(frames.shape[-2:]))


def _enlarged(picture: np.ndarray, scale: int) -> np.ndarray:
    return picture.repeat(scale, 0).repeat(scale, 1)


def _reduced(picture: np.ndarray, largest: int) -> np.ndarray:
    from PIL import Image

    factor = -(-max(picture.shape[:2]) // largest)
    return picture if factor <= 1 else np.asarray(Image.fromarray(picture).reduce(factor))


def _write(image: "Image.Image", at: tuple[int, int], text: str) -> None:
    from PIL import ImageDraw

    ImageDraw.Draw(image).text(at, printable(text), fill=_INK, font=_font())


def _length(text: str) -> int:
    """Pixels that a line of text is wide."""
    return math.ceil(_font().getlength(printable(text)))


def _font() -> "ImageFont.FreeTypeFont | ImageFont.ImageFont":
    from PIL import ImageFont

    return ImageFont.load_default(size=12)
