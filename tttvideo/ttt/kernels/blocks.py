"""What all kernels read and write: rows of tokens, what they learn from, the state of a program, sums over tokens; and
blocks of hidden units of an MLP's packed state (A1 [D, F], b1 [F], A2 [F, D], b2 [D])."""

import triton
import triton.language as tl

from .pointwise import store


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
def keep_state(starts, state, c, group, program, programs, SIZE: tl.constexpr):
    """Copies the state before chunk ``c`` where it is the first of a group; ``group`` 0: none is wanted."""
    if group > 0:  # noqa: SIM102 - Triton's `and` evaluates both sides, and group may be 0
        if c % group == 0:
            start = starts + (c // group * programs + program) * SIZE
            for i in range(0, SIZE, 1024):
                inside = i + tl.arange(0, 1024)
                tl.store(start + inside, tl.load(state + inside, mask=inside < SIZE), mask=inside < SIZE)


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
def load_norm(gamma, beta, head, D: tl.constexpr, ACC: tl.constexpr):
    """Of [H, D] each, the head's as [1, D]."""
    return load_row(gamma + head * D, D, ACC), load_row(beta + head * D, D, ACC)


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
    store(x + t[:, None] * D + col[None, :], rows, valid[:, None])


@triton.jit
def load_lesson(k, v, rate, t, valid, D: tl.constexpr, ACC: tl.constexpr):
    """What tokens ``t`` teach: targets v - k [rows, D] and rates [rows, 1], zero where not ``valid``."""
    target = load_rows(v, t, valid, D, ACC) - load_rows(k, t, valid, D, ACC)
    return target, tl.load(rate + t, mask=valid, other=0.0).to(ACC)[:, None]


@triton.jit
def tokens_of_chunk(c, first, length, K: tl.constexpr):
    """Token-causal chunk ``c`` of a row whose open chunk had read ``first`` tokens and that reads ``length`` now: its
    tokens [K], which of them are read, and whether it ends."""
    t = c * K + tl.arange(0, K) - first
    return t, (t >= 0) & (t < length), (c + 1) * K <= first + length


@triton.jit
def steps_of_chunk(scale, K: tl.constexpr, ACC: tl.constexpr):
    """Sizes of the step at the places of a chunk [K] and at the last one; which place sees which [K, K]."""
    slot = tl.arange(0, K)
    return tl.load(scale + slot).to(ACC), tl.load(scale + K - 1).to(ACC), slot[:, None] >= slot[None, :]


@triton.jit
def load_sums(dgamma, dbeta, dscale, program, D: tl.constexpr, K: tl.constexpr):
    """What earlier launches summed, [D], [D] and [K]."""
    of_gamma = tl.load(dgamma + program * D + tl.arange(0, D))
    of_beta = tl.load(dbeta + program * D + tl.arange(0, D))
    return of_gamma, of_beta, tl.load(dscale + program * K + tl.arange(0, K))


@triton.jit
def store_sums(dgamma, dbeta, dscale, program, of_gamma, of_beta, of_scale, D: tl.constexpr, K: tl.constexpr):
    tl.store(dgamma + program * D + tl.arange(0, D), of_gamma)
    tl.store(dbeta + program * D + tl.arange(0, D), of_beta)
    tl.store(dscale + program * K + tl.arange(0, K), of_scale)


@triton.jit
def slot_of_frame(c, origin, program, programs, SAVE: tl.constexpr):
    """Which of the states, and of what is kept of a frame, belongs to frame ``c``: the program's only one, or, where
    SAVE, one of its own."""
    slot = program
    if SAVE:
        slot += (c - origin) * programs
    return slot
