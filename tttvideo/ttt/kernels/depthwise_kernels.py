"""The two kernels of ``depthwise``: one program for every frame and tile of tokens, or for every frame and tap."""

import triton
import triton.language as tl

from .blocks import load_rows, store_rows
from .taps import load_neighbours


@triton.jit(do_not_specialize=["frame", "columns", "taps"])
def convolve_kernel(
    x,  # [M, N, D], as y
    weights,  # [M, 9, D]
    y,
    frame,  # N
    columns,
    taps,  # 9, but not known to the compiler
    D: tl.constexpr,
    TILE: tl.constexpr,
    ACC: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    t, col = tl.program_id(1) * TILE + tl.arange(0, TILE), tl.arange(0, D)
    x += program * frame * D
    total = tl.zeros((TILE, D), ACC)
    for tap in range(taps):
        weight = tl.load(weights + (program * 9 + tap) * D + col).to(ACC)[None, :]
        total += load_neighbours(x, t, t < frame, tap, frame, columns, D, ACC) * weight
    store_rows(y + program * frame * D, t, t < frame, total, D)


@triton.jit(do_not_specialize=["frame", "columns"])
def correlate_kernel(
    x,  # [M, N, D], as y
    y,
    weights,  # [M, 9, D]
    frame,
    columns,
    D: tl.constexpr,
    TILE: tl.constexpr,
    ACC: tl.constexpr,
):
    program, tap = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row, col = tl.arange(0, TILE), tl.arange(0, D)
    x += program * frame * D
    y += program * frame * D
    total = tl.zeros((D,), ACC)
    for tile in range(0, frame, TILE):
        t = tile + row
        near = load_neighbours(x, t, t < frame, tap, frame, columns, D, ACC)
        total += tl.sum(near * load_rows(y, t, t < frame, D, ACC), 0)
    tl.store(weights + (program * 9 + tap) * D + col, total)
