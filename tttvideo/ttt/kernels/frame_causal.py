"""Inner models whose chunks are frames, as one operator with a derivative: launches the kernels of ``frame_linear``,
``frame_mlp`` and ``frame_conv``.

States are kept and recomputed as in ``token_causal``. With few heads every phase of every frame is a launch of its
own: three a frame forwards, six or seven backwards, which on a GPU is limited by launching once a frame takes less than
some 50 microseconds; a CUDA graph around the training step removes that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .launch import (
    FORWARD,
    FRAME_KINDS,
    RECOMPUTED,
    capability_of,
    contiguous,
    frame_constants,
    frame_grid,
    frame_sizes,
    frame_tiles,
    operator,
    workspace,
)


@operator("tttvideo::frame_causal")
def frame_causal(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rate: Tensor,
    gamma: Tensor,
    beta: Tensor,
    weights: Tensor,
    lengths: Tensor,
    frame: int,
    columns: int,
    step: float,
    kind: str,
    hidden: int,
    mode: str,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Reads T tokens frame by frame; a token sees its own whole frame.

    Args:
        q: [B, H, T, d]; k and v likewise.
        rate: inner learning rates [B, H, T].
        gamma: scale of the inner LayerNorm, [H, d]; beta, its shift, likewise.
        weights: packed, [B, H, size], float32 (float64 in tests).
        lengths: tokens that each row reads, integers [B]; the rest is padding.
        frame: N, tokens of a frame; T is a multiple.
        columns: of a frame's grid of tokens; N is a multiple.
        step: size of a frame's step.
        kind: of inner model: "linear", "mlp", "conv" or "conv_depthwise".
        hidden: its hidden width F; 0: it is linear.
        mode: "ieee", "tf32", "tf32x3" or "bf16"; see ``pointwise.mm``.
        keep: whether a derivative will be wanted.

    Returns:
        outputs [B, H, T, d] (zero in padding), weights after the call, and the states that the derivative starts
        from.
    """
    q, k, v, rate, gamma, beta, lengths = contiguous(q, k, v, rate, gamma, beta, lengths)
    frames, group = grouping(q.shape[2], frame)
    state, out = weights.clone(memory_format=torch.contiguous_format), torch.zeros_like(q)
    starts = weights.new_empty(math.ceil(frames / group) if keep else 0, *weights.shape)
    programs, dim = q.shape[0] * q.shape[1], q.shape[3]
    errors = weights.new_empty(programs, workspace(FRAME_KINDS[kind].saved, frame, dim, hidden))
    tensors = (q, k, v, rate, weights.new_full((1,), step), gamma, beta, lengths, state, errors, out, starts)
    launch = _Launch(kind, frame, columns, hidden, mode)
    launch.forward(tensors, (0, frames, 0), group if keep else 0, save=False)
    return out, state, starts


@frame_causal.register_fake
def _(q, k, v, rate, gamma, beta, weights, lengths, frame, columns, step, kind, hidden, mode, keep):
    frames, group = grouping(q.shape[2], frame)
    starts = weights.new_empty(-(-frames // group) if keep else 0, *weights.shape)
    return q.new_empty(q.shape), weights.new_empty(weights.shape), starts


@operator("tttvideo::frame_causal_backward")
def frame_causal_backward(
    dout: Tensor,
    dweights: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rate: Tensor,
    gamma: Tensor,
    beta: Tensor,
    lengths: Tensor,
    starts: Tensor,
    frame: int,
    columns: int,
    step: float,
    kind: str,
    hidden: int,
    mode: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of ``frame_causal`` at q, k, v, rate, gamma, beta and weights."""
    dout, q, k, v, rate, gamma, beta, lengths = contiguous(dout, q, k, v, rate, gamma, beta, lengths)
    batch, heads, tokens, dim = q.shape
    frames, group = grouping(tokens, frame)
    states = starts.new_empty(group + 1, *starts.shape[1:])
    programs, numbers = batch * heads, FRAME_KINDS[kind]
    errors = starts.new_empty(group, programs, workspace(numbers.saved, frame, dim, hidden))
    derrors = starts.new_empty(programs, workspace(numbers.between, frame, dim, hidden))
    dstate = dweights.clone(memory_format=torch.contiguous_format)
    dq, dk, dv, drate = (torch.zeros_like(x) for x in (q, k, v, rate))
    given = (q, k, v, rate, starts.new_full((1,), step), gamma, beta, lengths, states, errors)
    launch = _Launch(kind, frame, columns, hidden, mode)
    dgamma, dbeta = starts.new_zeros(2, batch, heads, math.ceil(frame / launch.constants(given)["TILE"]), dim)
    for number in reversed(range(len(starts))):
        begin, end = number * group, min((number + 1) * group, frames)
        states[0].copy_(starts[number])
        # in the places of what is not written: any tensors
        launch.forward((*given, dq, starts), (begin, end, begin), 0, save=True)
        launch.backward((*given, dout, dstate, dq, dk, dv, drate, dgamma, dbeta, derrors), (begin, end))
    dgamma, dbeta = dgamma.sum((0, 2)).to(gamma), dbeta.sum((0, 2)).to(beta)
    return dq, dk, dv, drate, dgamma, dbeta, dstate


@frame_causal_backward.register_fake
def _(dout, dweights, q, k, v, rate, gamma, beta, lengths, starts, frame, columns, step, kind, hidden, mode):
    return tuple(x.new_empty(x.shape) for x in (q, k, v, rate, gamma, beta, dweights))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, rate, gamma, beta, _, lengths, *ctx.numbers, keep = inputs
    assert keep, "frame_causal was told that no derivative would be wanted"
    ctx.save_for_backward(q, k, v, rate, gamma, beta, lengths, output[2])


def _backward(ctx: Any, dout: Tensor, dweights: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    gradients = frame_causal_backward(dout, dweights, *ctx.saved_tensors, *ctx.numbers)
    return *gradients, *(None,) * 8


frame_causal.register_autograd(_backward, setup_context=_setup_context)


def grouping(tokens: int, frame: int) -> tuple[int, int]:
    """Frames of a call, and frames per group."""
    frames = tokens // frame
    return frames, math.ceil(math.sqrt(frames))


class _Launch(NamedTuple):
    """Launches of one inner model's kernels."""

    kind: str
    frame: int
    columns: int
    hidden: int
    mode: str

    def forward(self, tensors: tuple[Tensor, ...], span: tuple[int, int, int], group: int, save: bool) -> None:
        """Frames ``span[0]`` ... ``span[1]`` - 1; ``span[2]`` is the one whose state stands in the first slot."""
        constants, sizes = self.constants(tensors), self._sizes(tensors)
        phases = RECOMPUTED if save else FORWARD
        for begin, end, some, grid in self._grid(tensors, phases, span[:2], constants):
            self._kernels().forward_kernel[grid](
                *(*tensors, *sizes, self.frame, begin, end, span[2], group), **constants, PHASES=some, SAVE=save
            )

    def backward(self, tensors: tuple[Tensor, ...], span: tuple[int, int]) -> None:
        constants, sizes = self.constants(tensors), self._sizes(tensors)
        for begin, end, some, grid in self._grid(tensors, FRAME_KINDS[self.kind].backward, span, constants):
            self._kernels().backward_kernel[grid](
                *(*tensors, *sizes, self.frame, begin, end, span[0]), **constants, PHASES=some
            )

    def constants(self, tensors: tuple[Tensor, ...]) -> dict[str, Any]:
        """What the kernels of these tensors (q, ..., state, ...) are compiled for."""
        batch, heads, _, dim = tensors[0].shape
        kernel = self.kind, dim, self.hidden, self.mode
        tiles = frame_tiles(*kernel, batch * heads, self.frame, capability_of(tensors[0].device))
        return frame_constants(*kernel, tensors[8].dtype, tiles)

    def _sizes(self, tensors: tuple[Tensor, ...]) -> tuple[int, ...]:
        _, heads, tokens, dim = tensors[0].shape
        return heads, tokens, *frame_sizes(self.kind, dim, self.hidden, self.columns)

    def _grid(
        self, tensors: tuple[Tensor, ...], phases: tuple[int, ...], span: tuple[int, int], constants: dict[str, Any]
    ) -> Iterator[tuple[int, int, int, tuple[int, ...]]]:
        programs = tensors[0].shape[0] * tensors[0].shape[1]
        return frame_grid(self.kind, programs, phases, span, self.frame, constants)

    def _kernels(self) -> ModuleType:
        return frame_kernels(self.kind)


def frame_kernels(kind: str) -> ModuleType:
    """The module of an inner model's kernels."""
    # here, not above: tttvideo must import where Triton is not
    from . import frame_conv, frame_linear, frame_mlp

    return {"linear": frame_linear, "mlp": frame_mlp}.get(kind, frame_conv)
