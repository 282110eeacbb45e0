"""One epoch of training, exact to the number however often it was interrupted.

Position is counted in batches; optimizer steps, and so checkpoints, happen only between groups of
`accumulate` batches. Every draw is seeded by position (`randomness.py`), learning rates are functions of the
step, and the sums that make the epoch's figures travel in the checkpoint.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from tttvideo.model import VideoModel
from tttvideo.training.checkpoint import Progress
from tttvideo.training.mix import ClipMix
from tttvideo.training.optimizer import Schedule
from tttvideo.training.randomness import MIX, derive, seed_batch
from tttvideo.training.signals import STOP_SIGNALS
from tttvideo.video.dataset import Failure
from tttvideo.video.loader import Batch

if TYPE_CHECKING:
    from accelerate import Accelerator


class NonFinite(ArithmeticError):
    """The loss or the gradient is not a number any more; the message names step and videos."""


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did, summed over all processes."""

    progress: Progress  # position after the step
    loss: float  # mean over the step's videos (nan if none could be read)
    figures: dict[str, float]  # means of the figures that the task logs, such as accuracy
    lr: float
    grad_norm: float
    frames: int
    failures: list[Failure]  # on all processes; new and old alike
    signal: int  # which of `STOP_SIGNALS` any process was sent, the same on all of them; 0: none


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

    @property
    def evaluated_model(self) -> VideoModel:
        """The model that is validated and saved: the moving average where there is one."""
        return self.bare if self.ema is None else self.ema.module

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
        device = self.accelerator.device
        # loss, what the task logs, videos, frames, failures, batches with a loss that is not finite
        logged = self.bare.head.logged
        sums = torch.zeros(5 + len(logged), device=device)
        failures: list[Failure] = []
        suspects: list[tuple[Tensor, list[str]]] = []
        taken = 0
        for offset, batch in enumerate(group):
            last = offset == size - 1
            seed_batch(self.seed, progress.epoch, progress.batch + offset, self.accelerator.process_index)
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                loss, figures = self._forward(batch, progress.epoch, progress.batch + offset)
                self.accelerator.backward(loss / size)
            sums += figures
            failures += batch.failures
            suspects.append((figures[-1], list(batch.paths)))
            taken += 1
        assert taken == size, f"the loader ended after {taken} of {size} batches"

        clip = math.inf if self.clip_grad is None else self.clip_grad  # inf: only measures
        norm = self.accelerator.clip_grad_norm_(self._parameters, clip)
        sent = self.signal_now()
        asked = sums.new_tensor([float(sent == number) for number in STOP_SIGNALS])
        sums = cast(Tensor, self.accelerator.reduce(torch.cat([sums, asked]), reduction="sum"))
        *figures_, grad_norm = torch.cat([sums, torch.as_tensor(norm, device=device).reshape(1).float()]).tolist()
        asked_by = figures_[-len(STOP_SIGNALS) :]
        figures_ = figures_[: -len(STOP_SIGNALS)]
        loss_sum, *of_task, videos, frames, failed, not_finite = figures_
        # fp16: infinite gradients are skipped and the scale lowered
        scaled = self.accelerator.scaler is not None
        if not_finite or not (math.isfinite(grad_norm) or scaled):
            self._stop(progress.step, suspects, "loss" if not_finite else "gradient")

        self.optimizer.step()
        self.optimizer.zero_grad()
        step = progress.step + 1
        if self.ema is not None:
            self.ema.update(self.bare, step=step)

        if failed:
            from accelerate.utils import gather_object

            failures = [Failure(*failure) for failure in gather_object(failures)]
        totals = dict(progress.totals)
        for name, value in zip(("loss", *logged, "videos", "frames", "failed"), figures_):
            totals[name] = totals.get(name, 0.0) + value
        return StepResult(
            progress=replace(progress, batch=progress.batch + size, step=step, totals=totals),
            loss=loss_sum / videos if videos else math.nan,
            figures={name: value / videos if videos else math.nan for name, value in zip(logged, of_task)},
            lr=lr,
            grad_norm=grad_norm,
            frames=int(frames),
            failures=failures,
            signal=next((number for number, n in zip(STOP_SIGNALS, asked_by) if n), 0),
        )

    def _forward(self, batch: Batch, epoch: int, number: int) -> tuple[Tensor, Tensor]:
        """Loss of one batch (mean over its videos), and its row of figures (see `_step`)."""
        device = self.accelerator.device
        head, task = self.bare.head, self.bare.config.task
        if not len(batch.indices):
            nothing = [0.0] * (3 + len(head.logged)) + [float(len(batch.failures)), 0.0]
            return self._empty_loss(), torch.tensor(nothing, device=device)
        frames = batch.frames.to(device, non_blocking=True)
        lengths = batch.lengths  # the model plans with them on the CPU
        labels = mixed = batch.labels.to(device, non_blocking=True)
        n_frames = float(lengths.sum())
        if self.mix.active:
            seed = derive(self.seed, MIX, epoch, number, self.accelerator.process_index)
            frames, lengths, mixed = self.mix(frames, lengths, labels, seed)
        output, _ = self.model(frames, lengths)
        loss = self.bare.loss(output, task.target(frames, lengths, mixed))
        with torch.no_grad():
            found = head.figures(output, task.target(frames, lengths, labels))
            figures = torch.stack(
                [
                    loss.detach().float() * found["videos"],
                    *(found[name].float() for name in head.logged),
                    found["videos"].float(),
                    torch.tensor(n_frames, device=device),
                    torch.tensor(float(len(batch.failures)), device=device),
                    (~torch.isfinite(loss.detach())).float(),
                ]
            )
        return loss, figures

    def _empty_loss(self) -> Tensor:
        """Zero, from a black clip: a process whose whole batch is unreadable must step with the others."""
        height, width = self.bare.preprocessing.size
        frames = torch.zeros(
            1, self.bare.frame_multiple, 3, height, width, dtype=torch.uint8, device=self.accelerator.device
        )
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
