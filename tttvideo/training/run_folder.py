"""The run folder: settings, labels, logs. Log lines are written so that a resumed run continues them exactly.

R/config.yaml    the whole configuration
R/labels.json    class names in the order of the model's outputs
R/log.jsonl      one line per epoch
R/steps.jsonl    one line per optimizer step
R/console.log    what the run said, with times; a resumed run goes on below
R/run.lock       while a run writes here, see lock.py
R/start.json     of a run with --init_from: which tensors were loaded, resized and left
R/skipped.csv    videos that could not be read, each once, with the reason
R/checkpoints/   see checkpoint.py
R/tensorboard/   event files
"""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError

from .. import strict_yaml
from ..files import parse_json, write_text
from ..printing import cell, printable
from ..video.index import Index
from .config import ConfigError
from .position import CHECKPOINT_NAME

FILES = ("config.yaml", "labels.json", "log.jsonl", "steps.jsonl", "console.log", "run.lock", "skipped.csv")
FILES += ("checkpoints/index.json",)


class StorageError(OSError):
    """A file of the run cannot be written; the message is one sentence: which, why, what to do."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Whatever goes wrong in writing a file or folder, in whichever library, becomes a `StorageError`."""
    try:
        yield
    except StorageError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and not re.search("inline_container|PytorchStreamWriter", str(error)):
            raise
        reason = (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split())
        if _is_full(path):  # libraries hide it behind words of their own
            reason = os.strerror(errno.ENOSPC)
        todo = "make room there" if reason in map(os.strerror, (errno.ENOSPC, errno.EDQUOT)) else "mend that"
        if isinstance(error, (IsADirectoryError, NotADirectoryError, FileExistsError)) and error.filename:
            todo = f"move {error.filename2 or error.filename} away"  # what a name is given to stands in the way
        raise StorageError(
            f"{path} cannot be written ({reason}); {todo}, and continue with the same command and --resume auto"
        ) from error


def _is_full(path: Path) -> bool:
    existing = next(p for p in (path, *path.absolute().parents) if p.exists())
    return shutil.disk_usage(existing).free < 2**12


class JsonLines:
    """A file of JSON objects, one a line, appended to and cut back on resume."""

    def __init__(self, path: Path):
        self.path = path
        self._file: Any = None

    def read(self, key: str) -> list[dict[str, Any]]:
        """All whole lines; what a kill left of a half-written last line is passed over.

        Args:
            key: whole number that every line has.

        Raises:
            ConfigError: a whole line is of something else.
        """
        lines: list[dict[str, Any]] = []
        *texts, _torn = self.path.read_bytes().split(b"\n") if self.path.exists() else [b""]
        for number, text in enumerate(texts, start=1):
            try:
                line = parse_json(text)
                whole = isinstance(line, dict) and type(line.get(key)) is int
            except ValueError:
                whole = False
            if not whole:
                raise ConfigError(
                    f"{self.path} is damaged: line {number} is no line of a run, which has a whole number as "
                    f"{key!r}; delete that line and start again"
                )
            lines.append(line)
        return lines

    def cut(self, key: str, last: int) -> str:
        """Keep the lines whose `key` is at most `last`; returns a sentence if some of those are missing, or ""."""
        kept = [line for line in self.read(key) if line[key] <= last]
        with writing(self.path):
            write_text(self.path, "".join(_json(line) + "\n" for line in kept), durable=True)
        missing = sorted(set(range(1, last + 1)) - {line[key] for line in kept})
        if not missing:
            return ""
        return f"{self.path} lacks {len(missing)} of {last} lines (first: {key} {missing[0]}); its curve has a gap"

    def append(self, line: dict[str, Any]) -> None:
        with writing(self.path):
            if self._file is None:
                self._file = self.path.open("ab")
            self._file.write((_json(line) + "\n").encode(errors="backslashreplace"))
            self._file.flush()  # the kernel has it: a killed process loses nothing

    def sync(self) -> None:
        """Flush to disk, so that the lines survive a crash of the machine (before a checkpoint that relies on
        them)."""
        if self._file is not None:
            with writing(self.path):
                os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # of a full disk, which append has told
                self._file.close()
            self._file = None


class Console:
    """What a run says, a line each with its time; kept back until the folder is the run's."""

    def __init__(self, path: Path):
        self.path = path
        self._waiting: list[str] | None = []

    def begin(self) -> None:
        waiting, self._waiting = self._waiting or (), None
        for line in waiting:
            self._write(line)

    def append(self, sentence: str) -> None:
        line = f"{datetime.now():%Y-%m-%d %H:%M:%S}  {printable(sentence)}\n"
        if self._waiting is None:
            self._write(line)
        else:
            self._waiting.append(line)

    def _write(self, line: str) -> None:
        with writing(self.path), self.path.open("ab") as file:
            file.write(line.encode(errors="backslashreplace"))


class Skipped(NamedTuple):
    """A video, or the seconds [start, end) of one, that could not be read."""

    path: str
    reason: str
    start: float | None = None
    end: float | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells it from others, as it stands in the file."""
        start, end = ("" if second is None else str(second) for second in (self.start, self.end))
        return cell(self.path), start, end


def _json(line: dict[str, Any]) -> str:
    """One line of JSON; NaN and infinities become null, as JSON has none."""
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
    return json.dumps(finite, allow_nan=False)


def _is_there(path: Path) -> bool:
    """Whether a name is taken, by a link that leads nowhere too."""
    return path.exists() or path.is_symlink()


class RunFolder:
    """Opens R for a new or a resumed run. Only the main process writes through it.

    Raises:
        ConfigError: no folder given, or it already holds a run and `resume` is False.
    """

    def __init__(self, out: str | None, *, resume: bool):
        if out is None:
            raise ConfigError("say where the run goes: --out FOLDER")
        self.path = Path(out)
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"out: {self.path} is a file, not a folder")
        for folder in (self.path, *self.path.parents):
            if _is_there(folder) and not folder.is_dir():
                kind = "a file" if folder.exists() else "a link that leads nowhere"
                raise ConfigError(f"out: {self.path} cannot be made, as {folder} is {kind}")
        self.resume = resume
        self._refuse_other_kinds()
        self.refuse_second()
        self.log = JsonLines(self.path / "log.jsonl")
        self.steps = JsonLines(self.path / "steps.jsonl")
        self.console = Console(self.path / "console.log")
        self._skipped_file = self.path / "skipped.csv"
        self._skipped: set[tuple[str, str, str]] | None = None

    def _refuse_other_kinds(self) -> None:
        """Raises ConfigError where a folder stands in a file's place, or a file in a folder's."""
        files = [self.path / name for name in FILES]
        folders = [self.path / name for name in ("checkpoints", "tensorboard")]
        folders += [path for path in self.checkpoints.glob("step-*") if CHECKPOINT_NAME.fullmatch(path.name)]
        for path in files + folders:
            expected = "file" if path in files else "folder"
            if _is_there(path) and not (path.is_file() if path in files else path.is_dir()):
                kind = "a folder" if path.is_dir() else "a file" if path.is_file() else "neither file nor folder"
                kind = "a link that leads nowhere" if not path.exists() else kind
                raise ConfigError(
                    f"{path} is damaged: expected a {expected}, got {kind}; move it away, and start again (what the "
                    "run needs of it is written anew)"
                )

    def refuse_second(self) -> None:
        """Raises ConfigError where a new run would overwrite another."""
        if self.holds_run and not self.resume:
            raise ConfigError(f"{self.path} already holds a run: continue it with --resume auto, or give another --out")

    @property
    def holds_run(self) -> bool:
        return any(_is_there(self.path / name) for name in ("config.yaml", "log.jsonl", "checkpoints"))

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def begin(self, yaml: str, *, epoch: int, step: int) -> list[str]:
        """Write the settings and cut the logs back to a position: `epoch` epochs and `step` steps are
        done. Returns notes on missing lines."""
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        with writing(self.path / "config.yaml"):
            write_text(self.path / "config.yaml", yaml, durable=True)
        self.console.begin()
        return [note for note in (self.log.cut("epoch", epoch), self.steps.cut("step", step)) if note]

    def skip(self, split: str, failures: Iterable[Skipped]) -> list[Skipped]:
        """List unreadable videos in skipped.csv, each once (of one file, each part); returns the new ones."""
        if self._skipped is None:
            self._skipped = self._read_skipped() if self._skipped_file.exists() else set()
        new = [
            video
            for key, video in {v.key: v for v in (Skipped(*failure) for failure in failures)}.items()
            if key not in self._skipped
        ]
        if new:
            fresh = not self._skipped_file.exists()
            with (
                writing(self._skipped_file),
                self._skipped_file.open("a", newline="", encoding="utf-8", errors="backslashreplace") as file,
            ):
                writer = csv.writer(file)
                if fresh:
                    writer.writerow(["path", "split", "reason", "start", "end"])
                writer.writerows((v.key[0], split, cell(v.reason), *v.key[1:]) for v in new)
            self._skipped.update(v.key for v in new)
        return new

    def _read_skipped(self) -> set[tuple[str, str, str]]:
        try:
            with self._skipped_file.open(newline="", encoding="utf-8") as file:
                # the file of a run begun earlier may have no start and end
                cells = ([row.get(name) or "" for name in ("path", "start", "end")] for row in csv.DictReader(file))
                return {(path, start, end) for path, start, end in cells if path}
        except (csv.Error, ValueError) as error:
            raise ConfigError(
                f"{self._skipped_file} is damaged ({error}); delete it and start again: videos that cannot be read "
                "are listed anew"
            ) from None

    def sync(self) -> None:
        self.log.sync()
        self.steps.sync()

    def close(self) -> None:
        self.log.close()
        self.steps.close()


def fingerprint(index: Index) -> str:
    """Changes when the videos of a split, their order or their labels change; not when the folder moves."""
    rows = [(Path(v.path).name, v.label, v.start, v.end) for v in index.videos]
    return hashlib.sha256(repr((rows, index.labels)).encode()).hexdigest()[:16]


def changed_settings(old: Path, new_yaml: str) -> list[str]:
    """`key: old -> new` for settings of a resumed run that change its curve (unlike where it reads and
    writes)."""
    harmless = ("out", "resume", "trackers", "log_every", "processes", "checkpoint", "data.root", "data.list")
    harmless += ("data.workers", "data.cache", "data.cache_dir", "data.time_limit")
    if not old.exists():
        return []
    changes: list[str] = []

    def compare(key: str, a: Any, b: Any) -> None:
        if key in harmless:
            return
        if a is None and isinstance(b, dict):
            a = {}  # a group of settings that the run began without
        if isinstance(a, dict) and isinstance(b, dict):
            for name in {**a, **b}:
                compare(f"{key}.{name}" if key else name, a.get(name), b.get(name))
        elif a != b:
            changes.append(f"{key}: {a} -> {b}")

    try:
        before = strict_yaml.load(old.read_text(encoding="utf-8"))
    except ValueError:
        before = None
    if not isinstance(before, dict):
        return [f"perhaps something, as {old} is damaged; it is written anew"]
    compare("", before, strict_yaml.load(new_yaml))
    return changes
