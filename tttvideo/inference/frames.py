"""Arrays, tensors and PIL pictures of any size, converted to frames for a model's preprocessing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..encoder.base import check_range
from ..printing import cause, shortened


def as_frames(pictures: Any) -> Tensor:
    """uint8 [F, 3, h, w] of one picture or several.

    Args:
        pictures: a PIL image; a numpy array [h, w, 3] (as cameras and PIL give them) or a tensor [3, h, w] (as PyTorch
            has them), with a first axis of frames or without; or a list of these. Grey pictures have one channel, or
            no axis of channels in an array [h, w]. Values are uint8, or floating point in 0..1, which are rounded to
            8 bits. An array in the other order is recognised where its shape leaves no doubt.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(pictures, (list, tuple)):
        if not pictures:
            raise ValueError("Expected frames, got an empty list; give at least one.")
        frames = [as_frames(picture) for picture in pictures]
        if len({frame.shape[1:] for frame in frames}) > 1:
            raise ValueError("Expected frames of one size in a list, got several; give them one by one.")
        return torch.cat(frames)
    if _is_pil(pictures):
        return _from_array(_from_pil(pictures), pictures.size)
    if isinstance(pictures, np.ndarray):
        return _from_array(_plain_array(pictures), pictures.shape)
    if not isinstance(pictures, Tensor):
        raise ValueError(f"Expected frames (numpy, torch or PIL), got a {type(pictures).__name__}; convert them.")
    return _as_clip(_dense(pictures), pictures.shape, channels_last=False)


def is_picture(value: Any) -> bool:
    """Whether it is a single picture, not a clip: PIL's, or an array or tensor of two axes, or three with colours."""
    return _is_pil(value) or getattr(value, "ndim", 0) in (2, 3)


def _is_pil(value: Any) -> bool:
    return hasattr(value, "convert") and hasattr(value, "getbands")  # PIL is not imported for this


def _from_array(array: np.ndarray, given: Sequence[int]) -> Tensor:
    x = torch.from_numpy(np.require(array, requirements="CWE"))  # of a pipe they are read-only
    return _as_clip(x[..., None] if x.dim() == 2 else x, given, channels_last=True)


def _as_clip(x: Tensor, given: Sequence[int], *, channels_last: bool) -> Tensor:
    """``as_frames`` of a dense tensor with one axis of channels; ``given`` is the shape for messages."""
    if x.dim() not in (3, 4) or not x.numel():
        raise ValueError(
            f"Expected a picture or a clip ([h, w, 3] in numpy, [3, h, w] in torch, a clip has one axis more), got "
            f"{list(given)}; a batch of videos is given as a list of clips."
        )
    x = x[None] if x.dim() == 3 else x
    first, last = x.shape[1] in (1, 3), x.shape[3] in (1, 3)
    if not first and not last:
        raise ValueError(f"Expected 1 or 3 colour channels, got {list(given)}; drop the others (alpha, say).")
    x = x.permute(0, 3, 1, 2) if last and (channels_last or not first) else x
    check_range(x[None], None)
    if x.is_floating_point():
        x = x.float().clamp(0, 1).mul(255).round().to(torch.uint8)
    return x if x.shape[1] == 3 else x.expand(-1, 3, -1, -1)


def _from_pil(picture: Any) -> np.ndarray:
    """uint8 [h, w, 3]."""
    if picture.mode[:1] in ("I", "F"):  # PIL would cut them at 255
        raise ValueError(f"Expected a picture of 8 bits, got PIL's mode {picture.mode}; convert it.")
    try:
        return np.array(picture.convert("RGB"))
    except (OSError, SyntaxError) as error:  # a file is only read now
        raise ValueError(f"A picture of PIL cannot be read ({error}).") from error


def _plain_array(array: np.ndarray) -> np.ndarray:
    """The same pixels in a kind that torch has: of this machine's byte order, and of 64 bits at most."""
    if isinstance(array, np.ma.MaskedArray) and np.ma.is_masked(array):
        raise ValueError("Expected frames without masked pixels, got some; give array.filled(0), say.")
    if array.dtype.kind != "f" and array.dtype != np.uint8:
        raise ValueError(
            f"Expected frames of uint8, or of floating point in 0..1, got {shortened(array.dtype)}; convert them."
        )
    native = np.dtype(f"f{min(array.dtype.itemsize, 8)}") if array.dtype.kind == "f" else array.dtype
    return np.asarray(array).astype(native, copy=False)


def _dense(x: Tensor) -> Tensor:
    """The same pixels in a tensor that holds each of them."""
    kind = "nested" if x.is_nested else "meta" if x.is_meta else ""
    if kind:
        raise ValueError(f"Expected frames, got a {kind} tensor, which has no pixels of one shape; give a dense one.")
    try:
        x = x.detach().to_dense()
        x = x.dequantize() if x.is_quantized else x
        return x.float() if x.is_floating_point() and x.dtype.itemsize == 1 else x  # 8 bits have no arithmetic
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"Expected frames in a dense tensor, got one that has no such form ({cause(error)})."
        ) from error
