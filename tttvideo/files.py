"""Files that appear whole or not at all, and files of ours that may have been damaged since."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import lzma
import os
import re
import secrets
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .printing import cell, json_text

if TYPE_CHECKING:
    import numpy as np


@contextmanager
def replacing(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """A path beside ``path`` to write to; it takes the name of ``path`` when the block ends without an error, so that
    nobody ever sees a part.

    Args:
        shared: several processes may write ``path`` at once. Otherwise a killed process's unfinished file is written
            over by the next.

    Raises:
        OSError: with the name of ``path``, where it cannot be written.
    """
    unfinished = path.with_name(f".unfinished-{secrets.token_hex(8) + '-' if shared else ''}{path.name}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    except OSError as error:
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error
    finally:
        unfinished.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, durable: bool = False) -> None:
    """Replaces a UTF-8 text file; what is no Unicode (bytes of a file's name) is written as an escape.

    Args:
        durable: the new text survives a crash of the machine, too.

    Raises:
        OSError: as ``replacing``.
    """
    with (
        replacing(path) as unfinished,
        unfinished.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file,
    ):
        file.write(text)
        if durable:
            file.flush()
            os.fsync(file.fileno())


def read_json(path: Path, advice: str = "") -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: if the file holds anything else; the sentence ends with ``advice``.
        OSError: if it cannot be read.
    """
    try:
        content = parse_json(path.read_bytes())
    except ValueError as error:
        raise damaged(path, error, advice) from None
    if not isinstance(content, dict):
        raise damaged(path, f"expected a JSON object, got a {type(content).__name__}", advice)
    return content


LONGEST_NUMBER = 300
"""Digits of a whole number in a file: more are no float, and beyond 4,300 Python gives advice of its own."""


def parse_json(text: str | bytes) -> Any:
    """The value that a JSON text stands for.

    Raises:
        ValueError: in a few words, for anything else.
    """

    def whole(digits: str) -> int:
        if len(digits) > LONGEST_NUMBER:
            raise ValueError(f"a number of {len(digits):,} digits")
        return int(digits)

    try:
        return json.loads(text, parse_int=whole)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"it is not JSON: {error}") from None


def read_arrays(path: Path, advice: str = "") -> dict[str, np.ndarray]:
    """The arrays of an .npz file. Each is held against its checksum before anything is made of it.

    Raises:
        ValueError: if the file holds anything else; the sentence ends with ``advice``.
        OSError: if it cannot be read.
    """
    from numpy.lib.format import read_array

    data = io.BytesIO(path.read_bytes())
    try:
        with zipfile.ZipFile(data) as archive:
            files = {name.removesuffix(".npy"): io.BytesIO(archive.read(name)) for name in archive.namelist()}
        return {name: read_array(file, allow_pickle=False) for name, file in files.items()}
    # a byte of a zip file can ask for another compression, for a password, or for a place before its beginning
    except (ValueError, EOFError, OSError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError) as error:
        raise damaged(path, error, advice) from error


def map_array(path: Path) -> np.memmap:
    """The array of an .npy file, mapped for reading.

    Raises:
        ValueError: if the file holds anything else.
        OSError: if it cannot be read.
    """
    from tokenize import TokenError

    from numpy.lib.format import open_memmap

    try:
        return open_memmap(path, mode="r")
    except (ValueError, EOFError, TypeError, OverflowError, SyntaxError, TokenError) as error:  # its header is Python
        raise damaged(path, error) from error


def file_checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damaged(path: Path, reason: object, advice: str = "") -> ValueError:
    """The error of a file that holds something else than was written: one sentence.

    Args:
        reason: an exception, or words.
        advice: what to do.
    """
    words = f"it has no {reason.args[0]!r}" if isinstance(reason, KeyError) else " ".join(str(reason).split())
    return ValueError(f"{path} is damaged ({words or type(reason).__name__})" + (f"; {advice}" if advice else ""))


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


def check_folder(out: Path) -> None:
    """Checks that results can be written into a folder, without making it: a refused command leaves nothing behind.

    Raises:
        ValueError: if not.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; give a folder")
    existing = next(folder for folder in [out, *out.absolute().parents] if folder.exists() or folder.is_symlink())
    if existing.is_symlink() and not existing.exists():
        raise ValueError(f"--out {out} cannot be made: {existing} is a link to nothing")
    if not existing.is_dir():
        raise ValueError(f"--out {out} cannot be made: {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(
            f"--out {out} cannot be written to" if existing == out else f"--out {out} cannot be made in {existing}"
        )
