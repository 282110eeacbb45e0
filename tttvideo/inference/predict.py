"""`tttvideo predict`: what comes next in videos, a film and a picture for each."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from ..devices import best_device, choose_device
from ..evaluation.generating import check_context, forecasts, generating_model, rate_mismatch, read_clip, shown_horizons
from ..evaluation.table import METHODS
from ..files import check_folder, replacing
from ..measuring import PredictConfig
from ..model import VideoModel
from ..origin import inspect_checkpoint
from ..printing import printable
from ..tasks.frame_metrics import FrameMetrics
from ..tasks.prediction import in_unit
from ..video.decode import open_video
from ..video.index import Video
from ..video.reading import damaged_videos_named, sampled_rate
from ..video.strips import write_film, write_strip
from ..video.transforms import Preprocessing
from .files import complain
from .progress import progress, share
from .results import Results, rows_kept
from .sources import find_videos
from .timeline import stems

FILE = "predictions.jsonl"
"""Rows of several videos; the same command goes on where an earlier one ended."""

SHOWN = 64
"""Frames of the context that the film begins with, at most."""


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
    waiting = [(video, name) for video, name in mine if results.error_of(video) is None]
    failed_before = sum(bool(results.error_of(video)) for video, _ in mine)
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
        kept = rows_kept(len(mine) - len(waiting), failed_before)
        print(printable(f"{config.out}: {len(waiting)} predictions ({failed} failed{kept}), rows in {FILE}"))
    return 2 if failed or failed_before else 0


def _say(predicted: Predicted) -> None:
    for note in predicted.notes:
        print(printable(f"note: {note}"), file=sys.stderr)
    for line in predicted.lines:
        print(printable(line))


class Predicted(NamedTuple):
    """Files that were written, and what is to be said."""

    film: Path
    strip: Path
    lines: list[str]  # the errors
    notes: list[str]  # where the video is unlike those of the training
    mse: dict[str, list[float]]  # of the model and of what needs none, for each predicted frame that has a truth


def predictor(config: PredictConfig) -> tuple[VideoModel, float | None]:
    """The model, and the rate in Hz at which it learned.

    Raises:
        ValueError: for a checkpoint of another task, and lengths that it cannot read.
    """
    source = inspect_checkpoint(config.checkpoint)
    model = generating_model(source.folder, trust=config.trust).to(choose_device(config.device) or best_device())
    check_context(model, config.context, config.horizon)
    if model.head.space == "features":
        raise ValueError(
            f"{config.checkpoint} predicts features, of which there is no picture; measure it with tttvideo evaluate"
        )
    return model, source.provenance.get("frame_rate")


def predict_video(
    model: VideoModel, learned_rate: float | None, config: PredictConfig, video: str, name: str
) -> Predicted:
    """Predicts the frames after the context, and draws them into files of the folder ``config.out`` that begin with
    ``name``; the first two are those of ``predictor``.

    Raises:
        ValueError: for a context that is as long as the video, or a video that cannot be read.
    """
    context, horizon, write = config.context, config.horizon, config.write == "all"
    clip = read_clip(str(video), model.preprocessing, context + horizon)
    if len(clip) < 2:
        raise ValueError(f"{video} has a single frame; a prediction needs one to read and one to compare with")
    if len(clip) <= context:
        step = model.frame_multiple
        if len(clip) <= step:
            raise ValueError(
                f"{video} has {len(clip)} frames; this model reads {step} at a time, so it needs {step + 1}"
            )
        raise ValueError(
            f"{video} has {len(clip)} frames, which a context of {context} leaves nothing of; give --context "
            f"{(len(clip) - 1) // step * step} or less"
        )
    clip = clip.to(next(model.parameters()).device)
    predictions = forecasts(model, clip[None, :context], horizon, write=write)
    first = max(0, context - SHOWN)
    before, truth = in_unit(clip[first:context]), in_unit(clip[context:])
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    # not the video's own name: people keep their films where the video lies
    film, strip = out / f"{name}-predicted.mp4", out / f"{name}-predicted.png"
    with open_video(str(video)) as reader:
        size = (reader.info.height, reader.info.width)
        rate = sampled_rate(reader.info.fps, model.preprocessing.sampling)
    notes = mismatches(str(video), size, rate, model.preprocessing, learned_rate)
    with replacing(film) as path:
        write_film(path, before, truth, predictions["model"][0], rate or 10.0, first)
    learned = "all frames, generated ones too" if write else "the context alone"
    note = f"{Path(video).name}: {context} frames given, {horizon} predicted; the hidden state learns from {learned}"
    with replacing(strip) as path:
        write_strip(path, before, truth, predictions["model"][0], first, note)
    measure = FrameMetrics()
    errors = [measure(predictions[method][:, : len(truth)], truth[None])[0] for method in METHODS]
    psnr = measure.names.index("psnr")
    lines = ["horizon  " + "".join(f"{method:>22}" for method in METHODS) + "   mse (psnr in dB)"]
    for ahead in shown_horizons(len(truth)):
        cells = [f"{float(e[0, ahead - 1]):.1f} ({float(e[psnr, ahead - 1]):.1f})" for e in errors]
        lines.append(f"{ahead:>7}  " + "".join(f"{cell:>22}" for cell in cells))
    if len(truth) < horizon:
        notes.append(
            f"{video} ends after {len(clip)} frames: the last {horizon - len(truth)} have no truth beside them"
        )
    mse = {method: [float(e) for e in own[0]] for method, own in zip(METHODS, errors, strict=True)}
    return Predicted(film, strip, lines, notes, mse)


def mismatches(
    video: str, size: tuple[int, int], rate: float | None, preprocessing: Preprocessing, trained: float | None
) -> list[str]:
    """Sentences on where a video of ``size`` (height, width) read at ``rate`` Hz is unlike what the model learned from,
    which was read at ``trained`` Hz."""
    notes = []
    (height, width), (high, wide) = size, preprocessing.size
    if size != preprocessing.size:
        how = {"crop": "scaled and cropped", "pad": "scaled and padded", "stretch": "stretched"}[preprocessing.fit]
        notes.append(f"{video} has {height} x {width} pixels: {how} to the model's {high} x {wide}")
    return notes + rate_mismatch(video, rate, trained)
