"""The kernel of ``heads``: a program for every row, tile of tokens and head."""

import triton
import triton.language as tl

from .blocks import row_sum
from .pointwise import store

SHORTEST = tl.constexpr(1e-12)  # as F.normalize


@triton.jit
def rotated(values, cos, sin, at, valid, TILE: tl.constexpr, D: tl.constexpr, ACC: tl.constexpr, BACK: tl.constexpr):
    """Pairs of ``values`` [TILE, D] turned by the angles that stand ``at`` [TILE, D / 2]; BACK: the other way."""
    even, odd = tl.split(tl.reshape(values, (TILE, D // 2, 2)))
    c = tl.load(cos + at, mask=valid, other=0.0).to(ACC)
    s = tl.load(sin + at, mask=valid, other=0.0).to(ACC)
    if BACK:
        s = -s
    return tl.reshape(tl.join(even * c - odd * s, even * s + odd * c), (TILE, D))


@triton.jit
def bent(x, SILU: tl.constexpr, UNIT: tl.constexpr):
    """y = x SiLU'd and divided by its length, and that length [TILE, 1] (without UNIT: 1)."""
    y = x * tl.sigmoid(x) if SILU else x
    length = 1.0
    if UNIT:
        length = tl.maximum(tl.sqrt(row_sum(y * y)), SHORTEST)
    return y / length, length


@triton.jit
def bent_backward(dy, x, SILU: tl.constexpr, UNIT: tl.constexpr):
    """From the gradient at y to that at x: dx = (dy - y sum(dy y)) / length, times the slope of SiLU."""
    y, length = bent(x, SILU, UNIT)
    dx = (dy - y * row_sum(dy * y)) / length if UNIT else dy
    if SILU:
        s = tl.sigmoid(x)
        dx *= s + x * s * (1.0 - s)
    return dx


@triton.jit(do_not_specialize=["tokens", "per_row"])
def heads_kernel(
    source,  # [B, T, H D], or, where BACK, [B, H, T, D]
    target,  # the other one
    x,  # [B, T, H D], read where BACK and SILU or UNIT
    cos,  # [1 or B, T, D / 2], as sin; read where ROTATE
    sin,
    tokens,  # T
    per_row,  # T where the angles are a row's own; 0: those of all
    D: tl.constexpr,
    TILE: tl.constexpr,
    ACC: tl.constexpr,
    ROTATE: tl.constexpr,
    BACK: tl.constexpr,
    SILU: tl.constexpr,
    UNIT: tl.constexpr,
):
    row, head, heads = tl.program_id(0).to(tl.int64), tl.program_id(2), tl.num_programs(2)
    t, col = tl.program_id(1) * TILE + tl.arange(0, TILE), tl.arange(0, D)
    valid = (t < tokens)[:, None]
    of_channels = ((row * tokens + t)[:, None] * heads + head) * D + col[None, :]
    of_heads = ((row * heads + head) * tokens + t)[:, None] * D + col[None, :]
    at = (row * per_row + t)[:, None] * (D // 2) + tl.arange(0, D // 2)[None, :]
    values = tl.load(source + (of_heads if BACK else of_channels), mask=valid, other=0.0).to(ACC)
    if not BACK and (SILU or UNIT):
        values, _ = bent(values, SILU, UNIT)
    if ROTATE:
        values = rotated(values, cos, sin, at, valid, TILE, D, ACC, BACK)
    if BACK and (SILU or UNIT):
        values = bent_backward(values, tl.load(x + of_channels, mask=valid, other=0.0).to(ACC), SILU, UNIT)
    store(target + (of_channels if BACK else of_heads), values, valid)
