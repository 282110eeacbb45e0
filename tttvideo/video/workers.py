"""Processes that read ahead, in the one place where they are made: `WorkerLoader`.

A DataLoader by itself waits for ever where /dev/shm is full, where a decoder does not return, and where a worker was
killed in the middle of a message. Here each of these is a sentence that names the file.
"""

import ctypes
import errno
import multiprocessing.queues
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.sharedctypes import RawArray
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from ..printing import printable
from .listfile import DataError
from .worker_signals import follow

TIME_LIMIT = 1800.0
"""Seconds that a worker may take for one video; a two-hour film at 300 frames/s takes 720."""

PREFETCH = 2  # items that are made ahead in each worker
_NO_ROOM = 73  # exit code of a worker that finds /dev/shm full
_NAME_BYTES = 512
_PAGE = 4096


class DataWorkerError(OSError):
    """A data worker ended, or did not get on; the message is one sentence: what happened, at which file, what to do."""


class DataNote(UserWarning):
    """Something that the user should know of how data are read; one sentence."""


class WorkerLoader(DataLoader):
    """A DataLoader that cannot hang, and whose items need no more of /dev/shm than there is.

    An item (the result of `collate`) reaches the training process through shared memory if half of /dev/shm holds
    (workers x (PREFETCH + 1) + 1) of its size, else as arrays through a pipe; a note says so once. Only tensors in
    (named) tuples are moved this way.

    Args:
        dataset: has ``name(item)``, the name of an item in messages. An iterable one has ``reading``, a function that
            it calls with the name of the file it reads next (None without workers).
        workers: processes that read; 0: read in this one, where nothing watches over time. Where /dev/shm has no room
            even for the locks of so many, none are made, and that is said.
        collate: of the items of a batch; without `batch_sampler`, of the one item.
        time_limit: seconds that a worker may take for one item of the dataset.

    Raises:
        DataWorkerError: while iterating: a worker was killed, crashed, took too long, or could not hand over an item.
        DataError, OSError: while iterating: what the dataset raised.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        workers: int = 0,
        collate: Callable[[Any], Any] | None = None,
        time_limit: float = TIME_LIMIT,
        **options: Any,
    ) -> None:
        free = _free_shared_memory()
        if free is not None and workers and free < 2 * _PAGE * (3 * workers + 8):  # two loaders live at a time
            warnings.warn(
                f"/dev/shm has {_size(free)} free, too little for {workers} data workers: frames are read by this "
                "process (docker run --shm-size=1g gives more)",
                DataNote,
                stacklevel=3,
            )
            workers = 0
        self._time_limit = time_limit
        self._reading = [RawArray(ctypes.c_char, _NAME_BYTES) for _ in range(workers)]  # names of the items in hand
        share = None if free is None or not workers else free // 2 // (workers * (PREFETCH + 1) + 1)
        self._collate, self._share, self._note_given = collate, share, False
        if workers:
            watched = _WatchedStream if isinstance(dataset, IterableDataset) else _Watched
            dataset = watched(dataset, self._reading, time_limit)
            options["prefetch_factor"] = PREFETCH
        else:
            options |= {"multiprocessing_context": None, "persistent_workers": False}
        super().__init__(
            dataset,
            num_workers=workers,
            collate_fn=_HandOver(collate, share),
            worker_init_fn=partial(_begin_worker, os.getpid()) if workers else None,
            generator=torch.Generator(),  # without it the global one is drawn from, which shifts dropout
            **options,
        )

    def __iter__(self) -> Any:
        begun = self._watch(super().__iter__, None)
        return self._items(begun)

    def _items(self, batches: Any) -> Iterator[Any]:
        while True:
            try:
                item = self._watch(batches.__next__, batches)
            except StopIteration:
                return
            if isinstance(item, _Failed):
                item.reraise()
            if isinstance(item, _Arrays):
                self._say_slow(item.size)
                item = _mapped(item.content, np.ndarray, torch.from_numpy)
            yield item

    def _watch(self, step: Callable[[], Any], batches: Any) -> Any:
        """`step()`; the death of a worker of `batches` ends it at once, wherever it waits.

        It cannot be left to torch: its signal handler raises anywhere in the program (and may be swallowed there), and
        a read of a message that a killed worker left unfinished never ends.
        """
        if not self.num_workers:
            return step()
        if batches is None:
            batches = self._iterator  # persistent workers that begin another epoch
        here = threading.current_thread() is threading.main_thread()
        before = signal.getsignal(signal.SIGCHLD) if here else None
        try:
            if here:
                signal.signal(signal.SIGCHLD, lambda *_: self._check(batches))
            self._check(batches)
            return step()
        except (RuntimeError, OSError, EOFError) as error:
            if not isinstance(error, DataWorkerError):
                self._explain(error, batches)
            raise
        finally:
            if here:  # torch's handler too goes
                signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)

    def _check(self, batches: Any) -> None:
        """Raises DataWorkerError if a worker has ended by itself."""
        workers = getattr(batches, "_workers", [])
        for number, worker in enumerate(workers):
            if worker.exitcode:  # 0: nothing was left to read
                self._abandon(batches)
                raise DataWorkerError(self._obituary(number, worker.pid, worker.exitcode))

    def _explain(self, error: Exception, batches: Any) -> None:
        """Raises the DataWorkerError behind a failure of the machinery, if there is one."""
        for _ in range(20):  # the connection breaks a moment before the process has ended
            self._check(batches)
            time.sleep(0.05)
        if "shared memory" in str(error) or getattr(error, "errno", None) == errno.ENOSPC:
            self._abandon(batches)
            raise DataWorkerError(self._full()) from error
        if "DataLoader worker" in str(error):
            self._abandon(batches)
            raise DataWorkerError(f"a data worker ended without a word ({error})") from error

    def _abandon(self, batches: Any) -> None:
        """Ends all workers; what one of them left locked or half written must not be waited for."""
        workers = getattr(batches, "_workers", [])
        for worker in workers:
            worker.kill()
        if workers and self.pin_memory:  # torch would wait for a thread that waits for the rest of a message
            batches._shutdown = True
        self._iterator = None

    def _obituary(self, number: int, pid: int, code: int) -> str:
        name = self._reading[number].value.decode(errors="replace")
        where = f" while it read {name}" if name else ""
        fewer = f"use fewer data workers (now {self.num_workers})"
        if code == _NO_ROOM:
            return self._full()
        if code == -signal.SIGALRM:
            return (
                f"data worker {number} took more than {self._time_limit:g} s{where}; leave that file out, convert it, "
                "or raise data.time_limit"
            )
        if code in (-signal.SIGKILL, -signal.SIGTERM):
            return (
                f"data worker {number} (process {pid}) was killed by {_signal(code)}{where}, as happens where memory "
                f"runs out; {fewer}, smaller batches or shorter clips, or give it more memory"
            )
        if code == -signal.SIGBUS:
            return self._full()
        if code < 0:
            return (
                f"data worker {number} (process {pid}) crashed with {_signal(code)}{where}; if that file did it, leave "
                "it out or convert it"
            )
        return f"data worker {number} (process {pid}) ended with exit code {code}{where}; try with data workers 0"

    def _full(self) -> str:
        free = _free_shared_memory()
        has = "" if free is None else f", which has {_size(free)} free"
        return (
            f"a data worker found no room in /dev/shm{has}; give it more (docker run --shm-size=1g), or use fewer data "
            f"workers (now {self.num_workers}) or 0"
        )

    def _say_slow(self, size: int) -> None:
        if not self._note_given:
            self._note_given = True
            warnings.warn(
                f"/dev/shm has {_size(_free_shared_memory() or 0)} free, too little for batches of {_size(size)} from "
                f"{self.num_workers} data workers: they go through a pipe, which is slower (docker run --shm-size=1g "
                "gives more)",
                DataNote,
                stacklevel=5,
            )


class _Arrays(NamedTuple):
    """What an item travels as where it may not use shared memory."""

    content: Any  # with arrays in the place of tensors
    size: int  # bytes


class _Failed(NamedTuple):
    """An error of the dataset that a file, a disk or memory can cause."""

    system: bool  # OSError
    message: str
    where: str  # traceback, for those who ask for it

    def reraise(self) -> None:
        error = (OSError if self.system else DataError)(self.message)
        error.add_note(self.where)
        raise error


class _HandOver:
    """Collates in the worker, and chooses the way to the training process."""

    def __init__(self, collate: Callable[[Any], Any] | None, share: int | None) -> None:
        self.collate, self.share = collate, share

    def __call__(self, items: Any) -> Any:
        if get_worker_info() is None:
            return self.collate(items) if self.collate else items
        for item in items if isinstance(items, list) else [items]:
            if isinstance(item, _Failed):
                return item
        with _caught() as failed:
            item = self.collate(items) if self.collate else items
            size = sum(-(-t.untyped_storage().nbytes() // _PAGE) * _PAGE for t in _tensors(item))
            if self.share is None or size <= self.share:
                return item
            return _Arrays(_mapped(item, Tensor, Tensor.numpy), size)
        return failed[0]


class _Watched(Dataset):
    """The dataset in a worker: says what it reads, within a time limit, and gives its failures as items."""

    def __init__(self, dataset: Any, reading: Sequence[Any], time_limit: float) -> None:
        self.dataset, self._reading, self.time_limit = dataset, reading, time_limit

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: Any) -> Any:
        with _caught() as failed:
            self.reading(self.dataset.name(item))
            with self._limit():
                sample = self.dataset[item]
            self.reading("")
            return sample
        return failed[0]

    def reading(self, name: str) -> None:
        info = get_worker_info()
        assert info is not None
        self._reading[info.id].value = printable(name).encode()[: _NAME_BYTES - 1]

    @contextmanager
    def _limit(self) -> Iterator[None]:
        # The signal is not handled, so it ends the process: a decoder that does not return lets no handler run.
        signal.setitimer(signal.ITIMER_REAL, self.time_limit)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


class _WatchedStream(_Watched, IterableDataset):
    def __iter__(self) -> Iterator[Any]:
        self.dataset.reading = self.reading
        items, end = iter(self.dataset), object()
        item: Any = None
        while item is not end:
            with _caught() as failed, self._limit():
                item = next(items, end)
            if failed:
                yield failed[0]
                return
            if item is not end:
                yield item
        self.reading("")


@contextmanager
def _caught() -> Iterator[list[_Failed]]:
    """Collects an error that data can cause; any other is a mistake of ours and keeps its traceback."""
    failed: list[_Failed] = []
    try:
        yield failed
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        message = " ".join(str(error).split())
        if isinstance(error, MemoryError) or "allocate memory" in message:
            message = (
                f"a data worker ran out of memory ({message or 'MemoryError'}); use smaller batches, fewer workers"
            )
        elif isinstance(error, RuntimeError):
            raise
        elif isinstance(error, OSError) and error.strerror:
            message = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        failed.append(_Failed(isinstance(error, OSError), message, traceback.format_exc()))


def _begin_worker(parent: int, worker: int) -> None:
    follow(parent, worker)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    # Made for overriding; as it is, it prints a traceback, and the training process waits for ever.
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_cannot_hand_over)  # type: ignore[attr-defined]


def _cannot_hand_over(error: Exception, item: Any) -> None:
    if "shared memory" in str(error) or getattr(error, "errno", None) == errno.ENOSPC:
        os._exit(_NO_ROOM)
    traceback.print_exception(error)
    os._exit(1)


def _mapped(item: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """The item with everything of a kind in it, at any depth of tuples, changed."""
    if isinstance(item, kind):
        return change(item)
    if isinstance(item, tuple):
        parts = [_mapped(part, kind, change) for part in item]
        return type(item)._make(parts) if hasattr(item, "_make") else tuple(parts)  # type: ignore[attr-defined]
    return item


def _tensors(item: Any) -> Iterator[Tensor]:
    if isinstance(item, Tensor):
        yield item
    elif isinstance(item, tuple):
        for part in item:
            yield from _tensors(part)


def _free_shared_memory() -> int | None:
    """Bytes of /dev/shm for each of the processes started side by side here; None where there is none to run out of."""
    if sys.platform != "linux":
        return None
    try:
        room = os.statvfs("/dev/shm")
    except OSError:
        return 0
    return room.f_bavail * room.f_frsize // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1") or 1))


def _size(count: int) -> str:
    return f"{count / 1e6:.0f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def _signal(code: int) -> str:
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
