"""Metadata of a video file, read once and then taken from the index: `probe(path)`."""

import os
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from . import clock
from .errors import VideoError

if TYPE_CHECKING:
    from torch import Tensor

_HELD_BYTES = 16 * 2**20
_HELD_COUNT = 32  # each small array that stays pins the memory that was freed around it


FASTEST, SLOWEST = 1e5, 1 / 300
"""Frames a second beyond which a time scale is damaged: above high-speed cameras, and below slides in a time lapse."""


@dataclass(frozen=True, eq=False)
class Probe:
    """What the packets of a file show, and its frames once they were decoded. F = frames expected.

    What frames there are (`stamps`, `damaged`) never changes while the file stays the same, so that what is sampled
    does not depend on who has read the file before; what decoding adds (`decoded`, `checks`, `corrupt`) does.

    Attributes:
        file: path, size in bytes and modification time: the same three are the same file.
        stream: the video stream asked for; None: the default one.
        streams: sizes of all video streams of the file; number: which of them this is.
        pixels: pixel format of the first frame.
        height, width: size of the first frame as displayed (rotation applied).
        turns: quarter turns counter-clockwise to be applied for display.
        base: seconds of one unit of the stamps.
        rate: frames a second by the header.
        offset: seconds on the file's own clock, as players show it, at which the first frame appears; the clock
            starts with the earliest stream, sound included.
        restarts: the container's clock may start anew (transport and program streams).
        stamps: int64 [F] in presentation order; clock.MISSING for none.
        entries: int32, frames at which decoding can start by the codec's standard.
        keys: int32, frames at which it can perhaps start; every frame from there on must be proven by `checks`.
        announced: frames that the container promises; 0: not known.
        damaged: the end is missing, or decoding ended with an error.
        holes: frames that even time stamps leave out, where no table of the container says that all is there, or that
            lie in a part of the file that the demuxer passed over.
        hidden: frames of an MP4 that its edit list leaves out.
        regular: nothing unusual anywhere: every packet is one frame, counted by the header, in one closed sequence.
        broken: damaged packets.
        decoded: frames that decoded before the first error; None: not all were tried.
        corrupt: frames among them that the decoder marked as corrupt.
        checks: uint32, checksums of the first len(checks) frames as decoded from the beginning.
        agreed: decord gave the same first picture as PyAV.
    """

    file: tuple[str, int, int]
    stream: int | None
    streams: tuple[str, ...]
    number: int
    container: str
    codec: str
    pixels: str
    height: int
    width: int
    turns: int
    base: float
    rate: float
    offset: float
    restarts: bool
    announced: int
    damaged: bool
    regular: bool
    broken: int
    holes: int
    stamps: np.ndarray
    entries: np.ndarray
    decoded: int | None = None
    corrupt: int = 0
    agreed: bool = False
    hidden: int = 0
    checks: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint32))
    keys: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))

    @property
    def frames(self) -> int:
        return len(self.stamps)

    @property
    def nbytes(self) -> int:
        return self.stamps.nbytes + self.entries.nbytes + self.checks.nbytes + self.keys.nbytes

    @cached_property
    def _seconds(self) -> tuple[np.ndarray, list[tuple[int, float]]]:
        return clock.seconds(self.stamps, self.base, self.rate, self.restarts)

    @property
    def times(self) -> "Tensor":
        """float64 [F] seconds, first frame at 0, strictly increasing."""
        import torch

        return torch.from_numpy(self._seconds[0])

    @property
    def jumps(self) -> list[tuple[int, float]]:
        """Where the file's clock jumped: (frame, seconds)."""
        return self._seconds[1]

    @property
    def duration(self) -> float:
        """Seconds from the first frame's appearance to the end of the last one."""
        return float(self._seconds[0][-1]) + 1 / self.fps

    @property
    def fps(self) -> float:
        """Average rate by the stamps where there are two frames or more, else what the header says."""
        return float((self.frames - 1) / self._seconds[0][-1]) if self.frames > 1 else self.rate

    @property
    def remarks(self) -> list[tuple[str, str]]:
        """What is unusual, but not damage: (kind, sentence)."""
        remarks = []
        if len(self.streams) > 1:
            listed = ", ".join(f"{i} ({size})" for i, size in enumerate(self.streams))
            how = "" if self.stream is not None else "; data.stream chooses another"
            sentence = f"holds {len(self.streams)} video streams, {listed}; number {self.number} is read{how}"
            remarks.append(("several streams", sentence))
        far = [(frame, jump) for frame, jump in self.jumps if abs(jump) > clock.GAP]
        if far:
            more = f" (and at {len(far) - 1} more)" if len(far) > 1 else ""
            sentence = f"its time stamps jump by {far[0][1]:.0f} s at frame {far[0][0]}{more}; the gap is closed"
            remarks.append(("clock jumps", sentence))
        if self.holes:
            missing = "1 frame seems" if self.holes == 1 else f"{self.holes} frames seem"
            remarks.append(("missing frames", f"{missing} to be missing: its time stamps leave gaps"))
        if odd := self._odd_header():
            remarks.append(("odd headers", odd))
        elif self.hidden > self.frames:
            counts = f"its header counts {self.frames + self.hidden:,} frames and shows {self.frames:,}"
            why = "an edit list hides the others, or a table of the header is damaged"
            remarks.append(("edit lists", f"{counts} ({why}); they are used"))
        return remarks

    def _odd_header(self) -> str:
        """A sentence on a header that no file can have; "" for any other."""
        counted, most_hidden = self.frames + self.hidden, self.hidden > self.frames
        if counted > self.file[1]:
            return f"its header counts {counted:,} frames, more than the file has bytes; {self.frames:,} are there"
        if not (self.fps > FASTEST or (most_hidden and self.fps < SLOWEST)):
            return ""
        times = f"{self.fps:,.0f} frames a second" if self.fps > 1 else f"one frame in {1 / max(self.fps, 1e-9):,.0f} s"
        some = f", by which {self.frames:,} of {counted:,} frames are shown" if most_hidden else ""
        return f"its header makes {times}{some}; its time scale is damaged, and so are times and rates"

    @property
    def notes(self) -> list[str]:
        """The sentences alone."""
        return [sentence for _, sentence in self.remarks]


class _Held:
    """The probes used last, bounded in bytes."""

    def __init__(self) -> None:
        self.probes: OrderedDict[tuple, Probe] = OrderedDict()

    def get(self, key: tuple) -> Probe | None:
        if key in self.probes:
            self.probes.move_to_end(key)
        return self.probes.get(key)

    def put(self, key: tuple, probe: Probe) -> None:
        # Without the times, which a reader may have computed and which are computed again in a millisecond.
        self.probes[key] = replace(probe)
        self.probes.move_to_end(key)
        while len(self.probes) > _HELD_COUNT or (
            len(self.probes) > 1 and sum(held.nbytes for held in self.probes.values()) > _HELD_BYTES
        ):
            self.probes.popitem(last=False)


_held = _Held()


def probe(path: str, stream: int | None = None) -> Probe:
    """The probe of a file: from this process, from the index on disk, or by reading it through. Raises VideoError
    (one sentence: path and reason) if nothing can be decoded."""
    from . import catalog
    from .scan import scan

    file = identity(path)
    metadata = _held.get((file, stream))
    if metadata is None:
        try:
            metadata = catalog.load(file, stream)
        except catalog.Refused as refusal:
            raise VideoError(f"{path}: {refusal}") from refusal
        if metadata is None:
            metadata = scan(file, stream)
            catalog.store(metadata)
        _held.put((file, stream), metadata)
    return replace(metadata)


def identity(path: str) -> tuple[str, int, int]:
    """Path, size and time of change. Raises VideoError if there is no such file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise VideoError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    return path, status.st_size, status.st_mtime_ns


def remember(metadata: Probe) -> None:
    """Keeps a probe that decoding has completed, in this process and in the index."""
    from . import catalog

    _held.put((metadata.file, metadata.stream), metadata)
    catalog.store(metadata)


def forget() -> None:
    """Empties what this process holds."""
    _held.probes.clear()
