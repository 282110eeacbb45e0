"""One chunk: the step of gradient descent that it takes, and what its queries read.

Mini-batch gradient descent (paper, section 2.4): every gradient of a chunk is taken at the weights W of the
chunk's start; with e[t, s] = scale[t] * mask[t, s] and grad_s the gradient of sum_s rate[s] * loss_s,

    W_t = W - sum_s e[t, s] grad_s          out_t = read(g(q_t; W_t))          W <- W_K at the chunk's end.

If every token of a chunk may use the gradients of all its tokens, there is no mask and all W_t are the same (the
default, ``FrameCausal(1)``): update, then read. Then any inner optimizer serves.

Under a mask every token has weights of its own. The dual form (section 2.5) never forms them. For an affine map
z = x A + b inside g, with X_s its inputs and G_s the gradient at its outputs on the keys,

    z_t(q) = x_t A + b - sum_s e[t, s] (x_t . X_s + 1) G_s

map by map through g. It is a property of the affine map, not of the inner model, so it stands here once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .derivatives import affine, applied, descended, dual
from .inner.base import Affine
from .inner_gradient import InnerLoop, Trace, summed, traces
from .state import Moments, TTTState, Weights, by_row, combine, where, zeros_like
from .tokens import Tokens


class Steps(NamedTuple):
    """For each token of a chunk, the length of the step whose weights it reads, and which tokens it sees.

    Attributes:
        scale: of the step that each token's weights have taken, [K, 1].
        last: of the whole chunk's, [1].
        mask: [K, K], 1 where token t (row) sees token s; None: all of the chunk is seen by all of it.
        seen: e, [K, V * K]; None likewise.
    """

    scale: Tensor
    last: Tensor
    mask: Tensor | None
    seen: Tensor | None


def steps_of(scale: Tensor, mask: Tensor | None, start: int, count: int, pairs: int) -> Steps:
    """``count`` tokens of a chunk from its token ``start`` on, each with ``pairs`` training pairs."""
    scale_of_tokens = scale[start : start + count]
    if mask is None:
        return Steps(scale_of_tokens, scale[-1], None, None)
    mask = mask[:count, :count].to(scale.dtype)
    return Steps(scale_of_tokens, scale[-1], mask, (scale_of_tokens * mask).repeat(1, pairs))


def update_then_read(
    loop: InnerLoop, state: TTTState, tokens: Tokens, steps: Steps, closes: bool | Tensor
) -> tuple[Tensor, TTTState]:
    """A chunk of which all is seen by all: the inner optimizer's steps on it, then all queries at the weights after.

    A forget gate leads the old weights back towards W_0; gradients are taken before it does, or after it
    (``Learning.forget_first``).

    Args:
        closes: whether the chunk has any token: True, or bool [B, 1, 1, 1] by row.

    Returns:
        g(q; W_K) [B, H, K, d], and the state after the chunk.
    """
    weights, pending, fading, moments, position, tails = state
    before = weights if tokens.fade is None else faded(loop, weights, tokens.fade.sum(2, keepdim=True))
    parts = traces(loop, before if loop.learning.forget_first else weights, tokens)
    if loop.optimizer is None:
        weights = descended(before, parts, steps.last)
    else:
        weights, moments = optimized(loop, before, parts, moments, tokens, steps.last)
    z = loop.model(tokens.q, applied({**loop.frozen, **weights}), loop.grid)
    if not isinstance(closes, bool):
        weights = where(closes, weights, state.weights)
        moments = _where_moments(closes, moments, state.moments)
    return z, TTTState(weights, pending, fading, moments, position, tails)


def optimized(
    loop: InnerLoop, weights: Weights, parts: dict[str, Trace], moments: Moments, tokens: Tokens, scale: Tensor
) -> tuple[Weights, Moments]:
    """The weights after all steps of an inner optimizer, and what it remembers. ``parts``: traces of the first step."""
    assert loop.optimizer is not None
    for number in range(loop.optimizer.steps):
        if number:
            parts = traces(loop, weights, tokens)
        if tokens.momentum is not None:
            moments = _kept(moments, tokens.momentum)
        gradient = combine(lambda g: scale * g, summed(weights, parts))
        weights, moments = loop.optimizer.step(weights, gradient, moments, loop.start, loop.warmup)
    return weights, moments


def _kept(moments: Moments, momentum: Tensor) -> Moments:
    """What a chunk keeps of the average gradients: the mean of what its tokens [B, H, T, 2] would."""
    share, count = momentum.sum(2, keepdim=True).split(1, -1)
    share = share / count.clamp_min(1)
    return moments._replace(averages=tuple(combine(lambda m: by_row(share, m) * m, a) for a in moments.averages))


def read_ahead_then_update(
    loop: InnerLoop, state: TTTState, tokens: Tokens, steps: Steps, closes: bool | Tensor
) -> tuple[Tensor, TTTState]:
    """A chunk in which every token has weights of its own, or the next part of an open one.

    Args:
        closes: whether the chunk ends here: True, False, or bool [B, 1, 1, 1] by row. Where it does not, the weights
            stay, and the gradients are added to ``pending``.

    Returns:
        g(q_t; W_t) [B, H, K, d], and the state after the chunk.
    """
    weights, pending, fading, moments, position, tails = state
    parts = traces(loop, weights, tokens)
    z = loop.model(tokens.q, ahead_of_update(loop, state, parts, tokens, steps), loop.grid)
    if tokens.fade is not None:
        fading = fading + tokens.fade.sum(2, keepdim=True)
    if closes is True:
        if tokens.fade is not None:
            weights, fading = faded(loop, weights, fading), torch.zeros_like(fading)
        if pending is not None:
            weights = combine(lambda w, p: w - steps.last * p, weights, pending)
        return z, TTTState(descended(weights, parts, steps.last), None, fading, moments, position, tails)

    total = summed(weights, parts)
    if pending is not None:
        total = combine(torch.add, pending, total)
    if closes is False:
        return z, TTTState(weights, total, fading, moments, position, tails)
    after = weights if tokens.fade is None else faded(loop, weights, fading)
    after = combine(lambda w, g: w - steps.last * g, after, total)
    weights, pending = where(closes, after, weights), where(closes, zeros_like(total), total)
    return z, TTTState(weights, pending, torch.where(closes, 0.0, fading), moments, position, tails)


def ahead_of_update(loop: InnerLoop, state: TTTState, parts: dict[str, Trace], tokens: Tokens, steps: Steps) -> Affine:
    """The maps of g(q_t; W_t), by the dual form. What the chunk has read before (``pending`` gradients, and ``fading``,
    the sum of its gates) is seen by all.

    With a forget gate W_t begins at W_0 + kept[t] (W - W_0), kept[t] the product of the gates that token t sees.
    """
    weights, pending, seen = state.weights, state.pending, steps.seen
    assert seen is not None
    assert steps.mask is not None
    lost = None if tokens.fade is None else torch.expm1(state.fading + steps.mask @ tokens.fade)  # kept - 1

    def ahead(name: str, x: Tensor) -> Tensor:
        if name in loop.frozen:
            return affine(loop.frozen[name], x)
        inputs, gradients = parts[name]
        if x.shape[-2] != seen.shape[0] or inputs.shape[-2] != seen.shape[1]:
            raise ValueError(
                f"{type(loop.model).__name__} gives its map {name!r} {x.shape[-2]} rows for {seen.shape[0]} tokens; "
                "a map's rows are the chunk's tokens, in their order; only chunks that are read as a whole "
                "(FrameCausal(1), Whole) take others."
            )
        z = dual(weights[name], x, inputs, gradients, seen)
        if lost is not None:
            learned = affine(weights[name], x) - affine(loop.start[name], x)
            z = z + (lost if x.dim() == lost.dim() else lost[:, :, None]) * learned  # a grouped map has an axis more
        return z if pending is None else z - steps.scale * affine(pending[name], x)

    return ahead


def faded(loop: InnerLoop, weights: Weights, fade: Tensor) -> Weights:
    """W_0 + exp(fade) (W - W_0), ``fade`` [B, H, 1, 1]."""
    kept = fade.exp()
    return combine(lambda w, start: torch.lerp(start.expand_as(w), w, by_row(kept, w)), weights, loop.start)


def _where_moments(closes: Tensor, new: Moments, old: Moments) -> Moments:
    averages = tuple(where(closes, a, b) for a, b in zip(new.averages, old.averages, strict=True))
    return Moments(averages, torch.where(closes, new.count, old.count))
