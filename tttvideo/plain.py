"""Nested frozen dataclasses as plain data and back, without ever running code that the data name unasked."""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def to_plain(value: Any) -> Any:
    """Dataclasses become ``{"class_path", "init_args"}``, tuples lists; the rest must be JSON already.

    Classes of this package are written by their public name (``tttvideo.ttt.MLP``), so that files can move.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        cls = type(value)
        fields = {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"class_path": public_name(f"{cls.__module__}.{cls.__qualname__}"), "init_args": fields}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    return value


def public_name(path: str) -> str:
    """The path that files name a class by: through the outermost package of ours that lists it in ``__all__``.

    Checkpoints of before 2026-11-28 name the file that a class lay in then (``tttvideo.ttt.inner.mlp.MLP``); the same
    rule finds those classes wherever they lie now. Paths outside ``tttvideo`` and unknown ones stay as they are.
    """
    module, _, name = path.rpartition(".")
    parts = module.split(".")
    if parts[0] != "tttvideo":
        return path
    for end in range(1, len(parts) + 1):
        package = ".".join(parts[:end])
        try:
            listed = getattr(importlib.import_module(package), "__all__", ())
        except ImportError:  # a file that is no more
            break
        if name in listed:
            return f"{package}.{name}"
    return path


def public_names(data: Any) -> Any:
    """Plain data with every class path as ``public_name`` has it."""
    if isinstance(data, list):
        return [public_names(item) for item in data]
    if not isinstance(data, dict):
        return data
    named = {key: public_names(item) for key, item in data.items()}
    if isinstance(named.get("class_path"), str):
        named["class_path"] = public_name(named["class_path"])
    return named


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
    if unknown := sorted(set(fields) - {f.name for f in dataclasses.fields(cls)}):
        raise ValueError(f"{where} sets {', '.join(unknown)}, unknown to {path}; it was made by another version.")
    values = {key: from_plain(item, trust=trust, where=where) for key, item in fields.items()}
    for key, hint in _hints(cls).items():
        if key in values and not _fits(values[key], hint):
            raise ValueError(f"{where} is damaged: {key} of {path} cannot be {fields[key]!r:.50}.")
    try:
        return cls(**values)
    except ValueError as error:  # a sentence of the class's own
        raise ValueError(f"{where}: {error}") from error


def _hints(cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls)
    except Exception:  # of a user's own class: whatever its annotations are
        return {}


def _fits(value: Any, hint: Any) -> bool:
    """Whether plain data may stand in a field of this type. That true is a whole number is Python's view alone; which
    words there are is checked by the classes, as old ones have a meaning."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in options)
    if origin is typing.Literal:
        return type(value) in set(map(type, options))
    if isinstance(value, tuple) and origin in (tuple, list, Sequence):
        every = options if origin is tuple and Ellipsis not in options else options[:1] * len(value)
        return len(value) == len(every) and all(map(_fits, value, every))
    if hint in (int, float):
        return type(value) is int or type(value) is hint
    kind = origin or hint
    return isinstance(value, kind) if isinstance(kind, type) and hint is not Any else True


def search_working_directory() -> None:
    """Lets a class of the user's own be imported from the working directory, after all else: what is installed cannot
    be replaced by a file that lies there."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def import_carried(folder: Path, files: Any) -> None:
    """Imports the files of a model's own classes that its folder carries, which runs their code. What is installed
    cannot be replaced by them.

    Raises:
        ValueError: a file that is missing, or cannot be imported, or whose name another module has.
    """
    if not isinstance(files, list) or not all(
        isinstance(file, str) and re.fullmatch(r"[^\W\d]\w*\.py", file) and (folder / file).is_file() for file in files
    ):
        raise ValueError(f"{folder} does not hold the files that it says it carries ({files}); export it again.")
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    for file in files:
        try:
            module = importlib.import_module(file.removesuffix(".py"))
        except Exception as error:  # whatever the user's code raises
            raise ValueError(f"{folder / file} cannot be imported ({type(error).__name__}: {error}).") from error
        source = getattr(module, "__file__", None)
        if source is None or Path(source).read_bytes() != (folder / file).read_bytes():
            raise ValueError(
                f"{folder / file} is not the module {module.__name__} that is imported here ({source or 'built in'}); "
                "load the model where no other file has that name."
            )


def _import(path: str, where: str) -> type:
    module, _, name = public_name(path).rpartition(".")
    if module.partition(".")[0] != "tttvideo":
        search_working_directory()
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{where} names the class {path}, which cannot be imported ({error}).") from error
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise ValueError(f"{where} names {path}, which is not a configuration class.")
    return cls
