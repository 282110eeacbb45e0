"""Token-causal TTT-MLP and TTT-Linear as one operator with a derivative: launches the kernels of ``ttt_mlp`` and
``ttt_linear``.

The forward pass stores the state before every group of G chunks. The backward pass takes the groups from the last to
the first: the forward kernel runs once more over the group and stores the state before each of its chunks, from
which the backward kernel goes back. With n chunks that is n / G + G states; G is about the root of n.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .launch import contiguous, operator, token_constants


@operator("tttvideo::token_causal")
def token_causal(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rate: Tensor,
    scale: Tensor,
    gamma: Tensor,
    beta: Tensor,
    weights: Tensor,
    pending: Tensor,
    position: Tensor,
    lengths: Tensor,
    hidden: int,
    carried: bool,
    mode: str,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Reads T tokens chunk by chunk.

    Args:
        q: [B, H, T, d]; k and v likewise.
        rate: inner learning rates [B, H, T].
        scale: of the step at each position of a chunk, [K].
        gamma: scale of the inner LayerNorm, [H, d]; beta, its shift, likewise.
        weights: at the start of the open chunk, packed, [B, H, size], float32 (float64 in tests).
        pending: sum of rate * gradient over the tokens that the open chunk has read, [B, H, size]; zero in rows whose
            ``position`` is 0.
        position: tokens that the open chunk has read, integers [B].
        lengths: tokens that each row reads now, integers [B]; the rest is padding.
        hidden: width of the MLP; 0: the inner model is linear.
        carried: whether any ``position`` is above 0; otherwise ``pending`` is not read.
        mode: "ieee", "tf32" or "bf16": what the matrix products read; see ``pointwise.mm``.
        keep: whether a derivative will be wanted.

    Returns:
        outputs [B, H, T, d] (zero in padding), weights and pending after the call, and the states that the
        derivative starts from.
    """
    kernels = _kernels(hidden)
    q, k, v, rate, weights, pending = contiguous(q, k, v, rate, weights, pending)
    batch, heads, tokens, dim = q.shape
    chunks, group = chunking(tokens, scale.shape[0])
    state, opened, out = weights.clone(), torch.zeros_like(pending), torch.zeros_like(q)
    starts = weights.new_empty(-(-chunks // group) if keep else 0, *weights.shape)
    tensors = (q, k, v, rate, *contiguous(scale, gamma, beta, position, lengths), pending)
    constants = token_constants(dim, hidden, scale.shape[0], mode, weights.dtype)
    for begin, end, some in _spans(0, chunks, carried):
        kernels.forward_kernel[(batch * heads,)](
            *(*tensors, state, opened, out, starts, weights),  # weights: in the place of what is not written
            *(heads, tokens, hidden or dim, begin, end, 0, group if keep else 0),
            **constants,
            CARRIED=some,
            SAVE=False,
        )
    return out, state, opened, starts


@token_causal.register_fake
def _(q, k, v, rate, scale, gamma, beta, weights, pending, position, lengths, hidden, carried, mode, keep):
    chunks, group = chunking(q.shape[2], scale.shape[0])
    starts = weights.new_empty(-(-chunks // group) if keep else 0, *weights.shape)
    return q.new_empty(q.shape), weights.new_empty(weights.shape), weights.new_empty(weights.shape), starts


@operator("tttvideo::token_causal_backward")
def token_causal_backward(
    dout: Tensor,
    dweights: Tensor,
    dopened: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rate: Tensor,
    scale: Tensor,
    gamma: Tensor,
    beta: Tensor,
    pending: Tensor,
    position: Tensor,
    lengths: Tensor,
    starts: Tensor,
    hidden: int,
    carried: bool,
    mode: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of ``token_causal`` at q, k, v, rate, scale, gamma, beta, weights and pending."""
    kernels = _kernels(hidden)
    q, k, v, rate, dout, dopened, pending = contiguous(q, k, v, rate, dout, dopened, pending)
    scale, gamma, beta, position, lengths = contiguous(scale, gamma, beta, position, lengths)
    batch, heads, tokens, dim = q.shape
    size, programs = scale.shape[0], batch * heads
    chunks, group = chunking(tokens, size)
    per_chunk = 3 * size * hidden + 2 * size * dim + size * size if hidden else 0
    states = starts.new_empty(group + 1, *starts.shape[1:])
    saved = starts.new_empty(group, programs, per_chunk)
    bent = starts.new_empty(programs, size, hidden)
    dstate, dpending = dweights.clone(memory_format=torch.contiguous_format), torch.zeros_like(pending)
    dq, dk, dv, drate = (torch.zeros_like(x) for x in (q, k, v, rate))
    dscale = starts.new_zeros(programs, size)
    dgamma, dbeta = starts.new_zeros(2, batch, heads, dim)
    fixed = (q, k, v, rate, scale, gamma, beta, position, lengths, pending, states)
    constants = token_constants(dim, hidden, size, mode, starts.dtype)
    given = (dout, dopened, dstate, dpending, dq, dk, dv, drate, dscale, dgamma, dbeta, bent)
    for number in reversed(range(len(starts))):
        origin = number * group
        spans = _spans(origin, min(origin + group, chunks), carried)
        states[0].copy_(starts[number])
        for begin, end, some in spans:
            kernels.forward_kernel[(programs,)](
                *(*fixed, states, dq, starts, saved),  # states, dq, starts: in the places of what is not written
                *(heads, tokens, hidden or dim, begin, end, origin, 0),
                **constants,
                CARRIED=some,
                SAVE=True,
            )
        for begin, end, some in reversed(spans):
            kernels.backward_kernel[(programs,)](
                *(*fixed, saved, *given, heads, tokens, hidden or dim, begin, end, origin),
                **constants,
                CARRIED=some,
            )
    dscale, dgamma, dbeta = dscale.sum(0).to(scale), dgamma.sum(0).to(gamma), dbeta.sum(0).to(beta)
    return dq, dk, dv, drate, dscale, dgamma, dbeta, dstate, dpending


@token_causal_backward.register_fake
def _(
    dout,
    dweights,
    dopened,
    q,
    k,
    v,
    rate,
    scale,
    gamma,
    beta,
    pending,
    position,
    lengths,
    starts,
    hidden,
    carried,
    mode,
):
    like = (q, k, v, rate, scale, gamma, beta, dweights, pending)
    return tuple(x.new_empty(x.shape) for x in like)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, rate, scale, gamma, beta, _, pending, position, lengths, ctx.hidden, ctx.carried, ctx.mode, keep = inputs
    assert keep, "token_causal was told that no derivative would be wanted"
    ctx.save_for_backward(q, k, v, rate, scale, gamma, beta, pending, position, lengths, output[3])


def _backward(ctx: Any, dout: Tensor, dweights: Tensor, dopened: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    gradients = token_causal_backward(dout, dweights, dopened, *ctx.saved_tensors, ctx.hidden, ctx.carried, ctx.mode)
    return *gradients, None, None, None, None, None, None


token_causal.register_autograd(_backward, setup_context=_setup_context)


def chunking(tokens: int, size: int) -> tuple[int, int]:
    """Chunks that T tokens can touch, wherever in a chunk they begin; and chunks per group."""
    chunks = (tokens + 2 * size - 2) // size
    return chunks, math.ceil(math.sqrt(chunks))


def _spans(begin: int, end: int, carried: bool) -> list[tuple[int, int, bool]]:
    """Chunks ``begin`` ... ``end`` - 1 as launches. A chunk that was open before has one of its own: what it needs more
    takes registers from all chunks otherwise."""
    if begin > 0 or not carried:
        return [(begin, end, False)]
    return [(0, 1, True), (1, end, False)]


def _kernels(hidden: int) -> ModuleType:
    # here, not above: tttvideo must import where Triton is not
    from . import ttt_linear, ttt_mlp

    return ttt_mlp if hidden else ttt_linear
