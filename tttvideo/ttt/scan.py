"""Reading a sequence chunk by chunk: the weights at one chunk's end are those at the next one's start."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .cumulative import scan_cumulative
from .inner_gradient import InnerLoop
from .state import TTTState
from .step import read_ahead_then_update, steps_of, update_then_read
from .tokens import Tokens

Closes = Sequence[bool | Tensor]
"""For every chunk, whether it ends in this call: a bool, or bool [B, 1, 1, 1] by row (see ``step.read_ahead_then_update``; without a mask: whether it has any token)."""


@torch.compiler.disable(recursive=False)  # the loop depends on lengths; a chunk is a graph of its own, compiled once
def scan(
    loop: InnerLoop,
    state: TTTState,
    tokens: Tokens,
    *,
    size: int,
    scale: Tensor,
    mask: Tensor | None,
    closes: Closes | None = None,
    offset: int = 0,
    group: int = 0,
) -> tuple[Tensor, TTTState]:
    """Reads T tokens chunk by chunk.

    Args:
        state: before them; ``pending`` None where no chunk is open.
        tokens: chunk c is tokens c*K ... (c+1)*K - 1; the last one may be shorter.
        size: chunk size K.
        scale: [K, 1], the step's scale at each position of a chunk.
        mask: bool, as large as the largest chunk read, or None where all of a chunk may be read by all of it.
        closes: for every chunk; None: those that are full (without a mask: all).
        offset: tokens of the first chunk that every row has read before; its other tokens come first.
        group: chunks per activation checkpoint, 0 for none.

    Returns:
        outputs [B, H, T, d], and the state after them.
    """
    length, pairs = tokens.v.shape[3], tokens.v.shape[2]
    if group and torch.is_grad_enabled():
        return _checkpointed(loop, state, tokens, size, scale, mask, closes, offset, group)
    if loop.cumulative:
        assert not offset
        return scan_cumulative(loop, state, tokens, size, scale, mask, closes)
    read = update_then_read if mask is None else read_ahead_then_update
    outputs, shape = [], None
    for c, piece in enumerate(cut(tokens, size, size - offset)):
        start, count = 0 if c else offset, piece.v.shape[3]
        if shape != (start, count):  # the first piece may begin, the last one end inside its chunk
            shape, steps = (start, count), steps_of(scale, mask, start, count, pairs)
        closed = closes[c] if closes is not None else mask is None or start + count == size
        z, state = read(loop, state, piece, steps, closed)
        outputs.append(z)
    z = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)
    return loop.objective.read(z, tokens.q[:, :, tokens.q.shape[2] - length :], loop.norm), state


def cut(tokens: Tokens, size: int, first: int | None = None) -> list[Tokens]:
    """Pieces of ``size`` tokens (the first one of ``first``, where given; the last one maybe shorter), each with
    its past.

    All at once: the backward pass of a slice fills a tensor as long as the sequence, so that one slice per chunk
    would cost time quadratic in the length.
    """
    length = tokens.v.shape[3]
    first = min(first or size, length)
    if length <= first:
        return [tokens]
    past = tokens.q.shape[2] - length
    if first < size:
        sizes = [first, length - first]
        q, k = ((x[..., : past + first, :], x[..., first:, :]) for x in (tokens.q, tokens.k))
        v, rate = tokens.v.split(sizes, -2), tokens.rate.split(sizes, -2)
        fade = (None, None) if tokens.fade is None else tokens.fade.split(sizes, -2)
        head, rest = (Tokens(*parts) for parts in zip(q, k, v, rate, fade, strict=True))
        return [head, *cut(rest, size)]
    if past:
        q, k = _windows(tokens.q, past, size), _windows(tokens.k, past, size)
    else:
        q, k = tokens.q.split(size, -2), tokens.k.split(size, -2)
    v, rate = tokens.v.split(size, -2), tokens.rate.split(size, -2)
    fade = (None,) * len(v) if tokens.fade is None else tokens.fade.split(size, -2)
    return list(map(Tokens, q, k, v, rate, fade))


def _windows(x: Tensor, past: int, size: int) -> Sequence[Tensor]:
    """x [..., P + T, d] in pieces of P + ``size`` tokens that overlap by P."""
    length = x.shape[-2] - past
    rest = length % size
    whole = [] if length < size else list(x[..., : past + length - rest, :].unfold(-2, past + size, size).mT.unbind(-3))
    return [*whole, x[..., length - rest :, :]] if rest else whole


def _checkpointed(
    loop: InnerLoop,
    state: TTTState,
    tokens: Tokens,
    size: int,
    scale: Tensor,
    mask: Tensor | None,
    closes: Closes | None,
    offset: int,
    group: int,
) -> tuple[Tensor, TTTState]:
    """``scan`` in groups of chunks, each computed again in the backward pass."""
    outputs = []
    for i, part in enumerate(cut(tokens, group * size, group * size - offset)):
        own = None if closes is None else closes[i * group : (i + 1) * group]
        settings = dict(size=size, scale=scale, mask=mask, closes=own, offset=0 if i else offset)
        out, state = checkpoint(scan, loop, state, part, use_reentrant=False, **settings)  # type: ignore[misc]
        outputs.append(out)
    return torch.cat(outputs, dim=2), state
