"""How well a model predicts: a context of each video is read, a horizon is generated, and each frame of it compared."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tttvideo.evaluation.checkpoint import inspect_checkpoint
from tttvideo.evaluation.evaluate import (
    best_device,
    choose_device,
    default_split,
    described_suite,
    device_name,
    one_process,
    progress_bar,
)
from tttvideo.evaluation.forecast_samples import Shown, collect
from tttvideo.evaluation.forecaster import (
    check_lengths,
    forecasts,
    prediction_model,
    rate_mismatch,
    read_clip,
    space_of,
)
from tttvideo.evaluation.frame_metrics import FrameMetrics, VideoDistance
from tttvideo.evaluation.revealing import METHODS, measure_revealed, told_of
from tttvideo.evaluation.summary import versions, where
from tttvideo.model import VideoModel
from tttvideo.video.index import Index, build_index
from tttvideo.video.overlap import count_seen
from tttvideo.video.reader import VideoError
from tttvideo.video.reading import usual_rate
from tttvideo.video.synthetic import PredictionSuite, SuiteError, suite_from
from tttvideo.video.synthetic.prediction import Revealed


class Forecasts(NamedTuple):
    """What an evaluation of predictions found.

    Attributes:
        metrics: the content of metrics.json.
        predictions: the rows of predictions.csv.
        per_video: the arrays of per_video.npz, a row for each of ``predictions``: ``methods``, ``mse`` [V, methods,
            horizon] (NaN for videos that were not measured), and where a suite reveals something
            ``revealed_squared`` [V, methods, groups] and ``revealed_values`` [V, groups], sums over a video.
        samples, worst: videos to look at, of the usual ones and of those with the largest errors.
    """

    metrics: dict[str, Any]
    predictions: list[dict[str, Any]]
    per_video: dict[str, np.ndarray]
    samples: Sequence[Shown] = ()
    worst: Sequence[Shown] = ()


def evaluate_prediction(
    checkpoint: str | Path,
    data: str | Path,
    *,
    split: str | None = None,
    root: str | Path | None = None,
    context: int = 10,
    horizon: int = 10,
    write: bool = True,
    grey: bool = False,
    lpips: str | Path | None = None,
    fvd: str | Path | None = None,
    samples: int = 0,
    batch_size: int = 8,
    segment: int | None = None,
    device: str | None = None,
    trust: bool = False,
    progress: bool = False,
) -> Forecasts:
    """Measure a checkpoint trained for ``Prediction`` on the videos of one split, by horizon.

    Of each video the first ``context`` frames (after the model's sampling rule) are read, and the next ``horizon``
    frames generated; shorter videos and unreadable ones are listed and not measured.

    Args:
        write: whether the hidden state learns from generated frames (``roll_out``).
        grey, lpips: as ``FrameMetrics`` has them.
        fvd: the user's I3D, as ``VideoDistance`` takes it, for the distance between true and predicted videos, their
            context included.
        samples: videos to be shown at length in the report, and as many of those with the largest errors.
        segment: frames of the context that are held in the model's graph at a time; None: about 64.
        checkpoint, data, split, root, batch_size, device, trust, progress: as in ``evaluate``; labels are ignored.

    Raises:
        ValueError: for a checkpoint of another task, settings that cannot be, or a split without a video that is
            long enough.
    """
    one_process()
    source = inspect_checkpoint(checkpoint)
    model = prediction_model(source.folder, trust=trust)
    check_lengths(model, context, horizon)
    measure = FrameMetrics(space_of(model), grey=grey, lpips=lpips)
    if fvd and measure.space == "features":
        raise ValueError("--fvd is of pixels, and this model predicts features; leave it out")
    for name, value in (("batch-size", batch_size), ("segment", segment)):
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}")
    root = root or (source.root if source.data and Path(data).resolve() == Path(source.data).resolve() else None)

    def read(part: str) -> Index:
        return build_index(data, part, root=root, labelled=False, **source.drawn)

    split = split or default_split(data, root, source, read, labelled=False)
    index = read(split)
    seen = count_seen(index.videos, source.provenance.get("trained_on"))
    notes = [f"{seen} of the {len(index.videos)} measured videos were trained on"] if seen else []
    known = _known(data, index)
    told = _told(model, index, known, notes)
    place = choose_device(device) or best_device()
    model.to(place)
    distance = None if fvd is None else VideoDistance(fvd, METHODS, context + horizon, place, trust=trust)
    per_video: dict[int, Tensor] = {}  # [methods, metrics, horizon]
    failures: dict[int, str] = {}
    with progress_bar(progress, len(index.videos)) as advance:
        for start in range(0, len(index.videos), batch_size):
            clips: dict[int, Tensor] = {}
            for i in range(start, min(start + batch_size, len(index.videos))):
                video = index.videos[i]
                try:
                    clips[i] = read_clip(
                        video.path, model.preprocessing, context + horizon, span=(video.start, video.end)
                    )
                    if len(clips[i]) < context + horizon:
                        failures[i] = f"it has {len(clips.pop(i))} frames of the {context + horizon} that are needed"
                except (VideoError, OSError) as error:
                    failures[i] = str(error).removeprefix(f"{video.path}: ")
            if clips:
                frames = torch.stack(list(clips.values())).to(place)
                made = forecasts(model, frames[:, :context], horizon, write=write, segment=segment)
                truth = model.truth(frames[:, context:])
                found = torch.stack([measure(made[method], truth) for method in METHODS], 1)
                if distance is not None:
                    distance.add(made, truth, model.truth(frames[:, :context]))
                per_video.update(zip(clips, found.cpu()))
            if advance is not None:
                advance(min(batch_size, len(index.videos) - start))
    if not per_video:
        first = f"{index.videos[min(failures)].path}: {failures[min(failures)]}"
        raise ValueError(
            f"none of the {len(index.videos)} videos of split {split} can be measured with {context} frames of context "
            f"and {horizon} to predict (first: {first})"
        )
    mean, names = torch.stack([per_video[i] for i in sorted(per_video)]).mean(0), measure.names
    rate = usual_rate([video.path for video in index.videos], model.preprocessing)
    notes += rate_mismatch("the data", rate, source.provenance.get("frame_rate"))
    errors = torch.full((len(index.videos), len(METHODS), horizon), torch.nan)
    errors[list(per_video)] = torch.stack(list(per_video.values()))[:, :, names.index("mse")]
    arrays = {"methods": np.array(METHODS), "mse": errors.numpy()}
    revealed = None
    if known is not None and told:
        bounds = known.description["bounds"]
        revealed, *sums = measure_revealed(
            model, index, known.suite, told, bounds, batch_size=batch_size, segment=segment
        )
        arrays |= {name: x.numpy() for name, x in zip(("revealed_squared", "revealed_values"), sums, strict=True)}
    metrics = {
        "task": "Prediction",
        "checkpoint": str(checkpoint),
        "data": str(data),
        "split": split,
        "n_videos": len(index.videos),
        "n_failed": len(failures),
        "context": context,
        "horizon": horizon,
        "write": write,
        "space": measure.space,
        "grey": grey,
        "convention": measure.convention,
        "mean": {name: _by_metric(names, row.mean(-1, keepdim=True), one=True) for name, row in zip(METHODS, mean)},
        "per_horizon": {name: _by_metric(names, row) for name, row in zip(METHODS, mean)},
        "fvd": None if distance is None else distance.summary(),
        "suite": None if known is None else _bounds(model, known, grey=grey),
        "revealed": revealed,
        "split_rule": index.rule,
        "weights_sha256": source.sha256,
        "selection": source.selection,
        "device": device_name(place),
        "failures": [{**where(index.videos[i]), "reason": reason} for i, reason in sorted(failures.items())],
        "notes": notes,
        "versions": versions(),
    }
    predictions = []
    for i, video in enumerate(index.videos):
        row = {**where(video), "failure": failures.get(i, "")}
        if i in per_video:
            means = per_video[i].mean(-1)
            row |= {f"{m}_{k}": f"{float(means[a, b]):.6g}" for a, m in enumerate(METHODS) for b, k in enumerate(names)}
        predictions.append(row)
    shown, worst = [], []
    if samples and measure.space == "pixels":
        ranked = sorted(per_video, key=lambda i: float(errors[i, 0].mean()))
        shown, worst = collect(
            model, index, predictions, ranked, samples, context=context, horizon=horizon, write=write, segment=segment
        )
    return Forecasts(metrics, predictions, arrays, shown, worst)


class Known(NamedTuple):
    """A suite that made the data, its suite.json and its folder."""

    suite: PredictionSuite
    description: dict[str, Any]
    root: Path


def _known(data: str | Path, index: Index) -> Known | None:
    """None for other data."""
    description = described_suite(Path(data), index)
    try:
        suite = None if description is None else suite_from(description)
    except SuiteError:  # of another version, or its source files are gone: what its videos reveal is not known here
        return None
    if description is None or not isinstance(suite, PredictionSuite) or "bounds" not in description:
        return None
    return Known(suite, description, Path(data) if Path(data).is_dir() else Path(data).parent)


def _told(model: VideoModel, index: Index, known: Known | None, notes: list[str]) -> dict[int, Revealed]:
    """What the videos of a suite reveal; empty where they do not, or, with a note, where it cannot be measured."""
    if known is None or not known.suite.grouped:
        return {}
    if refused := _unlike(model, known.suite):
        notes.append(refused)
        return {}
    try:
        return told_of(index, known.suite, known.root)
    except SuiteError as error:
        notes.append(f"errors by {known.suite.grouped} were not measured: {error}")
        return {}


def _bounds(model: VideoModel, known: Known, *, grey: bool) -> dict[str, Any]:
    """``bounds`` as the suite states them, and ``best_mse``, the codec's error of a whole frame (sum over its pixels):
    what remains for who knows the drawn frames; None where that is not known."""
    suite, bounds = known.suite, known.description["bounds"]
    reachable = "codec" in bounds and not suite.grouped and not grey and not _unlike(model, suite)
    best = round(bounds["codec"] * 3 * suite.size**2, 6) if reachable else None
    return {"name": suite.name, "bounds": bounds, "best_mse": best}


def _unlike(model: VideoModel, suite: PredictionSuite) -> str:
    """Why revealed pixels cannot be found in what a model predicts; empty where they can."""
    preprocessing = model.preprocessing
    if space_of(model) == "features":
        return f"errors by {suite.grouped} were not measured: they are of pixels, and the model predicts features"
    if preprocessing.size == (suite.size, suite.size) and preprocessing.sampling == "dense":
        return ""
    height, width = preprocessing.size
    return (
        f"errors by {suite.grouped} were not measured: {suite.name} has frames of {suite.size} x {suite.size}, all of "
        f"which must be read, and the model reads {height} x {width}, {preprocessing.sampling}"
    )


def _by_metric(names: Sequence[str], row: Tensor, one: bool = False) -> dict[str, Any]:
    """[metrics, horizon] -> a list by horizon for each metric (its only entry, if ``one``); None where undefined."""
    lists = [[None if x != x else round(x, 6) for x in values] for values in row.tolist()]
    return {name: values[0] if one else values for name, values in zip(names, lists, strict=True)}
