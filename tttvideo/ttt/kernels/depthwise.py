"""Depthwise 3 x 3 convolutions whose kernels differ from frame to frame, and the derivative of one to its kernel:

    convolve:   y_t = sum over taps of x_(what tap sees from t) w_tap      x [M, N, d], w [M, 9, d] -> y [M, N, d]
    correlate:  w_tap = sum over t of x_(what tap sees from t) y_t         x, y [M, N, d]           -> w [M, 9, d]

M frames of N tokens side by side. Each is the other's derivative:

    convolve    dx = convolve(dy, w of the mirrored taps)      dw = correlate(x, dy)
    correlate   dx = convolve(y, dw of the mirrored taps)      dy = convolve(x, dw)

so that they have derivatives of every order and no kernels but these two.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .launch import TAPS, contiguous, depthwise_constants, operator


@operator("tttvideo::convolve")
def convolve(x: Tensor, taps: Tensor, columns: int, dtype: torch.dtype) -> Tensor:
    """Every frame with its own kernel, zero padding at the border.

    Args:
        x: tokens of M frames, [M, N, d].
        taps: [M, 9, d], rows before columns.
        columns: of a frame's grid of tokens; N is a multiple.
        dtype: of the result. Sums are taken in float32 at least.

    Returns:
        [M, N, d].
    """
    from . import depthwise_kernels

    x, taps = contiguous(x, taps)
    count, frame, dim = x.shape
    y, constants = torch.empty_like(x, dtype=dtype), depthwise_constants(dim, x.dtype)
    grid = (count, -(-frame // constants["TILE"]))
    if x.numel():
        depthwise_kernels.convolve_kernel[grid](x, taps, y, frame, columns, TAPS, **constants)
    return y


@operator("tttvideo::correlate")
def correlate(x: Tensor, y: Tensor, columns: int, dtype: torch.dtype) -> Tensor:
    """The gradient at a frame's kernel, [M, 9, d] in ``dtype``, where ``y`` [M, N, d] is that at what came of ``x``
    [M, N, d]."""
    from . import depthwise_kernels

    x, y = contiguous(x, y)
    count, frame, dim = x.shape
    taps = x.new_empty(count, TAPS, dim, dtype=dtype)
    if count:
        constants = depthwise_constants(dim, x.dtype)
        depthwise_kernels.correlate_kernel[(count, TAPS)](x, y, taps, frame, columns, **constants)
    return taps


@convolve.register_fake
def _(x, taps, columns, dtype):
    return x.new_empty(x.shape, dtype=dtype)


@correlate.register_fake
def _(x, y, columns, dtype):
    return x.new_empty(x.shape[0], TAPS, x.shape[2], dtype=dtype)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    first, second, ctx.columns, _ = inputs
    ctx.save_for_backward(first, second)


def _convolve_backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, taps = ctx.saved_tensors
    to_x, to_taps, *_ = ctx.needs_input_grad
    return (
        convolve(dy, taps.flip(1), ctx.columns, x.dtype) if to_x else None,
        correlate(x, dy, ctx.columns, taps.dtype) if to_taps else None,
        None,
        None,
    )


def _correlate_backward(ctx: Any, dtaps: Tensor) -> tuple[Tensor | None, ...]:
    x, y = ctx.saved_tensors
    to_x, to_y, *_ = ctx.needs_input_grad
    return (
        convolve(y, dtaps.flip(1), ctx.columns, x.dtype) if to_x else None,
        convolve(x, dtaps, ctx.columns, y.dtype) if to_y else None,
        None,
        None,
    )


convolve.register_autograd(_convolve_backward, setup_context=_keep)
correlate.register_autograd(_correlate_backward, setup_context=_keep)
