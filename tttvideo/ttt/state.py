"""The hidden state: fast weights, what an optimizer keeps beside them, and arithmetic on whole sets of weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Map(NamedTuple):
    """The fast weights of one affine map, ``x @ weight + bias``, per sequence and head.

    ``weight`` [B, H, inputs, outputs], ``bias`` [B, H, 1, outputs] or None; a grouped map has an axis of groups
    after H in both.
    """

    weight: Tensor
    bias: Tensor | None


Weights = dict[str, Map]
"""The fast weights of a whole inner model: its affine maps by name."""


class Moments(NamedTuple):
    """What an inner optimizer remembers: running averages of gradients (as many as it keeps), and steps taken
    [B, 1, 1, 1] (where it needs no count, an empty tensor [B, 0, 1, 1])."""

    averages: tuple[Weights, ...]
    count: Tensor


class TTTState(NamedTuple):
    """All a TTT layer remembers: constant in size, whatever was read.

    Attributes:
        weights: the inner model at the start of the open chunk.
        pending: sum of rate * gradient over the tokens that the open chunk has read, without the step's scale.
            Inside a scan None where it has read nothing.
        fading: sum of the logarithms of their forget gates, [B, H, 1, 1].
        moments: of the inner optimizer.
        position: tokens that the open chunk has read, int64 [B] on the host; rows may differ in age.
        tails: last inputs of what looks back, by name: the short convolutions (``q``, ``k``, with ``conv_values``
            ``v``) [B, tokens, C], the inner model's kernel over time (``inner_q``, ``inner_k``) [B, tokens, H, d]; and
            with ``rope: frame_row_column`` the number of ``frames`` read, [B].
    """

    weights: Weights
    pending: Weights | None
    fading: Tensor
    moments: Moments
    position: Tensor
    tails: dict[str, Tensor]


def combine(function: Callable[..., Tensor], *sets: Weights) -> Weights:
    """Applies ``function`` to the tensors that stand at the same place in each set of weights."""
    first = sets[0]
    return {
        name: Map(
            function(*(s[name].weight for s in sets)),
            None if first[name].bias is None else function(*(s[name].bias for s in sets)),
        )
        for name in first
    }


def zeros_like(weights: Weights) -> Weights:
    return combine(torch.zeros_like, weights)


def by_row(x: Tensor, like: Tensor) -> Tensor:
    """``x``, of size 1 after its first two axes, with as many axes as ``like``."""
    return x if x.dim() == like.dim() else x.reshape(*x.shape[:2], *(1,) * (like.dim() - 2))


def where(condition: Tensor, new: Weights, old: Weights) -> Weights:
    """``new`` in the rows where ``condition`` [B, 1, 1, 1] holds, ``old`` in the others."""
    return combine(lambda a, b: torch.where(by_row(condition, a), a, b), new, old)


def length(weights: Weights) -> Tensor:
    """Euclidean length of all the weights of a head together, [B, H, 1, 1]; its gradient at zero is zero."""
    squares = [x.square().flatten(2).sum(-1) for map in weights.values() for x in map if x is not None]
    return _root(torch.stack(squares).sum(0))[..., None, None]


def lengths_of_columns(map: Map) -> Tensor:
    """Euclidean length of every column of a map, its bias included, [B, H, 1, outputs] (a grouped map has its axis of
    groups, too); its gradient at zero is zero."""
    squares = map.weight.square().sum(-2, keepdim=True)
    return _root(squares if map.bias is None else squares + map.bias.square())


def _root(x: Tensor) -> Tensor:
    return torch.where(x > 0, x.clamp_min(torch.finfo(x.dtype).tiny).sqrt(), 0.0)
