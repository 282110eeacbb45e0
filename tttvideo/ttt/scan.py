"""Reading a sequence chunk by chunk: the weights at one chunk's end are those at the next one's start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .cumulative import read_side_by_side
from .delta import SPAN, read_delta_rule
from .derivatives import transformed
from .inner_gradient import InnerLoop
from .state import TTTState
from .step import read_ahead_then_update, steps_of, update_then_read
from .tokens import Tokens

Closes = Sequence[bool | Tensor]
"""For every chunk, whether it ends in this call (without a mask: whether it has any token): a bool, or bool
[B, 1, 1, 1] by row."""


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
    if group and (transformed() or not torch.is_grad_enabled()):  # torch.func passes through no checkpoint
        group = 0
    together = loop.delta and 8 * size <= SPAN and size < length  # of larger chunks a loop is as fast
    if loop.cumulative or together:
        assert not offset
        read, parts = read_delta_rule if together else read_side_by_side, []
        if together:  # a group is whole spans
            group = -(-group // (SPAN // size)) * (SPAN // size)
        wide, steps = (group or length) * size, steps_of(scale, mask, 0, min(size, length), pairs)
        for i, piece in enumerate(cut(tokens, wide)):
            group_closes = closes[i * group :][: group or None] if closes is not None else None
            parts.append((piece, steps, group_closes if group_closes is not None else size))
        group = min(group, 1)
    else:
        read, parts, shape = update_then_read if mask is None else read_ahead_then_update, [], None
        for c, piece in enumerate(cut(tokens, size, size - offset)):
            start, count = 0 if c else offset, piece.v.shape[3]
            if shape != (start, count):  # the first piece may begin, the last one end inside its chunk
                shape, steps = (start, count), steps_of(scale, mask, start, count, pairs)
            closed = closes[c] if closes is not None else mask is None or start + count == size
            parts.append((piece, steps, closed))
    if group:
        read, parts = partial(_checkpointed, read), [(parts[i : i + group],) for i in range(0, len(parts), group)]
    outputs = []
    for part in parts:
        z, state = read(loop, state, *part)  # pyright: ignore[reportCallIssue]
        outputs.append(z)
    z = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)
    return loop.objective.read(z, tokens.q[:, :, tokens.q.shape[2] - length :], loop.norm), state


def _checkpointed(read: Callable, loop: InnerLoop, state: TTTState, parts: list[tuple]) -> tuple[Tensor, TTTState]:
    """``parts`` read one after the other, and again in the backward pass."""

    def run(state: TTTState) -> tuple[Tensor, TTTState]:
        outputs = []
        for part in parts:
            z, state = read(loop, state, *part)
            outputs.append(z)
        return torch.cat(outputs, dim=2), state

    return checkpoint(run, state, use_reentrant=False)  # type: ignore[return-value]


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
        momentum = (None, None) if tokens.momentum is None else tokens.momentum.split(sizes, -2)
        head, rest = (Tokens(*parts) for parts in zip(q, k, v, rate, fade, momentum, strict=True))
        return [head, *cut(rest, size)]
    if past:
        q, k = _windows(tokens.q, past, size), _windows(tokens.k, past, size)
    else:
        q, k = tokens.q.split(size, -2), tokens.k.split(size, -2)
    v, rate = tokens.v.split(size, -2), tokens.rate.split(size, -2)
    fade = (None,) * len(v) if tokens.fade is None else tokens.fade.split(size, -2)
    momentum = (None,) * len(v) if tokens.momentum is None else tokens.momentum.split(size, -2)
    return list(map(Tokens, q, k, v, rate, fade, momentum))


def _windows(x: Tensor, past: int, size: int) -> Sequence[Tensor]:
    """x [..., P + T, d] in pieces of P + ``size`` tokens that overlap by P."""
    length = x.shape[-2] - past
    rest = length % size
    whole = [] if length < size else list(x[..., : past + length - rest, :].unfold(-2, past + size, size).mT.unbind(-3))
    return [*whole, x[..., length - rest :, :]] if rest else whole
