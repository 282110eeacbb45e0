"""Predicting pixels that are seen again: models trained on short clips of revisit, measured lap by lap on long ones.

Rows of `benchmarks.fair`; not run by itself.
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.design import any_suite, clips, fit
from benchmarks.small import VAL_SEED, Partial
from tttvideo.evaluation.suites import revealed_errors
from tttvideo.evaluation.table import METHODS, MODEL
from tttvideo.model import VideoModel
from tttvideo.ttt.interface import state_bytes
from tttvideo.video.synthetic import PredictionSuite

BATCH = 16


def train_row(
    study: dict[str, Any], task: str, variant: str, seed: int, partial: Partial | None = None
) -> dict[str, Any]:
    """Trains and measures one row."""
    model, about = fit(study, task, variant, seed, partial)
    described = study["tasks"][task]
    suite = any_suite(described, study.get("val_seed", VAL_SEED), frames=described["measured"])
    assert isinstance(suite, PredictionSuite)
    measured = [measure(model, suite, described["val"])]
    frames, _ = clips(any_suite(described, VAL_SEED), "val", range(1))
    with torch.no_grad():
        _, state = model(frames)
    held = state_bytes(state)
    return {"task": task, "variant": variant, "seed": seed, "state_bytes": held, "measured": measured} | about


def measure(model: VideoModel, suite: PredictionSuite, count: int) -> dict[str, Any]:
    """Mean squared errors on newly revealed pixels, each frame predicted from all true ones before it.

    Returns:
        ``errors``, of each clip over all laps after the first, ``error``, their mean, and ``by_lap``, of all clips
        together, for the laps that each of them has.
    """
    sums, counts = [], []
    for first in range(0, count, BATCH):
        numbers = range(first, min(first + BATCH, count))
        causes = [suite.plan("val", i).cause for i in numbers]
        revealed = [suite.revealed({key: str(value) for key, value in cause.items()}) for cause in causes]
        frames, (_, lengths) = clips(suite, "val", numbers)
        pieces = frames.split(model.segment_frames(64), dim=1)
        segments = ((piece, torch.full_like(lengths, piece.shape[1])) for piece in pieces)
        more_than_any = 1 + suite.frames
        squared, values = revealed_errors(model, segments, revealed, more_than_any)
        sums.append(squared[:, METHODS.index(MODEL)])
        counts.append(values)
    squared, values = torch.cat(sums), torch.cat(counts)  # [clips, laps]
    laps = int(values.all(0).sum())  # that every clip has
    squared, values = squared[:, :laps], values[:, :laps]
    errors = squared[:, 1:].sum(1) / values[:, 1:].sum(1)
    by_lap = squared.sum(0) / values.sum(0)
    return {
        "frames": suite.frames,
        "n": count,
        "error": round(float(errors.mean()), 5),
        "errors": [round(error, 5) for error in errors.tolist()],
        "by_lap": [round(error, 5) for error in by_lap.tolist()],
        "no_memory": round(suite.bounds["no_memory"], 5),
    }
