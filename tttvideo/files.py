"""Files that appear whole or not at all, and files of ours that may have been damaged since."""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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
        content = json.loads(path.read_bytes())
    except RecursionError:
        raise damaged(path, "it is nested too deeply", advice) from None
    except ValueError as error:
        raise damaged(path, f"it is not JSON: {error}", advice) from None
    if not isinstance(content, dict):
        raise damaged(path, f"expected a JSON object, got a {type(content).__name__}", advice)
    return content


def damaged(path: Path, reason: object, advice: str = "") -> ValueError:
    """The error of a file that holds something else than was written: one sentence.

    Args:
        reason: an exception, or words.
        advice: what to do.
    """
    words = f"it has no {reason.args[0]!r}" if isinstance(reason, KeyError) else " ".join(str(reason).split())
    return ValueError(f"{path} is damaged ({words or type(reason).__name__})" + (f"; {advice}" if advice else ""))


def check_folder(out: Path) -> None:
    """That results can be written there, without making it: a command that is refused leaves nothing behind.

    Raises:
        ValueError: if not.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; give a folder")
    there = next(folder for folder in [out, *out.absolute().parents] if folder.exists() or folder.is_symlink())
    if there.is_symlink() and not there.exists():
        raise ValueError(f"--out {out} cannot be made: {there} is a link to nothing")
    if not there.is_dir():
        raise ValueError(f"--out {out} cannot be made: {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(
            f"--out {out} cannot be written to" if there == out else f"--out {out} cannot be made in {there}"
        )
