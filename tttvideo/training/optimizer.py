"""The outer optimizer, the learning rate schedule and the warm-up of the inner rates.

Schedules are pure functions of the number of optimizer steps done, so a resumed run needs no schedule state.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import nn

from ..printing import cause, nearest
from .config import ConfigError, OptimizerConfig, ScheduleConfig
from .position import Progress

INNER_WARMUP_START = 0.1  # the paper's: inner rates rise from a tenth


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """timm's optimizer over the model's parameter groups (weight decay exemptions, layer-wise decay).

    Raises:
        ConfigError: an optimizer timm does not know, or a setting it does not take.
    """
    # timm re-exports its functions without an __all__, which pyright takes for private
    from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers  # pyright: ignore

    names = list_optimizers()
    if config.name.lower() not in names:
        name = nearest(config.name.lower(), names)
        hint = f"; did you mean {name!r}?" if name else ""
        raise ConfigError(f"optimizer.name: timm has no optimizer {config.name!r}{hint}")
    extra = {}
    if config.betas is not None:
        if not get_optimizer_info(config.name.lower()).has_betas:  # timm would drop them silently
            raise ConfigError(f"optimizer.betas is given, but {config.name} has none; leave it out")
        extra["betas"] = config.betas
    try:
        return create_optimizer_v2(
            model,
            opt=config.name,
            lr=config.lr,
            weight_decay=config.weight_decay,
            layer_decay=config.layer_decay,
            **extra,
        )
    except Exception as error:  # adan has three betas; some need a library, a GPU, or a model of another kind
        raise ConfigError(
            f"optimizer.name: {config.name} cannot be built with these settings ({cause(error)}); leave "
            "optimizer.betas and layer_decay out, or take another"
        ) from error


def in_epochs(config: ScheduleConfig, steps_per_epoch: int) -> ScheduleConfig:
    """The same with all lengths in epochs, also those that are given in steps."""
    if config.steps is not None:
        config = replace(config, epochs=max(1, round(config.steps / steps_per_epoch)))
    if config.warmup_steps is not None:
        config = replace(config, warmup=config.warmup_steps / steps_per_epoch)
    if config.inner_warmup_steps is not None:
        config = replace(config, inner_warmup=config.inner_warmup_steps / steps_per_epoch)
    return config


class Schedule:
    """Sets the learning rate of each parameter group (`set(step)`), and tells the scale of the inner
    rates.

    Attributes:
        notes: sentences on what of the configuration does not fit into the run and was shortened.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, config: ScheduleConfig, steps_per_epoch: int):
        from timm.scheduler import create_scheduler_v2  # pyright: ignore

        self.config, self._steps_per_epoch = config, steps_per_epoch
        self.total_steps = config.epochs * steps_per_epoch
        self.notes: list[str] = []
        self._inner_steps = math.ceil(self._within_run("inner_warmup", config) * steps_per_epoch)
        # Warm-up in whole steps: timm divides by it and would ramp over a fraction of a step otherwise.
        warmup_steps = round(self._within_run("warmup", config) * steps_per_epoch)
        self._optimizer = optimizer
        self._scheduler, _ = create_scheduler_v2(
            optimizer,
            sched=config.name,
            num_epochs=config.epochs,
            decay_epochs=config.decay_epochs,
            decay_rate=config.decay_rate,
            min_lr=config.min_lr,
            warmup_lr=config.warmup_lr,
            warmup_epochs=warmup_steps / steps_per_epoch,  # type: ignore[arg-type]  # timm multiplies it back
            step_on_epochs=False,
            updates_per_epoch=steps_per_epoch,
        )

    def _within_run(self, name: str, config: ScheduleConfig) -> float:
        """Epochs of a warm-up; half of the run where it would be longer than that."""
        epochs, steps = getattr(config, name), getattr(config, f"{name}_steps")
        if epochs <= config.epochs:
            return epochs
        length, unit, whole = f"{name} is {epochs:g}", "epochs", config.epochs
        if steps is not None:
            length, unit, whole = f"{name}_steps is {steps:g}", "steps", self.total_steps
        self.notes.append(f"schedule.{length} {unit} and the run {whole}: shortened to {whole / 2:g}")
        return config.epochs / 2

    def done(self, progress: Progress) -> bool:
        """Whether a run ends here: after all epochs, or as many without a better checkpoint as `patience` says."""
        config = self.config
        if progress.epoch >= config.epochs or config.patience is None or progress.best is None or progress.batch:
            return progress.epoch >= config.epochs
        return progress.step - int(progress.best.removeprefix("step-")) >= config.patience * self._steps_per_epoch

    def ended_early(self, progress: Progress) -> str | None:
        """A sentence on a run that ends before its last epoch."""
        epochs, patience = self.config.epochs, self.config.patience
        if progress.epoch >= epochs:
            return None
        why = f"{patience} epochs without a better checkpoint (schedule.patience)"
        return f"ended after epoch {progress.epoch} of {epochs}: {why}"

    def set(self, step: int) -> float:
        """Prepare the optimizer for its step number `step` (from 0); returns the highest learning rate."""
        assert self._scheduler is not None
        self._scheduler.step_update(step)
        return max(group["lr"] for group in self._optimizer.param_groups)

    def inner_scale(self, step: int) -> float:
        """Factor on the inner learning rates during step number `step` (from 0)."""
        if step >= self._inner_steps:
            return 1.0
        return INNER_WARMUP_START + (1 - INNER_WARMUP_START) * step / self._inner_steps
