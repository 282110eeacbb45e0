"""Results appear in their folder together, or not at all: a full disk leaves what was there before."""

import csv
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..printing import cell, json_text

OF_AN_EVALUATION = (
    *("metrics.json", "predictions.csv", "per_video.npz", "report.html", "accuracy_vs_frames.png", "confusion.png"),
    *("accuracy_by_*.png", "error_by_horizon.png", "revealed.png"),
)
"""Every file that an evaluation of either task may leave in a folder."""


@contextmanager
def result_set(out: Path, numbers: Sequence[str], kinds: Sequence[str]) -> Iterator[Path]:
    """A folder to write a set of results into. When the block ends, its files take their places in ``out``, and what
    an earlier set left there goes.

    Args:
        numbers: files that hold all that was measured. Where the block fails after them, in a figure, they are kept:
            measuring can take hours. Nothing of an earlier set stays beside them.
        kinds: patterns of all files that such sets have.

    Raises:
        OSError: with the name of the file that could not be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=out))
    except OSError as error:
        raise _named(error, out) from error
    try:
        try:
            yield aside
        except Exception as error:
            written = all((aside / name).is_file() for name in numbers)
            if written:
                _publish(aside, out, kinds)
            if not isinstance(error, OSError):
                raise
            raise _named(error, out, numbers if written else ()) from error
        _publish(aside, out, kinds)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _publish(aside: Path, out: Path, kinds: Sequence[str]) -> None:
    written = {file.name for file in aside.iterdir() if not file.name.startswith(".")}
    for kind in kinds:
        for old in out.glob(kind):
            if old.name not in written:
                old.unlink()
    mask = os.umask(0)
    os.umask(mask)
    for name in sorted(written):
        (aside / name).chmod(0o666 & ~mask)
        os.replace(aside / name, out / name)


def _named(error: OSError, out: Path, kept: Sequence[str] = ()) -> OSError:
    """The error with the name that the file would have had."""
    file = out / Path(error.filename).name if error.filename and Path(error.filename) != out else out
    reason = error.strerror or str(error)
    if kept:
        reason += f"; {' and '.join(kept)} are there and complete, the rest is missing"
    return OSError(error.errno or errno.EIO, reason, str(file))


def as_json(data: Mapping[str, Any]) -> str:
    """Rows of numbers (confusion counts) on one line each: a figure file is read by people, too."""
    return re.sub(r"\[\s*((?:-?[\d.e+-]+,\s*)*-?[\d.e+-]+)\s*\]", _one_line, json_text(data)) + "\n"


def _one_line(match: re.Match[str]) -> str:
    return "[" + ", ".join(match[1].replace(",", " ").split()) + "]"


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """A CSV file in which no cell acts, on a screen or in a spreadsheet (``cell``)."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(map(cell, columns))
        writer.writerows([cell(row.get(name, "")) for name in columns] for row in rows)
