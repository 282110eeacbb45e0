"""No sequence layer: frames do not see each other, and the video is the average of its frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from ..ttt.interface import Layout, Mixer, SequenceLayer


@dataclass(frozen=True)
class NoMixer(Mixer):
    """The control: with it a block is its feed-forward half only, and order in time cannot be learned."""

    def build(self, dim: int) -> NoMixerLayer:
        return NoMixerLayer()


class NoMixerState(NamedTuple):
    """Nothing is remembered."""


class NoMixerLayer(SequenceLayer):
    """Adds nothing to the residual stream."""

    def init_state(self, batch: int) -> NoMixerState:
        return NoMixerState()

    def read(self, x: Tensor, state: NoMixerState, layout: Layout) -> tuple[Tensor, NoMixerState]:
        # Zero, but of x: parameters before it keep a gradient, for which several processes would wait.
        return 0.0 * x, state
