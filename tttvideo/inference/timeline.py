"""Probabilities over time: a picture above a strip of frames, and the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from ..evaluation.plots import COLOURS, new_figure
from ..files import replacing
from ..printing import printable
from ..video.index import Video
from ..video.reading import open_sized, within
from ..video.sampling import parse_sampling
from ..video.transforms import Preprocessing
from .answers import Timeline

SHOWN = 5
"""Classes with a line of their own, at most."""

STRIP = 8
"""Frames in the strip, at most."""


def frame_times(video: Video, preprocessing: Preprocessing, sampling: str, frames: int | None) -> np.ndarray:
    """When each frame that the model reads is shown, in seconds of the file; as ``video_pieces`` chooses them."""
    with open_sized(video.path, preprocessing) as reader:
        inside = within(reader, video.start, video.end)[:frames]
        times = reader.times[inside]
        wanted = parse_sampling(sampling).indices(times - times[0], None)
        return (times[wanted] + reader.offset).numpy()


def write_timeline(
    stem: Path, name: str, labels: Sequence[str], probabilities: Tensor, stride: int, times: np.ndarray, shown: Timeline
) -> None:
    """``stem``.npy [S, 1 + classes] (seconds, then a probability for each class) and ``stem``.png.

    Args:
        probabilities: [S, classes] of everything up to each time step of ``stride`` frames.
        times: [F] of the frames.
        shown: pictures for the strip.
    """
    ends = np.minimum((np.arange(len(probabilities)) + 1) * stride, len(times)) - 1
    seconds = times[ends]
    numbers = np.column_stack([seconds, probabilities.numpy()])
    with replacing(Path(f"{stem}.npy")) as file, file.open("wb") as stream:
        np.save(stream, numbers)

    figure = new_figure(9, 3.6)
    curves, strip = figure.subplots(2, 1, height_ratios=(3, 1))
    best = probabilities.max(0).values.topk(min(SHOWN, len(labels))).indices.tolist()
    for number, colour in zip(best, COLOURS):
        curves.plot(seconds, probabilities[:, number], label=printable(labels[number]), color=colour)
    first, last = float(times[0]), float(times[-1])
    curves.set(ylim=(-0.02, 1.02), ylabel="probability so far", xlabel="seconds")
    curves.set_xlim(first, max(last, first + 1e-3))
    curves.set_title(printable(name), fontsize="medium", parse_math=False)
    for text in curves.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False).get_texts():
        text.set_parse_math(False)
    at, pictures = shown.at, shown.pictures
    chosen = [int(i) for i in np.linspace(0, len(at) - 1, min(STRIP, len(at))).round()]
    strip.imshow(np.concatenate([pictures[i].permute(1, 2, 0).numpy() for i in chosen], axis=1), aspect="equal")
    width = pictures.shape[3]
    strip.set_yticks([])
    strip.set_xticks([(i + 0.5) * width for i in range(len(chosen))], [f"{times[at[i]]:.3g} s" for i in chosen])
    strip.tick_params(length=0)
    with replacing(Path(f"{stem}.png")) as file:
        figure.savefig(file, format="png", dpi=120)


def stems(videos: Sequence[Video]) -> list[str]:
    """A file name for each video, without ending: its own, and what tells it from others of that name."""
    uses: dict[str, int] = {}
    names = []
    for video in videos:
        path = Path(video.path)
        name = printable(path.resolve().name if path.is_dir() else path.stem).replace("/", "_")
        if video.start is not None or video.end is not None:
            name += f"-{video.start or 0:g}s"
        uses[name.lower()] = count = uses.get(name.lower(), 0) + 1
        names.append(name if count == 1 else f"{name}-{count}")
    return names
