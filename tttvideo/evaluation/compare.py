"""Several runs side by side: for each protocol that they share, what varies, every run's figure with an interval, and
the best that can be reached. It works on tables, whatever the task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..measuring import CompareConfig, parse_runs
from .bootstrap import Bootstrap
from .position import position_protocols
from .protocols import Protocols
from .table import (
    Evaluations,
    Measured,
    VideoKey,
    data_names,
    find_evaluations,
    read_position_tables,
    read_tables,
    task_of,
)


def compare(config: CompareConfig) -> dict[str, Any]:
    """The content of compare.json.

    Raises:
        ValueError: for a folder without an evaluation, damaged files, runs of different tasks, evaluations that cannot
            stand side by side, or that vary nothing.
    """
    runs = parse_runs(config.runs)
    files = {run.name: [find_evaluations(folder) for folder in run.folders] for run in runs}
    task = _shared_task(files)
    names = data_names([one for seeds in files.values() for one in seeds])
    measured = {run: [read_tables(one, names) for one in seeds] for run, seeds in files.items()}
    for run, seeds in measured.items():
        _check_seeds(run, files[run], seeds)
    bootstrap = Bootstrap(config.resamples, config.seed)
    protocols = Protocols(measured, bootstrap).all()
    positions = {
        run: [table for one in seeds for table in read_position_tables(one, names)] for run, seeds in files.items()
    }
    protocols |= position_protocols(positions, bootstrap)
    if not protocols:
        raise ValueError(
            "these evaluations vary nothing; give tttvideo evaluate several --frames, --sampling or --views, "
            "--controls, or a column for --by"
        )
    abouts = {run: [about for one in seeds for about in one.about] for run, seeds in measured.items()}
    return {
        "task": task,
        "runs": {
            run.name: {
                "folders": [str(folder) for folder in run.folders],
                "checkpoints": [about["checkpoint"] for about in abouts[run.name]],
                "weights_sha256": [about.get("weights_sha256") for about in abouts[run.name]],
            }
            for run in runs
        },
        "interval": f"95 % percentiles of {config.resamples} bootstrap samples of the videos (and of the seeds, where "
        "a run has several)",
        "protocols": protocols,
        "notes": _notes(measured),
    }


def _shared_task(files: dict[str, list[Evaluations]]) -> str:
    """What all models were trained for.

    Raises:
        ValueError: where they differ.
    """
    firsts: dict[str, tuple[str, Path]] = {}  # task -> the first run, and its file
    for run, seeds in files.items():
        for one in seeds:
            for file, content in (one.metrics | one.positions).items():
                firsts.setdefault(task_of(content), (run, file))
    if len(firsts) > 1:
        (first, (a, file)), (second, (b, other)), *_ = firsts.items()
        if a == b:
            said, advice = f"{a} holds evaluations of {first} and of {second}", "give the folder of one"
        else:
            said, advice = f"{a} was measured in {first} and {b} in {second}", "compare runs of one task"
        raise ValueError(f"{said} ({file} and {other}); {advice}")
    return next(iter(firsts))


def _check_seeds(run: str, files: Sequence[Evaluations], seeds: Sequence[Measured]) -> None:
    """Raises ValueError where two seeds are one: the interval over seeds would say what it is not."""
    owners: dict[str, Path] = {}
    for one, seed in zip(files, seeds, strict=True):
        for weights in {str(about["weights_sha256"]) for about in seed.about if about.get("weights_sha256")}:
            if weights in owners:
                raise ValueError(
                    f"{run}: {owners[weights]} and {one.folder} hold evaluations of the same weights, not of two "
                    "seeds; put evaluations of one checkpoint into one folder"
                )
            owners[weights] = one.folder


def _notes(measured: dict[str, list[Measured]]) -> list[str]:
    sets: dict[str, set[frozenset[VideoKey]]] = {}
    notes = []
    for run, seeds in measured.items():
        for one in seeds:
            for table in one.tables:
                sets.setdefault(table.condition.data, set()).add(frozenset(table.videos))
            notes += [f"{run}: {note}" for about in one.about for note in about.get("notes", [])]
    unlike = [
        f"the runs were not measured on the same videos of {name}" for name, videos in sets.items() if len(videos) > 1
    ]
    return list(dict.fromkeys([*unlike, *notes]))
