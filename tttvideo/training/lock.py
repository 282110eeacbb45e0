"""One run folder, one run: a file that names the process that writes there, kept fresh while it lives."""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ..files import parse_json
from .config import ConfigError
from .run_folder import writing

Item = TypeVar("Item")

REFRESH = 10.0  # seconds between two signs of life
STALE = 60.0  # seconds without one, by the folder's own clock, after which a lock is taken over
NAME = "run.lock"


class RunLock:
    """The lock of a run folder. The folder is created if necessary, and removed again if it stays empty.

    Times are those of files written in the folder: hosts that share it may have other clocks.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.path = folder / NAME
        self._mine: bytes | None = None
        self._looked = 0.0  # when it was ours for the last time
        self._missing: list[Path] = []  # folders that are made for the lock, innermost first
        self._released = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self) -> str | None:
        """Take the lock.

        Returns:
            A note where that of a run that ended without releasing it was taken over, or None.

        Raises:
            ConfigError: another run holds it.
            StorageError: the folder cannot be written to.
        """
        with writing(self.path):
            return self._take()

    def _take(self) -> str | None:
        self._missing = [p for p in (self.folder, *self.folder.parents) if not p.exists()]
        self.folder.mkdir(parents=True, exist_ok=True)
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "token": secrets.token_hex(8)}
        if process := _process(os.getpid()):
            owner |= {"machine": process.machine, "started": process.started}
        mine = (json.dumps(owner) + "\n").encode()
        with _one_at_a_time(self.folder):
            note = self._judge()
            if not self._create(mine):  # another start was faster
                raise ConfigError(f"another run has begun in {self.folder} just now; give another --out")
        self._mine, self._looked = mine, time.monotonic()
        self._thread = threading.Thread(target=self._refresh, daemon=True, name="run lock")
        self._thread.start()
        return note

    def release(self) -> None:
        """Remove the lock, if it is still ours, and the folders created for it, if they are otherwise empty."""
        self._released.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        mine, self._mine = self._mine, None
        with suppress(OSError):
            if mine is not None and self.path.read_bytes() == mine:
                self.path.unlink()
        with suppress(OSError):
            for folder in self._missing:
                folder.rmdir()

    def check(self) -> None:
        """Raises ConfigError if the lock is not this run's any more: the folder was removed, or taken over."""
        if self._mine is None:
            return
        try:
            now = self.path.read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise ConfigError(
                f"{self.path} is gone: another run has ended there, or somebody removed the file or the whole folder; "
                "start again with --resume auto, or with another --out"
            ) from None
        if now != self._mine:
            raise ConfigError(
                f"{self.folder} was taken over by {_named(_owner(now))}, as this run gave no sign of life for "
                f"{STALE:g} s; this run stops"
            )
        self._looked = time.monotonic()

    def is_ours(self) -> bool:
        """Whether the folder is still this run's; read anew."""
        try:
            self.check()
        except (ConfigError, OSError):
            return False
        return True

    def check_before_writing(self) -> None:
        """`check`, unless the lock was ours within the last ``REFRESH`` seconds: cheap enough for every line.

        A run that was suspended, and taken over from meanwhile, thus writes nothing when it goes on.
        """
        if time.monotonic() - self._looked > REFRESH:
            with suppress(OSError):  # of a disk that hangs: the writing itself tells
                self.check()

    def while_ours(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items; `check_before_writing` runs before each is handed on."""
        for item in items:
            self.check_before_writing()
            yield item

    def _judge(self) -> str | None:
        """Removes a lock that nobody holds any more; the note on it. Raises ConfigError if somebody does."""
        try:
            content, changed = self.path.read_bytes(), self.path.stat().st_mtime
        except FileNotFoundError:
            if self.path.is_symlink():
                raise ConfigError(f"{self.path} is a link that leads nowhere; move it away, and start again") from None
            return None
        owner, age = _owner(content), self._now() - changed
        if _has_ended(owner):
            why = "has ended"
        elif abs(age) > STALE:
            why = f"gave no sign of life for {abs(age):.0f} s"
        else:
            raise ConfigError(
                f"{self.folder} is being written to by {_named(owner)}; stop that run first, or give another --out "
                f"(if it is dead, its lock {NAME} lapses {STALE:g} s after its last sign of life, {age:.0f} s ago)"
            )
        aside = self.path.with_name(f".{NAME}.{secrets.token_hex(4)}")
        self.path.rename(aside)
        if aside.read_bytes() != content:  # of a faster start, where the folder cannot be locked
            with suppress(OSError):
                os.link(aside, self.path)
            aside.unlink()
            raise ConfigError(f"another run has begun in {self.folder} just now; give another --out")
        aside.unlink()
        return f"{_named(owner)} {why}: its lock on the folder is taken over"

    def _now(self) -> float:
        """The folder's own clock."""
        probe = self.path.with_name(f".{NAME}.{secrets.token_hex(4)}")
        probe.write_bytes(b"")
        try:
            return probe.stat().st_mtime
        finally:
            probe.unlink()

    def _create(self, mine: bytes) -> bool:
        """Creates the lock with this content, atomically; False if there is one already."""
        whole = self.path.with_name(f".{NAME}.{secrets.token_hex(4)}")
        whole.write_bytes(mine)
        try:
            os.link(whole, self.path)
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            try:
                with self.path.open("xb") as file:
                    file.write(mine)
            except FileExistsError:
                return False
        finally:
            whole.unlink()
        return True

    def _refresh(self) -> None:
        while not self._released.wait(REFRESH):
            try:
                self.check()
            except (ConfigError, OSError):  # the run finds out by itself; what is another's is not touched
                continue
            with suppress(OSError), self.path.open("r+b") as file:
                if file.read() == self._mine:  # a taker makes another file: its content is never overwritten
                    file.seek(0)
                    file.write(self._mine)


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Runs that start at the same time take turns, where the file system has locks; a lock ends with its process."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


class _Process(NamedTuple):
    """What tells a process from any other, of any machine and any time."""

    machine: str
    started: int  # clock ticks since the machine's start
    state: str  # Z and X: it has ended


def _process(pid: int) -> _Process | None:
    """The process of that number; None where there is none, or the system does not tell."""
    try:
        # after the name in brackets: the state is field 3, the start is field 22
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        machine = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        machine += " " + os.readlink("/proc/self/ns/pid")  # containers of one machine count processes each for itself
        return _Process(machine, int(fields[19]), fields[0])
    except (OSError, ValueError, IndexError):
        return None


def _owner(content: bytes) -> dict[str, Any]:
    """What a lock says; empty if it is damaged."""
    try:
        owner = parse_json(content)
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _has_ended(owner: dict[str, Any]) -> bool:
    """Whether a lock's process has certainly ended: it ran on this machine and no longer exists."""
    here, pid = _process(os.getpid()), owner.get("pid")
    if here is None or owner.get("machine") != here.machine or type(pid) is not int or pid < 1:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:  # it is there, of another user
        return False
    process = _process(pid)
    return process is not None and (process.started != owner.get("started") or process.state in ("Z", "X"))


def _named(owner: dict[str, Any]) -> str:
    return f"process {owner['pid']} on {owner.get('host')}" if "pid" in owner else "a process whose lock is damaged"
