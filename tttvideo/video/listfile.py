"""Reads a list of videos (CSV, TSV or space-delimited text) into rows.

Columns: `path,label[,start,end][,group][,split]`. With a header the columns may stand in any order, there may be one
named `fold`, and unknown ones are ignored; without one they stand in this order. Relative paths are resolved against
the list's own folder, or from a root that is given beside it.
"""

import csv
import math
import os
from pathlib import Path
from typing import NamedTuple

from ..printing import as_number
from .kinds import VIDEO_EXTENSIONS, features_of, holds_images

# What a split may be called where nothing else says that a name is a split.
SPLIT_NAMES = {"train", "training", "trainval", "val", "valid", "validation", "dev", "test", "testing"}
# What a header may call a column: where none of the first names is there, one of the second.
_NAMES = {
    "path": (
        ("path", "video", "file", "filename", "video_path"),
        ("file_name", "filepath", "file_path", "video_name", "video_file", "videoname", "clip", "clip_path"),
    ),
    "label": (
        ("label", "labels", "class"),
        ("tag", "tags", "label_name", "class_name", "classname", "category", "action", "target"),
    ),
    "start": (("start",), ("start_time", "start_sec", "t_start")),
    "end": (("end",), ("end_time", "end_sec", "t_end")),
    "group": (("group",), ()),
    "split": (("split",), ("subset",)),
    "fold": (("fold",), ()),
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
    fold: str | None = None  # of a cross-validation


def read_list(
    path: str | Path, *, root: str | Path | None = None, labelled: bool = True, multi_label: bool | None = None
) -> list[Row]:
    """The rows of a list file, in its order.

    Args:
        root: folder against which relative paths are resolved; None: the list's own.
        multi_label: a video can have any number of labels, so that an empty label means none; None: true if any row
            has several.

    Raises:
        DataError: not text, no rows, no label column, a cell that cannot be read, the same video twice with
            different labels, or not one of the listed files is there.
    """
    path = Path(path)
    base = path.parent if root is None else Path(root)
    cells, delimiter = _records(path, labelled)
    first = [cell.lower() for cell in cells[0][1]]
    first = [cell.removeprefix("#") for cell in first[first[0] == "#" :]]
    columns = _header_columns(path, first)
    if _is_header(columns, base, cells[0][1]):
        if "path" not in columns:
            raise DataError(f"{path} has no path column (columns: {', '.join(first)}); name it 'path'")
        cells = cells[1:]
        if not cells:
            raise DataError(f"{path} has a header but no rows; list one video per line")
        width = len(first)
    else:
        columns = _positional_columns(path, [row for _, row in cells], labelled)
        width = len(columns)
        _refuse_unknown_header(path, base, [row for _, row in cells])
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
    # One spelling for every file, so that `./a` and `a` are the same and never stand on both sides of a split.
    keys: dict[str, str] = {}
    rows = [row._replace(key=keys.setdefault(os.path.normpath(row.path), row.key)) for row in rows]
    _check(path, rows, columns, bool(multi_label))
    return rows


def _records(path: Path, labelled: bool) -> tuple[list[tuple[int, list[str]]], str]:
    """(number of its first line, cells) of every row, and the delimiter: tab or comma where every row has one, else a
    space (an unlabelled row is then one whole path)."""
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise DataError(f"{path} is not a text file (UTF-8); give a folder of videos or a list with path,label lines")
    text = text.replace("\r\n", "\n").replace("\r", "\n")  # csv refuses the bare CR that old programs end lines with
    if not text.strip():
        raise DataError(f"{path} is empty; list one video per line as path,label")
    lines = [line for line in text.split("\n") if line.strip()]
    for delimiter in "\t, " if labelled else "\t,":
        try:
            rows = _split(path, text, delimiter)
        except DataError:
            if all(delimiter in line for line in lines):
                raise
            continue
        if all(len(row) > 1 for _, row in rows):
            return rows, delimiter
    return _split(path, text, ","), ","


def _split(path: Path, text: str, delimiter: str) -> list[tuple[int, list[str]]]:
    """Rows by csv's rules, so that a cell in quotes may hold line breaks. One quote that is never closed would take in
    all lines after it: refused."""
    lines = [line.strip(" ") + "\n" for line in text.split("\n")]
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
    rows: list[tuple[int, list[str]]] = []
    start = 1
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append((start, [cell.strip() for cell in row]))
            start = reader.line_num + 1
    except csv.Error as error:
        reason = "a quote that is not closed" if "unexpected end" in str(error) else str(error)
        raise DataError(
            f"{path} line {start} cannot be read ({reason}); write one video per line as path,label, and double the "
            'quotes inside a value: "a ""b"".mp4"'
        ) from error
    return rows


def _header_columns(path: Path, names: list[str]) -> dict[str, int]:
    """Which column a header calls what; empty if it calls none."""
    columns: dict[str, int] = {}
    for column, choices in _NAMES.items():
        for choice in choices:
            places = [i for i, name in enumerate(names) if name in choice]
            if len(places) > 1:
                both = ", ".join(names[i] for i in places[:2])
                raise DataError(f"{path} has two {column} columns ({both}); rename one")
            if places:
                columns[column] = places[0]
                break
    return columns


def _is_header(columns: dict[str, int], base: Path, cells: list[str]) -> bool:
    """A line with names of columns in it, unless it names a video: `clip7.mp4,action` is a row."""
    if {"path", "label"} <= set(columns):
        return True
    named = "path" in columns or not {cell.lower() for cell in cells}.isdisjoint(_NAMES["label"][0])
    return named and not any(_is_video(base, cell) for cell in cells)


def _is_video(base: Path, cell: str) -> bool:
    path = os.path.join(base, cell)
    extension = os.path.splitext(cell)[1].lower()
    return extension in VIDEO_EXTENSIONS or os.path.isfile(path) or (os.path.isdir(path) and holds_images(path))


def _refuse_unknown_header(path: Path, base: Path, rows: list[list[str]]) -> None:
    """Raises DataError if the first line names no video but another does: it is a header with unknown column names."""
    first, *others = rows
    if not _is_video(base, first[0]) and not os.path.exists(os.path.join(base, first[0])):
        there = next((row[0] for row in others if os.path.exists(os.path.join(base, row[0]))), None)
        if there is not None:
            raise DataError(
                f"the first line of {path} names no video ({first[0]!r}) but another does ({there!r}); if it is a "
                "header, call its columns path,label[,start,end][,group][,split], else correct it"
            )


def _positional_columns(path: Path, rows: list[list[str]], labelled: bool) -> dict[str, int]:
    """Which column is what in a list without a header, from its contents; refused where two readings fit."""
    width, widths = len(rows[0]), {len(row) for row in rows}
    numbers = all(_is_number(cell) for row in rows for cell in row[1:])
    if not labelled and numbers and widths in ({3}, {1, 3}):  # path[,start,end]
        return {"path": 0, "start": 1, "end": 2}
    if len(widths) > 1:
        raise DataError(
            f"{path} has lines of {min(widths)} to {max(widths)} columns; separate them by "
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
        as_number(cell or "0")
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
        path=_file_of(os.path.join(base, key)),
        labels=names if labelled else None,
        start=start,
        end=end,
        group=cells.get("group") or None,
        split=cells.get("split") or None,
        fold=cells.get("fold") or None,
    )


def _file_of(path: str) -> str:
    """The file that a row names: of features also without its extension, as lists of such data are written."""
    named = features_of(path)
    return named if not os.path.exists(path) and os.path.isfile(named) else path


def _seconds(where: str, name: str, cell: str) -> float | None:
    if not cell:
        return None
    try:
        value = as_number(cell)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise DataError(f"{where} has {name} {cell!r}, which is not a time in seconds")
    return value


def _check(path: Path, rows: list[Row], columns: dict[str, int], multi_label: bool) -> None:
    several = multi_label or any(row.labels is not None and len(row.labels) > 1 for row in rows)
    first_rows: dict[tuple, Row] = {}
    for row in rows:
        # in a multi-label list no label at all is an answer; elsewhere it is an oversight
        if row.labels == () and not several:
            raise DataError(f"{row.where} has no label for {row.key}; write path,label")
        if "split" in columns and row.split is None:
            raise DataError(f"{row.where} has an empty split for {row.key}; write for example train or val")
        span = (os.path.normpath(row.path), row.start, row.end)
        other = first_rows.setdefault(span, row)
        if other is not row and other.labels != row.labels:
            first, second = (";".join(r.labels or ()) or "none" for r in (other, row))
            raise DataError(
                f"{row.where} labels {row.key} {second!r} but line {_line(other)} labels it {first!r}; keep "
                "one, or write a;b if both hold"
            )
        twin = first_rows.setdefault((*span, row.split), row)
        if twin is not row:
            raise DataError(f"{row.where} lists {row.key} again (first on line {_line(twin)}); remove one of the two")
    if not any(os.path.exists(row.path) for row in rows):
        raise DataError(
            f"{path} names no file that is there (first: {rows[0].path}); relative paths are resolved against the "
            "list's own folder"
        )


def _line(row: Row) -> str:
    return row.where.rpartition(" ")[2]
