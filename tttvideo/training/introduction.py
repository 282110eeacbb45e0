"""The lines that a run prints before it begins: model, data, and where it starts from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ..video.index import classes_that_look_equal, unlearnable_classes
from .run_folder import changed_settings
from .segments import SegmentSampler
from .start import brings_encoder

if TYPE_CHECKING:
    from .run import Run


def introduction(run: Run, last: Path | None) -> Iterator[str]:
    """The lines, of a run that stands at the checkpoint ``last`` (None: at its beginning)."""
    config, progress, world = run.config, run.progress, run.accelerator.num_processes
    classes = f", {len(run.train.labels)} classes" if run.task.labelled else ""
    yield f"train  {len(run.train.videos)} videos{classes} ({run.train.rule})"
    if run.val:
        yield f"val    {len(run.val.videos)} videos ({run.val.rule}); best checkpoint: {run.rule}"
        if run.criterion.note:
            yield f"       {run.criterion.note}"
    for sentence in (unlearnable_classes(run.train, run.val), classes_that_look_equal(run.train.labels)):
        if sentence:
            yield f"note: {sentence}"
    yield (
        f"model  {sum(p.numel() for p in run.model.parameters()):,} parameters; {world} process"
        f"{'es' if world > 1 else ''} on {run.accelerator.device.type}, {config.precision}; "
        f"{run.steps_per_epoch} steps per epoch"
    )
    if config.training.carries:
        sampler = cast(SegmentSampler, run.train_batches.batch_sampler)
        yield (
            f"segments of {config.training.segment_frames} frames, {config.data.batch_size * world} films side "
            f"by side, padding {sampler.padding():.1%} of them"
        )
    if source := getattr(run.model.encoder, "source", None):
        fresh = last is None and not brings_encoder(config.init_from)
        yield f"encoder {source if fresh else 'weights from the checkpoint'}"
    yield from run.start.lines()
    for note in run.trainer.schedule.notes:
        yield f"note: {note}"
    if last:
        yield f"resume {last.name}: epoch {progress.epoch + 1}, batch {progress.batch} of {run.n_batches}"
        for change in changed_settings(run.folder.path / "config.yaml", run.yaml):
            yield f"note: changed since the run was started, the curve will differ: {change}"
        if sentence := run.checkpoints.forgets():
            yield f"note: {sentence}"
    elif config.resume:
        yield f"note: {run.folder.path} holds no checkpoint yet: starting afresh"
