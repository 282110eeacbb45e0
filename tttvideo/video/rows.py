"""Files of rows: one row for each frame of a video, written whole or not at all, checked at every read.

One safetensors file per video: ``rows`` [T, ...] one after the other, the ``numbers`` of the frames that they are of,
the ``times`` of all frames of the video, and checksums. Reading maps the file; only the rows asked for are read.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from .listfile import DataError

BLOCK = 64
"""Rows under one checksum: a window reads at most so many too many at either end."""
_HEADER = 2**14  # bytes kept free for the header, which is written last
_TYPES = {torch.uint8: "U8", torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}


class DamagedRows(Exception):
    """A file is no file of rows, or not as it was written."""


class Rows:
    """An opened file.

    Attributes:
        about: metadata stored with the rows.
        numbers: int64 [T], increasing: the frame that each row is of.
        times: float64 [F], seconds, of all frames of the video.
        shape: of one row.

    Raises:
        DamagedRows: here and whenever rows are read.
        FileNotFoundError: there is no such file.
    """

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self.path = path
        try:
            self._file: Any = safe_open(path, framework="pt")
            self._rows = self._file.get_slice("rows")
            self.numbers: Tensor = self._file.get_tensor("numbers")
            self.times: Tensor = self._file.get_tensor("times")
            self._checks: list[int] = self._file.get_tensor("checks").tolist()
            said = self._file.metadata()["about"]
            self.about: dict[str, Any] = json.loads(said)
            self.shape = tuple(self._rows.get_shape()[1:])
            sound = self._checks[0] == _check_of_head(said, self._rows.get_dtype(), self.numbers, self.times)
        except FileNotFoundError:
            raise
        except (SafetensorError, OSError, KeyError, ValueError, TypeError, IndexError) as error:
            raise DamagedRows(str(error)) from error
        if not sound or len(self._checks) != 1 + -(-len(self.numbers) // BLOCK):
            raise DamagedRows("its header is not as it was written")

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, places: Tensor) -> Tensor:
        """Rows [n, ...] by their place, int64 [n] in increasing order."""
        if not len(places):
            return self._rows[0:0]
        first, last = int(places[0]) // BLOCK, int(places[-1]) // BLOCK
        rows: Tensor = self._rows[first * BLOCK : (last + 1) * BLOCK]
        for block, part in enumerate(rows.split(BLOCK), start=first):
            if _check_of(part) != self._checks[1 + block]:
                raise DamagedRows(f"rows from {block * BLOCK} on are not as they were written")
        return rows[places - first * BLOCK]


class RowsWriter:
    """Takes the rows of one video; ``finish`` makes the file appear."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self._file = path, file
        self._pending: list[Tensor] = []  # less than a block
        self._checks: list[int] = []
        self._count = 0
        self._file.seek(_HEADER)

    def add(self, rows: Tensor) -> None:
        """The next rows [n, ...], on any device."""
        self._pending.append(rows.detach().to("cpu"))
        while sum(map(len, self._pending)) >= BLOCK:
            waiting = torch.cat(self._pending)
            self._write(waiting[:BLOCK])
            self._pending = [waiting[BLOCK:]]

    def finish(self, numbers: Tensor, times: Tensor, about: dict[str, Any]) -> None:
        """
        Args:
            numbers: of all frames whose rows were added.
            times: of all frames of the video.
            about: plain data that ``Rows.about`` gives back.
        """
        waiting = torch.cat(self._pending)
        if len(waiting):
            self._write(waiting)
        assert self._count == len(numbers), "a number for each row"
        said, kind = json.dumps(about), _TYPES[waiting.dtype]
        head = _check_of_head(said, kind, numbers, times)
        sides = {"numbers": numbers.long(), "times": times.double(), "checks": torch.tensor([head, *self._checks])}
        end = self._file.tell() - _HEADER
        header: dict[str, Any] = {
            "__metadata__": {"about": said},
            "rows": {"dtype": kind, "shape": [self._count, *waiting.shape[1:]], "data_offsets": [0, end]},
        }
        for name, tensor in sides.items():
            data = tensor.numpy().tobytes()
            self._file.write(data)
            kind = "F64" if tensor.dtype == torch.float64 else "I64"
            header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [end, end + len(data)]}
            end += len(data)
        text = json.dumps(header).encode()
        self._file.truncate(_HEADER + end)
        self._file.seek(0)
        self._file.write((_HEADER - 8).to_bytes(8, "little") + text.ljust(_HEADER - 8))
        self._file.flush()
        os.fsync(self._file.fileno())
        os.replace(_part(self.path), self.path)

    def _write(self, rows: Tensor) -> None:
        self._checks.append(_check_of(rows))
        self._file.write(_bytes(rows))
        self._count += len(rows)


@contextmanager
def writing(path: Path) -> Iterator[RowsWriter | None]:
    """A writer of the file at ``path``; None while another process writes it. What is not finished leaves nothing.

    The lock is one of the system's on the unfinished file: it goes with the process, however that ends.

    Raises:
        DataError: the file cannot be written, with the reason.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _locked(_part(path))
        if file is None:
            yield None
            return
        with file:
            try:
                file.truncate(0)
                yield RowsWriter(path, file)
            finally:  # after `finish` it is not there any more
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.stat(_part(path)), os.fstat(file.fileno())):
                        os.unlink(_part(path))
    except OSError as error:
        todo = "make room there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "mend that"
        raise DataError(
            f"the cache {path.parent.parent} cannot be written ({error.strerror or error}); {todo}, or choose another "
            "folder; what is in it stays, and the same command goes on from there"
        ) from error


def _locked(part: Path) -> BinaryIO | None:
    while True:
        file = os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(part), os.fstat(file.fileno())):
                return file
        file.close()  # its writer has finished it in between: that file has another name now


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _check_of_head(said: str, kind: str, numbers: Tensor, times: Tensor) -> int:
    check = zlib.crc32(f"{kind} {said}".encode())
    for tensor in (numbers.long(), times.double()):
        check = zlib.crc32(tensor.contiguous().numpy().tobytes(), check)
    return check


def _check_of(rows: Tensor) -> int:
    return zlib.crc32(_bytes(rows))


def _bytes(rows: Tensor) -> np.ndarray:
    return rows.contiguous().view(-1).view(torch.uint8).numpy()
