"""Scores the validation split during training, each video exactly once however many processes share the
work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from tttvideo.model import VideoModel
from tttvideo.video.dataset import Failure
from tttvideo.video.index import Index
from tttvideo.video.loader import Batch

if TYPE_CHECKING:
    from accelerate import Accelerator


SEGMENT = 512
"""Frames of each video that the model holds at a time."""


class Scores(NamedTuple):
    """All videos of a split in the order of its index; the same on every process."""

    rows: Tensor  # float32 [V, columns]: what the task's `examine` found (logits, ...); zeros where not scored
    labels: Tensor  # int64 [V], or float [V, n_classes] for several labels
    scored: Tensor  # bool [V]; False: the video could not be read
    failures: list[Failure]


@torch.no_grad()
def score(model: VideoModel, batches: Iterable[Batch], index: Index, accelerator: Accelerator) -> Scores:
    """Run the model over this process's share of the split and gather the shares.

    Args:
        model: not wrapped for several processes; its mode is restored afterwards.
        batches: this process's share, without padding to equal numbers of batches.
        index: the split.
    """
    from accelerate.utils import gather_object

    was_training = model.training
    model.eval()
    mine: list[tuple[int, Tensor]] = []
    failures: list[Failure] = []
    try:
        for batch in batches:
            failures += batch.failures
            if not len(batch.indices):
                continue
            with accelerator.autocast():
                segments = _segments(batch, model.segment_frames(SEGMENT))
                rows = model.head.examine(model.read_segments(segments))
            mine += zip(batch.indices.tolist(), rows.cpu())
    finally:
        model.train(was_training)

    scored_pairs: list[tuple[int, Tensor]] = gather_object(mine)
    failures = [Failure(*failure) for failure in gather_object(failures)]
    seen = sorted([i for i, _ in scored_pairs] + [failure.index for failure in failures])
    assert seen == list(range(len(index.videos))), "each validation video must be scored exactly once"

    rows = torch.zeros(len(index.videos), model.head.columns)
    scored = torch.zeros(len(index.videos), dtype=torch.bool)
    for i, row in scored_pairs:
        rows[i], scored[i] = row, True
    return Scores(rows, label_tensor(index), scored, failures)


def _segments(batch: Batch, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The batch in pieces of ``size`` frames: activations of whole long videos would not fit."""
    for start in range(0, batch.frames.shape[1], size):
        yield batch.frames[:, start : start + size], (batch.lengths - start).clamp(0, size)


def label_tensor(index: Index) -> Tensor:
    """The labels of an index: int64 [V] (-1: none), or float 0/1 [V, n_classes] for several labels per video."""
    if not index.multi_label:
        return torch.tensor([-1 if v.label is None else v.label for v in index.videos], dtype=torch.int64)
    labels = torch.zeros(len(index.videos), len(index.labels))
    for row, video in zip(labels, index.videos):
        row[list(video.label or ())] = 1.0  # type: ignore[arg-type]
    return labels
