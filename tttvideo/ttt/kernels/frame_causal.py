"""TTT-MLP whose chunks are frames, as one operator with a derivative: launches the kernels of ``frame_mlp``.

States are kept and recomputed as in ``token_causal``. With few heads every phase of every frame is a launch of its
own: three a frame forwards, six backwards, which on a GPU is limited by launching once a frame takes less than some
50 microseconds; a CUDA graph around the training step removes that.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .launch import BACKWARD_PHASES, FORWARD_PHASES, RECOMPUTED_PHASES, contiguous, frame_constants, frame_grid


@torch.library.custom_op("tttvideo::frame_causal", mutates_args=())
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
    step: float,
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
        step: size of a frame's step.
        hidden: width of the MLP.
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
    errors = weights.new_empty(*q.shape[:2], frame, q.shape[3])
    tensors = (q, k, v, rate, weights.new_full((1,), step), gamma, beta, lengths, state, errors, out, starts)
    _forward(tensors, (0, frames, 0), group if keep else 0, frame, hidden, mode, save=False)
    return out, state, starts


@frame_causal.register_fake
def _(q, k, v, rate, gamma, beta, weights, lengths, frame, step, hidden, mode, keep):
    frames, group = grouping(q.shape[2], frame)
    starts = weights.new_empty(-(-frames // group) if keep else 0, *weights.shape)
    return q.new_empty(q.shape), weights.new_empty(weights.shape), starts


@torch.library.custom_op("tttvideo::frame_causal_backward", mutates_args=())
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
    step: float,
    hidden: int,
    mode: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of ``frame_causal`` at q, k, v, rate, gamma, beta and weights."""
    dout, q, k, v, rate, gamma, beta, lengths = contiguous(dout, q, k, v, rate, gamma, beta, lengths)
    batch, heads, tokens, dim = q.shape
    frames, group = grouping(tokens, frame)
    states = starts.new_empty(group + 1, *starts.shape[1:])
    errors = starts.new_empty(group, batch, heads, frame, dim)
    derrors = starts.new_empty(2, batch, heads, frame, dim)
    dstate = dweights.clone(memory_format=torch.contiguous_format)
    dq, dk, dv, drate = (torch.zeros_like(x) for x in (q, k, v, rate))
    tiles = math.ceil(frame / frame_constants(dim, hidden, mode, starts.dtype)["TILE"])
    dgamma, dbeta = starts.new_zeros(2, batch, heads, tiles, dim)
    given = (q, k, v, rate, starts.new_full((1,), step), gamma, beta, lengths, states, errors)
    for number in reversed(range(len(starts))):
        begin, end = number * group, min((number + 1) * group, frames)
        states[0].copy_(starts[number])
        # in the places of what is not written: any tensors
        _forward((*given, dq, starts), (begin, end, begin), 0, frame, hidden, mode, save=True)
        gradients = (dout, dstate, dq, dk, dv, drate, dgamma, dbeta, derrors)
        _backward_frames((*given, *gradients), (begin, end), frame, hidden, mode)
    dgamma, dbeta = dgamma.sum((0, 2)).to(gamma), dbeta.sum((0, 2)).to(beta)
    return dq, dk, dv, drate, dgamma, dbeta, dstate


@frame_causal_backward.register_fake
def _(dout, dweights, q, k, v, rate, gamma, beta, lengths, starts, frame, step, hidden, mode):
    return tuple(x.new_empty(x.shape) for x in (q, k, v, rate, gamma, beta, dweights))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, rate, gamma, beta, _, lengths, *ctx.numbers, keep = inputs
    assert keep, "frame_causal was told that no derivative would be wanted"
    ctx.save_for_backward(q, k, v, rate, gamma, beta, lengths, output[2])


def _backward(ctx: Any, dout: Tensor, dweights: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    found = frame_causal_backward(dout, dweights, *ctx.saved_tensors, *ctx.numbers)
    return *found, None, None, None, None, None, None


frame_causal.register_autograd(_backward, setup_context=_setup_context)


def grouping(tokens: int, frame: int) -> tuple[int, int]:
    """Frames of a call, and frames per group."""
    frames = tokens // frame
    return frames, math.ceil(math.sqrt(frames))


def _kernels() -> ModuleType:
    # here, not above: tttvideo must import where Triton is not
    from . import frame_mlp

    return frame_mlp


def _forward(
    tensors: tuple[Tensor, ...],
    span: tuple[int, int, int],
    group: int,
    frame: int,
    hidden: int,
    mode: str,
    save: bool,
) -> None:
    """Frames ``span[0]`` ... ``span[1]`` - 1; ``span[2]`` is the one whose state stands in the first slot."""
    batch, heads, tokens, dim = tensors[0].shape
    constants = frame_constants(dim, hidden, mode, tensors[8].dtype)
    phases = RECOMPUTED_PHASES if save else FORWARD_PHASES
    for begin, end, some, grid in frame_grid(batch * heads, phases, span[:2], frame, constants):
        _kernels().forward_kernel[grid](
            *(*tensors, heads, tokens, hidden, frame, begin, end, span[2], group),
            **constants,
            PHASES=some,
            SAVE=save,
        )


def _backward_frames(tensors: tuple[Tensor, ...], span: tuple[int, int], frame: int, hidden: int, mode: str) -> None:
    batch, heads, tokens, dim = tensors[0].shape
    constants = frame_constants(dim, hidden, mode, tensors[8].dtype)
    launches = frame_grid(batch * heads, BACKWARD_PHASES, span, frame, constants)
    for begin, end, some, grid in launches:
        _kernels().backward_kernel[grid](
            *(*tensors, heads, tokens, hidden, frame, begin, end, span[0]), **constants, PHASES=some
        )
