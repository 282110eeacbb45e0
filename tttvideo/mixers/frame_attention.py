"""Self-attention inside each frame: nothing passes from one frame to another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ttt.interface import Layout, Mixer, SequenceLayer, merge_heads, split_heads


@dataclass(frozen=True)
class FrameAttention(Mixer):
    """Softmax attention in both directions among the tokens of one frame, beside layers that work across frames
    (ttt-video, arXiv 2504.05298, has it within segments).

    Without rotary positions: the encoder already tells each token its place in the frame.

    Attributes:
        heads: H.
    """

    heads: int = 4

    def build(self, dim: int) -> FrameAttentionLayer:
        return FrameAttentionLayer(self, dim)


class FrameAttentionState(NamedTuple):
    """Nothing is remembered."""


class FrameAttentionLayer(SequenceLayer):
    """See ``FrameAttention``.

    Raises:
        ValueError: if ``dim`` does not divide into heads.
    """

    def __init__(self, config: FrameAttention, dim: int):
        super().__init__()
        if config.heads < 1 or dim % config.heads:
            raise ValueError(
                f"FrameAttention cannot divide {dim} channels into {config.heads} heads; change heads or the width."
            )
        self.heads = config.heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.o_proj = nn.Linear(dim, dim, bias=False)

    def init_state(self, batch: int) -> FrameAttentionState:
        return FrameAttentionState()

    def unit(self, tokens_per_frame: int) -> int:
        return tokens_per_frame

    def read(self, x: Tensor, state: FrameAttentionState, layout: Layout) -> tuple[Tensor, FrameAttentionState]:
        frames = x.reshape(-1, layout.tokens_per_frame, x.shape[-1])
        q, k, v = (split_heads(t, self.heads) for t in self.qkv(frames).chunk(3, dim=-1))
        # In parts: on CUDA it refuses batches above 65,535 (pytorch issue 146704), three quarters of an hour of frames.
        parts = zip(*(t.split(65535) for t in (q, k, v)), strict=True)
        out = merge_heads(torch.cat([F.scaled_dot_product_attention(*part) for part in parts]))
        return self.o_proj(out).reshape(x.shape), state
