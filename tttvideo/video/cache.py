"""Keeps decoded frames, so that a second epoch decodes nothing: in memory, or in files that are mapped.

What is kept are uint8 frames at decode size with their times, before augmentation.
"""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..files import map_array, replacing
from .listfile import DataError

_VERSION = 2  # part of every key: raise it when decoding or resizing changes what a file's frames are


class Clip(NamedTuple):
    """Decoded frames of one video."""

    frames: Tensor  # uint8 [F, 3, h, w]
    times: Tensor  # float64 [F], seconds


class DiskCache:
    """One .npy file per video below `folder`, written whole or not at all; reading maps the file, so only the
    frames that are used are read.

    Raises:
        DataError: the folder cannot be made or written to.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self.folder = Path(folder) if folder else base / "tttvideo" / "frames"

    def file(self, path: str, *what: object) -> Path:
        """Where the frames of a video belong. The name changes with the file's path, size and time of change,
        and with `what` (everything else that decides which frames these are). Raises OSError if there is no
        such file."""
        stat = os.stat(path)
        identity = [_VERSION, os.path.abspath(path), stat.st_size, stat.st_mtime_ns, *what]
        if os.path.isdir(path):  # frame images: one changed in place leaves the folder's own time as it was
            identity += sorted((e.name, e.stat().st_size, e.stat().st_mtime_ns) for e in os.scandir(path))
        name = hashlib.sha256(repr(identity).encode()).hexdigest()[:32]
        return self.folder / name[:2] / f"{name}.npy"

    def load(self, file: Path) -> tuple[np.ndarray, Tensor] | None:
        """Mapped frames [F, 3, h, w] and their times, or None if they are not kept or cannot be read."""
        try:
            records, size = map_array(file), file.stat().st_size
        except (OSError, ValueError):
            return None
        kinds = [records.dtype[name].base for name in records.dtype.names or ()]
        whole = records.offset + records.nbytes == size  # else its header tells of other frames
        if not whole or records.dtype.names != ("time", "frame") or kinds != [np.dtype("<f8"), np.dtype("u1")]:
            return None
        return records["frame"], torch.from_numpy(records["time"].copy())

    def store(self, file: Path, clip: Clip) -> None:
        """Writes under a temporary name beside the file, then renames: another process sees all or
        nothing."""
        shape = tuple(clip.frames.shape[1:])
        records = np.empty(len(clip.frames), dtype=[("time", "<f8"), ("frame", "u1", shape)])
        records["time"], records["frame"] = clip.times.numpy(), clip.frames.numpy()
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file, shared=True) as unfinished:
                np.save(unfinished, records)
        except OSError as error:
            raise DataError(
                f"the frame cache {self.folder} cannot be written ({error.strerror}); choose another "
                "data.cache_dir, or data.cache none"
            ) from error


class MemoryCache:
    """Frames in a few large blocks that worker processes share: inherited by fork, or moved to shared memory
    once per block (a tensor per video would run out of file descriptors)."""

    def __init__(self, block_bytes: int = 2**28) -> None:
        self._block_bytes = block_bytes
        self._blocks: list[Tensor] = []
        self._used = 0  # bytes used of the last block
        self._places: dict[int, tuple[int, int, torch.Size, np.ndarray]] = {}
        self.failures: dict[int, str] = {}  # videos that cannot be read, and why

    def store(self, index: int, clip: Clip) -> None:
        size = clip.frames.numel()
        if not self._blocks or self._used + size > self._blocks[-1].numel():
            self._blocks.append(torch.empty(max(size, self._block_bytes), dtype=torch.uint8))
            self._used = 0
        self._blocks[-1][self._used : self._used + size] = clip.frames.reshape(-1)
        self._places[index] = (
            len(self._blocks) - 1,
            self._used,
            clip.frames.shape,
            clip.times.numpy().copy(),
        )
        self._used += size

    def load(self, index: int) -> Clip | None:
        """The frames, as a view that must not be written to."""
        slot = self._places.get(index)
        if slot is None:
            return None
        block, start, shape, times = slot
        return Clip(self._blocks[block][start : start + shape.numel()].view(shape), torch.from_numpy(times))

    def __len__(self) -> int:
        return len(self._places) + len(self.failures)
