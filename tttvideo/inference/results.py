"""Rows of results in a file that grows: each is written whole when it is there, and a second call goes on."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..files import parse_json
from ..printing import cell, from_cell, json_text, printable
from ..video.index import Video

_LOCKS = 2**40
"""Bytes of the file from here on are not there, but can be locked: one for each process that writes."""

Key = tuple[str, float | None, float | None]


def key_of(path: str, start: float | None, end: float | None) -> Key:
    """What tells a video, or a part of one, from the others."""
    return os.path.abspath(printable(path)), start, end


class Results:
    """A file of rows, ``.jsonl`` or ``.csv``, that several processes may write to.

    A row is added by one system call under a lock: whatever ends the process, rows that were written stay, and of the
    one in hand there is all or nothing (a torn end is cut off when the file is opened again).

    Args:
        path: the file; made if it is not there.
        columns: of a CSV file, in order, ``path``, ``start``, ``end`` and those of ``same`` among them.
        same: what all rows of a file must have in common.
        rank: of this process, among those that write to the file together.

    Raises:
        ValueError: for another kind of file, a file of other results, or one that another call is writing to.
    """

    def __init__(self, path: str | Path, columns: list[str], same: dict[str, Any], rank: int = 0):
        self.path, self.columns, self.same = Path(path), columns, same
        check_name(self.path)
        self.csv = self.path.suffix.lower() == ".csv"
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        self._own(rank)
        with self._alone():
            rows = self._rows()
        for row in rows:
            for name, value in same.items():
                if row.get(name) != value:
                    raise ValueError(
                        f"{self.path} holds results of another kind ({name}: {row.get(name)!r} there, {value!r} now); "
                        "give another --out"
                    )
        self.errors = {key_of(row["path"], row["start"], row["end"]): row.get("error") or "" for row in rows}

    def error_of(self, video: Video) -> str | None:
        """Of a video's row, "" where it was read; None where it had no row when the file was opened."""
        return self.errors.get(key_of(video.path, video.start, video.end))

    def add(self, row: dict[str, Any]) -> None:
        """Writes a row; ``same`` is added to it."""
        with self._alone():
            data = self._encoded(row | self.same)
            while data:  # one call, but on a full disk, which raises in the second
                data = data[os.write(self._file, data) :]

    def close(self) -> None:
        os.close(self._file)

    def _encoded(self, row: dict[str, Any]) -> bytes:
        if not self.csv:
            return (json_text(row, indent=None) + "\n").encode()
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if not os.fstat(self._file).st_size:
            writer.writerow(self.columns)
        values = [row.get(name) for name in self.columns]
        writer.writerow(["" if value is None else cell(value) for value in values])
        return text.getvalue().encode("utf-8", "surrogateescape")

    def _rows(self) -> list[dict[str, Any]]:
        """The rows that are there; the torn end of the last one is cut off."""
        # not by another handle: a lock falls when its process closes any handle of the file
        data = b"".join(iter(lambda: os.read(self._file, 2**20), b""))
        end = _end_of_rows(data, quotes=self.csv)
        if end < len(data):
            os.ftruncate(self._file, end)
        text = data[:end].decode("utf-8", "surrogateescape")
        try:
            if not self.csv:
                rows = [parse_json(line) for line in text.split("\n") if line.strip()]
            else:
                reader = csv.DictReader(io.StringIO(text, newline=""))
                if text and reader.fieldnames != self.columns:
                    columns, ours = ", ".join(reader.fieldnames or []), ", ".join(self.columns)
                    raise ValueError(f"its columns are {columns}; those of this call, with its --topk, are {ours}")
                rows = [_from_csv(row) for row in reader]
            for row in rows:
                key_of(row["path"], row["start"], row["end"])
        except (ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{self.path} is no file of such results ({reason}); give another --out") from None
        return rows

    def _own(self, rank: int) -> None:
        with suppress(ImportError):
            import fcntl

            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _LOCKS + 1 + rank)
            except OSError:
                raise ValueError(f"{self.path} is being written to by another call; give another --out") from None

    @contextmanager
    def _alone(self) -> Iterator[None]:
        try:
            import fcntl
        except ImportError:  # not on this system: one process alone writes
            yield
            return
        fcntl.lockf(self._file, fcntl.LOCK_EX, 1, _LOCKS)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _LOCKS)


def rows_kept(count: int, failed: int) -> str:
    """What a call says of the rows that an earlier one wrote."""
    errors = f", {failed} of them with an error: delete those rows to try again" if failed else ""
    return f"; {count} were there{errors}" if count else ""


def check_name(path: Path) -> None:
    """Raises ValueError where a file of results cannot be made at ``path``; makes nothing."""
    if path.suffix.lower() not in (".jsonl", ".csv"):
        raise ValueError(f"--out {path} must end in .jsonl or .csv")
    if path.is_dir():
        raise ValueError(f"--out {path} is a folder; give a file")
    if not path.parent.is_dir():
        raise ValueError(f"--out {path}: there is no folder {path.parent}; make it first")


def _end_of_rows(data: bytes, quotes: bool) -> int:
    """Where the last whole row ends: at a line end that is in no quotes."""
    end = data.rfind(b"\n") + 1
    while quotes and end and data.count(b'"', 0, end) % 2:
        end = data.rfind(b"\n", 0, end - 1) + 1
    return end


def _from_csv(row: dict[str, str]) -> dict[str, Any]:
    def number(text: str) -> float | None:
        return float(text) if text else None

    values = {name: from_cell(text) for name, text in row.items()}
    return {**values, "start": number(values["start"]), "end": number(values["end"])}
