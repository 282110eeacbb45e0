"""Softmax attention over the frames so far, with a key-value cache: what a TTT layer is compared with first."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ttt.interface import Layout, Mixer, SequenceLayer, merge_heads, split_heads
from ..ttt.primitives import rotate


@dataclass(frozen=True)
class Attention(Mixer):
    """Causal softmax attention (arXiv 1706.03762). Its state is the cache of the keys and values that later tokens
    see: of the whole video, growing with it, or of a sliding window (arXiv 2004.05150), constant in size.

    Attributes:
        heads: H.
        causality: ``frame``: a token sees its own whole frame and all frames before; ``token``: all tokens up
            to itself.
        window: how many frames (``token``: tokens) are seen, a token's own included; null: all so far.
        rope_theta: base of the rotary embedding of time: of the frame's index (``frame``) or the token's.
    """

    heads: int = 4
    causality: Literal["frame", "token"] = "frame"
    window: int | None = None
    rope_theta: float = 10000.0

    def __post_init__(self) -> None:
        if self.causality not in ("frame", "token"):
            raise ValueError(f"Attention.causality is {self.causality!r}; it must be frame or token.")
        if self.window is not None and self.window < 1:
            raise ValueError(f"Attention.window is {self.window}; a token sees at least its own {self.causality}: 1.")
        if self.rope_theta <= 0:
            raise ValueError(f"Attention.rope_theta is {self.rope_theta}; it must be above 0.")

    def build(self, dim: int) -> AttentionLayer:
        return AttentionLayer(self, dim)


class AttentionState(NamedTuple):
    """Keys (rotated) and values [B, H, S, d] of what is remembered; ``seen`` tokens, int64 [B] on the host; and
    ``slots`` int64 [B, S] on the host: the index of each cached token in its row, -1 where there is none."""

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

    def step(self, x: Tensor, state: AttentionState, grid: tuple[int, int] = (1, 1)) -> tuple[Tensor, AttentionState]:
        self.check_step(x, grid)
        return self._read(x, state, None, self.unit(grid[0] * grid[1]), alike=True)

    def read(self, x: Tensor, state: AttentionState, layout: Layout) -> tuple[Tensor, AttentionState]:
        lengths = layout.lengths
        alike = lengths is None or bool((lengths == x.shape[1]).all())
        alike = alike and bool((state.slots >= 0).all()) and bool((state.seen == state.seen[:1]).all())
        return self._read(x, state, lengths, self.unit(layout.tokens_per_frame), alike)

    def _read(
        self, x: Tensor, state: AttentionState, lengths: Tensor | None, unit: int, alike: bool
    ) -> tuple[Tensor, AttentionState]:
        """``alike``: all rows have read, and read now, as many tokens, and remember the same ones."""
        if self.config.window is None:
            return self._attend(x, state, lengths, unit, alike)
        # In parts as long as the window (but no tiny ones), so that the cost is linear in T.
        size = max(self.config.window, math.ceil(64 / unit)) * unit
        outputs = []
        for i, part in enumerate(x.split(size, dim=1)):
            part_lengths = None if lengths is None else (lengths - i * size).clamp(0, size)
            y, state = self._attend(part, state, part_lengths, unit, alike)
            outputs.append(y)
        return torch.cat(outputs, dim=1), state

    def _attend(
        self, x: Tensor, state: AttentionState, lengths: Tensor | None, unit: int, alike: bool
    ) -> tuple[Tensor, AttentionState]:
        length = x.shape[1]
        slots = state.seen[:, None] + torch.arange(length)
        q, k, v = (split_heads(t, self.config.heads) for t in self.qkv(x).chunk(3, dim=-1))
        q, k = rotate(slots // unit, self.config.rope_theta, q, k)

        held = slots if lengths is None else torch.where(torch.arange(length) < lengths[:, None], slots, -1)
        keys = torch.cat((state.keys.to(k.dtype), k), dim=2)
        values = torch.cat((state.values.to(v.dtype), v), dim=2)
        cached = torch.cat((state.slots, held), dim=1)
        mask = None
        # All tokens up to itself, and none cached: FlashAttention knows that without a mask.
        if not (alike and unit == 1 and self.config.window is None and not state.slots.shape[1]):
            mask = (self._mask(slots[:1], cached[:1], unit) if alike else self._mask(slots, cached, unit)).to(x.device)
        y = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, is_causal=mask is None)
        y = self.o_proj(merge_heads(y))
        seen = state.seen + (length if lengths is None else lengths)
        return y, self._trimmed(AttentionState(keys, values, cached, seen), lengths, unit)

    def _mask(self, queries: Tensor, cached: Tensor, unit: int) -> Tensor:
        """bool [B or 1, 1, T, S]: a query sees every real token of its own unit and of those before, as far back as
        the window reaches."""
        age = queries[:, :, None] // unit - cached[:, None, :] // unit
        seen = (age >= 0) & (cached[:, None, :] >= 0)
        if self.config.window is not None:
            seen &= age < self.config.window
        # A query that is padding may see nothing at all; softmax over nothing is NaN, so it sees everything.
        return (seen | ~seen.any(-1, keepdim=True))[:, None]

    def _trimmed(self, state: AttentionState, lengths: Tensor | None, unit: int) -> AttentionState:
        """Keeps of each row what the unit after its last can still see, and no more columns than the row that sees
        most has tokens."""
        count = keep = state.slots.shape[1]
        if self.config.window is not None:
            keep = min(keep, (self.config.window - 1) * unit)
        if lengths is not None:  # otherwise this call has filled every column that it added
            real = (state.slots >= 0).sum(1).tolist()
            keep = min(keep, max(real, default=0))
        if keep == count:
            return state
        # Real tokens last, in their order: rows that have ended remember what they read last.
        last = (state.slots >= 0).int().argsort(dim=1, stable=True)[:, count - keep :]
        index = last.to(state.keys.device)[:, None, :, None].expand(-1, *state.keys.shape[1:2], -1, state.keys.shape[3])
        return AttentionState(
            state.keys.gather(2, index), state.values.gather(2, index), state.slots.gather(1, last), state.seen
        )
