"""What frame kernels of convolutional inner models share: neighbours of tokens, and the 3 x 3 kernel tap by tap.

The state of ``Conv`` is A1 [9, D, F], b1 [F], A2 [F, D], b2 [D], that of ``ConvDepthwise`` (F = D) A1 [F, 9] and the
same rest. Tap (i, j) of the kernel is number 3 i + j and sees the token at row + i - 1, column + j - 1.
"""

import triton
import triton.language as tl

from .blocks import column_sum, load_rows
from .pointwise import mm


@triton.jit
def load_neighbours(x, t, valid, tap, frame, columns, D: tl.constexpr, ACC: tl.constexpr):
    """What tap ``tap`` sees from tokens ``t`` of the frame x [N, D], zero beyond its border and where not ``valid``.

    Tap 8 - ``tap`` sees the tokens that see ``t`` through tap ``tap``.
    """
    down, right = tap // 3 - 1, tap % 3 - 1
    row, column = t // columns + down, t % columns + right
    inside = (row >= 0) & (row < frame // columns) & (column >= 0) & (column < columns)
    return load_rows(x, t + down * columns + right, valid & inside, D, ACC)


@triton.jit
def load_tap(state, tap, D: tl.constexpr, F: tl.constexpr, DEPTHWISE: tl.constexpr):
    """A1 of one tap: [D, F], or [1, F]."""
    if DEPTHWISE:
        a = tl.load(state + tl.arange(0, F) * 9 + tap)[None, :]
    else:
        a = tl.load(state + (tap * D + tl.arange(0, D))[:, None] * F + tl.arange(0, F)[None, :])
    return a


@triton.jit
def store_tap(state, tap, a, D: tl.constexpr, F: tl.constexpr, DEPTHWISE: tl.constexpr):
    if DEPTHWISE:
        tl.store(state + tl.arange(0, F) * 9 + tap, tl.reshape(a, (F,)))
    else:
        tl.store(state + (tap * D + tl.arange(0, D))[:, None] * F + tl.arange(0, F)[None, :], a)


@triton.jit
def through_tap(x, a, DEPTHWISE: tl.constexpr, MODE: tl.constexpr):
    """[rows, D] -> [rows, F]."""
    if DEPTHWISE:
        y = x * a
    else:
        y = mm(x, a, MODE)
    return y


@triton.jit
def back_through_tap(g, a, DEPTHWISE: tl.constexpr, MODE: tl.constexpr):
    """[rows, F] -> [rows, D]."""
    if DEPTHWISE:
        y = g * a
    else:
        y = mm(g, tl.trans(a), MODE)
    return y


@triton.jit
def tap_gradient(x, g, DEPTHWISE: tl.constexpr, MODE: tl.constexpr):
    """Sum over rows of x [rows, D] times g [rows, F], of the shape of a tap."""
    if DEPTHWISE:
        a = column_sum(x * g)
    else:
        a = mm(tl.trans(x), g, MODE)
    return a


@triton.jit
def convolved(
    x,
    t,
    valid,
    state,
    taps,
    frame,
    columns,
    D: tl.constexpr,
    F: tl.constexpr,
    DEPTHWISE: tl.constexpr,
    ACC: tl.constexpr,
    MODE: tl.constexpr,
):
    """Tokens ``t`` of conv3x3(x) without its bias, [rows, F]."""
    z = tl.zeros((t.shape[0], F), ACC)
    for tap in range(taps):
        near = load_neighbours(x, t, valid, tap, frame, columns, D, ACC)
        z += through_tap(near, load_tap(state, tap, D, F, DEPTHWISE), DEPTHWISE, MODE)
    return z


@triton.jit
def load_second(state, D: tl.constexpr, F: tl.constexpr, DEPTHWISE: tl.constexpr):
    """b1 [1, F], A2 [F, D], b2 [1, D]."""
    state += 9 * F if DEPTHWISE else 9 * D * F
    unit, col = tl.arange(0, F), tl.arange(0, D)
    b1 = tl.load(state + unit)[None, :]
    a2 = tl.load(state + F + unit[:, None] * D + col[None, :])
    b2 = tl.load(state + F + F * D + col)[None, :]
    return b1, a2, b2


@triton.jit
def store_second(state, b1, a2, b2, D: tl.constexpr, F: tl.constexpr, DEPTHWISE: tl.constexpr):
    state += 9 * F if DEPTHWISE else 9 * D * F
    unit, col = tl.arange(0, F), tl.arange(0, D)
    tl.store(state + unit, tl.reshape(b1, (F,)))
    tl.store(state + F + unit[:, None] * D + col[None, :], a2)
    tl.store(state + F + F * D + col, tl.reshape(b2, (D,)))
