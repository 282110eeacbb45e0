"""Loss against position: does a model get better the more of a video it has read? (The paper's figure 2, for video.)

Classification: the loss of the answer that the model gives had the video ended at each frame. Prediction: the error of
the next time step, predicted from all true frames before it.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tttvideo.model import VideoModel
from tttvideo.tasks import Classification
from tttvideo.tasks.prediction import PredictionHead
from tttvideo.video.index import Index
from tttvideo.video.segments import read_segments

Segments = Iterable[tuple[Tensor, Tensor]]
POINTS = 512
"""Positions of a curve, at most; longer ones are averaged."""


class Losses(NamedTuple):
    """Of one checkpoint, by the number of frames that were read before them."""

    frames: list[float]
    losses: np.ndarray  # float64 [V, points], NaN where a video has none
    failures: dict[int, str]  # of videos, by their place in the index


@torch.no_grad()
def losses_by_position(
    model: VideoModel,
    index: Index,
    *,
    frames: int | None = None,
    batch_size: int = 8,
    segment: int | None = None,
) -> Losses:
    """Losses of a model over the videos of a split, each cut to its first ``frames``.

    Raises:
        ValueError: for a model that does not stream, as what it says of a position has seen later ones, and for a
            segment at whose end it cannot be cut.
    """
    if not model.streams:
        raise ValueError("loss by position needs a model that reads forwards; this one has read the end at every frame")
    if segment is not None and (segment < 1 or segment % model.frame_multiple):
        raise ValueError(
            f"--segment must be a multiple of {model.frame_multiple} frames, the model's step; got {segment}"
        )
    segment = model.segment_frames(segment or 64)
    rows: dict[int, Tensor] = {}
    failures: dict[int, str] = {}
    for start in range(0, len(index.videos), batch_size):
        videos = index.videos[start : start + batch_size]

        def pieces(videos=videos, start=start):
            spans = [(video.start, video.end) for video in videos]
            paths = [video.path for video in videos]
            reading = model.reading_of(paths, spans, model.preprocessing.sampling, frames)
            for part in read_segments(paths, reading, segment=segment, max_frames=frames, spans=spans):
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
            rows |= {start + i: row for i, row in enumerate(joined)}
    longest = max(map(len, rows.values()), default=0)
    table = torch.full((len(index.videos), longest), torch.nan, dtype=torch.float64)
    for i, values in rows.items():
        table[i, : len(values)] = values
    offset = 1 if isinstance(model.config.task, Classification) else 0
    return Losses(*_averaged(table, model.encoder.stride, offset), failures)


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
    for frames, lengths, output in model.outputs(segments):
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
    for _, lengths, output in model.outputs(segments):
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


def _averaged(table: Tensor, stride: int, offset: int) -> tuple[list[float], np.ndarray]:
    """Losses [V, S] of time steps to frames and losses [V, points], at most POINTS of them, each a mean over steps."""
    steps = table.shape[1]
    group = -(-steps // POINTS) or 1
    frames, columns = [], []
    for first in range(0, steps, group):
        column = table[:, first : first + group].nanmean(1)
        if column.isnan().all():
            continue
        last = min(first + group, steps)
        frames.append(stride * ((first + last - 1) / 2 + offset))
        columns.append(column)
    return frames, (torch.stack(columns, 1) if columns else table[:, :0]).numpy()
