"""The score against what is known of each video: the depth of a needle, the number of pairs, any column of its list."""

import csv
import math
import os
import re
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..printing import as_number
from ..video.index import Index

BINS = 4
"""Bins of a column with many numbers, each with about as many videos."""
VALUES = 8
"""A column with no more different numbers than this has a stratum for each of them."""


class Column(NamedTuple):
    """One column that accuracy is reported against."""

    name: str
    values: list[str]  # of each video; "" where there is none
    bins: int


class Stratum(NamedTuple):
    """Videos with similar values in a column."""

    name: str  # "4", or "0-15" (both included)
    centre: float | None  # mean of the values, where they are numbers
    videos: list[int]


def read_columns(data: Path, root: str | Path | None, index: Index) -> list[Mapping[str, str]]:
    """The row of every video in `meta.csv` of a generated folder, or in the list itself; {} where there is none."""
    file = data / "meta.csv" if data.is_dir() else data
    if not file.is_file():
        return [{} for _ in index.videos]
    base = file.parent if root is None or data.is_dir() else Path(root)
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file} is damaged ({error}); make it again") from None
    if not rows or "path" not in rows[0]:
        return [{} for _ in index.videos]
    by_video = {_key(os.path.join(base, row["path"] or ""), row.get("start"), row.get("end")): row for row in rows}
    return [by_video.get(_key(video.path, video.start, video.end), {}) for video in index.videos]


def _key(path: str, start: Any, end: Any) -> tuple[str, float | None, float | None]:
    span = (None if value in (None, "") else float(value) for value in (start, end))
    return os.path.realpath(path), *span  # type: ignore[return-value]


def choose_columns(
    wanted: Sequence[str], rows: Sequence[Mapping[str, str]], written: Container[str] = ()
) -> list[Column]:
    """Columns as asked for, "depth" or "depth:8" for eight bins, several per string allowed ("depth,needle").

    Args:
        rows: of the data.
        written: what predictions.csv says of a video by itself: a column of the data must have another name to stand
            beside it.

    Raises:
        ValueError: for a column that is not there (with those that there are), or has the name of a ``written`` one.
    """
    names = list(dict.fromkeys(name for row in rows for name in row if name not in ("path", "label", "split", "index")))
    columns = []
    for text in (part for words in wanted for part in ([words] if words in names else words.split(","))):
        match = re.fullmatch(r"(.+?)(?::(\d+))?", text)
        name, bins = (match[1], int(match[2] or BINS)) if match else (text, BINS)
        if bins < 1:
            raise ValueError(f"--by {text}: the number of bins must be 1 or more")
        if name not in names:
            there = (
                f"there are: {', '.join(names[:12])}" if names else "a list or a meta.csv with such a column is needed"
            )
            raise ValueError(f"--by {text}: the data have no column {name!r}; {there}")
        if name in written:
            raise ValueError(f"--by {text}: predictions.csv has a column {name!r} of its own; rename that of the data")
        columns.append(Column(name, [row.get(name) or "" for row in rows], bins))
    return columns


def strata(column: Column) -> list[Stratum]:
    """Videos by value, in order: each number or word by itself, or bins of equal size where there are many numbers.
    Videos without a value are in none. Raises ValueError for many different words."""
    present = [(number, value) for number, value in enumerate(column.values) if value != ""]
    numbers = {i: number for i, value in present if (number := _number(value)) is not None}
    if len(numbers) < len(present):
        words = sorted({value for _, value in present})
        if len(words) > 3 * VALUES:
            odd = next(value for value in words if _number(value) is None)
            but = f" ({odd!r} is no finite number)" if numbers else ""
            raise ValueError(
                f"--by {column.name}: {len(words)} different words are no strata{but}; take another column"
            )
        return [Stratum(word, None, [i for i, value in present if value == word]) for word in words]
    distinct = sorted(set(numbers.values()))
    if len(distinct) <= max(VALUES, column.bins):
        groups = [[value] for value in distinct]
    else:  # equal values stay together
        ranked = sorted(numbers.values())
        edges = [ranked[math.ceil(len(ranked) * k / column.bins) - 1] for k in range(1, column.bins + 1)]
        lows = [-math.inf, *edges[:-1]]
        groups = [[v for v in distinct if low < v <= high] for low, high in zip(lows, edges)]
    groups_of_videos = []
    for group in filter(None, groups):
        videos = [i for i, value in numbers.items() if group[0] <= value <= group[-1]]
        name = f"{group[0]:g}" if len(group) == 1 else f"{group[0]:g}-{group[-1]:g}"
        groups_of_videos.append(Stratum(name, sum(numbers[i] for i in videos) / len(videos), videos))
    return groups_of_videos


def _number(value: str) -> float | None:
    try:
        number = as_number(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
