"""Blocks of hidden units of an MLP's packed state: A1 [D, F], b1 [F], A2 [F, D], b2 [D]."""

import triton
import triton.language as tl


@triton.jit
def load_block(state, f, D: tl.constexpr, F: tl.constexpr, BLOCK: tl.constexpr):
    """Hidden units f ... f + BLOCK - 1: A1 [D, BLOCK], b1 [1, BLOCK], A2 [BLOCK, D]."""
    col, hidden = tl.arange(0, D), f + tl.arange(0, BLOCK)
    a1 = tl.load(state + col[:, None] * F + hidden[None, :])
    b1 = tl.load(state + D * F + hidden)[None, :]
    a2 = tl.load(state + D * F + F + hidden[:, None] * D + col[None, :])
    return a1, b1, a2


@triton.jit
def store_block(state, f, a1, b1, a2, D: tl.constexpr, F: tl.constexpr, BLOCK: tl.constexpr):
    col, hidden = tl.arange(0, D), f + tl.arange(0, BLOCK)
    tl.store(state + col[:, None] * F + hidden[None, :], a1)
    tl.store(state + D * F + hidden, tl.reshape(b1, (BLOCK,)))
    tl.store(state + D * F + F + hidden[:, None] * D + col[None, :], a2)


@triton.jit
def column_sum(x):
    """[rows, columns] -> [1, columns]."""
    return tl.expand_dims(tl.sum(x, 0), 0)
