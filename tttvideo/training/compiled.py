"""Training steps that cost the host less, for clips of one length: modules that torch.compile has compiled, or forward
and backward pass recorded as one CUDA graph.

Both hold for one kind of batch: whole clips of so many frames, at one value of what stands on the host. Whatever is
not such a batch (padded clips, further lengths, steps of the inner rates' warm-up, a batch that cannot be read) is
computed as it is without them, so that a new length never costs a new compilation in the middle of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..video.loader import Batch
from .config import ConfigError
from .loop import Clips, Trainer

if TYPE_CHECKING:
    from accelerate import Accelerator

KINDS = 4
"""Kinds of batches that are compiled or recorded in a run: the first ones that come."""


class _FewKinds(Trainer):
    """A trainer that knows which batches are of a kind that it has met, or may still take on."""

    def __init__(self, *parts: Any, **settings: Any) -> None:
        super().__init__(*parts, **settings)
        self._kinds: set[Hashable] = set()

    def _taken(self, kind: Hashable) -> bool:
        """Whether ``kind`` is one of the first ``KINDS``, which it becomes where there is room."""
        if len(self._kinds) < KINDS:
            self._kinds.add(kind)
        return kind in self._kinds

    def _steady(self, frames: Tensor, lengths: Tensor) -> bool:
        """Whether a batch is of whole clips, and inner rates are at their full value."""
        rates = {layer.rate_warmup for layer in self.bare.ttt_layers()}
        return rates <= {1.0} and bool((lengths == frames.shape[1]).all())


class CompiledTrainer(_FewKinds):
    """A trainer whose encoder, blocks of the backbone and head are compiled."""

    def __init__(self, *parts: Any, **settings: Any) -> None:
        super().__init__(*parts, **settings)
        for module in (self.bare.encoder, *self.bare.backbone.blocks, self.bare.head):
            module.compile(dynamic=False)

    def _read(self, frames: Tensor, lengths: Tensor) -> Any:
        taken = self._steady(frames, lengths) and self._taken((*frames.shape, self.bare.head.own_steps))
        with torch.compiler.set_stance("default" if taken else "force_eager"):
            return super()._read(frames, lengths)

    def evaluating(self) -> AbstractContextManager[None]:
        return torch.compiler.set_stance("force_eager")  # lengths vary there: each would be compiled


class _Recording(NamedTuple):
    """Forward and backward pass of one kind of batch: ``replay`` reads ``inputs`` and writes ``row`` and
    ``gradients`` (None: a parameter has none)."""

    replay: Callable[[], None]
    inputs: tuple[Tensor, Tensor, Tensor]
    row: Tensor
    gradients: list[Tensor | None]


class GraphTrainer(_FewKinds):
    """A trainer that replays forward and backward pass of a batch as one CUDA graph.

    The first batch of a kind is read as it is (kernels are compiled and checked), the second is recorded. What follows
    the gradients is no part of the graph: a loss that is not finite is seen before the weights move, and learning rates
    move on.
    """

    def __init__(self, *parts: Any, **settings: Any) -> None:
        super().__init__(*parts, **settings)
        self._recordings: dict[Hashable, _Recording] = {}

    def _learn(self, batch: Batch, epoch: int, number: int) -> Tensor:
        plans = self.bare.head.own_steps > 1  # a roll-out copies its plan to the device
        if plans or not len(batch.indices) or not self._steady(batch.frames, batch.lengths):
            return super()._learn(batch, epoch, number)
        clips, failures = self._clips(batch, epoch, number), len(batch.failures)
        tensors = clips.frames, clips.mixed, clips.labels
        shapes = tuple((x.shape, x.dtype) for x in tensors)
        kind = shapes, clips.read, failures
        first = kind not in self._kinds
        if not self._taken(kind) or first:
            total, row = self._loss(clips, failures)
            self.accelerator.backward(total)
            return row
        if kind not in self._recordings:
            self._recordings[kind] = self._record(clips, failures)
        recording = self._recordings[kind]
        for static, tensor in zip(recording.inputs, tensors, strict=True):
            static.copy_(tensor)
        recording.replay()
        for parameter, gradient in zip(self._parameters, recording.gradients, strict=True):
            if gradient is not None:  # memory that the next replay writes to
                parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad.add_(gradient)
        return recording.row.clone()

    def _record(self, clips: Clips, failures: int) -> _Recording:
        frames, mixed, labels = inputs = clips.frames.clone(), clips.mixed.clone(), clips.labels.clone()
        static = clips._replace(frames=frames, mixed=mixed, labels=labels)

        def passes() -> list[Tensor | None]:
            total, row = self._loss(static, failures)
            return [row, *torch.autograd.grad(total, self._parameters, allow_unused=True)]

        try:
            replay, (row, *gradients) = record(passes)
        except RuntimeError as error:
            raise ConfigError(
                f"training.compile: graph cannot record a step of this model ({error}); set modules or null"
            ) from error
        assert row is not None
        return _Recording(replay, inputs, row, gradients)


def record(passes: Callable[[], list[Tensor | None]]) -> tuple[Callable[[], None], list[Tensor | None]]:
    """What ``passes`` launches as a CUDA graph: a function that launches it again, and the tensors that it writes."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        written = passes()
    return graph.replay, written


def check_graph(accelerator: Accelerator, checkpointing: int) -> None:
    """Raises ConfigError where a graph cannot be recorded."""
    device, processes = accelerator.device.type, accelerator.num_processes
    why = None
    if checkpointing:
        why = "it records each pass once, and activation_checkpointing computes again in the backward pass"
    elif device != "cuda":
        why = f"CUDA graphs are recorded on a GPU, and this run is on {device}"
    elif processes > 1:
        why = f"a graph holds the steps of one process, and this run has {processes}"
    elif accelerator.scaler is not None:
        why = "precision is fp16, which scales every loss by what the step before it found"
    if why is not None:
        raise ConfigError(f"training.compile is graph, but {why}; set modules or null")
