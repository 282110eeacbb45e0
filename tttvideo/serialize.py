"""Nested frozen dataclasses as plain data and back, without ever running code that the data names unasked."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any


def to_plain(value: Any) -> Any:
    """Dataclasses become ``{"class_path", "init_args"}``, tuples lists; the rest must be JSON already."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        cls = type(value)
        fields = {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": fields}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    return value


def from_plain(data: Any, *, trust: bool = False, where: str = "the checkpoint") -> Any:
    """The inverse of ``to_plain``.

    Args:
        trust: allow class paths outside ``tttvideo``; importing them runs their code.
        where: named in errors.

    Raises:
        ValueError: for a class path outside ``tttvideo`` without ``trust`` (before anything is imported), a
            class that does not exist, or fields that it does not have.
    """
    if isinstance(data, list):
        return tuple(from_plain(item, trust=trust, where=where) for item in data)
    if not isinstance(data, dict):
        return data
    if set(data) != {"class_path", "init_args"}:
        return {key: from_plain(item, trust=trust, where=where) for key, item in data.items()}
    path, fields = data["class_path"], data["init_args"]
    if not trust and not str(path).startswith("tttvideo."):
        raise ValueError(
            f"{where} names the class {path}, which is not part of tttvideo and whose import would run its code; "
            "if you trust it, load with trust=True (--trust on the command line)."
        )
    cls = _import(path, where)
    known = {f.name for f in dataclasses.fields(cls)}
    if unknown := sorted(set(fields) - known):
        raise ValueError(f"{where} sets {', '.join(unknown)}, unknown to {path}; it was made by another version.")
    values = {key: from_plain(item, trust=trust, where=where) for key, item in fields.items()}
    return cls(**values)


def _import(path: str, where: str) -> type:
    module, _, name = path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{where} names the class {path}, which cannot be imported ({error}).") from error
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise ValueError(f"{where} names {path}, which is not a configuration class.")
    return cls
