"""Errors on what only a memory can know: the pixels that a suite says are newly revealed, frame by frame."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..model import VideoModel
from ..tasks.forecast_errors import Following
from ..tasks.trivial import TRIVIAL
from ..video.index import Index
from ..video.segments import read_segments
from .suites import GeneratedSet
from .table import MODEL

if TYPE_CHECKING:
    from ..video.synthetic.prediction import Revealed

METHODS = (MODEL, *TRIVIAL)


@torch.no_grad()
def revealed_errors(
    model: VideoModel, segments: Iterable[tuple[Tensor, Tensor]], revealed: Sequence[Revealed], groups: int
) -> tuple[Tensor, Tensor]:
    """Squared errors of revealed pixels, each frame predicted from all true frames before it, and how many values
    (pixels times colours) were compared.

    Args:
        segments: of videos side by side: frames [B, F, 3, H, W], valid frames [B].
        revealed: what is revealed in each of them.
        groups: how many there are.

    Returns:
        Sums over each video, float64: [B, methods, groups] and [B, groups].
    """
    device, stride, at = next(model.parameters()).device, model.encoder.stride, 0
    mask = torch.stack([torch.from_numpy(r.mask) for r in revealed])  # [B, F, H, W]
    group = torch.stack([torch.from_numpy(r.group) for r in revealed])  # [B, F]
    squared = torch.zeros(len(revealed), groups, len(METHODS), dtype=torch.float64)
    values = torch.zeros(len(revealed), groups, dtype=torch.float64)
    steps = Following(model.head)
    for _, lengths, output in model.outputs(segments):
        for truth, valid, guess in steps.add(lengths, output):
            frames = slice(at, at + stride)
            at += stride
            if guess is None:
                continue
            counted = mask[:, frames].to(device) & valid[:, None, None, None]
            pixels = counted.flatten(2).sum(2).cpu()  # [B, p]
            sums = torch.stack([_sums(x - truth, counted) for x in steps.guesses(guess)], 2).cpu()  # [B, p, methods]
            row, frame = ((pixels > 0) & (group[:, frames] >= 0)).nonzero(as_tuple=True)
            under = (row, group[:, frames][row, frame])
            squared.index_put_(under, sums[row, frame], accumulate=True)
            values.index_put_(under, 3.0 * pixels[row, frame].double(), accumulate=True)
    return squared.transpose(1, 2), values


def _sums(error: Tensor, mask: Tensor) -> Tensor:
    """Errors [B, p, 3, H, W] -> sums of their squares where the mask [B, p, H, W] holds, float64 [B, p]."""
    return (error.square().sum(2) * mask).flatten(2).sum(2).double()


def measure_revealed(
    model: VideoModel,
    index: Index,
    suite: GeneratedSet,
    masks: dict[int, Revealed],
    *,
    batch_size: int,
    segment: int | None = None,
) -> tuple[dict[str, Any], Tensor, Tensor]:
    """Errors on the revealed pixels of a generated set, whole videos, by group.

    Returns what metrics.json says of them, and the sums of ``revealed_errors`` for every video of the index; zero for
    those that reveal nothing.

    Args:
        index: videos of the set; one that cannot be read to the end counts as far as it can.
        masks: what is revealed in them, by their places in the index.
    """
    groups = 1 + max(int(revealed.group.max()) for revealed in masks.values())
    squared = torch.zeros(len(index.videos), len(METHODS), groups, dtype=torch.float64)
    values = torch.zeros(len(index.videos), groups, dtype=torch.float64)
    for start in range(0, len(masks), batch_size):
        numbers = list(masks)[start : start + batch_size]
        paths = [index.videos[number].path for number in numbers]
        pieces = read_segments(paths, model.preprocessing, segment=model.segment_frames(segment or 64))
        segments = ((piece.frames, piece.lengths) for piece in pieces)
        revealed = [masks[number] for number in numbers]
        squared[numbers], values[numbers] = revealed_errors(model, segments, revealed, groups)
    assert suite.unlabelled is not None
    by, bounds = suite.unlabelled.grouped, suite.description["bounds"]
    return {"by": by, **means_by_group(squared, values), "bounds": bounds}, squared, values


def means_by_group(squared: Tensor, values: Tensor) -> dict[str, Any]:
    """Mean squared error of each method and group over all videos, None for groups that no frame fell under; and the
    number of values of each group."""
    total = values.sum(0)
    means = (squared.sum(0) / total).tolist()
    rows = {name: [None if x != x else round(x, 6) for x in row] for name, row in zip(METHODS, means, strict=True)}
    return {"mse": rows, "values": [int(n) for n in total.tolist()]}
