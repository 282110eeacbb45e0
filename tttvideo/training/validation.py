"""Scores the validation split during training, each video exactly once however many processes share the
work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..model import VideoModel
from ..printing import printable
from ..tasks.base import Examiner
from ..video.dataset import Failure
from ..video.index import Index, label_tensor, subset
from ..video.segments import Piece
from .config import RunConfig, ValidationConfig

if TYPE_CHECKING:
    from accelerate import Accelerator


SEGMENT = 64
"""Frames of each video that are read at a time, as in evaluation."""


class Scores(NamedTuple):
    """All videos of a split in the order of its index; the same on every process."""

    rows: Tensor  # float32 [V, columns]: what the task's `examiner` found (logits, ...); zeros where not scored
    labels: Tensor  # int64 [V], or float [V, n_classes] for several labels
    scored: Tensor  # bool [V]; False: the video could not be read
    failures: list[Failure]


def measured_part(index: Index, config: ValidationConfig, seed: int) -> tuple[Index, str]:
    """The videos of a split that are measured during training, and in words what of it these are; "" for all of it."""
    total, frames = len(index.videos), config.max_frames
    if config.videos is not None:
        index = subset(index, config.videos, seed)
    videos = "" if len(index.videos) == total else f"{len(index.videos)} of {total} videos"
    return index, videos if frames is None else f"the first {frames} frames of {videos or 'each video'}"


def validation_videos(config: RunConfig, train: Index) -> tuple[Index | None, str]:
    """The same of a run; None if nothing is measured."""
    if not config.evaluate_every:
        return None, ""
    data = config.data
    val = data.index(
        data.split_val,
        labels=train.labels,
        multi_label=train.multi_label,
        labelled=config.model.task.labelled,
    )
    return measured_part(val, config.validation, data.split_seed)


def score(
    model: VideoModel,
    pieces: Iterable[Piece],
    batches: Sequence[Sequence[int]],
    index: Index,
    accelerator: Accelerator,
) -> Scores:
    """Run the model over this process's share of the split and gather the shares.

    Memory does not grow with the length of the videos, if the model streams.

    Args:
        model: not wrapped for several processes; its mode is restored afterwards.
        pieces: this process's share of the split, from `val_loader`.
        batches: for each of its batches the positions of its videos in ``index``, from `val_loader`.
        index: the split.
    """
    from accelerate.utils import gather_object

    was_training = model.training
    model.eval()
    try:
        with accelerator.autocast():
            mine, failures = _examine(model, pieces, batches, index)
    finally:
        model.train(was_training)

    scored_pairs: list[tuple[int, Tensor]] = gather_object(mine)
    failures = [Failure(*failure) for failure in gather_object(failures)]
    accounted = sorted([i for i, _ in scored_pairs] + [failure.index for failure in failures])
    assert accounted == list(range(len(index.videos))), "each validation video must be scored exactly once"

    rows = torch.zeros(len(index.videos), model.head.columns)
    scored = torch.zeros(len(index.videos), dtype=torch.bool)
    for i, row in scored_pairs:
        rows[i], scored[i] = row, True
    return Scores(rows, label_tensor(index), scored, failures)


def _examine(
    model: VideoModel, pieces: Iterable[Piece], batches: Sequence[Sequence[int]], index: Index
) -> tuple[list[tuple[int, Tensor]], list[Failure]]:
    """A row for each video by its place in the index, and those that could not be read to the end."""
    scored: list[tuple[int, Tensor]] = []
    failures: list[Failure] = []
    open_batches: dict[int, Examiner] = {}
    for piece, output in model.outputs_of_batches(pieces):
        examiner = open_batches.pop(piece.batch, None)
        if output is not None:
            examiner = examiner or model.head.examiner()
            examiner.add(piece.lengths, output)
        if not piece.last:
            if examiner is not None:
                open_batches[piece.batch] = examiner
            continue
        rows = None if examiner is None else examiner.rows().cpu()
        for row, number in enumerate(batches[piece.batch]):
            if rows is not None and row not in piece.failures:
                scored.append((number, rows[row]))
            else:
                reason = piece.failures.get(row, "no frame could be read")
                failures.append(Failure(number, printable(index.videos[number].path), reason))
    return scored, failures
