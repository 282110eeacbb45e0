"""What every reader of frames offers, whatever decodes them: `Reader`, `VideoInfo` and the two ways of
failing.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple, Self

import torch
from torch import Tensor

from tttvideo.printing import printable


class VideoError(ValueError):
    """A video (or folder of images) that cannot be used; the message is one sentence with the path and the
    reason.
    """


class PartialVideoWarning(UserWarning):
    """Only the first frames of a video decode; given once per file and process, with both counts."""


class VideoInfo(NamedTuple):
    """What is known of a video before its frames are wanted.

    `height` and `width` are as displayed (rotation applied, before any resizing asked for). `frames` is the
    number of frames expected from the container; a damaged file can stop before it. `fps` is the average
    frame rate in Hz and `duration` the time in seconds from the first frame's appearance to the end of the
    last one.
    """

    path: str
    codec: str
    height: int
    width: int
    frames: int
    fps: float
    duration: float
    reader: str
    """"decord", "pyav" or "images"."""


_already_warned: set[tuple[str, int, int]] = set()


class Reader(ABC):
    """An opened video. Use it as a context manager, in the process that opened it: it cannot be pickled, the
    path can. One pass at a time: starting a second `stream` ends the first.

    `times` (float64 [F], seconds, strictly increasing, first frame at 0) tells when every frame is shown.
    """

    def __init__(self, info: VideoInfo, times: Tensor, announced: int, damaged: bool = False):
        self.info = info
        self.times = times
        self.announced = announced
        self._damaged = damaged

    def stream(self, indices: Sequence[int] | Tensor | None = None, batch: int = 64) -> Iterator[Tensor]:
        """Frames uint8 [n,3,H,W] (n <= batch, RGB), in constant memory whatever the length of the video.

        `indices` are strictly increasing frame numbers in 0..F-1, or None for all. Where a file is damaged,
        the frames before the damage are given and one `PartialVideoWarning` is issued. Raises VideoError if
        no frame at all can be given, and ValueError for indices that are not increasing or outside the video.
        """
        wanted = range(self.info.frames) if indices is None else _checked(indices, self.info)
        given = 0
        if self._damaged and wanted:
            self._warn(self.info.frames)
        for frames in self._stream(wanted, batch):
            given += len(frames)
            yield frames
        if wanted and not given:
            raise VideoError(f"{self.info.path}: none of the {len(wanted)} frames asked for can be decoded")

    def read(self, indices: Sequence[int] | Tensor | None = None) -> Tensor:
        """The frames asked for in one tensor uint8 [n,3,H,W]; fewer where the file is damaged."""
        batches = list(self.stream(indices))
        if not batches:
            return torch.empty(0, 3, *self.size, dtype=torch.uint8)
        return torch.cat(batches)

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """(height, width) of the frames that come out."""

    @abstractmethod
    def _stream(self, wanted: Sequence[int], batch: int) -> Iterator[Tensor]: ...

    @abstractmethod
    def close(self) -> None:
        """Frees the decoder. Safe to call twice."""

    def _warn(self, decoded: int) -> None:
        key = (self.info.path, decoded, self.announced)
        if key not in _already_warned:
            _already_warned.add(key)
            path = printable(self.info.path)
            message = f"{path}: only the first {decoded} of {self.announced} frames decode; they are used"
            warnings.warn(message, PartialVideoWarning, stacklevel=3)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __reduce__(self):
        raise TypeError("a Reader cannot be sent to another process: send the path and open it there")


def _checked(indices: Sequence[int] | Tensor, info: VideoInfo) -> Sequence[int]:
    wanted = indices.tolist() if isinstance(indices, Tensor) else list(indices)
    if any(after <= before for before, after in pairwise(wanted)):
        raise ValueError(f"{info.path}: frame indices must be strictly increasing")
    if wanted and not 0 <= wanted[0] <= wanted[-1] < info.frames:
        raise ValueError(f"{info.path}: frame indices must lie in 0..{info.frames - 1}, got up to {wanted[-1]}")
    return wanted
