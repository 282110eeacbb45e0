"""The interface of every reader of frames, whatever decodes them: `Reader`, `VideoInfo` and two exceptions."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from ..printing import printable
from .errors import PartialVideoWarning, VideoError, VideoWarning

__all__ = ["PartialVideoWarning", "Reader", "VideoError", "VideoInfo", "VideoWarning"]


class VideoInfo(NamedTuple):
    """Properties of a video, known before any frame is read.

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


def checked_size(
    size: tuple[int, int] | Callable[[VideoInfo], tuple[int, int]] | None, info: VideoInfo
) -> tuple[int, int] | None:
    """The size that frames of a video are brought to; None: their own. Raises ValueError if it is below 1."""
    if callable(size):
        size = size(info)
    if size is not None and min(size) < 1:
        raise ValueError(f"frames cannot be resized to {size[0]}x{size[1]}: height and width must be at least 1")
    return size


def channels_first(picture: np.ndarray, out: np.ndarray) -> None:
    """Copies uint8 [H,W,3] into `out` [3,H,W], in half the time that PyTorch's own copy takes."""
    np.copyto(out, picture.transpose(2, 0, 1))


_already_warned: set[tuple] = set()


class Reader(ABC):
    """An opened video. Use it as a context manager, in the process that opened it: it cannot be pickled, the
    path can. One pass at a time: starting a second `stream` ends the first.

    `times` (float64 [F], seconds, strictly increasing, first frame at 0) tells when every frame is shown;
    `times + offset` is the same on the file's own clock, as players show it (sound may begin before the picture).
    """

    def __init__(
        self,
        info: VideoInfo,
        times: Tensor,
        announced: int,
        damaged: bool = False,
        offset: float = 0.0,
        notes: Sequence[str] = (),
        corrupt: int = 0,
    ):
        self.info = info
        self.times = times
        self.offset = offset
        self.announced = announced
        self._damaged = damaged
        self._corrupt = corrupt
        self._notes = notes  # said once, when frames are wanted

    def stream(self, indices: Sequence[int] | Tensor | None = None, batch: int = 64) -> Iterator[Tensor]:
        """Frames uint8 [n,3,H,W] (n <= batch, RGB), in constant memory whatever the length of the video.

        `indices` are strictly increasing frame numbers in 0..F-1, or None for all. Where a file is damaged,
        the frames before the damage are given and one `PartialVideoWarning` is issued. Raises VideoError if
        no frame at all can be given, and ValueError for indices that are not increasing or outside the video.
        """
        wanted = range(self.info.frames) if indices is None else _checked(indices, self.info)
        given = 0
        for note in self._notes:
            self._tell(note, note)
        if self._damaged and wanted:
            self._warn(self.info.frames)
        elif wanted:
            self._warn_of_corrupt(self._corrupt, self.info.frames)
        for frames in self._stream(wanted, batch):
            given += len(frames)
            yield frames
        if wanted and not given:
            raise VideoError(f"{self.info.path}: none of the {len(wanted)} frames asked for can be decoded")

    def read(self, indices: Sequence[int] | Tensor | None = None) -> Tensor:
        """The frames asked for in one tensor uint8 [n,3,H,W]; fewer where the file is damaged."""
        count = self.info.frames if indices is None else len(indices)
        batches = list(self.stream(indices, batch=max(1, count)))
        if not batches:
            return torch.empty(0, 3, *self.size, dtype=torch.uint8)
        return batches[0] if len(batches[0]) == count else torch.cat(batches)

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """(height, width) of the frames that come out."""

    @abstractmethod
    def _stream(self, wanted: Sequence[int], batch: int) -> Iterator[Tensor]: ...

    @abstractmethod
    def close(self) -> None:
        """Frees the decoder. Safe to call twice."""

    def _room(self, count: int) -> Tensor:
        """Space for frames, uint8 [count,3,H,W]. Raises VideoError if there is not enough memory."""
        try:
            return torch.empty(count, 3, *self.size, dtype=torch.uint8)
        except (RuntimeError, MemoryError) as error:
            (height, width), size = self.size, 3e-9 * count * self.size[0] * self.size[1]
            raise VideoError(
                f"{self.info.path}: {count} frames of {width}x{height} take {size:.0f} GB, more "
                "than there is memory; read fewer at once (data.max_frames) or smaller ones (data.size)"
            ) from error

    def _warn(self, decoded: int) -> None:
        flaws = f", {self._corrupt} of them damaged" if self._corrupt else ""
        if self.announced > decoded:
            sentence = f"only the first {decoded} of {self.announced} frames decode{flaws}; they are used"
        else:
            flaws += "," * bool(flaws)
            sentence = f"the file is cut off or damaged; the {decoded} frames of it that decode{flaws} are used"
        self._tell("end", sentence, PartialVideoWarning)

    def _warn_of_corrupt(self, corrupt: int, of: int) -> None:
        if corrupt:
            which = f"its {of} frames" if self._corrupt else f"{of} frames that were decoded"
            self._tell(
                "corrupt", f"{corrupt} of {which} come out damaged; they are used as they are", PartialVideoWarning
            )

    def _tell(self, what: object, sentence: str, category: type[VideoWarning] = VideoWarning) -> None:
        """Warns of `what` once per file and process."""
        key = (self.info.path, what)
        if key not in _already_warned:
            _already_warned.add(key)
            warnings.warn(f"{printable(self.info.path)}: {sentence}", category, stacklevel=4)

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
