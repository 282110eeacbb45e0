"""Reads a list of videos (CSV, TSV or space-delimited text) into rows.

Columns: `path,label[,start,end][,group][,split]`. With a header the columns may stand in any order and
unknown ones are ignored; without one they stand in this order. Relative paths count from the list's own
folder, or from a root that is given beside it.
"""

import csv
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

# What a split may be called where nothing else says that a name is a split.
SPLIT_NAMES = {"train", "training", "trainval", "val", "valid", "validation", "dev", "test", "testing"}
_ALIASES = {
    "path": "path",
    "video": "path",
    "file": "path",
    "filename": "path",
    "video_path": "path",
    "label": "label",
    "labels": "label",
    "class": "label",
    "start": "start",
    "end": "end",
    "group": "group",
    "split": "split",
}


class DataError(ValueError):
    """The data set cannot be used as asked; the message is one sentence: what, where, what to do."""


class Row(NamedTuple):
    """One labelled video before splits and class numbers are settled."""

    where: str  # for messages: "train.csv line 3", or the file
    key: str  # the path as written: the same on every machine, so a seeded split is too
    path: str
    labels: tuple[str, ...] | None  # None: not labelled
    start: float | None = None  # seconds
    end: float | None = None
    group: str | None = None
    split: str | None = None


def read_list(
    path: str | Path, *, root: str | Path | None = None, labelled: bool = True, multi_label: bool | None = None
) -> list[Row]:
    """The rows of a list file, in its order.

    Args:
        root: folder that relative paths count from; None: the list's own.
        multi_label: True where the model is known to be, so that an empty label means none; by default that
            holds if any row has several labels.

    Raises:
        DataError: not text, no rows, no label column, a cell that cannot be read, the same video twice with
            different labels, or not one of the listed files is there.
    """
    path = Path(path)
    base = path.parent if root is None else Path(root)
    lines = _lines(path)
    delimiter = _delimiter([text for _, text in lines], labelled)
    cells = [(number, _split(f"{path} line {number}", text, delimiter)) for number, text in lines]
    first = [cell.lower() for cell in cells[0][1]]
    known = {_ALIASES.get(name) for name in first}
    if "path" in known or ("label" in known and not (base / cells[0][1][0]).exists()):
        columns = _header_columns(path, first)
        cells = cells[1:]
        if not cells:
            raise DataError(f"{path} has a header but no rows; list one video per line")
        width = len(first)
    else:
        columns = _positional_columns(path, [row for _, row in cells])
        width = len(columns)
    if labelled and "label" not in columns:
        raise DataError(
            f"{path} has no label column (found: {', '.join(first) if width > 1 else 'one column'}); "
            "write path,label[,start,end][,group][,split]"
        )
    rows = []
    for number, row in cells:
        where = f"{path} line {number}"
        if len(row) > width:
            raise DataError(
                f"{where} has {len(row)} columns instead of {width}; put quotes around a value that contains "
                f"{delimiter!r}"
            )
        named = {name: row[i] for name, i in columns.items() if i < len(row)}
        rows.append(_row(where, base, named, labelled))
    _check(path, rows, columns, bool(multi_label))
    return rows


def _lines(path: Path) -> list[tuple[int, str]]:
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise DataError(f"{path} is not a text file (UTF-8); give a folder of videos or a list with path,label lines")
    text = text.replace("\r\n", "\n").replace("\r", "\n")  # csv refuses the bare CR that old programs end lines with
    lines = [(i, line.strip(" ")) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise DataError(f"{path} is empty; list one video per line as path,label")
    return lines


def _delimiter(lines: Sequence[str], labelled: bool) -> str:
    """Tab or comma where every line has one, else a space (an unlabelled line is then one whole path)."""
    for delimiter in "\t,":
        if all(delimiter in line for line in lines):
            return delimiter
    return " " if labelled and all(" " in line for line in lines) else ","


def _split(where: str, line: str, delimiter: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))]
    except csv.Error as error:
        raise DataError(f"{where} cannot be read ({error}); write one video per line as path,label") from error


def _header_columns(path: Path, names: list[str]) -> dict[str, int]:
    columns: dict[str, int] = {}
    for i, name in enumerate(names):
        known = _ALIASES.get(name)
        if known in columns:
            raise DataError(f"{path} has two {known} columns ({names[columns[known]]}, {name}); rename one")
        if known:
            columns[known] = i
    if "path" not in columns:
        raise DataError(f"{path} has no path column (columns: {', '.join(names)}); name it 'path'")
    return columns


def _positional_columns(path: Path, rows: list[list[str]]) -> dict[str, int]:
    """Which column is what in a list without a header, from its contents; refused where two readings fit."""
    width = len(rows[0])
    if any(len(row) != width for row in rows):
        raise DataError(
            f"{path} has lines of {min(map(len, rows))} to {max(map(len, rows))} columns; separate them by "
            "commas or tabs, and put quotes around a value that contains the separator"
        )
    names = ["path", "label"][:width]
    if width >= 4 and all(_is_number(cell) for row in rows for cell in row[2:4]):
        names += ["start", "end"]
    rest = width - len(names)
    values = {row[-1].lower() for row in rows}
    if rest == 1 and values <= SPLIT_NAMES:
        names.append("split")
    elif rest == 1 and not all(map(_is_number, values)):
        names.append("group")
    elif rest == 2 and values <= SPLIT_NAMES:
        names += ["group", "split"]
    elif rest:
        raise DataError(
            f"{path} has {width} columns and no header, which can be read in more than one way; "
            "add a first line such as path,label,group"
        )
    return {name: i for i, name in enumerate(names)}


def _is_number(cell: str) -> bool:
    try:
        float(cell or "0")
    except ValueError:
        return False
    return True


def _row(where: str, base: Path, cells: dict[str, str], labelled: bool) -> Row:
    key = cells.get("path", "")
    if not key:
        raise DataError(f"{where} has no path; write path,label")
    names = tuple(dict.fromkeys(part.strip() for part in cells.get("label", "").split(";") if part.strip()))
    start, end = (_seconds(where, name, cells.get(name, "")) for name in ("start", "end"))
    if start is not None and end is not None and end <= start:
        raise DataError(
            f"{where} ends ({end:g} s) before it starts ({start:g} s); start and end are seconds in the file"
        )
    return Row(
        where=where,
        key=key,
        path=os.path.join(base, key),
        labels=names if labelled else None,
        start=start,
        end=end,
        group=cells.get("group") or None,
        split=cells.get("split") or None,
    )


def _seconds(where: str, name: str, cell: str) -> float | None:
    if not cell:
        return None
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise DataError(f"{where} has {name} {cell!r}, which is not a time in seconds")
    return value


def _check(path: Path, rows: list[Row], columns: dict[str, int], multi_label: bool) -> None:
    several = multi_label or any(row.labels is not None and len(row.labels) > 1 for row in rows)
    seen: dict[tuple, Row] = {}
    for row in rows:
        # in a multi-label list no label at all is an answer; elsewhere it is an oversight
        if row.labels == () and not several:
            raise DataError(f"{row.where} has no label for {row.key}; write path,label")
        if "split" in columns and row.split is None:
            raise DataError(f"{row.where} has an empty split for {row.key}; write for example train or val")
        span = (row.path, row.start, row.end)
        other = seen.setdefault(span, row)
        if other is not row and other.labels != row.labels:
            first, second = (";".join(r.labels or ()) or "none" for r in (other, row))
            raise DataError(
                f"{row.where} labels {row.key} {second!r} but line {_line(other)} labels it {first!r}; keep "
                "one, or write a;b if both hold"
            )
        twin = seen.setdefault((*span, row.split), row)
        if twin is not row:
            raise DataError(f"{row.where} lists {row.key} again (first on line {_line(twin)}); remove one of the two")
    if not any(os.path.exists(row.path) for row in rows):
        raise DataError(
            f"{path} names no file that is there (first: {rows[0].path}); relative paths count from the "
            "list's own folder"
        )


def _line(row: Row) -> str:
    return row.where.rpartition(" ")[2]
