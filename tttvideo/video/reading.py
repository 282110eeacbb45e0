"""Opening a video at the size that the preprocessing needs, and the part of it between two times."""

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor

from ..printing import printable
from .reader import PartialVideoWarning, Reader, VideoError, VideoWarning
from .sampling import Dense, Window, parse_sampling
from .transforms import Preprocessing
from .workers import DataNote

# Times in lists are often rounded to milliseconds, and so are those of some containers.
_ROUNDING = 0.00101


def open_sized(path: str, preprocessing: Preprocessing, margin: float = 1.0) -> Reader:
    """A reader that resizes while decoding to what `preprocessing` needs. Raises VideoError."""
    return preprocessing.open(path, margin)


def sampled_rate(fps: float, sampling: str) -> float | None:
    """Frames per second after sampling a video of ``fps`` Hz; None for rules that take a fixed number of frames."""
    rule = parse_sampling(sampling)
    if not isinstance(rule, Dense | Window):
        return None
    return min(fps, rule.fps) if isinstance(rule, Dense) and rule.fps else fps


def usual_rate(paths: Sequence[str], preprocessing: Preprocessing, most: int = 5) -> float | None:
    """The median of ``sampled_rate`` over ``most`` of the videos, evenly spaced in the list; None if it is unknown."""
    rates = []
    for path in paths[:: max(1, len(paths) // most)][:most]:
        with suppress(VideoError, OSError), preprocessing.open(path) as reader:
            rates.append(sampled_rate(reader.info.fps, preprocessing.sampling))
    rates_in_order = sorted(rate for rate in rates if rate)
    return rates_in_order[len(rates_in_order) // 2] if rates_in_order else None


def usual_length(paths: Sequence[str], preprocessing: Preprocessing, most: int = 5) -> int | None:
    """The median number of frames that the sampling rule leaves of ``most`` of the videos, evenly spaced in the list;
    None if it is unknown."""
    rule, lengths = parse_sampling(preprocessing.sampling), []
    for path in paths[:: max(1, len(paths) // most)][:most]:
        with suppress(VideoError, OSError), preprocessing.open(path) as reader:
            lengths.append(len(rule.indices(reader.times - reader.times[0], None)))
    return sorted(lengths)[len(lengths) // 2] if lengths else None


def within(reader: Reader, start: float | None, end: float | None) -> Tensor:
    """int64 indices of the frames shown in [start, end) seconds of the file's own clock, as players show it. A frame
    counts as at a border if it is there to the millisecond. Raises VideoError if there are none."""
    file_times = reader.times + reader.offset
    slack = min(_ROUNDING, float(file_times.diff().min()) / 3) if len(file_times) > 1 else _ROUNDING
    inside = torch.ones(len(file_times), dtype=torch.bool)
    if start is not None:
        inside &= file_times >= start - slack
    if end is not None:
        inside &= file_times < end - slack
    indices = inside.nonzero().squeeze(1)
    if not len(indices):
        raise VideoError(
            f"{reader.info.path}: no frame between {start or 0:g} s and "
            f"{'the end' if end is None else f'{end:g} s'}; the video lasts from {reader.offset:.3g} s to "
            f"{reader.offset + reader.info.duration:.3g} s"
        )
    return indices


class Notes(list[str]):
    """Texts of warnings; `damage` if one of them says that a video is damaged."""

    damage = False


@contextmanager
def catch_damage() -> Iterator[Notes]:
    """Collects the texts of `VideoWarning`s instead of issuing them, so that a worker process can hand
    them over; other warnings are shown as ever."""
    notes = Notes()
    with warnings.catch_warnings():
        warnings.simplefilter("always", VideoWarning)
        show = warnings.showwarning

        def note(message, category, filename, lineno, file=None, line=None) -> None:
            if issubclass(category, VideoWarning):
                notes.append(str(message))
                notes.damage = notes.damage or issubclass(category, PartialVideoWarning)
            else:
                show(message, category, filename, lineno, file, line)

        warnings.showwarning = note  # put back by catch_warnings
        yield notes


@contextmanager
def damaged_videos_named() -> Iterator[None]:
    """Warnings of how videos are read are for the user: the sentence, without a line of code."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def sentence(message, category, filename, lineno, file=None, line=None) -> None:
            if issubclass(category, VideoWarning):
                print(printable(f"warning: {message}"), file=sys.stderr)
            elif issubclass(category, DataNote):
                print(printable(f"note: {message}"), file=sys.stderr)
            else:
                show(message, category, filename, lineno, file, line)

        warnings.showwarning = sentence
        yield
