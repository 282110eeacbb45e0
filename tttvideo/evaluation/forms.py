"""What metrics.json and position.json must hold for a comparison: each name with the kind of its value.

A kind is a class; a tuple of kinds, any of which will do; a list of one kind; or a mapping, of names to kinds
(``name?`` may be missing, as older evaluations lack it; names that no comparison reads are not listed), or of ``str``
to the kind of every value. ``int`` is a whole number from 0, ``float`` a number; a text or null stands for itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..files import damaged, read_arrays, read_json

LARGEST = 3.4e38
"""Of a number: models compute in 32 bits."""

RESULT = {
    "frames": ("all", int),
    "sampling": str,
    "mean_frames_used": float,
    "mean_tokens_used": float,
    "views?": str,
    "control?": str,
    "ceiling?": (float, None),
    "by?": {str: [{"value": str, "ceiling": (float, None)}]},
}
EVALUATION = {
    "checkpoint": str,
    "data": str,
    "n_videos": int,
    "task?": str,
    "weights_sha256?": (str, None),
    "notes?": [str],
}
OF_READING = EVALUATION | {
    "results": [RESULT],
    "score?": {"column": str, "figure": str, "title": str, "lower?": bool, "share?": bool},
    "labels?": [str],
    "bins?": {str: int},
    "chance?": (float, None),
    "clip_frames?": (int, None),
}
OF_GENERATING = EVALUATION | {
    "context": int,
    "write": bool,
    "space": str,
    "grey": bool,
    "suite?": ({"best_mse?": (float, None)}, None),
    "revealed?": ({"by": str, "bounds": {str: float}}, None),
}
PER_VIDEO = {
    "methods": ("U", 1),
    "mse": ("f", 3),
    "revealed_squared?": ("f", 3),
    "revealed_values?": ("f", 2),
}
"""Of the arrays of per_video.npz: NumPy's letter for what they hold, and dimensions."""
LOSSES = {"losses_0": ("f", 3), "videos_0": ("U", 2)}
"""The same for position.npz."""
POSITIONS = {"data": str, "unit": str, "task?": str, "series": {str: {"frames": [float]}}}


def read_metrics(file: Path, advice: str) -> dict[str, Any] | None:
    """The content of a metrics.json; None for one that is of no evaluation.

    Raises:
        ValueError: for a damaged one.
    """
    content = read_json(file, advice)
    if "per_horizon" in content:
        return _of_form(file, content, OF_GENERATING, advice)
    return _of_form(file, content, OF_READING, advice) if "results" in content else None


def read_positions(file: Path, advice: str) -> dict[str, Any]:
    """The content of a position.json.

    Raises:
        ValueError: for a damaged one.
    """
    return _of_form(file, read_json(file, advice), POSITIONS, advice)


def read_arrays_of(file: Path, form: dict[str, tuple[str, int]], advice: str) -> dict[str, np.ndarray]:
    """The arrays of ``PER_VIDEO`` or ``LOSSES``.

    Raises:
        ValueError: for a damaged file.
    """
    arrays = read_arrays(file, advice)
    for key, kind in form.items():
        name = key.rstrip("?")
        if name not in arrays:
            if key == name:
                raise damaged(file, KeyError(name), advice)
        elif (arrays[name].dtype.kind, arrays[name].ndim) != kind:
            raise damaged(file, f"{name} cannot be {arrays[name].dtype} of shape {arrays[name].shape}", advice)
    return arrays


def _of_form(file: Path, content: dict[str, Any], form: dict[Any, Any], advice: str) -> dict[str, Any]:
    for reason in _misfits(content, form, ""):
        raise damaged(file, reason, advice)
    return content


def _misfits(value: Any, kind: Any, name: str) -> Iterator[str]:
    """What is missing in a value, or of another kind."""
    options = kind if isinstance(kind, tuple) else (kind,)
    fitting = next((option for option in options if _is(value, option)), ...)
    if fitting is ...:
        yield f"{name} cannot be {value!r:.50}"
    elif isinstance(fitting, list):
        for number, part in enumerate(value):
            yield from _misfits(part, fitting[0], f"{name}[{number}]")
    elif isinstance(fitting, dict) and str in fitting:
        for key, part in value.items():
            yield from _misfits(part, fitting[str], f"{name}[{key!r:.50}]")
    elif isinstance(fitting, dict):
        for key, part in fitting.items():
            below = f"{name}.{key.rstrip('?')}".lstrip(".")
            if key.rstrip("?") in value:
                yield from _misfits(value[key.rstrip("?")], part, below)
            elif not key.endswith("?"):
                yield f"it has no {below}"


def _is(value: Any, kind: Any) -> bool:
    """Whether a value is of a kind, its parts aside."""
    if isinstance(kind, dict | list):
        return isinstance(value, type(kind))
    if kind in (int, float):
        number = isinstance(value, int) if kind is int else isinstance(value, int | float)
        return number and not isinstance(value, bool) and (0 if kind is int else -LARGEST) <= value <= LARGEST
    return isinstance(value, kind) if isinstance(kind, type) else value == kind
