"""Long clips: models trained on short ones, measured on 1, 2, 4 and 8 times longer ones, by number of pairs, and under
other sampling rules.

    python -m benchmarks.long_clip [--study configs/study/long-clip.yaml] [--jobs 2] [--task NAME] [--only VARIANT ...]
    python -m benchmarks.long_clip --table docs/results/long-clip.md      (and figures for each task beside it)

A row is one training, as in `benchmarks.design`: a task, a variant, a seed. It is measured after its last step on clips
of another seed, the same for all variants. Finished rows are appended to a JSONL file and skipped when the study is
started again.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.design import clips, fit, run_study, suite_of
from benchmarks.long_clip_report import ENDING, table
from benchmarks.small import ROOT, VAL_SEED, Partial, hexadecimal
from tttvideo.evaluation.controls import applicable, without
from tttvideo.model import VideoModel
from tttvideo.tasks.classification import ClassificationHead, Output
from tttvideo.ttt.interface import state_bytes
from tttvideo.video.synthetic import ClassificationSuite

STUDY = ROOT / "configs" / "study" / "long-clip.yaml"
FRAMES_AT_ONCE = 4096
"""Frames of all clips of a batch that is measured."""
POSITIONS = 32
"""Parts of a clip for which the loss is kept, had the clip ended there."""


def main() -> None:
    run_study(__doc__, STUDY, train_row, table)


def train_row(
    study: dict[str, Any], task: str, variant: str, seed: int, partial: Partial | None = None
) -> dict[str, Any]:
    """Trains and measures one row."""
    model, about = fit(study, task, variant, seed, partial)
    options, described = study["variants"][variant], study["tasks"][task]
    own = options.get("sampling", "dense")
    suite = suite_of(study, task, study.get("val_seed", VAL_SEED))
    rules = study["samplings"] if own == "dense" else []
    controls = applicable(model) if options.get("controls") else []
    longer = {factor: replace(suite, frames=factor * suite.frames) for factor in study["lengths"]}
    count, by = described["val"], described.get("by")
    measured = [
        *({"length": factor} | measure(model, own_suite, count, own, by=by) for factor, own_suite in longer.items()),
        *({"length": 1} | measure(model, suite, count, rule) for rule in rules),
        *({"length": 1, "control": name} | measure(model, suite, count, own, name) for name in controls),
    ]
    held = state_of_a_clip(model, suite, own)
    return {"task": task, "variant": variant, "seed": seed, "state_bytes": held, "measured": measured} | about


def state_of_a_clip(model: VideoModel, suite: ClassificationSuite, sampling: str) -> int:
    """Bytes that the model carries on from one clip of the training length."""
    frames, _ = clips(suite, "val", range(1))
    with torch.no_grad():
        _, state = model(frames[:, suite.sampled(sampling)])
    return state_bytes(state)


def measure(
    model: VideoModel, suite: ClassificationSuite, count: int, sampling: str, control: str = "", by: str | None = None
) -> dict[str, Any]:
    """Top-1 and mean loss on ``count`` clips of a suite of which ``sampling`` shows some frames; and top-1 for each
    value of the cause ``by``."""
    sampled = suite.sampled(sampling)
    batch = max(1, FRAMES_AT_ONCE // suite.frames)
    assert isinstance(model.head, ClassificationHead)
    losses, hits, ending_hits, by_step = [], [], [], []
    with torch.no_grad(), without(model, control):
        for first in range(0, count, batch):
            numbers = range(first, min(first + batch, count))
            frames, labels = clips(suite, "val", numbers)
            frames = frames[:, sampled]
            if control == "shuffled":
                frames = torch.stack([_shuffled(clip, number) for clip, number in zip(frames, numbers, strict=True)])
            output = _read(model, frames)
            logits, timeline = output.logits.float(), output.timeline.float().mT
            losses += cross_entropy(logits, labels, reduction="none").tolist()
            hits += (logits.argmax(1) == labels).tolist()
            if model.head.decay == 1.0:  # a moving average reads the end anyway
                ending_hits += (_ending(model.head, timeline, ENDING).argmax(1) == labels).tolist()
            ends = labels[:, None].expand(-1, timeline.shape[2])
            by_step.append(cross_entropy(timeline, ends, reduction="none"))
    figures: dict[str, Any] = {
        "frames": suite.frames,
        "sampling": sampling,
        "frames_read": len(sampled),
        "tokens_read": len(sampled) * model.encoder.grid[0] * model.encoder.grid[1] // model.encoder.stride,
        "top1": round(statistics.mean(hits), 4),
        "loss": round(statistics.mean(losses), 4),
        "ceiling": round(suite.ceiling(sampled), 4),
        "n": count,
        "hits": hexadecimal(hits),
        "top1_of_the_end": round(statistics.mean(ending_hits), 4) if ending_hits else None,
        "positions": _positions(torch.cat(by_step).mean(0), sampled),
    }
    if by:
        groups: dict[int | str, list[bool]] = {}
        for number, hit in enumerate(hits):
            groups.setdefault(suite.plan("val", number).cause[by], []).append(hit)
        figures["by"] = {str(value): round(statistics.mean(own), 4) for value, own in sorted(groups.items())}
    return figures


def _read(model: VideoModel, frames: Tensor) -> Output:
    """Of whole clips, read as a stream: memory does not grow with their length."""
    pieces = frames.split(model.segment_frames(64), dim=1)
    lengths = torch.full((len(frames),), frames.shape[1])
    return model.score_segments((piece, torch.full_like(lengths, piece.shape[1])) for piece in pieces)


def _ending(head: ClassificationHead, timeline: Tensor, steps: int) -> Tensor:
    """Logits [B, classes] of the mean of the last steps alone, from those of the means of all steps so far
    [B, classes, S]: does the state still hold what the mean over a long clip drowns?"""
    bias = head.classifier.bias[:, None]
    sums = (timeline - bias) * torch.arange(1, timeline.shape[2] + 1)
    steps = min(steps, timeline.shape[2])
    before = sums[..., -steps - 1] if steps < timeline.shape[2] else torch.zeros_like(sums[..., -1])
    return (sums[..., -1] - before) / steps + bias[:, 0]


def _positions(losses: Tensor, sampled: Sequence[int]) -> dict[str, list[int] | list[float]]:
    """Losses of the answers after each step [S], each the mean over one of at most POSITIONS equal parts of the clip,
    and the frame that each part ends with, counted from 1."""
    parts = torch.arange(len(losses)).tensor_split(min(POSITIONS, len(losses)))
    last = [sampled[int(part[-1] + 1) * len(sampled) // len(losses) - 1] + 1 for part in parts]
    return {"frames": last, "loss": [round(float(losses[part].mean()), 4) for part in parts]}


def _shuffled(clip: Tensor, number: int) -> Tensor:
    """The frames of a clip in an order of its own."""
    return clip[torch.randperm(len(clip), generator=torch.Generator().manual_seed(number))]


if __name__ == "__main__":
    main()
