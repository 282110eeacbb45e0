"""How a run stops on a signal: SIGTERM (schedulers, spot machines), SIGUSR1 (Slurm), SIGINT (Ctrl-C)."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name))
"""Where processes were sent different ones, all act on the one that stands first."""

PATIENCE = 25.0
"""Seconds from the first signal to the end at the latest; torchrun and Slurm kill after 30."""


class Stopped(BaseException):
    """The run was asked to stop. Not an Exception, as KeyboardInterrupt is none: no reader of videos may catch it."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def exit_code(self) -> int:
        """As a shell counts it: 143, 138 or 130."""
        return 128 + self.number


class Signals:
    """Listens to ``STOP_SIGNALS`` while it is entered, in the main thread; elsewhere they keep their meaning.

    A signal raises `Stopped` in the running code; within `deferred` it is only noted. A second signal ends the process
    at once, and so does the end of ``PATIENCE``. A separate thread listens, as Python's own handlers run only between
    two operations and would wait for a blocked one.

    Args:
        last_words: called before such an end with a sentence on why, in that thread.
    """

    def __init__(self, last_words: Callable[[str], None] = lambda sentence: None):
        self.received = 0  # the first
        self.last_words = last_words
        self._deferred = False
        self._before: dict[int, object] = {}
        # torchrun passes on what its process group has been sent already
        self._same = 2.0 if "TORCHELASTIC_RUN_ID" in os.environ else 0.2

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self._reading, self._writing = socket.socketpair()
            self._writing.setblocking(False)
            self._before = {number: signal.signal(number, self._handle) for number in STOP_SIGNALS}
            self._fd_before = signal.set_wakeup_fd(self._writing.fileno(), warn_on_full_buffer=False)
            self._thread = threading.Thread(target=self._listen, daemon=True, name="signals")
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._before:
            return
        signal.set_wakeup_fd(self._fd_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._writing.send(b"\0")  # closing it ends nothing: data workers have it open too
        self._thread.join()
        self._writing.close()
        self._reading.close()

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within, a signal is remembered in ``received`` and the caller stops in good order."""
        with self._deferring(True):
            yield

    @contextmanager
    def immediate(self) -> Iterator[None]:
        """Within `deferred`: a signal raises here, one that was remembered too."""
        with self._deferring(False):
            self.raise_if()
            yield

    def raise_if(self, condition: bool = True) -> None:
        """Raises Stopped where a signal was remembered, if the condition holds."""
        if self.received and condition:
            raise Stopped(self.received)

    @contextmanager
    def _deferring(self, yes: bool) -> Iterator[None]:
        before, self._deferred = self._deferred, yes
        try:
            yield
        finally:
            self._deferred = before

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again, self.received = self.received, self.received or number
        if not self._deferred and not again:
            raise Stopped(number)

    def _listen(self) -> None:
        first, name, begun = 0, "", 0.0
        while True:
            try:
                self._reading.settimeout(max(0.0, begun + PATIENCE - time.monotonic()) if first else None)
                number = ord(self._reading.recv(1) or b"\0")
            except TimeoutError:
                self._end(first, f"{name} came {PATIENCE:g} s ago and the step in hand is not done")
            if not number:
                return
            if number not in STOP_SIGNALS:  # of children, of timers
                continue
            if not first:
                first, name, begun = number, signal.Signals(number).name, time.monotonic()
            elif time.monotonic() - begun > self._same:
                self._end(first, f"{signal.Signals(number).name} came a second time")

    def _end(self, number: int, why: str) -> None:
        try:
            self.last_words(why)
        finally:
            sys.stderr.flush()
            os._exit(128 + number)


def end_soon(exit_code: int, seconds: float = 10.0) -> None:
    """Once the main thread is done the process ends within some seconds, though a data worker that hangs in a decoder
    would be waited for."""

    def end() -> None:
        threading.main_thread().join()
        time.sleep(seconds)
        os._exit(exit_code)

    threading.Thread(target=end, daemon=True, name="end soon").start()
