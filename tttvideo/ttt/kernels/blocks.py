"""Rows of tokens, and blocks of hidden units of an MLP's packed state (A1 [D, F], b1 [F], A2 [F, D], b2 [D])."""

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
def load_units(state, u, D: tl.constexpr, F: tl.constexpr, UNITS: tl.constexpr):
    """The same of units u ... u + UNITS - 1, a row for each unit: transposed A1 [UNITS, D], b1 [UNITS, 1], A2."""
    col, hidden = tl.arange(0, D), u + tl.arange(0, UNITS)
    a1 = tl.load(state + col[None, :] * F + hidden[:, None])
    b1 = tl.load(state + D * F + hidden)[:, None]
    a2 = tl.load(state + D * F + F + hidden[:, None] * D + col[None, :])
    return a1, b1, a2


@triton.jit
def store_units(state, u, a1, b1, a2, D: tl.constexpr, F: tl.constexpr, UNITS: tl.constexpr):
    col, hidden = tl.arange(0, D), u + tl.arange(0, UNITS)
    tl.store(state + col[None, :] * F + hidden[:, None], a1)
    tl.store(state + D * F + hidden, tl.reshape(b1, (UNITS,)))
    tl.store(state + D * F + F + hidden[:, None] * D + col[None, :], a2)


@triton.jit
def row_sum(x):
    """[rows, columns] -> [rows, 1]."""
    return tl.expand_dims(tl.sum(x, 1), 1)


@triton.jit
def column_sum(x):
    """[rows, columns] -> [1, columns]."""
    return tl.expand_dims(tl.sum(x, 0), 0)


@triton.jit
def add_to_norm(dgamma, dbeta, of_gamma, of_beta, D: tl.constexpr):
    """dgamma [D] += of_gamma, dbeta [D] += of_beta. Several threads read an element and one writes it: none may write,
    or read again in a next turn of a loop, before all have."""
    col = tl.arange(0, D)
    of_gamma += tl.load(dgamma + col)
    of_beta += tl.load(dbeta + col)
    tl.debug_barrier()
    tl.store(dgamma + col, of_gamma)
    tl.store(dbeta + col, of_beta)
    tl.debug_barrier()


@triton.jit
def load_row(x, D: tl.constexpr, ACC: tl.constexpr):
    """x [D] as [1, D]."""
    return tl.load(x + tl.arange(0, D)).to(ACC)[None, :]


@triton.jit
def load_rows(x, t, valid, D: tl.constexpr, ACC: tl.constexpr):
    """Tokens ``t`` of x [T, D], zero where not ``valid``."""
    col = tl.arange(0, D)
    return tl.load(x + t[:, None] * D + col[None, :], mask=valid[:, None], other=0.0).to(ACC)


@triton.jit
def load_columns(x, t, valid, i, D: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr):
    """Columns i ... i + BLOCK - 1 of the same."""
    col = i + tl.arange(0, BLOCK)
    return tl.load(x + t[:, None] * D + col[None, :], mask=valid[:, None], other=0.0).to(ACC)


@triton.jit
def store_rows(x, t, valid, rows, D: tl.constexpr):
    col = tl.arange(0, D)
    tl.store(x + t[:, None] * D + col[None, :], rows, mask=valid[:, None])
