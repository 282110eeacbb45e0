"""Softmax attention over the frames so far, with a key-value cache: what a TTT layer is compared with first."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ttt.interface import Layout, Mixer, SequenceLayer, merge_heads, split_heads
from ..ttt.primitives import CausalConv, rotate, rotate_parts


@dataclass(frozen=True)
class Attention(Mixer):
    """Causal softmax attention (arXiv 1706.03762). Its state is the cache of the keys and values that later tokens
    see: of the whole video, growing with it, or of a sliding window (arXiv 2004.05150), constant in size.

    Attributes:
        heads: H.
        causality: ``frame``: a token sees its own whole frame and all frames before; ``token``: all tokens up
            to itself.
        window: how many frames (``token``: tokens) are seen, a token's own included; null: all so far.
        rope: what turns q and k: ``time``, the frame's index (``frame``) or the token's, which leaves the tokens of a
            frame alike; or ``time_and_place``: the frame's index turns half of each head's channels, row and column
            in the frame a quarter each (heads of a multiple of 8 channels; ``TTT.rope: frame_row_column`` differs).
        rope_theta: base of the rotary wavelengths of time; those of row and column have 100, as in ``FrameAttention``.
        short_conv: causal convolutions on q and k, as in ``TTT``.
    """

    heads: int = 4
    causality: Literal["frame", "token"] = "frame"
    window: int | None = None
    rope_theta: float = 10000.0
    rope: Literal["time", "time_and_place"] = "time"
    short_conv: Literal["none", "raster", "time"] = "none"

    def __post_init__(self) -> None:
        if self.causality not in ("frame", "token"):
            raise ValueError(f"Attention.causality is {self.causality!r}; it must be frame or token.")
        if self.window is not None and self.window < 1:
            raise ValueError(f"Attention.window is {self.window}; a token sees at least its own {self.causality}: 1.")
        if self.rope_theta <= 0:
            raise ValueError(f"Attention.rope_theta is {self.rope_theta}; it must be above 0.")
        if self.rope not in ("time", "time_and_place"):
            raise ValueError(f"Attention.rope is {self.rope!r}; it must be time or time_and_place.")
        if self.short_conv not in ("none", "raster", "time"):
            raise ValueError(f"Attention.short_conv is {self.short_conv!r}; it must be none, raster or time.")

    def build(self, dim: int) -> AttentionLayer:
        return AttentionLayer(self, dim)


class AttentionState(NamedTuple):
    """Keys (rotated) and values [B, H, S, d] of what is remembered; ``seen`` tokens, int64 [B] on the host; and
    ``slots`` int64 [B, S] on the host: the index of each cached token in its row, -1 where there is none; and by name
    the last inputs of the short convolution, [B, tokens, 2 C]."""

    keys: Tensor
    values: Tensor
    slots: Tensor
    seen: Tensor
    tails: dict[str, Tensor]


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
        if config.rope == "time_and_place" and (dim // config.heads) % 8:
            raise ValueError(
                f"Attention rotates time, rows and columns in pairs, so the {dim // config.heads} channels of a head "
                "must divide by 8; change heads or the width, or set rope: time."
            )
        self.config = config
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.conv = None if config.short_conv == "none" else CausalConv(2 * dim)
        self.o_proj = nn.Linear(dim, dim, bias=False)

    def init_state(self, batch: int) -> AttentionState:
        dim = self.o_proj.weight.shape[0]
        empty = self.o_proj.weight.new_zeros(batch, self.config.heads, 0, dim // self.config.heads)
        tails = {} if self.conv is None else {"qk": self.conv.init_state(batch)}
        return AttentionState(
            empty, empty, torch.zeros(batch, 0, dtype=torch.int64), torch.zeros(batch, dtype=torch.int64), tails
        )

    def unit(self, tokens_per_frame: int) -> int:
        return tokens_per_frame if self.config.causality == "frame" else 1

    def step(self, x: Tensor, state: AttentionState, grid: tuple[int, int] = (1, 1)) -> tuple[Tensor, AttentionState]:
        self.check_step(x, grid)
        return self._read(x, state, Layout(grid), alike=True)

    def read(self, x: Tensor, state: AttentionState, layout: Layout) -> tuple[Tensor, AttentionState]:
        alike = bool((state.slots >= 0).all()) and bool((state.seen == state.seen[:1]).all())
        return self._read(x, state, layout, alike)

    def _read(self, x: Tensor, state: AttentionState, layout: Layout, alike: bool) -> tuple[Tensor, AttentionState]:
        """``alike``: all rows have read as many tokens, and remember the same ones. (Padding of this call comes after
        all that its row reads, and causality hides it.)"""
        if not x.shape[1]:
            return x, state
        config, slots = self.config, state.seen[:, None] + torch.arange(x.shape[1])
        qk, v = self.qkv(x).split([2 * x.shape[2], x.shape[2]], dim=-1)
        tails = state.tails
        if self.conv is not None:
            step = layout.tokens_per_frame if config.short_conv == "time" else 1
            qk, tail = self.conv(qk, tails["qk"], layout.lengths, step)
            tails = {"qk": tail}
        q, k, v = (split_heads(t, config.heads) for t in (*qk.chunk(2, dim=-1), v))
        q, k = self._rotated(slots, layout.grid, q, k)
        held, lengths = slots, layout.lengths
        if lengths is not None:
            held = torch.where(torch.arange(x.shape[1]) < lengths[:, None], slots, -1)
        unit, state = self.unit(layout.tokens_per_frame), state._replace(tails=tails)
        # With a window in parts as long as it (but no tiny ones), so that the cost is linear in T.
        size = x.shape[1] if config.window is None else max(config.window, math.ceil(64 / unit)) * unit
        outputs = []
        parts = zip(*(t.split(size, 2) for t in (q, k, v)), *(t.split(size, 1) for t in (slots, held)), strict=True)
        for i, part in enumerate(parts):
            own = None if lengths is None else (lengths - i * size).clamp(0, size)
            y, state = self._attend(*part, state, own, unit, alike)
            outputs.append(y)
        return self.o_proj(merge_heads(torch.cat(outputs, dim=2))), state

    def _rotated(self, slots: Tensor, grid: tuple[int, int], q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """q and k [B, H, T, d] turned by the positions of their tokens, ``slots`` [B, T] in their row."""
        config, per_frame = self.config, grid[0] * grid[1]
        if config.rope == "time":
            return tuple(rotate(slots // self.unit(per_frame), config.rope_theta, q, k))  # type: ignore[return-value]
        cell = slots % per_frame
        positions = slots // per_frame, cell // grid[1], cell % grid[1]
        sizes = [q.shape[-1] // 2, q.shape[-1] // 4, q.shape[-1] // 4]
        return rotate_parts(positions, (config.rope_theta, 100.0, 100.0), sizes, q, k)

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        slots: Tensor,
        held: Tensor,
        state: AttentionState,
        lengths: Tensor | None,
        unit: int,
        alike: bool,
    ) -> tuple[Tensor, AttentionState]:
        """The heads' outputs [B, H, T, d]. ``held``: ``slots``, -1 where a token is padding."""
        keys = torch.cat((state.keys.to(k.dtype), k), dim=2)
        values = torch.cat((state.values.to(v.dtype), v), dim=2)
        cached = torch.cat((state.slots, held), dim=1)
        if alike and self.config.window is None:
            y = causal_attention(q, keys, values, unit)
        else:
            rows = slice(0, 1 if alike and lengths is None else None)
            mask = self._mask(slots[rows], cached[rows], unit).to(q.device)
            y = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
        seen = state.seen + (q.shape[2] if lengths is None else lengths)
        return y, self._trimmed(AttentionState(keys, values, cached, seen, state.tails), lengths, unit, alike)

    def _mask(self, queries: Tensor, cached: Tensor, unit: int) -> Tensor:
        """bool [B or 1, 1, T, S]: a query sees every real token of its own unit and of those before, as far back as
        the window reaches."""
        age = queries[:, :, None] // unit - cached[:, None, :] // unit
        visible = (age >= 0) & (cached[:, None, :] >= 0)
        if self.config.window is not None:
            visible &= age < self.config.window
        # A query that is padding may see nothing at all; softmax over nothing is NaN, so it sees everything.
        return (visible | ~visible.any(-1, keepdim=True))[:, None]

    def _trimmed(self, state: AttentionState, lengths: Tensor | None, unit: int, alike: bool) -> AttentionState:
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
        if alike and lengths is None:  # real tokens are last already; a sort could not be exported
            first = count - keep
            kept = (state.keys[:, :, first:], state.values[:, :, first:], state.slots[:, first:])
            return AttentionState(*(t.clone() for t in kept), *state[3:])  # views would keep the whole call alive
        # Real tokens last, in their order: rows that have ended remember what they read last.
        last = (state.slots >= 0).int().argsort(dim=1, stable=True)[:, count - keep :]
        index = last.to(state.keys.device)[:, None, :, None].expand(-1, *state.keys.shape[1:2], -1, state.keys.shape[3])
        return AttentionState(
            state.keys.gather(2, index), state.values.gather(2, index), state.slots.gather(1, last), *state[3:]
        )


def causal_attention(q: Tensor, k: Tensor, v: Tensor, unit: int, block: int = 256) -> Tensor:
    """Softmax attention of tokens that see their own unit and all before it, in memory linear in their number.

    Block of queries after block of queries, each with the keys so far. The masks of all blocks are views of one, zeros
    and then the mask within a block (PyTorch keeps each for the backward pass). A block of a single unit needs none.

    Args:
        q: [B, H, T, d], whole units, the last T of the keys' tokens.
        k: [B, H, S, d], and v likewise.
        unit: tokens that see each other: a frame's, or 1.
        block: queries at a time, at least; rounded to whole units.

    Returns:
        [B, H, T, d].
    """
    length, past = q.shape[2], k.shape[2] - q.shape[2]
    if unit == 1 and not past:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)  # FlashAttention knows that without a mask
    block = min(max(block // unit, 1) * unit, length)
    mask = None
    if block > unit:
        index = torch.arange(block, device=q.device) // unit
        own = torch.zeros(block, block, dtype=q.dtype, device=q.device).masked_fill(index[:, None] < index, -torch.inf)
        mask = torch.cat((own.new_zeros(block, k.shape[2]), own), dim=1)
    outputs = []
    for start, part in zip(range(0, length, block), q.split(block, 2), strict=True):
        before, rows = past + start, part.shape[2]
        bias = None if mask is None else mask[:rows, k.shape[2] - before : k.shape[2] + rows]
        keys, values = k[:, :, : before + rows], v[:, :, : before + rows]
        outputs.append(F.scaled_dot_product_attention(part, keys, values, attn_mask=bias))
    return torch.cat(outputs, dim=2)
