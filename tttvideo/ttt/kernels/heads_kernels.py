"""The kernel of ``heads``: a program for every row, tile of tokens and head."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["tokens", "per_row"])
def heads_kernel(
    source,  # [B, T, H D], or, where BACK, [B, H, T, D]
    target,  # the other one
    cos,  # [1 or B, T, D / 2], as sin; read where ROTATE
    sin,
    tokens,  # T
    per_row,  # T where the angles are a row's own; 0: those of all
    D: tl.constexpr,
    TILE: tl.constexpr,
    ACC: tl.constexpr,
    ROTATE: tl.constexpr,
    BACK: tl.constexpr,
):
    row, head, heads = tl.program_id(0).to(tl.int64), tl.program_id(2), tl.num_programs(2)
    t, col, pair = tl.program_id(1) * TILE + tl.arange(0, TILE), tl.arange(0, D), tl.arange(0, D // 2)
    valid = (t < tokens)[:, None]
    of_channels = ((row * tokens + t)[:, None] * heads + head) * D + col[None, :]
    of_heads = ((row * heads + head) * tokens + t)[:, None] * D + col[None, :]
    values = tl.load(source + (of_heads if BACK else of_channels), mask=valid, other=0.0).to(ACC)
    if ROTATE:
        even, odd = tl.split(tl.reshape(values, (TILE, D // 2, 2)))
        at = (row * per_row + t)[:, None] * (D // 2) + pair[None, :]
        c = tl.load(cos + at, mask=valid, other=0.0).to(ACC)
        s = tl.load(sin + at, mask=valid, other=0.0).to(ACC)
        if BACK:
            s = -s
        values = tl.reshape(tl.join(even * c - odd * s, even * s + odd * c), (TILE, D))
    tl.store(target + (of_channels if BACK else of_heads), values, mask=valid)
