"""Which frames of a video are used: one rule, applied to the times at which the frames are shown.

Rules go by time, so a variable frame rate is right: `fps=1` is one frame a second of the video, however many
frames that second holds. No rule gives a frame twice; one that asks for more frames than there are gives them
all. With `times` float64 [F] in seconds (increasing, first frame at 0), all return strictly increasing int64
indices [n], n <= F.
"""

import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ..printing import as_number

# Stamps come in units of a millisecond or finer; less than this is rounding.
_ROUNDING = 1e-6


class Sampling(ABC):
    """A rule. `str(rule)` is the text that `parse_sampling` reads."""

    @abstractmethod
    def indices(self, times: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Frame numbers int64 [n] for frames shown at `times` float64 [F].

        With a generator (training) segments and windows are drawn at random; without, the choice is fixed:
        the middle of each segment, the central window.
        """


@dataclass(frozen=True)
class Dense(Sampling):
    """Every frame (fps None), or the frames nearest to 0, 1/fps, 2/fps ... seconds."""

    fps: float | None = None

    def __post_init__(self):
        if self.fps is not None:
            _require_positive("fps", self.fps)

    def __str__(self) -> str:
        return "dense" if self.fps is None else f"fps={self.fps:.12g}"

    def indices(self, times: Tensor, generator: torch.Generator | None = None) -> Tensor:
        if self.fps is None or len(times) < 2:
            return torch.arange(len(times))
        count = math.ceil(_end(times) * self.fps - _ROUNDING)
        if count >= 4 * len(times):  # far above the video's own rate: every frame is nearest to some point
            count, step = 4 * len(times), _end(times) / (4 * len(times))
        else:
            step = 1 / self.fps
        return _nearest(times, torch.arange(max(count, 1), dtype=torch.float64) * step)


@dataclass(frozen=True)
class Uniform(Sampling):
    """At most n frames, those nearest to n evenly spaced times from the first frame to the last (n = 1: the
    middle).
    """

    n: int

    def __post_init__(self):
        _require_positive("uniform", self.n)

    def __str__(self) -> str:
        return f"uniform={self.n}"

    def indices(self, times: Tensor, generator: torch.Generator | None = None) -> Tensor:
        if len(times) <= self.n:
            return torch.arange(len(times))
        last = float(times[-1])
        points = torch.linspace(0, last, self.n, dtype=torch.float64) if self.n > 1 else torch.tensor([last / 2])
        return _nearest(times, points.double())


@dataclass(frozen=True)
class Segments(Sampling):
    """At most n frames, one from each of n segments of equal duration: the one shown in its middle, or at
    random.
    """

    n: int

    def __post_init__(self):
        _require_positive("segments", self.n)

    def __str__(self) -> str:
        return f"segments={self.n}"

    def indices(self, times: Tensor, generator: torch.Generator | None = None) -> Tensor:
        if len(times) <= self.n:
            return torch.arange(len(times))
        if generator is None:
            within = torch.full((self.n,), 0.5, dtype=torch.float64)
        else:
            within = torch.rand(self.n, generator=generator, dtype=torch.float64)
        points = (torch.arange(self.n) + within) * (_end(times) / self.n)
        shown = torch.searchsorted(times, points + _ROUNDING, right=True) - 1
        return torch.unique(shown.clamp(min=0))


@dataclass(frozen=True)
class Window(Sampling):
    """All frames of one window of this many seconds (the whole video if it is shorter): central, or at
    random.
    """

    seconds: float

    def __post_init__(self):
        _require_positive("window", self.seconds)

    def __str__(self) -> str:
        return f"window={self.seconds:.12g}"

    def indices(self, times: Tensor, generator: torch.Generator | None = None) -> Tensor:
        latest = _end(times) - self.seconds if len(times) > 1 else 0.0
        if latest <= _ROUNDING:
            return torch.arange(len(times))
        # A window starts at a frame: so all windows of a constant-rate video hold the same number of frames.
        starts = int(torch.searchsorted(times, latest + _ROUNDING, right=True))
        if generator is None:
            first = min(int(_nearest(times, torch.tensor([latest / 2], dtype=torch.float64))[0]), starts - 1)
        else:
            first = int(torch.randint(starts, (), generator=generator))
        stop = int(torch.searchsorted(times, float(times[first]) + self.seconds - _ROUNDING))
        return torch.arange(first, max(stop, first + 1))  # at least a frame, however short the window


@dataclass(frozen=True)
class Last(Sampling):
    """The last n frames (all, if there are fewer): truncation, as by a sliding window of memory."""

    n: int

    def __post_init__(self):
        _require_positive("last", self.n)

    def __str__(self) -> str:
        return f"last={self.n}"

    def indices(self, times: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.arange(max(0, len(times) - self.n), len(times))


_RULES = "dense, fps=<frames per second>, uniform=<frames>, segments=<frames>, window=<seconds>, last=<frames>"


def parse_sampling(text: str) -> Sampling:
    """ "dense", "fps=1", "uniform=16", "segments=8", "window=2.5" or "last=64" -> the rule. ValueError for anything
    else.
    """
    rules = [part for part in re.split(r"(?:[,;\s]|(?<!\de)\+)+", str(text).strip()) if part]
    if len(rules) != 1:
        problem = "no sampling rule is given" if not rules else f"{text!r} gives {len(rules)} sampling rules"
        raise ValueError(f"{problem}; give exactly one of: {_RULES}")
    name, _, value = rules[0].partition("=")
    try:
        match name, value:
            case "dense", "":
                return Dense()
            case "fps", _:
                return Dense(fps=_number(name, value))
            case "uniform", _:
                return Uniform(_whole(name, value))
            case "segments", _:
                return Segments(_whole(name, value))
            case "window", _:
                return Window(_number(name, value))
            case "last", _:
                return Last(_whole(name, value))
    except ValueError as error:
        raise ValueError(f"{text!r} is not a sampling rule ({error}); give exactly one of: {_RULES}") from error
    raise ValueError(f"{text!r} is not a sampling rule; give exactly one of: {_RULES}")


def _whole(name: str, value: str) -> int:
    if not re.fullmatch("[+-]?[0-9]{1,15}", value):
        raise ValueError(f"{name} must be a whole number, not {value[:50] or 'empty'}")
    return int(value)


def _number(name: str, value: str) -> float:
    try:
        return as_number(value)
    except ValueError:
        raise ValueError(f"{name} must be a number, not {value[:50] or 'empty'}") from None


def _require_positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be above 0, not {value}")


def _end(times: Tensor) -> float:
    """When the last frame disappears, taking it to be shown for the median time of the others."""
    return float(times[-1] + times.diff().median())


def _nearest(times: Tensor, points: Tensor) -> Tensor:
    """The frames nearest to each point in time (the earlier of two as near), each frame once."""
    after = torch.searchsorted(times, points).clamp(max=len(times) - 1)
    before = (after - 1).clamp(min=0)
    earlier = points - times[before] <= times[after] - points + _ROUNDING
    return torch.unique(torch.where(earlier, before, after))
