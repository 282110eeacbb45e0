"""Several evaluations side by side: for each protocol that they share, what varies, every run's figure with an
interval, and the best that can be reached."""

from collections.abc import Sequence
from typing import Any

from tttvideo.evaluation.accuracy_protocols import AccuracyProtocols
from tttvideo.evaluation.bootstrap import Bootstrap
from tttvideo.evaluation.config import CompareConfig
from tttvideo.evaluation.error_protocols import ErrorProtocols
from tttvideo.evaluation.measured import (
    Found,
    Measured,
    data_names,
    find,
    notes_of,
    read_positions,
    read_run,
    shared_task,
)
from tttvideo.evaluation.named import Named, parse_named
from tttvideo.evaluation.position_curves import position_protocols


def compare(config: CompareConfig) -> dict[str, Any]:
    """``compare_runs`` of a configuration; ``print_comparison`` and ``write_comparison`` take what it returns."""
    return compare_runs(parse_named(config.runs), resamples=config.resamples, seed=config.seed)


def compare_runs(runs: Sequence[Named], *, resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """The content of compare.json.

    Raises:
        ValueError: for a folder without an evaluation, damaged files, runs of different tasks, evaluations that cannot
            stand side by side, or that vary nothing.
    """
    found = {run.name: [find(folder) for folder in run.folders] for run in runs}
    task = shared_task(found)
    names = data_names([one for seeds in found.values() for one in seeds])
    measured = {run: [read_run(one, names) for one in seeds] for run, seeds in found.items()}
    for run, seeds in measured.items():
        _check_seeds(run, found[run], seeds)
    notes = notes_of(measured)
    bootstrap = Bootstrap(resamples, seed)
    protocols = (ErrorProtocols if task == "Prediction" else AccuracyProtocols)(measured, bootstrap).all()
    curves = {run: [curve for one in seeds for curve in read_positions(one, names)] for run, seeds in found.items()}
    protocols |= position_protocols(curves, bootstrap)
    if not protocols:
        raise ValueError(
            "these evaluations vary nothing; give tttvideo evaluate several --frames, --sampling or --views, "
            "--controls, or a column for --by"
        )
    return {
        "task": task,
        "runs": {
            run.name: {
                "folders": [str(folder) for folder in run.folders],
                "checkpoints": [about["checkpoint"] for one in measured[run.name] for about in one.about],
                "weights_sha256": [about.get("weights_sha256") for one in measured[run.name] for about in one.about],
            }
            for run in runs
        },
        "interval": f"95 % percentiles of {resamples} bootstrap samples of the videos (and of the seeds, where a run "
        "has several)",
        "protocols": protocols,
        "notes": notes,
    }


def _check_seeds(run: str, found: Sequence[Found], seeds: Sequence[Measured]) -> None:
    """Raises ValueError where two seeds are one: the interval over seeds would say what it is not."""
    known: dict[str, Found] = {}
    for folder, seed in zip(found, seeds, strict=True):
        for weights in {str(about["weights_sha256"]) for about in seed.about if about.get("weights_sha256")}:
            if weights in known:
                raise ValueError(
                    f"{run}: {known[weights].folder} and {folder.folder} hold evaluations of the same weights, not of "
                    "two seeds; put evaluations of one checkpoint into one folder"
                )
            known[weights] = folder
