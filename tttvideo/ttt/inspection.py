"""What a TTT layer does with a chunk: the inner loss at any weights, what is read from them, and how far they moved."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .derivatives import affine
from .inner_gradient import InnerLoop
from .state import Weights, combine, length
from .tokens import Tokens


class ReadChunk(NamedTuple):
    """A chunk that a layer has read (``TTTLayer.chunks``).

    Attributes:
        loop: the inner loop; with ``tokens`` it is all that the methods need.
        rates: the learned part of the inner learning rate, 0..1, of each token [B, T]; mean over heads, views and maps.
        before, after: the fast weights at the chunk's start and after it.
        closed: whether the chunk is complete; until then its update is not made.
    """

    loop: InnerLoop
    tokens: Tokens
    rates: Tensor
    before: Weights
    after: Weights
    closed: bool

    @torch.no_grad()
    def loss(self, weights: Weights) -> Tensor:
        """Inner loss of this chunk's pairs (k, v) at ``weights``, their mean, [B, H]."""
        k, v = self.tokens.k.flatten(2, 3), self.tokens.v.flatten(2, 3)
        taught = k[:, :, k.shape[2] - v.shape[2] :]  # without those that are only looked back on
        return self.loop.objective.loss(self._through(k, weights), taught, v, self.loop.norm).mean(-1)

    @torch.no_grad()
    def read_out(self, weights: Weights) -> Tensor:
        """What this chunk's queries read from ``weights``, [B, H, T, d]."""
        q = self.tokens.q
        read = q[:, :, q.shape[2] - self.tokens.v.shape[3] :]
        return self.loop.objective.read(self._through(q, weights), read, self.loop.norm)

    def _through(self, x: Tensor, weights: Weights) -> Tensor:
        maps = {**self.loop.frozen, **weights}
        with torch.autocast(x.device.type, enabled=False):
            return self.loop.model(x, lambda name, y: affine(maps[name], y), self.loop.grid)


def distance(a: Weights, b: Weights) -> Tensor:
    """Euclidean distance of two sets of fast weights, [B, H]."""
    return length(combine(torch.sub, a, b))[..., 0, 0]
