"""The evaluation of a model that generates frames: a context of each video is read, a horizon is generated, and each
frame of it compared, beside predictions that need no model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..devices import device_name, one_process
from ..measuring import EvaluateConfig
from ..model import VideoModel
from ..pretrained import from_pretrained
from ..tasks import roll_out
from ..tasks.frame_metrics import FrameMetrics, VideoDistance
from ..tasks.prediction import in_unit
from ..tasks.trivial import History
from ..video.index import Index, Video
from ..video.reader import VideoError
from ..video.reading import usual_rate
from ..video.segments import read_segments
from ..video.strips import LAST, strip_png
from ..video.transforms import Preprocessing
from .samples import evenly
from .session import Session, progress_bar, versions, where
from .suites import generated_set, measure_revealed
from .table import METHODS, MODEL, Result, Sample

SAMPLES = 4
CONTEXT = HORIZON = 10


def generate_videos(session: Session, config: EvaluateConfig, progress: bool = False) -> Result:
    """Of each video the first ``context`` frames (after the model's sampling rule) are read, and the next ``horizon``
    frames generated; shorter videos and unreadable ones are listed and not measured.

    Raises:
        ValueError: for settings that cannot be, or a split without a video that is long enough.
    """
    one_process()
    model, index, write = session.model, session.index, config.write != "context"
    context = CONTEXT if config.context is None else config.context
    horizon = HORIZON if config.horizon is None else config.horizon
    check_context(model, context, horizon)
    metric = FrameMetrics(model.head.space, grey=config.grey, lpips=config.lpips)
    if config.fvd and metric.space == "features":
        raise ValueError("--fvd is of pixels, and this model predicts features; leave it out")
    if config.segment is not None and config.segment < 1:
        raise ValueError(f"--segment must be at least 1, got {config.segment}")
    notes = list(session.notes)
    suite = generated_set(session.data, index)
    masks = suite.revealed(model, index, notes) if suite else {}
    distance = None
    if config.fvd:
        distance = VideoDistance(config.fvd, METHODS, context + horizon, session.device, trust=config.trust)
    videos = Generation(model, context, horizon, write, config.segment)
    errors, failures = videos.measure(index, metric, distance, config.batch_size, progress)
    rate = usual_rate([video.path for video in index.videos], model.preprocessing)
    notes += rate_mismatch("the data", rate, session.source.provenance.get("frame_rate"))
    arrays = {"methods": np.array(METHODS), "mse": _all_videos(errors, len(index.videos), metric.names.index("mse"))}
    revealed = None
    if suite and suite.unlabelled and masks:
        revealed, *sums = measure_revealed(
            model, index, suite, masks, batch_size=config.batch_size, segment=config.segment
        )
        arrays |= {name: x.numpy() for name, x in zip(("revealed_squared", "revealed_values"), sums, strict=True)}
    mean = torch.stack([errors[i] for i in sorted(errors)]).mean(0)
    metrics = {
        "task": type(model.config.task).__name__,
        "checkpoint": config.checkpoint,
        "data": config.data,
        "split": index.split,
        "n_videos": len(index.videos),
        "n_failed": len(failures),
        "context": context,
        "horizon": horizon,
        "write": write,
        "space": metric.space,
        "grey": config.grey,
        "convention": metric.convention,
        "mean": _by_method(metric.names, mean.mean(-1, keepdim=True), one=True),
        "per_horizon": _by_method(metric.names, mean),
        "fvd": None if distance is None else distance.summary(),
        "suite": suite.bounds(model, grey=config.grey) if suite else None,
        "revealed": revealed,
        "split_rule": index.rule,
        **session.context(),
        "device": device_name(session.device),
        "failures": [{**where(index.videos[i]), "reason": reason} for i, reason in sorted(failures.items())],
        "notes": notes,
        "versions": versions(),
    }
    columns, predictions = _predictions(index, errors, failures, metric.names)
    result = Result(metrics, predictions, columns, arrays)
    count = SAMPLES if config.samples is None else config.samples
    return result if metric.space == "features" else videos.with_samples(index, result, errors, count)


class Generation:
    """What a model makes of the context of videos.

    Args:
        write: whether the hidden state learns from generated frames (``roll_out``).
        segment: frames of the context that the model reads at a time; None: about 64.
    """

    def __init__(self, model: VideoModel, context: int, horizon: int, write: bool = True, segment: int | None = None):
        self.model, self.context, self.horizon = model, context, horizon
        self.write, self.segment = write, segment

    def clip(self, video: Video) -> Tensor:
        """Frames uint8 [context + horizon, 3, H, W], fewer of a shorter video; VideoError if it cannot be read."""
        total = self.context + self.horizon
        return read_clip(video.path, self.model.preprocessing, total, span=(video.start, video.end))

    def measure(
        self, index: Index, metric: FrameMetrics, distance: VideoDistance | None, batch_size: int, progress: bool
    ) -> tuple[dict[int, Tensor], dict[int, str]]:
        """By place in the index: errors [methods, metrics, horizon], and why others have none.

        Raises:
            ValueError: if no video can be measured.
        """
        total, context = self.context + self.horizon, self.context
        errors: dict[int, Tensor] = {}
        failures: dict[int, str] = {}
        device = next(self.model.parameters()).device
        with progress_bar(progress, len(index.videos)) as advance:
            for start in range(0, len(index.videos), batch_size):
                clips: dict[int, Tensor] = {}
                for i in range(start, min(start + batch_size, len(index.videos))):
                    try:
                        clips[i] = self.clip(index.videos[i])
                        if len(clips[i]) < total:
                            failures[i] = f"it has {len(clips.pop(i))} frames of the {total} that are needed"
                    except (VideoError, OSError) as error:
                        failures[i] = str(error).removeprefix(f"{index.videos[i].path}: ")
                if clips:
                    frames = torch.stack(list(clips.values())).to(device)
                    frames_of = self.predict(frames[:, :context])
                    truth = self.model.truth(frames[:, context:])
                    batch = torch.stack([metric(frames_of[method], truth) for method in METHODS], 1)
                    if distance is not None:
                        distance.add(frames_of, truth, self.model.truth(frames[:, :context]))
                    errors.update(zip(clips, batch.cpu()))
                if advance is not None:
                    advance(min(batch_size, len(index.videos) - start))
        if not errors:
            first = f"{index.videos[min(failures)].path}: {failures[min(failures)]}"
            raise ValueError(
                f"none of the {len(index.videos)} videos of split {index.split} can be measured with {context} frames "
                f"of context and {self.horizon} to predict (first: {first})"
            )
        return errors, failures

    def predict(self, context: Tensor) -> dict[str, Tensor]:
        return forecasts(self.model, context, self.horizon, write=self.write, segment=self.segment)

    def with_samples(self, index: Index, result: Result, errors: dict[int, Tensor], count: int) -> Result:
        """The result with ``count`` usual videos and as many of the largest errors."""
        mse, rows = result.arrays["mse"], result.predictions
        ranked = sorted(errors, key=lambda i: float(mse[i, 0].mean()))
        usual, worst = (
            [self.sample(index.videos[ranked[rank]], rows[ranked[rank]], rank + 1, len(ranked)) for rank in ranks]
            for ranks in evenly(len(ranked), count)
        )
        return result._replace(samples=[s for s in usual if s], worst=[s for s in worst if s])

    def sample(self, video: Video, row: dict[str, Any], rank: int, videos: int) -> Sample | None:
        """The video, predicted again; ``rank`` 1 of so many has the smallest error. None if it cannot be read any
        more."""
        try:
            clip = self.clip(video)
        except (VideoError, OSError):
            return None
        clip = clip.to(next(self.model.parameters()).device)
        context, truth = clip[: self.context], clip[self.context :]
        predicted = self.predict(context[None])[MODEL][0]
        first = max(0, self.context - LAST)
        caption = f"squared error {float(row['model_mse']):.4g} ({float(row['copy_last_mse']):.4g} of copying the last "
        caption += f"frame), {rank} of {videos} in order of the error"
        return Sample(row, caption, strip_png(in_unit(context[first:]), in_unit(truth), predicted, first))


def generating_model(folder: str | Path, *, trust: bool = False) -> VideoModel:
    """``from_pretrained``, for a model that predicts frames.

    Raises:
        ValueError: if it was trained for something else.
    """
    model = from_pretrained(folder, trust=trust)
    if model.head.generated is None:
        raise ValueError(
            f"{folder} was trained for {type(model.config.task).__name__} and predicts no frames; use a checkpoint "
            "trained with model.task Prediction"
        )
    return model.eval()


def rate_mismatch(what: str, rate: float | None, trained: float | None) -> list[str]:
    """A sentence if ``what`` is read at ``rate`` Hz and the model learned from videos at clearly another."""
    if not rate or not trained or 0.9 <= rate / trained <= 1.1:
        return []
    faster = f"motion looks {trained / rate:.2g} times as fast to it"
    return [f"{what} is read at {rate:.4g} frames a second and the model learned from {trained:.4g}: {faster}"]


def check_context(model: VideoModel, context: int, horizon: int) -> None:
    """Raises ValueError where a model cannot read such a context, or there is nothing to predict."""
    step = model.frame_multiple
    if horizon < 1:
        raise ValueError(f"--horizon is {horizon}, which leaves nothing to predict; give at least 1 frame")
    if context < 1 or context % step:
        of = f"a multiple of {step} frames, the model's time step" if step > 1 else "at least 1 frame"
        raise ValueError(f"--context must be {of}; got {context}")


def read_clip(
    path: str, preprocessing: Preprocessing, frames: int, span: tuple[float | None, float | None] = (None, None)
) -> Tensor:
    """The first ``frames`` frames that the sampling rule takes, uint8 [n, 3, H, W]; n is less in a shorter video.

    Raises:
        VideoError: if the video cannot be read.
    """
    parts: list[Tensor] = []
    count = 0
    for segment in read_segments([path], preprocessing, segment=64, spans=[span], prefetch=False):
        if segment.failures:
            raise VideoError(segment.failures[0])
        parts.append(segment.frames[0, : int(segment.lengths[0])])
        count += len(parts[-1])
        if count >= frames:
            break
    return torch.cat(parts)[:frames]


@torch.no_grad()
def forecasts(
    model: VideoModel, context: Tensor, horizon: int, *, write: bool = True, segment: int | None = None
) -> dict[str, Tensor]:
    """The frames after ``context`` (uint8 [B, C, 3, H, W]) by the model and by what needs none: each of
    ``METHODS`` -> [B, horizon, 3, H, W] in 0..1, or [B, horizon, E, rows, columns] of features.

    Raises:
        ValueError: if what the model makes is not finite.
    """
    pieces = context.split(model.segment_frames(segment or 64), dim=1)
    frames = {MODEL: roll_out(model, [(piece, None) for piece in pieces], horizon, write=write)}
    if not frames[MODEL].isfinite().all():
        raise ValueError(
            "the model's predictions are not numbers (NaN or infinite): its weights are damaged, or its training "
            "diverged; use an earlier checkpoint"
        )
    history = History(len(context), model.truth(context[:, :1]))
    for piece in pieces:
        history.add(model.truth(piece), torch.ones(len(context), dtype=torch.bool, device=context.device))
    return frames | {name: model.head.bounded(guess) for name, guess in history.guesses(horizon).items()}


def shown_horizons(horizon: int) -> Sequence[int]:
    """1, 2, 4, ... and the last."""
    return sorted({h for h in (2**i for i in range(horizon.bit_length())) if h <= horizon} | {horizon})


def _predictions(
    index: Index, errors: dict[int, Tensor], failures: dict[int, str], metrics: Sequence[str]
) -> tuple[list[str], list[dict[str, Any]]]:
    """The columns of predictions.csv and its rows: means over the horizon."""
    names = [f"{method}_{name}" for method in METHODS for name in metrics]
    rows = []
    for i, video in enumerate(index.videos):
        means = errors[i].mean(-1).flatten().tolist() if i in errors else []
        rows.append({**where(video), "failure": failures.get(i, ""), **{n: f"{x:.6g}" for n, x in zip(names, means)}})
    return ["path", "start", "end", *names, "failure"], rows


def _all_videos(errors: dict[int, Tensor], videos: int, metric: int) -> np.ndarray:
    """float32 [V, methods, horizon] of one metric, NaN where a video was not measured."""
    first = next(iter(errors.values()))
    table = torch.full((videos, first.shape[0], first.shape[2]), torch.nan)
    for i, values in errors.items():
        table[i] = values[:, metric]
    return table.numpy()


def _by_method(names: Sequence[str], errors: Tensor, one: bool = False) -> dict[str, Any]:
    """[methods, metrics, horizon] -> of each method a list by horizon for each metric (its only entry, if ``one``);
    None where undefined."""
    lists = [[[None if x != x else round(x, 6) for x in row] for row in rows] for rows in errors.tolist()]
    return {
        method: {name: row[0] if one else row for name, row in zip(names, rows, strict=True)}
        for method, rows in zip(METHODS, lists, strict=True)
    }
