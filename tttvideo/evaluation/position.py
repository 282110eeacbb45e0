"""Loss against position: does a model get better the more of a video it has read? (The paper's figure 2, for video.)

Classification: the loss of the answer that the model gives had the video ended at each frame. Prediction: the error of
the next time step, predicted from all true frames before it.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tttvideo.evaluation.checkpoint import inspect_checkpoint
from tttvideo.evaluation.evaluate import best_device, choose_device, default_split, one_process
from tttvideo.evaluation.forecaster import space_of
from tttvideo.evaluation.named import Named
from tttvideo.model import VideoModel, from_pretrained
from tttvideo.tasks import Classification
from tttvideo.tasks.prediction import PredictionHead
from tttvideo.video.index import Index, build_index
from tttvideo.video.segments import read_segments

Segments = Iterable[tuple[Tensor, Tensor]]
POINTS = 512
"""Positions of a curve, at most; longer ones are averaged."""
UNITS = {
    "classes": "nats",
    "pixels": "squared error of a frame (sum over its pixels in 0..1)",
    "features": "squared error of a frame (sum over its features)",
}


class Curve(NamedTuple):
    """Mean over videos of a loss after so many frames were read."""

    frames: list[float]  # read before the loss was taken
    loss: list[float]
    low: list[float]  # of a 95 % interval of the mean over videos
    high: list[float]
    videos: list[int]  # that are so long


@torch.no_grad()
def loss_by_position(
    model: VideoModel,
    index: Index,
    *,
    frames: int | None = None,
    batch_size: int = 8,
    segment: int | None = None,
) -> tuple[Curve, dict[int, str]]:
    """The curve of a model over the videos of a split, each cut to its first ``frames``; and why some have none.

    Raises:
        ValueError: for a model that does not stream: what it says of a position has seen later ones.
    """
    if not model.streams:
        raise ValueError("loss by position needs a model that reads forwards; this one has read the end at every frame")
    segment = model.segment_frames(segment or 64)
    rows: list[Tensor] = []
    failures: dict[int, str] = {}
    for start in range(0, len(index.videos), batch_size):
        videos = index.videos[start : start + batch_size]

        def pieces(videos=videos, start=start):
            spans = [(video.start, video.end) for video in videos]
            paths = [video.path for video in videos]
            for part in read_segments(paths, model.preprocessing, segment=segment, max_frames=frames, spans=spans):
                failures.update(
                    {start + i: reason.removeprefix(f"{paths[i]}: ") for i, reason in part.failures.items()}
                )
                if part.lengths.any():
                    yield part.frames, part.lengths

        labels = _labels(model, index, start, len(videos))
        own = list(_prediction(model, pieces()) if labels is None else _classification(model, pieces(), labels))
        if own:
            joined = torch.cat(own, 1)
            bad = [i for i in range(len(videos)) if start + i in failures]
            joined[bad] = torch.nan
            rows += joined.unbind(0)
    longest = max((len(row) for row in rows), default=0)
    table = torch.full((max(1, len(rows)), longest), torch.nan, dtype=torch.float64)
    for row, values in zip(table, rows):
        row[: len(values)] = values
    offset = 1 if isinstance(model.config.task, Classification) else 0
    return _curve(table, model.encoder.stride, offset), failures


def _labels(model: VideoModel, index: Index, start: int, count: int) -> Tensor | None:
    if not isinstance(model.config.task, Classification):
        return None
    labels = [video.label for video in index.videos[start : start + count]]
    if not model.multi_label:
        return torch.tensor(labels)
    truth = torch.zeros(count, len(model.labels))
    for row, own in zip(truth, labels):
        row[list(own) if isinstance(own, tuple) else []] = 1
    return truth


def _classification(model: VideoModel, segments: Segments, labels: Tensor) -> Iterator[Tensor]:
    """Loss [B, S] of the timeline of each segment; NaN in padding, and where a time step has not seen what the answer
    of a video that ends there would have."""
    stride, multiple, read = model.encoder.stride, model.frame_multiple, 0
    for frames, lengths, output in model.read_segments(segments):
        timeline = output.timeline.double().cpu()
        steps = torch.arange(timeline.shape[1])
        if model.multi_label:
            target = labels[:, None].expand_as(timeline).double()
            loss = F.binary_cross_entropy_with_logits(timeline, target, reduction="none").mean(2)
        else:
            loss = F.cross_entropy(timeline.mT, labels[:, None].expand(timeline.shape[:2]), reduction="none")
        valid = ((steps + 1) * stride <= lengths.cpu()[:, None]) & ((read + (steps + 1) * stride) % multiple == 0)
        yield torch.where(valid, loss, torch.nan)
        read += frames.shape[1]


def _prediction(model: VideoModel, segments: Segments) -> Iterator[Tensor]:
    """Squared error [B, S] of each time step of each segment, summed over pixels and channels, mean over its frames;
    NaN in padding and for the first of the video."""
    stride, pending = model.encoder.stride, None
    assert isinstance(model.head, PredictionHead)
    for _, lengths, output in model.read_segments(segments):
        truth = model.head.pictures(output.seen).float()
        whole = truth.shape[1] // stride
        made = output.timeline[:, :whole].float()
        first = torch.full_like(made[:, :1], torch.nan) if pending is None else pending[:, None]
        made = torch.cat([first, made], 1)
        truth = truth[:, : whole * stride].unflatten(1, (whole, stride))
        error = (model.head.bounded(made[:, :whole]) - truth).square().flatten(3).sum(3).mean(2).double().cpu()
        valid = (torch.arange(whole) + 1) * stride <= lengths.cpu()[:, None]
        yield torch.where(valid, error, torch.nan)
        pending = made[:, -1]


def _curve(table: Tensor, stride: int, offset: int) -> Curve:
    """Losses [V, S] of time steps, NaN where there is none, to means over videos; averaged to at most POINTS steps."""
    steps = table.shape[1]
    group = -(-steps // POINTS) or 1
    frames, loss, low, high, videos = [], [], [], [], []
    for first in range(0, steps, group):
        each = table[:, first : first + group].nanmean(1)
        each = each[~each.isnan()]
        if not len(each):
            continue
        mean = float(each.mean())
        half = 1.96 * float(each.std()) / len(each) ** 0.5 if len(each) > 1 else 0.0
        last = min(first + group, steps)
        frames.append(stride * ((first + last - 1) / 2 + offset))
        for values, value in ((loss, mean), (low, mean - half), (high, mean + half), (videos, len(each))):
            values.append(value)
    return Curve(frames, loss, low, high, videos)


def compare_positions(
    runs: Sequence[Named],
    data: str | Path,
    *,
    split: str | None = None,
    root: str | Path | None = None,
    frames: int | None = None,
    batch_size: int = 8,
    segment: int | None = None,
    device: str | None = None,
    trust: bool = False,
) -> dict[str, Any]:
    """The curves of several checkpoints on the same videos: the content of position.json.

    Raises:
        ValueError: for checkpoints of different tasks, settings that cannot be, or when no video can be read.
    """
    one_process()
    if batch_size < 1 or (frames is not None and frames < 1):
        raise ValueError(f"--batch-size ({batch_size}) and --frames ({frames}) must be at least 1")
    place = choose_device(device) or best_device()
    series: dict[str, Any] = {}
    task, kind, rule, failed = "", "", "", []
    for run in runs:
        source = inspect_checkpoint(run.folders[0])
        if task not in ("", source.task):
            raise ValueError(
                f"{run.name} was trained for {source.task} and the first run for {task}; compare equal tasks"
            )
        task = source.task
        model = from_pretrained(source.folder, trust=trust).to(place)
        labelled = task == "Classification"
        own = "classes" if labelled else space_of(model)
        if kind not in ("", own):
            raise ValueError(f"{run.name} predicts {own} and the first run {kind}, which cannot be compared")
        kind = own
        chosen: dict[str, Any] = (
            {"labels": model.labels, "multi_label": model.multi_label} if labelled else {"labelled": False}
        )

        def read(part: str, chosen=chosen, source=source) -> Index:
            return build_index(data, part, root=root, **chosen, **source.drawn)

        index = read(split or default_split(data, root, source, read, labelled=labelled))
        curve, failures = loss_by_position(model, index, frames=frames, batch_size=batch_size, segment=segment)
        if not curve.loss:
            reason = f" (first: {index.videos[min(failures)].path}: {failures[min(failures)]})" if failures else ""
            raise ValueError(f"no video of split {index.split} has a loss to take{reason}")
        series[run.name] = curve._asdict() | {"weights_sha256": source.sha256}
        rule = index.rule
        failed = [{"path": index.videos[i].path, "reason": reason} for i, reason in sorted(failures.items())]
    return {"task": task, "unit": UNITS[kind], "data": str(data), "split_rule": rule, "series": series} | {
        "failures": failed
    }
