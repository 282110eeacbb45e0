"""Self-attention inside each frame: nothing passes from one frame to another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ttt.interface import Layout, Mixer, SequenceLayer, merge_heads, split_heads
from ..ttt.primitives import rotate


@dataclass(frozen=True)
class FrameAttention(Mixer):
    """Softmax attention in both directions among the tokens of one frame, beside layers that work across frames
    (ttt-video, arXiv 2504.05298, has it within segments).

    Attributes:
        heads: H.
        rope: rotate queries and keys by row (first half of a head's channels) and column (second half). With the
            encoder's learned positions alone, which begin small beside what a patch shows, attention did not learn in
            hundreds of steps to look at the neighbouring patch (docs/log.md).
        rope_base: of the wavelengths: 100, as grids are short.
    """

    heads: int = 4
    rope: bool = True
    rope_base: float = 100.0

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
        if config.rope and (dim // config.heads) % 4:
            raise ValueError(
                f"FrameAttention rotates rows and columns in pairs, so the {dim // config.heads} channels of a head "
                "must divide by 4; change heads or the width, or set rope to false."
            )
        self.heads = config.heads
        self.rope_base = config.rope_base if config.rope else None
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.o_proj = nn.Linear(dim, dim, bias=False)

    def init_state(self, batch: int) -> FrameAttentionState:
        return FrameAttentionState()

    def unit(self, tokens_per_frame: int) -> int:
        return tokens_per_frame

    def read(self, x: Tensor, state: FrameAttentionState, layout: Layout) -> tuple[Tensor, FrameAttentionState]:
        frames = x.reshape(-1, layout.tokens_per_frame, x.shape[-1])
        q, k, v = (split_heads(t, self.heads) for t in self.qkv(frames).chunk(3, dim=-1))
        if self.rope_base is not None:
            q, k = (rotate_grid(t, layout.grid, self.rope_base) for t in (q, k))
        # In parts: on CUDA it refuses batches above 65,535 (pytorch issue 146704), three quarters of an hour of frames.
        parts = zip(*(t.split(65535) for t in (q, k, v)), strict=True)
        out = merge_heads(torch.cat([F.scaled_dot_product_attention(*part) for part in parts]))
        return self.o_proj(out).reshape(x.shape), state


def rotate_grid(x: Tensor, grid: tuple[int, int], base: float) -> Tensor:
    """Axial rotary positions of one frame's tokens ``x`` [B, H, N, d] in raster order, d a multiple of 4: channels of
    the first half turn with the row, those of the second with the column."""
    rows, columns = (axis.flatten() for axis in torch.meshgrid(*map(torch.arange, grid), indexing="ij"))
    by_row, by_column = x.chunk(2, dim=-1)
    return torch.cat([*rotate(rows, base, by_row), *rotate(columns, base, by_column)], dim=-1)
