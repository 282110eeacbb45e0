"""`tttvideo predict`: what comes next in videos, a film and a picture for each."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..files import check_folder
from ..measuring import PredictConfig
from ..origin import inspect_checkpoint
from ..printing import printable
from ..video.index import Video
from ..video.reading import damaged_videos_named
from .files import complain
from .predicting import Predicted, predict_video, predictor
from .progress import progress, share
from .results import Results
from .sources import find_videos
from .timeline import stems

FILE = "predictions.jsonl"
"""Rows of several videos; the same command goes on where an earlier one ended."""


def predict_files(config: PredictConfig) -> int:
    """Writes the films and pictures of all videos, and a row for each where there are several.

    Returns:
        the exit code: 2 where a video could not be read or is too short.

    Raises:
        ValueError: for sources, settings or a checkpoint that cannot be used.
    """
    check_folder(Path(config.out))
    with damaged_videos_named():
        videos = [video._replace(start=None, end=None) for video in find_videos(config.videos, sys.stdin)]
        if len(videos) == 1:
            predicted = predict_video(*predictor(config), config, videos[0].path, stems(videos)[0])
            _say(predicted)
            print(printable(f"written to {config.out}: {predicted.film.name} and {predicted.strip.name}"))
            return 0
        return _predict(config, videos)


def _predict(config: PredictConfig, videos: list[Video]) -> int:
    own = share()
    model, rate = predictor(config)
    Path(config.out).mkdir(parents=True, exist_ok=True)
    settings = {name: asdict(config)[name] for name in ("context", "horizon", "write")}
    same = {"model": inspect_checkpoint(config.checkpoint).sha256[:16], **settings}
    results = Results(Path(config.out) / FILE, [], same, own.rank)
    mine = own.of(list(zip(videos, stems(videos), strict=True)))
    waiting = [(video, name) for video, name in mine if not results.has(video)]
    failed = 0
    try:
        with progress("videos", len(mine), len(mine) - len(waiting)) as advance:
            for video, name in waiting:
                row: dict[str, Any] = {"path": video.path, "start": None, "end": None}
                try:
                    predicted = predict_video(model, rate, config, video.path, name)
                    row |= {"film": predicted.film.name, "picture": predicted.strip.name, "mse": predicted.mse}
                except (ValueError, OSError) as error:
                    row |= {"error": str(error)}
                    failed += 1
                    complain(str(error))
                results.add(row)
                advance("error" in row)
    finally:
        results.close()
    if own.rank == 0:
        print(printable(f"{config.out}: {len(waiting)} predictions ({failed} failed), rows in {FILE}"))
    return 2 if failed else 0


def _say(predicted: Predicted) -> None:
    for note in predicted.notes:
        print(printable(f"note: {note}"), file=sys.stderr)
    for line in predicted.lines:
        print(printable(line))
