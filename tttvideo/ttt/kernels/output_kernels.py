"""The kernels of ``output``: a program reads whole tokens, all channels of some of them at a time."""

import triton
import triton.language as tl

from .pointwise import NORM_EPS, across, gelu, gelu_slope, mean, store

EXACT = tl.constexpr("ieee")  # memory bounds these kernels, not an exponential


@triton.jit
def places(tile, rows, tokens, C: tl.constexpr, D: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr):
    """Where the tokens of a tile stand [TILE, WIDTH]: in heads [B, H, T, D], in tokens [B, T, C]; and which do."""
    n, channel = (tile * TILE + tl.arange(0, TILE)).to(tl.int64), tl.arange(0, WIDTH).to(tl.int64)
    row, t = n // tokens, n % tokens
    of_heads = (row * tokens * C + t * D)[:, None] + (channel // D * tokens * D + channel % D)[None, :]
    return of_heads, n[:, None] * C + channel[None, :], (n < rows)[:, None] & (channel < C)[None, :]


@triton.jit
def load_normal(heads, at, inside, C: tl.constexpr, ACC: tl.constexpr):
    """h [TILE, WIDTH], zero outside, and 1 / deviation [TILE, 1]."""
    x = tl.load(heads + at, mask=inside, other=0.0).to(ACC)
    centred = tl.where(inside, x - mean(x, C), 0.0)
    r = 1.0 / tl.sqrt(mean(centred * centred, C) + NORM_EPS)
    return centred * r, r


@triton.jit
def load_channels(x, C: tl.constexpr, WIDTH: tl.constexpr, ACC: tl.constexpr):
    """x [C] as [1, WIDTH]."""
    channel = tl.arange(0, WIDTH)
    return tl.load(x + channel, mask=channel < C, other=0.0).to(ACC)[None, :]


@triton.jit(do_not_specialize=["rows", "tokens"])
def forward_kernel(
    heads,  # [B, H, T, D]
    weight,  # [C], as bias; C = H D
    bias,
    gate,  # [B, T, C], read where GATE
    y,  # [B, T, C]
    rows,  # B T
    tokens,  # T
    C: tl.constexpr,
    D: tl.constexpr,
    TILE: tl.constexpr,
    WIDTH: tl.constexpr,
    ACC: tl.constexpr,
    GATE: tl.constexpr,
):
    at, to, inside = places(tl.program_id(0), rows, tokens, C, D, TILE, WIDTH)
    h, _ = load_normal(heads, at, inside, C, ACC)
    out = h * load_channels(weight, C, WIDTH, ACC) + load_channels(bias, C, WIDTH, ACC)
    if GATE:
        out *= gelu(tl.load(gate + to, mask=inside, other=0.0).to(ACC), EXACT)
    store(y + to, out, inside)


@triton.jit(do_not_specialize=["rows", "tokens"])
def backward_kernel(
    dy,  # [B, T, C]
    heads,
    weight,
    bias,
    gate,
    dheads,  # as heads
    dgate,  # as gate
    dweight,  # [programs, C], as dbias: sums of each program's tokens
    dbias,
    rows,
    tokens,
    C: tl.constexpr,
    D: tl.constexpr,
    TILE: tl.constexpr,
    WIDTH: tl.constexpr,
    ACC: tl.constexpr,
    GATE: tl.constexpr,
):
    program, programs = tl.program_id(0), tl.num_programs(0)
    of_weight, of_bias = tl.zeros((TILE, WIDTH), ACC), tl.zeros((TILE, WIDTH), ACC)
    scale, shift = load_channels(weight, C, WIDTH, ACC), load_channels(bias, C, WIDTH, ACC)
    for tile in range(program, (rows + TILE - 1) // TILE, programs):
        at, to, inside = places(tile, rows, tokens, C, D, TILE, WIDTH)
        h, r = load_normal(heads, at, inside, C, ACC)
        dn = tl.load(dy + to, mask=inside, other=0.0).to(ACC)
        if GATE:
            g = tl.load(gate + to, mask=inside, other=0.0).to(ACC)
            store(dgate + to, dn * (h * scale + shift) * gelu_slope(g, EXACT), inside)
            dn *= gelu(g, EXACT)
        of_weight += dn * h
        of_bias += dn
        store(dheads + at, across(dn * scale, h, r, C), inside)
    channel = tl.arange(0, WIDTH)
    tl.store(dweight + program * C + channel, tl.sum(of_weight, 0), mask=channel < C)
    tl.store(dbias + program * C + channel, tl.sum(of_bias, 0), mask=channel < C)
