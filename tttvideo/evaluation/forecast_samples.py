"""Predictions to look at in a report: videos of every difficulty, and those that went worst."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tttvideo.evaluation.forecaster import forecasts, read_clip
from tttvideo.evaluation.strips import LAST, strip_png
from tttvideo.model import VideoModel
from tttvideo.tasks.prediction import in_unit
from tttvideo.video.index import Index
from tttvideo.video.reader import VideoError


class Shown(NamedTuple):
    """One video as it was predicted."""

    row: dict[str, Any]  # of predictions.csv
    rank: int  # 1 has the smallest error of the model
    strip: bytes  # PNG: truth, prediction, error


def choose(ranked: Sequence[int], count: int) -> tuple[list[int], list[int]]:
    """Of videos in order of their error, places in that order: ``count`` that stand evenly over them, the best first,
    and the ``count`` last, the worst first. No video is in both; of few, half are."""
    worst = list(range(len(ranked) - min(count, len(ranked) // 2), len(ranked)))[::-1]
    others = len(ranked) - len(worst)
    evenly = np.unique(np.linspace(0, others - 1, min(count, others)).round().astype(int)) if others else []
    return [int(place) for place in evenly], worst


def collect(
    model: VideoModel,
    index: Index,
    predictions: Sequence[dict[str, Any]],
    ranked: Sequence[int],
    count: int,
    *,
    context: int,
    horizon: int,
    write: bool,
    segment: int | None,
) -> tuple[list[Shown], list[Shown]]:
    """Videos to show, usual ones and the worst; each is read and predicted again.

    Args:
        predictions: rows of predictions.csv, in the order of the index.
        ranked: places in the index of the videos that were measured, the smallest error first.
    """

    def look(place: int) -> Shown | None:
        video = index.videos[ranked[place]]
        span = (video.start, video.end)
        try:
            clip = read_clip(video.path, model.preprocessing, context + horizon, span=span)
        except (VideoError, OSError):  # it was there a moment ago
            return None
        clip = clip.to(next(model.parameters()).device)
        made = forecasts(model, clip[None, :context], horizon, write=write, segment=segment)["model"][0]
        first = max(0, context - LAST)
        strip = strip_png(in_unit(clip[first:context]), in_unit(clip[context:]), made, first)
        return Shown(predictions[ranked[place]], place + 1, strip)

    usual, worst = choose(ranked, count)
    return [s for s in map(look, usual) if s], [s for s in map(look, worst) if s]
