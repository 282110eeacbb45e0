"""No sequence layer: frames do not see each other, and the video is the average of its frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
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

    def forward(
        self, x: Tensor, state: NoMixerState | None = None, layout: Layout = Layout()
    ) -> tuple[Tensor, NoMixerState]:
        return torch.zeros_like(x), NoMixerState()
