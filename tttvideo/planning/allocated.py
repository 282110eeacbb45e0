"""How much memory tensors take at once."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

_MMAP_THRESHOLD = -3  # glibc's M_MMAP_THRESHOLD: larger blocks are the kernel's, and go back to it

_NOISE = 2**26  # less may be Python's own


def bytes_of(tensors: Iterable[Any]) -> int:
    """Of all that are tensors; those that share their numbers count once."""
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors if isinstance(t, Tensor)}
    return sum(storages.values())


def peak_beyond(step: Callable[[], Any], device: torch.device) -> int:
    """Bytes of all that a step has in memory at once at most, beside what was there before.

    On a GPU that is what its allocator counts. On CPU the results of all operations are followed to their end, those of
    the backward pass too; what a convolution allocates and frees within itself is seen only where the kernel tells how
    much of a process was in memory at most (Linux): the larger figure counts.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    before = _restart_resident_peak()
    with Results() as results:
        step()
    resident = _resident("VmHWM") - before
    return max(results.peak, resident if resident > _NOISE else 0)


def _restart_resident_peak() -> int:
    """Bytes in memory now; from here on the kernel keeps the peak. Blocks that are freed leave the process at once, as
    they would hide in later peaks. 2**62 where this system does not tell."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 2**16)
        Path("/proc/self/clear_refs").write_text("5")
        return _resident("VmRSS")
    return 2**62


def _resident(name: str) -> int:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return 1024 * int(line.split()[1])
    return 0


class Results(TorchDispatchMode):
    """Bytes of the storages that are made inside, now and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, weakref.finalize] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        taken = {x.untyped_storage()._cdata for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        results = func(*args, **(kwargs or {}))
        for result in pytree.tree_leaves(results):
            if isinstance(result, Tensor) and result.untyped_storage()._cdata not in taken | self._alive.keys():
                self._add(result.untyped_storage())
        return results

    def _add(self, storage: torch.UntypedStorage) -> None:
        size, key = storage.nbytes(), storage._cdata
        self._alive[key] = weakref.finalize(storage, self._free, key, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _free(self, key: int, size: int) -> None:
        self.now -= size
        self._alive.pop(key, None)
