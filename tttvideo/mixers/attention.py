"""Softmax attention over all frames so far, with a key-value cache: what a TTT layer is compared with first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ttt.interface import Layout, Mixer, SequenceLayer, merge_heads, split_heads
from ..ttt.views import rotate


@dataclass(frozen=True)
class Attention(Mixer):
    """Causal softmax attention; its state is the cache of all keys and values, so it grows with the video.

    Attributes:
        heads: H.
        causality: ``frame``: a token sees its own whole frame and all frames before; ``token``: all tokens up
            to itself.
        rope_theta: base of the rotary embedding of time: of the frame's index (``frame``) or the token's.
    """

    heads: int = 4
    causality: Literal["frame", "token"] = "frame"
    rope_theta: float = 10000.0

    def __post_init__(self) -> None:
        if self.causality not in ("frame", "token"):
            raise ValueError(f"Attention.causality is {self.causality!r}; it must be frame or token.")
        if self.rope_theta <= 0:
            raise ValueError(f"Attention.rope_theta is {self.rope_theta}; it must be above 0.")

    def build(self, dim: int) -> AttentionLayer:
        return AttentionLayer(self, dim)


class AttentionState(NamedTuple):
    """Keys (rotated) and values [B, H, S, d] of everything read; ``seen`` tokens, int64 [B] on the host; and
    ``slots`` int64 [B, S] on the host: the index of each cached token in its row, -1 where it is padding."""

    keys: Tensor
    values: Tensor
    slots: Tensor
    seen: Tensor


class AttentionLayer(SequenceLayer):
    """See ``Attention``.

    Raises:
        ValueError: if ``dim`` does not divide into heads of even dimension (the rotary embedding needs pairs).
    """

    def __init__(self, config: Attention, dim: int):
        super().__init__()
        if config.heads < 1 or dim % config.heads or (dim // config.heads) % 2:
            raise ValueError(
                f"Attention cannot divide {dim} channels into {config.heads} heads of even dimension; "
                "change heads or the width."
            )
        self.config = config
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.o_proj = nn.Linear(dim, dim, bias=False)

    def init_state(self, batch: int) -> AttentionState:
        dim = self.o_proj.weight.shape[0]
        empty = self.o_proj.weight.new_zeros(batch, self.config.heads, 0, dim // self.config.heads)
        return AttentionState(
            empty, empty, torch.zeros(batch, 0, dtype=torch.int64), torch.zeros(batch, dtype=torch.int64)
        )

    def unit(self, tokens_per_frame: int) -> int:
        return tokens_per_frame if self.config.causality == "frame" else 1

    def read(self, x: Tensor, state: AttentionState, layout: Layout) -> tuple[Tensor, AttentionState]:
        length, unit = x.shape[1], self.unit(layout.tokens_per_frame)
        slots = state.seen[:, None] + torch.arange(length)
        q, k, v = (split_heads(t, self.config.heads) for t in self.qkv(x).chunk(3, dim=-1))
        time = slots // unit
        q, k = rotate(q, time, self.config.rope_theta), rotate(k, time, self.config.rope_theta)

        held = slots
        if layout.lengths is not None:
            held = torch.where(torch.arange(length) < layout.lengths[:, None], slots, -1)
        keys = torch.cat((state.keys.to(k.dtype), k), dim=2)
        values = torch.cat((state.values.to(v.dtype), v), dim=2)
        cached = torch.cat((state.slots, held), dim=1)
        out = F.scaled_dot_product_attention(q, keys, values, attn_mask=self._mask(slots, cached, unit, x.device))
        y = self.o_proj(merge_heads(out))
        advance = length if layout.lengths is None else layout.lengths
        return y, AttentionState(keys, values, cached, state.seen + advance)

    @staticmethod
    def _mask(queries: Tensor, cached: Tensor, unit: int, device: torch.device) -> Tensor:
        """bool [B or 1, 1, T, S]: a query sees every real token of its own unit and of those before."""
        if bool((cached >= 0).all()) and bool((queries == queries[:1]).all()):
            queries, cached = queries[:1], cached[:1]
        queries, cached = queries.to(device), cached.to(device)
        seen = (queries[:, :, None] // unit >= cached[:, None, :] // unit) & (cached[:, None, :] >= 0)
        # A query that is padding may see nothing at all; softmax over nothing is NaN, so it sees everything.
        return (seen | ~seen.any(-1, keepdim=True))[:, None]
