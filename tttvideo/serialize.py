"""Folders of models: config.json beside model.safetensors, read without running anything that they hold."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import nn
from torch.overrides import TorchFunctionMode

from . import hub
from .files import damaged, file_checksum, read_json

CHECKPOINT_NAME = re.compile(r"step-\d{8,}")  # a user's copy, such as step-00000012-best, is none of ours

FORMAT = "tttvideo-1"
DEEPEST = 64
"""Levels of lists and mappings in a configuration; ours have about a dozen."""


def read_description(folder: Path) -> dict[str, Any]:
    """``folder/config.json`` as it stands; no class is built.

    Raises:
        ValueError: if it does not describe a model of this package.
    """
    where = folder / "config.json"
    description = read_json(where)
    if description.get("format") != FORMAT:
        raise ValueError(f"{where} does not describe a tttvideo model (format {FORMAT}).")
    _check_values(description, where)
    return description


def write_description(description: Mapping[str, Any], folder: Path) -> None:
    """Writes ``folder/config.json``, with a checksum of itself and of the weights, which must be there."""
    content = {**description, "checksum": _checksum(description, folder)}
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def _checksum(description: Mapping[str, Any], folder: Path) -> str:
    content = {key: value for key, value in description.items() if key != "checksum"}
    text = json.dumps([content, file_checksum(folder / "model.safetensors")], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_index(file: Path, advice: str = "name a checkpoint of the run instead") -> dict[str, Any]:
    """checkpoints/index.json of a run.

    Raises:
        ValueError: if it holds something else than training writes; the sentence ends with ``advice``.
    """
    index = read_json(file, advice)
    nothing = type(None)
    kinds = {"best": str | nothing, "best_value": int | float | nothing, "last": str}
    for key, kind in (kinds | dict.fromkeys(("rule", "split", "split_rule"), str)).items():
        if key not in index:
            raise damaged(file, f"it has no {key!r}", advice)
        if not isinstance(index[key], kind) or isinstance(index[key], bool):
            raise damaged(file, f"{key} cannot be {index[key]!r:.50}", advice)
    for key in ("best", "last"):
        if index[key] is not None and not CHECKPOINT_NAME.fullmatch(index[key]):
            raise damaged(file, f"{key} names no checkpoint", advice)
    return index


def read_provenance(description: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """What a checkpoint says of its training: an empty mapping where it says nothing.

    Raises:
        ValueError: if a value is of another kind than what training writes.
    """
    provenance = description.get("provenance") or {}
    if not isinstance(provenance, dict):
        raise ValueError(f"{where} is damaged: its provenance is no mapping.")
    kinds = {"trained_on": str, "data": str, "name": str, "drawn": dict, "selection": dict}
    for key, kind in kinds.items():
        if not (provenance.get(key) is None or isinstance(provenance[key], kind)):
            raise ValueError(f"{where} is damaged: provenance.{key} cannot be {provenance[key]!r:.50}.")
    for key, kind, least in (("clip_frames", int, 1), ("frame_rate", int | float, 1e-6)):
        value = provenance.get(key)
        if not (value is None or (isinstance(value, kind) and not isinstance(value, bool) and least <= value <= 1e9)):
            raise ValueError(f"{where} is damaged: provenance.{key} cannot be {value!r:.50}.")
    check_drawn(provenance.get("drawn") or {}, where)
    return provenance


def check_drawn(drawn: dict[str, Any], where: Path) -> None:
    """Raises ValueError for what cannot say how a run divided its videos: val_fraction, seed, and the fold as
    [number, count, split learned from, split measured]."""
    fold = drawn.get("fold", [1, 2, "train", "val"])
    whole = isinstance(fold, list) and list(map(type, fold)) == [int, int, str, str] and 1 <= fold[0] <= fold[1]
    if not (whole and all(isinstance(drawn.get(key, 0), int | float) for key in ("val_fraction", "seed"))):
        raise ValueError(f"{where} is damaged: videos cannot have been divided by {drawn!r:.80}.")


def _check_values(description: dict[str, Any], where: Path) -> None:
    """Raises ValueError for a nesting that no recursion survives, and for settings that are NaN or infinite."""
    level: list[tuple[str, Any]] = list(description.items())
    for _ in range(DEEPEST):
        inner: list[tuple[str, Any]] = []
        for key, value in level:
            if (
                isinstance(value, float)
                and not math.isfinite(value)
                and key.split(".")[0] in ("model", "preprocessing")
            ):
                raise ValueError(f"{where} sets {key} to {value}; expected a finite number, so the file is damaged.")
            parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
            inner += [(f"{key}.{name}", part) for name, part in parts]
        level = inner
        if not level:
            return
    raise ValueError(f"{where} is nested more than {DEEPEST} levels deep; the file is damaged.")


def read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in ``folder/model.safetensors``; only the file's header is read.

    Raises:
        ValueError: if the file is damaged.
    """
    from safetensors import safe_open

    path = folder / "model.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise ValueError(_unreadable(path, error)) from error


def _unreadable(path: Path, error: Exception) -> str:
    if path.exists() and not os.access(path, os.R_OK):  # of which safetensors says that it is not there
        return f"{path} cannot be read: this user has no permission to."
    return f"{path} cannot be read ({error}); the file is damaged or not safetensors."


def check_shapes(path: Path, expected: Mapping[str, Sequence[int]], shapes: Mapping[str, Sequence[int]]) -> None:
    """Raises ValueError if the weights file ``path``, which holds ``shapes``, is not one of ``expected``."""
    if reason := difference(expected, shapes):
        raise ValueError(f"{path} is of another architecture than its configuration says: {reason}.")


DAMAGES = (LookupError, TypeError, AttributeError, RuntimeError, ArithmeticError, MemoryError, AssertionError)
"""What building a model from plain data that nothing of ours wrote leads to."""
LARGEST_STATE = 2**34
"""Bytes that a model may remember of one video when it begins: more is a damaged or hostile configuration."""


def check_depth(depth: int, shapes: Mapping[str, Sequence[int]], folder: Path) -> None:
    """Raises ValueError if the weights in ``folder`` are of another number of blocks: a billion of them could not even
    be counted."""
    blocks = len({name.split(".")[2] for name in shapes if name.startswith("backbone.blocks.")})
    if depth != blocks:
        raise ValueError(
            f"{folder / 'model.safetensors'} is of another architecture than its configuration says: expected {depth} "
            f"blocks, got {blocks}."
        )


class _Undrawn(TorchFunctionMode):
    """Draws and scales no numbers of tensors that have no memory: PyTorch would import its compiler first, which takes
    as long as all else."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        options = dict(kwargs or {})
        if func is torch.randn:
            options.pop("generator", None)
            return torch.empty(*args, **options)
        if getattr(func, "__module__", "") == "torch.nn.init":
            return options["tensor"] if "tensor" in options else args[0]
        if func is torch.Tensor.normal_:
            return args[0]
        if func is torch.Tensor.mul and isinstance(args[1], float) and args[0].is_floating_point():
            return args[0].detach()
        return func(*args, **options)


@contextmanager
def outlined(shapes: Mapping[str, Sequence[int]], width: int) -> Iterator[None]:
    """What is built in this block has shapes and no memory.

    A class that looks at numbers while it is built (a few of timm's, a user's own) has no outline; its error is passed
    over if the width is that of the weights.
    """
    try:
        with torch.device("meta"), _Undrawn():
            yield
    except (NotImplementedError, RuntimeError) as error:
        if "meta" not in str(error) or tuple(shapes.get("backbone.norm.weight", ())) != (width,):
            raise


def check_sizes(outline: nn.Module, state: Any, shapes: Mapping[str, Sequence[int]], folder: Path) -> None:
    """Compares an outlined model, and its state of one video, with the shapes in its weights file, before memory is
    asked for.

    Raises:
        ValueError: if they differ, or if the state of a single video would not fit into any memory.
    """
    weights = folder / "model.safetensors"
    check_shapes(weights, {name: tensor.shape for name, tensor in outline.state_dict().items()}, shapes)
    tensors = [leaf for leaf in pytree.tree_leaves(state) if isinstance(leaf, torch.Tensor)]
    if (size := sum(tensor.numel() * tensor.element_size() for tensor in tensors)) > LARGEST_STATE:
        raise ValueError(
            f"The configuration beside {weights} asks for {size:,} bytes of state for a single video; it is damaged."
        )


def difference(expected: Mapping[str, Sequence[int]], shapes: Mapping[str, Sequence[int]]) -> str:
    """How the tensors of one model differ from another's, by names and shapes; "" where they do not."""
    missing, unknown = sorted(set(expected) - set(shapes)), sorted(set(shapes) - set(expected))
    other = [n for n in sorted(set(expected) & set(shapes)) if tuple(expected[n]) != tuple(shapes[n])]
    if not (missing or unknown or other):
        return ""
    first = (missing or unknown or other)[0]
    return f"{len(missing)} tensors missing, {len(unknown)} unknown, {len(other)} of another shape (first: {first})"


def save_weights(model: nn.Module, folder: Path) -> None:
    """Writes ``folder/model.safetensors``. Raises OSError with its name if that cannot be."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    file = folder / "model.safetensors"
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    try:
        save_file(tensors, file, metadata={"format": "pt"})
    except SafetensorError as error:  # a full disk among others
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else errno.EIO
        raise OSError(code, os.strerror(code) if number else str(error), str(file)) from error


def _check_unchanged(folder: Path) -> None:
    """Compares config.json and the weights with the checksum that was written with them: most settings (size of the
    frames, sampling, order of the labels) leave no trace in the shapes of the weights.

    Raises:
        ValueError: if either was changed since. Models of before 2026-11-29 have no checksum.
    """
    description = read_description(folder)
    if "checksum" in description and description["checksum"] != _checksum(description, folder):
        raise ValueError(
            f"{folder / 'config.json'} or the weights beside it are not as they were written (a value was changed, "
            'added or removed, or a file is damaged); restore both, or remove "checksum" from config.json if the '
            "change is yours."
        )


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors in ``folder/model.safetensors``.

    Raises:
        ValueError: if the file is damaged, or if it or config.json was changed since they were written.
    """
    from safetensors.torch import load_file

    path = folder / "model.safetensors"
    try:
        tensors = load_file(path)
    except Exception as error:
        raise ValueError(_unreadable(path, error)) from error
    _check_unchanged(folder)
    return tensors


def load_weights(model: nn.Module, folder: Path) -> None:
    """Loads ``folder/model.safetensors`` strictly.

    Raises:
        ValueError: if the file is damaged or of another architecture than ``model``.
    """
    tensors = read_weights(folder)
    expected, shapes = ({name: t.shape for name, t in one.items()} for one in (model.state_dict(), tensors))
    check_shapes(folder / "model.safetensors", expected, shapes)
    model.load_state_dict(tensors)


def resolve_checkpoint(path: str | Path, *, code: bool = False) -> Path:
    """The folder with ``config.json`` and ``model.safetensors`` that ``path`` means; ``owner/name`` is fetched from the
    Hub where no such folder is here.

    Args:
        code: fetch the Python files beside them, too, which a model of the user's own classes carries.

    Raises:
        ValueError: if there is none.
    """
    if hub.is_name(path) and not Path(path).exists():
        path = hub.fetch(str(path), code=code)
    path = Path(path)
    if not path.exists():
        raise ValueError(f"The checkpoint {path} does not exist.")
    if _is_model(path):
        return path
    index = path / "checkpoints" / "index.json"
    if index.is_file():
        entries = read_index(index)
        chosen = index.parent / (entries["best"] or entries["last"])
        if not _is_model(chosen):
            raise ValueError(
                f"{chosen}, the checkpoint that {index.name} names, is missing or not whole; "
                f"name another one of {index.parent} instead."
            )
        return chosen
    # of a run that was killed before its first index, or whose folders were moved: the latest
    latest = [step for step in (path / "checkpoints").glob("step-*") if _is_model(step)]
    if latest:
        return max(latest)
    raise ValueError(
        f"{path} holds no checkpoint: neither config.json and model.safetensors, nor checkpoints/ of a run."
    )


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() and (folder / "model.safetensors").is_file()
