"""Cross-validation: a run for each fold of the videos, and what they have in common as a table."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..arguments import to_yaml
from ..files import write_text
from .config import ConfigError, RunConfig
from .run_folder import JsonLines, writing

T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
"""97.5 % of Student's t with 1, 2, ... degrees of freedom; with more than these it is taken as 2.12."""

COUNTS = ("n", "failed", "too_short")
"""What of a validation is a number of videos, and no figure."""


def cross_validate(config: RunConfig, train: Callable[[RunConfig, str], Any]) -> None:
    """Trains a model for each fold in out/fold-1, out/fold-2, ... and leaves out/folds.json.

    Raises:
        ConfigError, DataError: before anything is written, where the folds cannot be made of these videos.
    """
    assert config.folds is not None
    if config.out is None:
        raise ConfigError("say where the runs go: --out FOLDER")
    out = Path(config.out)
    if (out / "config.yaml").exists():
        raise ConfigError(f"{out} already holds a run; give another --out, in which each fold gets a folder")
    runs = [
        replace(config, folds=None, out=str(out / f"fold-{k}"), data=replace(config.data, fold=(k, config.folds)))
        for k in range(1, config.folds + 1)
    ]
    for run in runs:
        run.data.index(run.data.split_train, labelled=run.model.task.labelled)
    first, rows = os.environ.get("RANK", "0") == "0", []
    for run in runs:
        train(run, to_yaml(run))
        rows += [last_validation(Path(str(run.out)))] if first else []
    if first:
        with writing(out / "folds.json"):
            write_text(out / "folds.json", json.dumps({"folds": rows, "mean": summary(rows)}, indent=1))
        print("\n".join(["", *table(rows)]), flush=True)


def last_validation(run: Path) -> dict[str, float]:
    """The figures of a run's last validation: nothing was chosen on them.

    Raises:
        ConfigError: if its log has none.
    """
    log = run / "log.jsonl"
    lines = [line for line in JsonLines(log).read("epoch") if "val_n" in line]
    if not lines:
        raise ConfigError(
            f"{log} has no validation, though the fold was trained to its end: lines of it are lost; take {run} away "
            "to train this fold again with --resume auto"
        )
    return {key.removeprefix("val_"): value for key, value in lines[-1].items() if key.startswith("val_")}


def summary(rows: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Of each figure that all folds have: their mean, and the interval (95 %) in which Student's t over the folds puts
    it."""
    figures = [name for name in rows[0] if name not in COUNTS and all(_is_number(row.get(name)) for row in rows)]
    intervals = {}
    for name in figures:
        values = [row[name] for row in rows]
        mean, spread = statistics.mean(values), statistics.stdev(values)
        half = [*T_QUANTILES, 2.12][min(len(values) - 2, len(T_QUANTILES))] * spread / math.sqrt(len(values))
        intervals[name] = {"mean": mean, "low": mean - half, "high": mean + half}
    return intervals


def table(rows: Sequence[dict[str, float]]) -> list[str]:
    """The folds, their mean and its interval, a line each."""
    means = summary(rows)
    lines = [["fold", "videos", *means]]
    lines += [[str(k), f"{row['n']:.0f}", *(_short(row[name]) for name in means)] for k, row in enumerate(rows, 1)]
    lines.append(["mean", f"{sum(row['n'] for row in rows):.0f}", *(_short(m["mean"]) for m in means.values())])
    lines.append(["95 %", "", *(f"{_short(m['low'])} to {_short(m['high'])}" for m in means.values())])
    widths = [max(map(len, column)) for column in zip(*lines)]
    text = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in lines]
    text.append(
        "Figures of each last validation, on which nothing was chosen; the interval is Student's t over the folds."
    )
    return text


def _short(value: float) -> str:
    """Three places, or three digits of what is small."""
    return f"{value:.3f}" if abs(value) >= 0.1 or not value else f"{value:.3g}"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
