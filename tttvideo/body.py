"""Encoder and backbone of a model, as its head reads videos through them."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from .backbone import BackboneStack
from .encoder.base import EncoderState, FrameEncoder
from .ttt.interface import Layout


class Body(NamedTuple):
    """Encoder and backbone, as ``tasks.base.Body`` says."""

    encoder: FrameEncoder
    backbone: BackboneStack

    def __call__(self, frames: Tensor, lengths: Tensor | None, state: Any) -> tuple[Tensor, Tensor | None, Any]:
        if frames.shape[-3:] == self.encoder.feature_shape:
            return self.read_features(frames, lengths, state)
        tokens, steps, encoder_state = self.encoder(frames, lengths, state[0])
        return self._mixed(tokens, steps, encoder_state, state[1])

    def features(self, frames: Tensor, lengths: Tensor | None) -> Tensor:
        if frames.shape[-3:] == self.encoder.feature_shape:
            return frames
        return self.encoder.features(frames, lengths)

    def read_features(self, features: Tensor, lengths: Tensor | None, state: Any) -> tuple[Tensor, Tensor | None, Any]:
        tokens, steps, encoder_state = self.encoder.embed(features, lengths, state[0])
        return self._mixed(tokens, steps, encoder_state, state[1])

    def _mixed(
        self, tokens: Tensor, steps: Tensor | None, encoder_state: EncoderState, state: Any
    ) -> tuple[Tensor, Tensor | None, Any]:
        count, per_step = tokens.shape[1:3]
        layout = Layout(self.encoder.grid, None if steps is None else steps * per_step)
        mixed, backbone_state = self.backbone(tokens.flatten(1, 2), state, layout)
        return mixed.unflatten(1, (count, per_step)), steps, (encoder_state, backbone_state)
