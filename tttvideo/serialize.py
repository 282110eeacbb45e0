"""Nested frozen dataclasses as plain data and back, without ever running code that the data names unasked; and the
folders that models lie in."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

from torch import nn

FORMAT = "tttvideo-1"


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
    known = {f.name for f in dataclasses.fields(cls)}
    if unknown := sorted(set(fields) - known):
        raise ValueError(f"{where} sets {', '.join(unknown)}, unknown to {path}; it was made by another version.")
    values = {key: from_plain(item, trust=trust, where=where) for key, item in fields.items()}
    return cls(**values)


def _import(path: str, where: str) -> type:
    module, _, name = public_name(path).rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{where} names the class {path}, which cannot be imported ({error}).") from error
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise ValueError(f"{where} names {path}, which is not a configuration class.")
    return cls


def read_description(folder: Path) -> dict[str, Any]:
    """``folder/config.json`` as it stands; no class is built.

    Raises:
        ValueError: if it does not describe a model of this package.
    """
    where = folder / "config.json"
    try:
        description = json.loads(where.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{where} is not JSON ({error}); the file is damaged.") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise ValueError(f"{where} does not describe a tttvideo model (format {FORMAT}).")
    return description


def load_weights(model: nn.Module, folder: Path, parts: tuple[str, ...] = ()) -> None:
    """Loads ``folder/model.safetensors`` strictly.

    Args:
        parts: load these children of the model only, each of them whole; none: all there is.

    Raises:
        ValueError: if the file is damaged or of another architecture than ``model``.
    """
    from safetensors.torch import load_file

    path = folder / "model.safetensors"
    try:
        tensors = load_file(path)
    except Exception as error:
        raise ValueError(f"{path} cannot be read ({error}); the file is damaged or not safetensors.") from error
    expected = model.state_dict()
    if parts:
        tensors, expected = (
            {name: t for name, t in found.items() if name.split(".")[0] in parts} for found in (tensors, expected)
        )
    missing, unknown = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    shapes = [n for n in sorted(set(expected) & set(tensors)) if expected[n].shape != tensors[n].shape]
    if missing or unknown or shapes:
        first = (missing or unknown or shapes)[0]
        said = (
            f"{len(missing)} tensors missing, {len(unknown)} unknown, {len(shapes)} of another shape (first: {first})"
        )
        if parts:
            raise ValueError(
                f"{path} does not fit this model's {' and '.join(parts)}, which have another architecture: {said}. "
                f"Give them the settings in {folder / 'config.json'}."
            )
        raise ValueError(f"{path} is of another architecture than its configuration says: {said}.")
    model.load_state_dict(tensors, strict=not parts)


def resolve_checkpoint(path: str | Path) -> Path:
    """The folder with ``config.json`` and ``model.safetensors`` that ``path`` means.

    Raises:
        ValueError: if there is none.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"The checkpoint {path} does not exist.")
    if _is_model(path):
        return path
    index = path / "checkpoints" / "index.json"
    if index.is_file():
        try:
            entries = dict(json.loads(index.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{index} is damaged ({error}); name a checkpoint of the run instead.") from error
        for key in ("best", "last"):
            if isinstance(entries.get(key), str) and _is_model(path / "checkpoints" / entries[key]):
                return path / "checkpoints" / entries[key]
    raise ValueError(
        f"{path} holds no checkpoint: neither config.json and model.safetensors, nor checkpoints/ of a run."
    )


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() and (folder / "model.safetensors").is_file()
