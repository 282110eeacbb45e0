"""One answer from several views of a video: clips and crops, or sliding spans; their probabilities are averaged."""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from .decode import open_video
from .index import Video
from .reader import VideoError
from .reading import within
from .transforms import Preprocessing


class View(NamedTuple):
    """A part of a video that the model reads by itself."""

    video: int  # position in the list of videos
    source: Video  # with the view's own start and end
    crop: float = 0.5  # as in ``Preprocessing.apply``


class Views(ABC):
    """A rule that divides videos. ``str(rule)`` is the text that ``parse_views`` reads."""

    @abstractmethod
    def parts(self, times: Tensor) -> list[tuple[int, int]]:
        """Frames [first, stop) of each part of a video whose frames are shown at ``times`` float64 [F], in seconds."""

    @property
    def crops(self) -> tuple[float, ...]:
        """Where each part is cut."""
        return (0.5,)


@dataclass(frozen=True)
class Whole(Views):
    """The whole video at once."""

    def __str__(self) -> str:
        return "whole"

    def parts(self, times: Tensor) -> list[tuple[int, int]]:
        return [(0, len(times))]


@dataclass(frozen=True)
class Clips(Views):
    """``count`` clips of ``frames`` frames, evenly spaced from the first frame to the last, in ``places`` crops along
    the longer side: multi-view testing as in the literature. ``frames`` None: as many as a training clip had."""

    count: int
    places: int = 1
    frames: int | None = None

    def __str__(self) -> str:
        return f"clips={self.count}x{self.places}" + (f":{self.frames}" if self.frames else "")

    def parts(self, times: Tensor) -> list[tuple[int, int]]:
        assert self.frames is not None, "the training length was not filled in"
        free = max(0, len(times) - self.frames)
        starts = torch.linspace(0, free, self.count) if self.count > 1 else torch.tensor([free / 2])
        firsts = sorted(set(starts.round().long().tolist()))  # of a short video all clips are the same
        return [(first, min(first + self.frames, len(times))) for first in firsts]

    @property
    def crops(self) -> tuple[float, ...]:
        return (0.5,) if self.places == 1 else tuple(i / (self.places - 1) for i in range(self.places))


@dataclass(frozen=True)
class Spans(Views):
    """Sliding spans of so many ``seconds``, one every ``step`` seconds, the last one ending with the video (LVU)."""

    seconds: float
    step: float

    def __str__(self) -> str:
        return f"spans={self.seconds:g}:{self.step:g}"

    def parts(self, times: Tensor) -> list[tuple[int, int]]:
        last = float(times.diff().median()) if len(times) > 1 else 0.0
        begin, end = float(times[0]), float(times[-1]) + last
        count = max(0, math.ceil((end - begin - self.seconds) / self.step - 1e-6))
        starts = [begin + i * self.step for i in range(count)] + [max(begin, end - self.seconds)]
        edges = torch.tensor([(s - 1e-6, s + self.seconds - 1e-6) for s in starts], dtype=torch.float64)
        bounds = torch.searchsorted(times, edges).tolist()
        return [(first, stop) for first, stop in bounds if first < stop]


_RULES = "whole, clips=CLIPSxCROPS[:FRAMES], spans=SECONDS[:STEP]"


def parse_views(text: str) -> Views:
    """ "whole", "clips=4x3", "clips=4x3:64" or "spans=60:30" (step: half a span) -> the rule; ValueError otherwise."""
    if text == "whole":
        return Whole()
    if match := re.fullmatch(r"clips=(\d+)(?:x(\d+))?(?::(\d+))?", text):
        count, places, frames = (None if part is None else int(part) for part in match.groups())
        if count and places != 0 and frames != 0:
            return Clips(count, places or 1, frames)
    if match := re.fullmatch(r"spans=([\d.]+)(?::([\d.]+))?", text):
        try:
            seconds = float(match[1])
            step = float(match[2]) if match[2] else seconds / 2
        except ValueError:
            seconds = step = 0.0
        if seconds > 0 and step > 0:
            return Spans(seconds, step)
    raise ValueError(f"--views takes {_RULES}, e.g. clips=4x3:64; got {text!r}")


def with_length(views: Views, preprocessing: Preprocessing, clip_frames: int | None) -> Views:
    """Clips without a length get that of a training clip, ``clip_frames`` (None: it was not recorded).

    Raises:
        ValueError: if these views cannot be made.
    """
    if not isinstance(views, Clips):
        return views
    if views.places > 1 and preprocessing.fit != "crop":
        raise ValueError(
            f"--views {views} asks for several crops, but this model never crops (fit: {preprocessing.fit}); write "
            f"clips={views.count}"
        )
    if not (frames := views.frames or clip_frames):
        raise ValueError(
            f"--views {views} needs a length, as this checkpoint does not say how long its training clips were; write "
            f"{views}:FRAMES"
        )
    return replace(views, frames=frames)


def expand(videos: Sequence[Video], views: Views, frames: int | None, stream: int | None = None) -> list[View]:
    """The views of every video, cut to its first ``frames`` frames before; ``stream`` as ``Preprocessing.stream``. A
    video that cannot be opened stays one view: that reading it fails is a result."""
    views_of_all = []
    for number, video in enumerate(videos):
        try:
            with open_video(video.path, stream=stream) as reader:
                times = reader.times[within(reader, video.start, video.end)] + reader.offset
        except (VideoError, OSError):
            views_of_all.append(View(number, video))
            continue
        inside = times[:frames]
        for first, stop in views.parts(inside):
            end = video.end if stop == len(times) else float(times[stop])
            span = video._replace(start=float(times[first]), end=end)
            views_of_all += [View(number, span, crop) for crop in views.crops]
    return views_of_all
