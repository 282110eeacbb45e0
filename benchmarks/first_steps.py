"""Training steps as training takes them (``tttvideo.training.loop.Trainer``): plain, with compiled modules, recorded as
a CUDA graph. Needs neither video files nor accelerate."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import measure
from benchmarks.first_training import clips, model_of
from tttvideo.training.compiled import CompiledTrainer, GraphTrainer
from tttvideo.training.config import MixConfig, ScheduleConfig
from tttvideo.training.loop import Trainer
from tttvideo.training.mix import ClipMix
from tttvideo.training.optimizer import Schedule
from tttvideo.training.position import Progress
from tttvideo.video.loader import Batch

TRAINERS = {"plain": Trainer, "modules": CompiledTrainer, "graph": GraphTrainer}
"""By ``training.compile``."""


class _Alone:
    """What a trainer asks of Accelerate, for one process."""

    num_processes, process_index, scaler = 1, 0, None

    def __init__(self, device: torch.device):
        self.device = device

    def unwrap_model(self, model: nn.Module) -> nn.Module:
        return model.inside  # type: ignore[return-value]

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def reduce(self, sums: Tensor, reduction: str) -> Tensor:
        return sums

    def no_sync(self, model: nn.Module) -> AbstractContextManager[None]:
        return nullcontext()

    def unscale_gradients(self, optimizer: Any) -> None:
        pass


class _HalfPrecision(nn.Module):
    """A model in bfloat16."""

    def __init__(self, inside: nn.Module):
        super().__init__()
        self.inside = inside

    def forward(self, frames: Tensor, lengths: Tensor) -> Any:
        with torch.autocast(frames.device.type, torch.bfloat16):
            return self.inside(frames, lengths)


def measured(how: str, fused: str, device: torch.device, steps: int, tiny: bool = False) -> Iterator[dict[str, Any]]:
    """One row: seconds of a step (median of the second half, in which nothing is compiled any more), the most memory
    that it took, and the loss of every step: the same clips and the same start for every ``how``."""
    model, frames, size, count = model_of(fused, device, tiny)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = Schedule(optimizer, ScheduleConfig(epochs=1), steps)
    mix = ClipMix(MixConfig(), len(model.labels))
    trainer = TRAINERS[how](_Alone(device), _HalfPrecision(model), optimizer, schedule, mix, clip_grad=1.0)
    draw, losses = torch.Generator().manual_seed(1), []
    batches = []
    for _ in range(steps):
        videos, labels = clips(count, frames, size, draw)
        whole = torch.full((count,), frames)
        batches.append(Batch(videos, whole, labels, torch.arange(count), ["made here"] * count, [], []))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    epoch = trainer.epoch(batches, steps, Progress())
    seconds = [measure.seconds(lambda: losses.append(next(epoch).loss), device) for _ in range(steps)]
    row = {"how": how, "fused": fused, "seconds": statistics.median(seconds[steps // 2 :]), "first": seconds[0]}
    if device.type == "cuda":
        row["peak_bytes"] = torch.cuda.max_memory_allocated(device)
    yield row | {"losses": losses}
