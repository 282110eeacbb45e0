"""Reading a sequence chunk by chunk, the weights of one chunk's end being those of the next one's start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .dual import Problem, Steps, Tokens, apply_dual, apply_whole, descend, faded, summed, traces, update_whole
from .optimizer import Moments
from .weights import Weights, by_row, combine, where, zeros_like


class Views(NamedTuple):
    """The views of all tokens of a call: ``Tokens`` before it is cut into chunks.

    Attributes:
        q: [B, H, P + T, d], P tokens of the past first.
        k: [B, H, V, P + T, d].
        v: [B, H, V, T, d].
        rate: [B, H, V, T, 1].
        fade: [B, H, T, 1] or None.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    rate: Tensor
    fade: Tensor | None

    @property
    def past(self) -> int:
        return self.q.shape[2] - self.v.shape[3]

    def split(self, size: int, first: int = 0) -> list[Views]:
        """Pieces of ``size`` tokens (the first one of ``first``, where given; the last one maybe shorter), each with
        its past.

        All at once: the backward pass of a slice fills a tensor as long as the sequence, so that one slice per chunk
        would cost time quadratic in the length.
        """
        past, length = self.past, self.v.shape[3]
        if 0 < first < length:
            sizes = [first, length - first]
            q, k = _overlapping(self.q, past, first), _overlapping(self.k, past, first)
            v, rate = self.v.split(sizes, -2), self.rate.split(sizes, -2)
            fade = [None] * 2 if self.fade is None else self.fade.split(sizes, -2)
            head, rest = (Views(*parts) for parts in zip(q, k, v, rate, fade, strict=True))
            return [head, *rest.split(size)]
        q, k = _windows(self.q, past, size), _windows(self.k, past, size)
        v, rate = self.v.split(size, -2), self.rate.split(size, -2)
        fade = [None] * len(v) if self.fade is None else self.fade.split(size, -2)
        return [Views(*parts) for parts in zip(q, k, v, rate, fade, strict=True)]

    def tokens(self) -> Tokens:
        """The whole of it as one chunk."""
        return Tokens(self.q, self.k.flatten(2, 3), self.v.flatten(2, 3), self.rate.flatten(2, 3), self.fade)


def _overlapping(x: Tensor, past: int, first: int) -> tuple[Tensor, Tensor]:
    """x [..., P + T, d] in two, the second with its own P tokens of the past."""
    return x[..., : past + first, :], x[..., first:, :]


def _windows(x: Tensor, past: int, size: int) -> Sequence[Tensor]:
    """x [..., P + T, d] in pieces of P + ``size`` tokens that overlap by P."""
    if not past:
        return x.split(size, -2)
    length = x.shape[-2] - past
    rest = length % size
    whole = [] if length < size else list(x[..., : past + length - rest, :].unfold(-2, past + size, size).mT.unbind(-3))
    return [*whole, x[..., length - rest :, :]] if rest else whole


class Fast(NamedTuple):
    """The hidden state between two chunks.

    Attributes:
        weights: W at the start of the open chunk.
        pending: sum of rate * gradient over the tokens that the open chunk has read; None: nothing.
        fading: sum of their ``fade``, [B, H, 1, 1].
        moments: of the inner optimizer.
    """

    weights: Weights
    pending: Weights | None
    fading: Tensor
    moments: Moments


@torch.compiler.disable(recursive=False)  # the loop depends on lengths; a chunk is a graph of its own, compiled once
def scan(
    problem: Problem,
    fast: Fast,
    views: Views,
    *,
    size: int,
    scale: Tensor,
    mask: Tensor | None,
    closes: Sequence[bool | Tensor],
    offset: int = 0,
    group: int = 0,
) -> tuple[Tensor, Fast]:
    """Reads tokens chunk by chunk.

    Args:
        views: of T tokens; chunk c is tokens c*K ... (c+1)*K - 1, the last one may be shorter.
        size: chunk size K.
        scale: [K, 1], the step's scale at each position of a chunk.
        mask: bool [K, K], or None where all of a chunk may be read by all of it.
        closes: for every chunk, whether it ends here: a bool, or bool [B, 1, 1, 1] by row. A chunk that does not
            leaves W where it was, its gradients (if there is a mask) in ``pending``.
        offset: tokens of the first chunk that every row has read before; its other tokens come first in ``views``.
        group: chunks per activation checkpoint, 0 for none.

    Returns:
        outputs [B, H, T, d], and the state after them.
    """
    count = len(closes)
    recompute = group > 0 and torch.is_grad_enabled()
    group = group or count
    together = is_cumulative(problem, views)
    assert not (together and offset)
    steps = Steps.of(scale, mask, views.v.shape[2])
    pieces = views.split(group * size if together else size, size - offset if offset else 0)
    outputs = []

    def some(first: int, last: int, fast: Fast) -> tuple[Tensor, Fast]:
        if together:
            return _chunks(problem, fast, pieces[first // group], size, steps, closes[first:last])
        outputs = []
        for c in range(first, last):
            piece = pieces[c].tokens()
            out, fast = _chunk(problem, fast, piece, steps.part(0 if c else offset, piece.size), closes[c])
            outputs.append(out)
        return torch.cat(outputs, dim=2), fast

    for first in range(0, count, group):
        last = min(first + group, count)
        if recompute:
            out, fast = checkpoint(some, first, last, fast, use_reentrant=False)  # type: ignore[misc]
        else:
            out, fast = some(first, last, fast)
        outputs.append(out)
    z = torch.cat(outputs, dim=2)
    return problem.objective.read(z, views.q[:, :, views.past :], problem.norm), fast


def is_cumulative(problem: Problem, views: Views) -> bool:
    """True if no gradient depends on the weights: then W after every chunk is one cumulative sum of gradients."""
    alike = problem.model.linear and problem.objective.constant_gradient
    return alike and problem.optimizer.cumulative and views.fade is None


def _chunk(problem: Problem, fast: Fast, tokens: Tokens, steps: Steps, closes: bool | Tensor) -> tuple[Tensor, Fast]:
    """One chunk: what the inner model makes of its queries, and the state after it."""
    if steps.seen is None:
        weights, moments = update_whole(problem, fast.weights, fast.moments, tokens, steps.last)
        out = apply_whole(problem, weights, tokens.q)
        if not isinstance(closes, bool):
            weights = where(closes, weights, fast.weights)
            moments = _where_moments(closes, moments, fast.moments)
        return out, Fast(weights, None, fast.fading, moments)

    weights, pending, fading, moments = fast
    found = traces(problem, weights, tokens)
    out = apply_dual(problem, weights, pending, found, tokens, steps, fading)
    if tokens.fade is not None:
        fading = fading + tokens.fade.sum(2, keepdim=True)
    if closes is True:
        if tokens.fade is not None:
            weights, fading = faded(problem, weights, fading), torch.zeros_like(fading)
        if pending is not None:
            weights = combine(lambda w, p: w - steps.last * p, weights, pending)
        return out, Fast(descend(weights, found, steps.last), None, fading, moments)

    total = summed(weights, found)
    if pending is not None:
        total = combine(torch.add, pending, total)
    if closes is False:
        return out, Fast(weights, total, fading, moments)
    after = weights if tokens.fade is None else faded(problem, weights, fading)
    after = combine(lambda w, g: w - steps.last * g, after, total)
    pending = where(closes, zeros_like(total), total)
    return out, Fast(where(closes, after, weights), pending, torch.where(closes, 0.0, fading), moments)


def _where_moments(closes: Tensor, new: Moments, old: Moments) -> Moments:
    averages = tuple(where(closes, a, b) for a, b in zip(new.averages, old.averages, strict=True))
    return Moments(averages, torch.where(closes, new.count, old.count))


def _chunks(
    problem: Problem,
    fast: Fast,
    views: Views,
    size: int,
    steps: Steps,
    closes: Sequence[bool | Tensor],
) -> tuple[Tensor, Fast]:
    """All chunks of ``views`` side by side, as rows of the batch; see ``is_cumulative``."""
    batch, count, length = views.q.shape[0], len(closes), views.v.shape[3]
    tokens = _side_by_side(views, count, size)

    def apart(x: Tensor) -> Tensor:
        return x.unflatten(0, (batch, count))

    # A map's gradient is that of any weights: zeros, for all rows and heads.
    found = traces(problem, combine(lambda w: torch.zeros_like(w[:1, :1]), fast.weights), tokens)
    total = combine(apart, summed(fast.weights, found))
    if fast.pending is not None:
        total = combine(lambda g, p: torch.cat((g[:, :1] + p[:, None], g[:, 1:]), 1), total, fast.pending)
    ends = torch.stack([_column(c, batch, views.q.device) for c in closes], 1)

    def ended(x: Tensor) -> Tensor:
        return torch.where(by_row(ends[:, :, None, None], x), x, 0.0)

    moves = combine(lambda g: (steps.last * g).flatten(0, 1), total)
    moves = combine(lambda g: ended(apart(g)), problem.optimizer.clipped(moves))
    # W first, so that the sum is taken in the order of a loop, whatever the groups of checkpointing
    after = combine(lambda w, s: torch.cat((w[:, None], -s), 1).cumsum(1)[:, 1:], fast.weights, moves)
    weights = combine(lambda x: x[:, -1].clone(), after)  # a view would keep all of them alive in the state
    if steps.seen is None:
        out = apply_whole(problem, combine(lambda x: x.flatten(0, 1), after), tokens.q)
        pending = None
    else:
        before = combine(lambda w, x: torch.cat((w[:, None], x[:, :-1]), 1).flatten(0, 1), fast.weights, after)
        held = None if fast.pending is None else combine(lambda p: _first_of(p, count), fast.pending)
        out = apply_dual(problem, before, held, found, tokens, steps, fast.fading)
        pending = combine(lambda g: (g - ended(g)).sum(1), total)
    out = apart(out).transpose(1, 2).flatten(2, 3)[:, :, :length]
    return out, Fast(weights, pending, fast.fading, fast.moments)


def _side_by_side(views: Views, count: int, size: int) -> Tokens:
    """Chunks as rows of a batch [B * count], the last one filled with zeros."""
    past = views.past

    def fold(x: Tensor, past: int) -> Tensor:
        x = torch.nn.functional.pad(x, (0, 0, 0, past + count * size - x.shape[-2]))
        return x.unfold(-2, past + size, size).mT.movedim(-3, 1).flatten(0, 1)

    q, k = fold(views.q, past), fold(views.k, past).flatten(2, 3)
    return Tokens(q, k, fold(views.v, 0).flatten(2, 3), fold(views.rate, 0).flatten(2, 3))


def _first_of(x: Tensor, count: int) -> Tensor:
    """[B, ...] -> [B * count, ...], zero but in the first of each ``count``."""
    return torch.cat((x[:, None], x.new_zeros(x.shape[0], count - 1, *x.shape[1:])), 1).flatten(0, 1)


def _column(closes: bool | Tensor, batch: int, device: torch.device) -> Tensor:
    if isinstance(closes, bool):
        return torch.full((batch,), closes, device=device)
    return closes.reshape(batch)
