"""All chunks side by side, where no gradient depends on the weights: their sum over time needs no loop."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .derivatives import applied
from .inner_gradient import InnerLoop, summed, traces
from .state import TTTState, by_row, combine
from .step import Steps, ahead_of_update
from .tokens import Tokens


def read_side_by_side(
    loop: InnerLoop, state: TTTState, tokens: Tokens, steps: Steps, closes: int | Sequence[bool | Tensor]
) -> tuple[Tensor, TTTState]:
    """Many chunks as rows of one batch, their moves summed up over time.

    Args:
        steps: of one chunk.
        closes: for every chunk, see ``scan.scan``; or its full size: under a mask those of so many tokens end.

    Returns:
        g(q_t; W_t) [B, H, T, d], and the state after the tokens.
    """
    batch, length, size, mask = tokens.v.shape[0], tokens.v.shape[3], len(steps.scale), steps.mask
    count = -(-length // size)
    if isinstance(closes, int):
        closes = [mask is None or (c + 1) * closes <= length for c in range(count)]
    rows = _side_by_side(tokens, count, size)

    def apart(x: Tensor) -> Tensor:
        return x.unflatten(0, (batch, count))

    # A map's gradient is that of any weights (zeros, for all rows and heads), or taken at W_0.
    parts = traces(loop, combine(lambda w: torch.zeros_like(w[:1, :1]), state.weights), rows)
    total = combine(apart, summed(state.weights, parts))
    if state.pending is not None:
        total = combine(lambda g, p: torch.cat((g[:, :1] + p[:, None], g[:, 1:]), 1), total, state.pending)
    ends = torch.stack([_column(c, batch, tokens.q.device) for c in closes], 1)

    def ended(x: Tensor) -> Tensor:
        return torch.where(by_row(ends[:, :, None, None], x), x, 0.0)

    moves = combine(lambda g: (steps.last * g).flatten(0, 1), total)
    if loop.optimizer is not None:
        moves = loop.optimizer.clipped(moves)
    moves = combine(lambda g: ended(apart(g)), moves)
    # W first, so that the sum is taken in the order of a loop, whatever the groups of checkpointing
    after = combine(lambda w, s: torch.cat((w[:, None], -s), 1).cumsum(1)[:, 1:], state.weights, moves)
    weights = combine(lambda x: x[:, -1].clone(), after)  # a view would keep all of them alive in the state
    if mask is None:
        own, pending = {**loop.frozen, **combine(lambda x: x.flatten(0, 1), after)}, state.pending
        z = loop.model(rows.q, applied(own), loop.grid)
    else:
        before = combine(lambda w, x: torch.cat((w[:, None], x[:, :-1]), 1).flatten(0, 1), state.weights, after)
        held = None if state.pending is None else combine(lambda p: _first_of(p, count), state.pending)
        before = TTTState(before, held, *state[2:])
        z = loop.model(rows.q, ahead_of_update(loop, before, parts, rows, steps), loop.grid)
        pending = combine(lambda g: (g - ended(g)).sum(1), total)
    z = apart(z).transpose(1, 2).flatten(2, 3)[:, :, :length]
    return z, TTTState(weights, pending, *state[2:])


def _side_by_side(tokens: Tokens, count: int, size: int) -> Tokens:
    """Chunks as rows of a batch [B * count], the last one filled with zeros."""
    past = tokens.q.shape[2] - tokens.v.shape[3]

    def fold(x: Tensor, past: int) -> Tensor:
        x = torch.nn.functional.pad(x, (0, 0, 0, past + count * size - x.shape[-2]))
        return x.unfold(-2, past + size, size).mT.movedim(-3, 1).flatten(0, 1)

    return Tokens(fold(tokens.q, past), fold(tokens.k, past), fold(tokens.v, 0), fold(tokens.rate, 0))


def _first_of(x: Tensor, count: int) -> Tensor:
    """[B, ...] -> [B * count, ...], zero but in the first of each ``count``."""
    return torch.cat((x[:, None], x.new_zeros(x.shape[0], count - 1, *x.shape[1:])), 1).flatten(0, 1)


def _column(closes: bool | Tensor, batch: int, device: torch.device) -> Tensor:
    if isinstance(closes, bool):
        return torch.full((batch,), closes, device=device)
    return closes.reshape(batch)
