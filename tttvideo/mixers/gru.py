"""A gated recurrent unit over tokens: the plain recurrent network that online action detection still uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from ..ttt.interface import Layout, Mixer, SequenceLayer
from ..ttt.primitives import at_least_float32
from .lstm import read_recurrent


@dataclass(frozen=True)
class GRU(Mixer):
    """One layer of ``torch.nn.GRU`` (arXiv 1406.1078) with as many units as channels.

    It reads token after token, frames in raster order, so it is causal over tokens, and slow: nothing of it is
    parallel along the sequence.
    """

    def build(self, dim: int) -> GRULayer:
        return GRULayer(dim)


class GRUState(NamedTuple):
    """Output of the last token read, [B, C], in float32 at least."""

    hidden: Tensor


class GRULayer(SequenceLayer):
    """See ``GRU``."""

    def __init__(self, dim: int):
        super().__init__()
        self.gru = nn.GRU(dim, dim, batch_first=True)

    def init_state(self, batch: int) -> GRUState:
        return GRUState(at_least_float32(self.gru.all_weights[0][0]).new_zeros(batch, self.gru.hidden_size))

    def read(self, x: Tensor, state: GRUState, layout: Layout) -> tuple[Tensor, GRUState]:
        y, after = read_recurrent(self.gru, x, state, layout.lengths)
        return y, GRUState(*after)
