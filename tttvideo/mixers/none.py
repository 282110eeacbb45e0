"""No sequence layer: frames do not see each other, and the video is the average of its frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from ..ttt.interface import Layout, Mixer, SequenceLayer, valid_tokens


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

    def forward(
        self, x: Tensor, state: NoMixerState | None = None, layout: Layout = Layout()
    ) -> tuple[Tensor, NoMixerState]:
        valid = valid_tokens(layout.lengths, x.shape[1], x.device)
        if valid is not None:
            x = x.masked_fill(~valid[..., None], 0.0)
        # Zero, but of x: parameters before it keep a gradient, for which several processes would wait.
        return 0.0 * x, NoMixerState()
