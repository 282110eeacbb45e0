"""One epoch of training, exact to the number however often it was interrupted.

Position is counted in batches; optimizer steps, and so checkpoints, happen only between groups of
`accumulate` batches. Every draw is seeded by position (`randomness.py`), learning rates are functions of the
step, and the sums that make the epoch's figures travel in the checkpoint.

A step descends the mean over all its videos (or predicted time steps), however many of them each batch and process
holds: sums are back-propagated, and the gradient is divided by the number of their terms at the end.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ..model import VideoModel
from ..tasks import Loss
from ..video.dataset import Failure
from ..video.loader import Batch
from .checkpoint import Progress
from .mix import ClipMix
from .optimizer import Schedule
from .randomness import MIX, derive, seed_batch
from .signals import STOP_SIGNALS

if TYPE_CHECKING:
    from accelerate import Accelerator


class NonFinite(ArithmeticError):
    """The loss or the gradient is not a number any more; the message names step and videos."""


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did, summed over all processes."""

    progress: Progress  # position after the step
    loss: float  # what was descended: the mean over all the step's videos, or predicted time steps (nan: none)
    figures: dict[str, float]  # means of the figures that the task logs, such as accuracy
    lr: float
    grad_norm: float
    frames: int
    failures: list[Failure]  # on all processes; new and old alike
    signal: int  # which of `STOP_SIGNALS` any process was sent, the same on all of them; 0: none


class Clips(NamedTuple):
    """A batch as it is read.

    Attributes:
        frames: on the device, mixed.
        lengths: of the clips, on the host: the model plans with them.
        mixed: labels as the loss takes them, ``labels`` as they are.
        read: frames of videos in the batch.
    """

    frames: Tensor
    lengths: Tensor
    mixed: Tensor
    labels: Tensor
    read: float


class Trainer:
    """Takes optimizer steps.

    Args:
        accelerator: holds precision, processes, device.
        model: as prepared by accelerate (it may be wrapped).
        optimizer: as prepared by accelerate.
        schedule: learning rates by step.
        mix: Mixup and CutMix.
        ema: timm's ModelEmaV3 of the unwrapped model, or None.
        accumulate: batches per step.
        clip_grad: largest norm of the gradient, or None.
        seed: of dropout and mixing.
        signal: tells, once per step, which of `STOP_SIGNALS` this process has been sent; 0: none.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: Any,
        schedule: Schedule,
        mix: ClipMix,
        *,
        ema: Any = None,
        accumulate: int = 1,
        clip_grad: float | None = None,
        seed: int = 0,
        signal: Callable[[], int] = lambda: 0,
    ):
        self.accelerator = accelerator
        self.model = model
        self.bare: VideoModel = accelerator.unwrap_model(model)
        self.optimizer = optimizer
        self.schedule = schedule
        self.mix = mix
        self.ema = ema
        self.accumulate = accumulate
        self.clip_grad = clip_grad
        self.seed = seed
        self.signal_now = signal
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        # of the sums over a step: not half precision, which cannot count
        self._dtype = torch.promote_types(self._parameters[0].dtype, torch.float32)

    @property
    def evaluated_model(self) -> VideoModel:
        """The model that is validated and saved: the moving average where there is one."""
        return self.bare if self.ema is None else self.ema.module

    def evaluating(self) -> AbstractContextManager[None]:
        """Around a use of ``evaluated_model`` beside training. ``CompiledTrainer`` compiles nothing inside it."""
        return nullcontext()

    def states(self) -> list[dict[str, Tensor]] | None:
        """What `restore` takes, of each process, to go on with the next batch; None: nothing. All call it together.
        ``SegmentTrainer`` overrides both: it carries the state of films from one step to the next."""
        return None

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Takes this process's part of ``states``."""

    def epoch(self, batches: Iterable[Batch], n_batches: int, progress: Progress) -> Iterator[StepResult]:
        """Step through the rest of an epoch.

        Args:
            batches: this process's batches from `progress.batch` on.
            n_batches: batches of the whole epoch; the same on every process.
            progress: where the epoch is resumed (batch 0: at its start).

        Yields:
            The result of each step, after it.

        Raises:
            NonFinite: before the weights take the step.
        """
        self.model.train()
        iterator = iter(batches)
        while progress.batch < n_batches:
            size = min(self.accumulate, n_batches - progress.batch)
            start = time.perf_counter()
            result = self._step(islice(iterator, size), size, progress)
            totals = dict(result.progress.totals)
            totals["seconds"] = totals.get("seconds", 0.0) + time.perf_counter() - start
            progress = replace(result.progress, totals=totals)
            yield replace(result, progress=progress)

    def _step(self, group: Iterable[Batch], size: int, progress: Progress) -> StepResult:
        lr = self.schedule.set(progress.step)
        self.bare.set_inner_rate(self.schedule.inner_scale(progress.step))
        self.bare.head.set_progress(progress.step / self.schedule.total_steps)
        sums, failures, suspects = self._add_gradients(group, size, progress)

        # The one exchange of a step: every process learns all sums, and that somebody asked it to stop.
        sent = self.signal_now()
        assert sent in (0, *STOP_SIGNALS), f"signal {sent} is none of {STOP_SIGNALS}"
        asked = [sums.new_full((1,), float(sent == number)) for number in STOP_SIGNALS]
        sums = cast(Tensor, self.accelerator.reduce(torch.cat([sums, *asked]), reduction="sum"))
        norm = self._to_mean(sums[self._columns.index("counted")])
        *values, grad_norm = torch.cat([sums, norm.reshape(1).to(sums)]).tolist()
        row = dict(zip(self._columns, values))
        # fp16: infinite gradients are skipped and the scale lowered
        scaled = self.accelerator.scaler is not None
        if row["not_finite"] or not (math.isfinite(grad_norm) or scaled):
            self._stop(progress.step, suspects, "loss" if row["not_finite"] else "gradient")

        counted = row["counted"]
        if not counted:  # nothing to learn from anywhere: without gradients the optimizer moves nothing
            self.optimizer.zero_grad()
        self.optimizer.step()
        self.optimizer.zero_grad()
        step = progress.step + 1
        if self.ema is not None:
            self.ema.update(self.bare, step=step)

        if row["failed"]:
            from accelerate.utils import gather_object

            failures = [Failure(*failure) for failure in gather_object(failures)]
        totals = dict(progress.totals)
        totals.setdefault("counted", totals.pop("videos", 0.0))  # as it was called in older checkpoints
        for name in ("loss", *self.bare.head.logged, "counted", "frames", "failed"):
            totals[name] = totals.get(name, 0.0) + row[name]
        return StepResult(
            progress=replace(progress, batch=progress.batch + size, step=step, totals=totals),
            loss=row["loss"] / counted if counted else math.nan,
            figures={name: row[name] / counted if counted else math.nan for name in self.bare.head.logged},
            lr=lr,
            grad_norm=grad_norm,
            frames=int(row["frames"]),
            failures=failures,
            signal=next((number for number, n in zip(STOP_SIGNALS, values[len(self._columns) :]) if n), 0),
        )

    @property
    def _columns(self) -> tuple[str, ...]:
        """What is added up over the batches and processes of a step: the loss, what the task logs, what counted in
        them, frames, failures, and batches with a loss that is not finite."""
        return ("loss", *self.bare.head.logged, "counted", "frames", "failed", "not_finite")

    def _add_gradients(
        self, group: Iterable[Batch], size: int, progress: Progress
    ) -> tuple[Tensor, list[Failure], list[tuple[Tensor, list[str]]]]:
        """Adds up the gradients of the losses' sums over this process's batches of a step, and averages them over the
        processes (as DDP does it).

        Returns:
            the sums of ``_columns``, the failures, and of each batch whether its loss is not finite, with its paths.
        """
        sums = torch.zeros(len(self._columns), device=self.accelerator.device, dtype=self._dtype)
        failures: list[Failure] = []
        suspects: list[tuple[Tensor, list[str]]] = []
        taken = 0
        for offset, batch in enumerate(group):
            last = offset == size - 1
            seed_batch(self.seed, progress.epoch, progress.batch + offset, self.accelerator.process_index)
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                row = self._learn(batch, progress.epoch, progress.batch + offset)
            sums += row
            failures += batch.failures
            suspects.append((row[-1], list(batch.paths)))
            taken += 1
        assert taken == size, f"the loader ended after {taken} of {size} batches"
        return sums, failures, suspects

    def _learn(self, batch: Batch, epoch: int, number: int) -> Tensor:
        """Adds the gradient of one batch's loss, summed over what counts; returns the batch's row of ``_columns``."""
        total, row = self._forward(batch, epoch, number)
        self.accelerator.backward(total)
        return row

    def _to_mean(self, counted: Tensor) -> Tensor:
        """Makes the gradient that of the mean over all that counted, and clips it; returns its norm before that."""
        self.accelerator.unscale_gradients(self.optimizer)  # of fp16; it can be done once only
        factor = self.accelerator.num_processes / counted.clamp_min(1)
        for parameter in self._parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
        clip = math.inf if self.clip_grad is None else self.clip_grad  # inf: only measures
        return nn.utils.clip_grad_norm_(self._parameters, clip)

    def _forward(self, batch: Batch, epoch: int, number: int) -> tuple[Tensor, Tensor]:
        """The loss of one batch, summed over what counts, and its row of ``_columns``."""
        if len(batch.indices):
            return self._loss(self._clips(batch, epoch, number), len(batch.failures))
        return self._empty_loss(), self._row_of_failures(len(batch.failures))

    def _row_of_failures(self, failures: int) -> Tensor:
        """The row of a batch without a clip."""
        row = torch.zeros(len(self._columns), device=self.accelerator.device, dtype=self._dtype)
        row[self._columns.index("failed")].fill_(failures)
        return row

    def _clips(self, batch: Batch, epoch: int, number: int) -> Clips:
        """The clips of a batch on the device, mixed."""
        device = self.accelerator.device
        frames = batch.frames.to(device, non_blocking=True)
        labels = mixed = batch.labels.to(device, non_blocking=True)
        lengths = batch.lengths
        if self.mix.active:
            seed = derive(self.seed, MIX, epoch, number, self.accelerator.process_index)
            frames, lengths, mixed = self.mix(frames, lengths, labels, seed)
        return Clips(frames, lengths, mixed, labels, float(batch.lengths.sum()))

    def _loss(self, clips: Clips, failures: int) -> tuple[Tensor, Tensor]:
        """The loss of clips, summed over what counts, and their row of ``_columns``. Nothing here waits for the
        device."""
        task = self.bare.config.task
        output = self._read(clips.frames, clips.lengths)
        loss = self.bare.summed_loss(output, task.target(clips.frames, clips.lengths, clips.mixed))
        target = task.target(clips.frames, clips.lengths, clips.labels)
        return loss.total, self._row(loss, output, target, clips.read, failures)

    def _read(self, frames: Tensor, lengths: Tensor) -> Any:
        """The model's output for a batch."""
        return self.model(frames, lengths)[0]

    @torch.no_grad()
    def _row(self, loss: Loss, output: Any, target: Any, frames: float, failures: int) -> Tensor:
        """``_columns`` of a batch."""
        device, head = self.accelerator.device, self.bare.head
        figures = head.figures(output, target)
        row = [
            loss.total.detach(),
            *(figures[name] for name in head.logged),
            loss.count,
            torch.full((), frames, device=device),  # written by the device: a copy from the host would wait for it
            torch.full((), float(failures), device=device),
            ~torch.isfinite(loss.total.detach()),
        ]
        return torch.stack([value.to(device, self._dtype) for value in row])

    def _empty_loss(self) -> Tensor:
        """Zero, from a black clip: a process whose whole batch is unreadable must step with the others."""
        shape, kind = self.bare.reading.frame
        frames = torch.zeros(1, self.bare.frame_multiple, *shape, dtype=kind, device=self.accelerator.device)
        self.model.eval()  # the black clip must not enter running statistics
        output, _ = self.model(frames, torch.full((1,), frames.shape[1]))
        self.model.train()
        # every parameter takes part, so that all processes reduce the same gradients
        return 0.0 * torch.stack([part.sum() for part in (*output, *self._parameters)]).sum()

    def _stop(self, step: int, suspects: list[tuple[Tensor, list[str]]], what: str) -> None:
        """Raise NonFinite on every process with the files of all of them."""
        from accelerate.utils import gather_object

        mine = [path for bad, paths in suspects if what == "gradient" or bool(bad) for path in paths]
        paths = gather_object(mine)
        hint = "a lower optimizer.lr may help"
        if rates := self.bare.inner_rates():
            hint += f", or a lower base_rate of the TTT layers (now {max(rates):g}): the inner loop diverges first"
        raise NonFinite(f"the {what} of step {step + 1} is not finite; its videos were {', '.join(paths)}; {hint}")
