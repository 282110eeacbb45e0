"""The index of videos on disk: the `Probe` of each file, so that a file is read through once in its life.

One small file per video, in safetensors' format: nothing in it can run. Its name is made of the video's path, size and
time of change, so a changed video is simply another one. It is written whole or not at all, and what cannot be read is
made again. The folder is `.tttvideo-index` in the video's folder or one above it, if there is one (it travels with the
data: paths are relative to it), else $TTTVIDEO_INDEX, else the user's cache folder; TTTVIDEO_INDEX=off keeps nothing.
"""

import hashlib
import json
import math
import os
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from ..files import replacing
from ..printing import printable
from .clock import MISSING
from .errors import VideoWarning
from .probe import Probe

BESIDE = ".tttvideo-index"
_FORMAT = 3  # raise it when a scan finds something else than before
_ARRAYS = ("stamps", "entries", "checks", "keys")


_said: set[str] = set()  # folders of which it was said that they cannot be written


class Refused(Exception):
    """The index records that a file is not a usable video; the text says why, without the path."""


def folder_of(path: str) -> str | None:
    """The folder of the index that covers a video; None if indexing is off."""
    chosen = os.environ.get("TTTVIDEO_INDEX")
    if chosen == "off":
        return None
    above, parent = os.path.abspath(path), ""
    while (above := os.path.dirname(above)) != parent:
        if os.path.isdir(beside := os.path.join(above, BESIDE)):
            return beside
        parent = above
    if chosen:
        return chosen
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return None if caches.startswith("~") else os.path.join(caches, "tttvideo", "index")  # ~: there is no home


def place_of(file: tuple[str, int, int], stream: int | None) -> Path | None:
    """Where the entry of a video stands, or would stand."""
    import av

    path, size, modified = file
    folder = folder_of(path)
    if folder is None:
        return None
    path = os.path.abspath(path)
    if os.path.basename(folder) == BESIDE:
        path = os.path.relpath(path, os.path.dirname(folder))
    identity = [_FORMAT, av.__version__, path, size, modified, stream]
    name = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
    return Path(folder, name[:2], f"{name}.safetensors")


def load(file: tuple[str, int, int], stream: int | None) -> Probe | None:
    """What is kept of a file; None if there is nothing, or nothing that can be read. Raises Refused."""
    entry = place_of(file, stream)
    try:
        data = entry.read_bytes() if entry else b""
    except OSError:
        return None
    if not data:
        return None
    try:
        return _decoded(data, file, stream)
    except Refused:
        raise
    except Exception:  # damaged, or written by something else: made again
        return None


def store(metadata: Probe) -> None:
    """Writes a probe to the index, if the index can be written."""
    numbers: dict[str, Any] = {
        field.name: getattr(metadata, field.name) for field in fields(metadata) if field.name not in (*_ARRAYS, "file")
    }
    numbers["rule"], stamps = _compact(metadata.stamps)
    tensors = {"stamps": stamps, "entries": metadata.entries, "checks": metadata.checks, "keys": metadata.keys}
    _write(place_of(metadata.file, metadata.stream), numbers, tensors)


def store_refusal(file: tuple[str, int, int], stream: int | None, reason: str) -> None:
    """Keeps why a file is no usable video."""
    _write(place_of(file, stream), {"refused": reason}, {})


def _write(entry: Path | None, numbers: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    from safetensors.numpy import save

    if entry is None:
        return
    # Without its own digest a flipped bit in an entry would be believed.
    body = save({name: np.ascontiguousarray(array) for name, array in tensors.items()}, {"probe": json.dumps(numbers)})
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with replacing(entry, shared=True) as unfinished:
            unfinished.write_bytes(hashlib.sha256(body).digest() + body)
    except OSError as error:  # a full disk, or somebody else's folder
        if not os.path.exists(entry):  # else only what reading has added is lost
            _say_not_kept(str(entry.parents[1]), error.strerror or str(error))


def _say_not_kept(folder: str, reason: str) -> None:
    if folder not in _said:
        _said.add(folder)
        message = (
            f"{printable(folder)}: the index of videos cannot be kept here ({reason}), so that every run reads them "
            "through again; set TTTVIDEO_INDEX to a folder that can be written, or to off"
        )
        warnings.warn(message, VideoWarning, stacklevel=4)


def _decoded(data: bytes, file: tuple[str, int, int], stream: int | None) -> Probe:
    from safetensors.numpy import load as load_tensors

    digest, body = data[:32], data[32:]
    if hashlib.sha256(body).digest() != digest:
        raise ValueError("damaged")
    header = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])
    numbers = json.loads(header["__metadata__"]["probe"])
    if "refused" in numbers:
        raise Refused(str(numbers["refused"]))
    tensors = load_tensors(body)
    rule = numbers.pop("rule")
    numbers["streams"] = tuple(numbers["streams"])
    if rule and len(rule) == 3 and rule[2] > file[1]:  # a frame takes a byte at least
        raise ValueError("more frames than bytes")
    tensors["stamps"] = _restored(rule, tensors["stamps"])
    arrays: dict[str, Any] = tensors
    metadata = Probe(file=file, **numbers, **arrays)
    _refuse_nonsense(metadata)
    return metadata


def _refuse_nonsense(metadata: Probe) -> None:
    """An index beside the data comes from another hand: raises ValueError for what readers would stumble over."""
    for field in fields(metadata):
        value = getattr(metadata, field.name)
        if field.name in _ARRAYS:
            sound = value.ndim == 1 and value.dtype.kind in "iu"
        elif field.name in ("file", "streams"):
            sound = isinstance(value, tuple)
        else:
            sound = isinstance(value, (int, float) if field.type is float else field.type)
        if not sound:
            raise ValueError(field.name)
    if min(metadata.height, metadata.width, metadata.frames) < 1 or metadata.turns not in range(4):
        raise ValueError("size")
    if not (0 < metadata.rate < math.inf and 0 <= metadata.base < math.inf and math.isfinite(metadata.offset)):
        raise ValueError("times")
    if (metadata.decoded or 0) < 0 or len(metadata.checks) > metadata.frames:
        raise ValueError("frames")
    for frames in (metadata.entries, metadata.keys):
        if len(frames) and not (frames.min() >= 0 and frames.max() < metadata.frames):
            raise ValueError("starts")


def _compact(stamps: np.ndarray) -> tuple[list[int] | None, np.ndarray]:
    """(first, step, count) of even stamps; else the first one, and steps as small integers where they are."""
    steps = np.diff(stamps)
    if MISSING in stamps or not len(steps):
        return None, stamps
    if (steps == steps[0]).all():
        return [int(stamps[0]), int(steps[0]), len(stamps)], np.empty(0, np.int32)
    for kind in (np.int16, np.int32):
        if np.abs(steps).max() <= np.iinfo(kind).max:
            return [int(stamps[0])], steps.astype(kind)
    return None, stamps


def _restored(rule: list[int] | None, array: np.ndarray) -> np.ndarray:
    if rule is None:
        return array
    if len(rule) == 3:
        first, step, count = rule
        return first + step * np.arange(count, dtype=np.int64)
    return np.concatenate([[0], np.cumsum(array, dtype=np.int64)]) + rule[0]
