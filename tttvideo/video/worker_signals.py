"""Data workers ignore the signals of their process group and end with the process that they read for."""

import ctypes
import os
import signal
import sys
import threading


def follow(parent: int, worker: int) -> None:
    """Make this data worker ignore requests to stop, and end with the process `parent`, however that ends.

    A scheduler's SIGTERM and a terminal's Ctrl-C reach the whole process group; the training process still needs its
    workers for the step that it finishes, and ends them afterwards. `worker` is its number, which nothing depends on.
    """
    signal.set_wakeup_fd(-1)  # inherited by fork: what this process is sent is not the parent's
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS; torch's own handler of SIGTERM stays there
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_obey, args=(parent,), daemon=True, name="signals").start()
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def _obey(parent: int) -> None:
    """SIGTERM is obeyed if `parent` sent it: that is how multiprocessing ends its processes."""
    while True:
        if signal.sigwaitinfo([signal.SIGTERM]).si_pid == parent:
            os._exit(0)
