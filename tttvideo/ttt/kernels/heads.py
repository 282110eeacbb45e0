"""Channels to heads, ready for the scan, and back: what stands between a layer's projections and the other kernels.

    split    x [B, T, H d] -> y [B, H, T, d],  y_t = R_t n(s(x_t))        merge    y -> x,  x_t = R_t^T y_t

R_t rotates pairs of channels (``primitives.rotate``); n divides a head by its length and s is SiLU, each where a layer
asks for it. Without n and s each is the other's derivative; with them the derivative reads x again. Tokens are read
and written once, in the dtype that they have; what is between is computed in float32. PyTorch's own operations read and
write them some ten times.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..primitives import rotation
from .launch import contiguous, heads_constants, operator


def split(
    positions: Tensor | None, *tokens: Tensor, heads: int, theta: float, silu: bool = False, unit: bool = False
) -> list[Tensor]:
    """Heads [B, H, T, d] of tokens [B, T, C], after SiLU, divided by their length and rotated by their positions [T] or
    [B, T] (None: not rotated)."""
    like = tokens[0]
    cos = sin = None
    if positions is not None:
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        cos, sin = rotation(positions, theta, like.shape[-1] // heads, like.device, dtype)
        cos, sin = (cos, sin) if cos.dim() == 3 else (cos[None], sin[None])
    return [split_heads(x, cos, sin, heads, silu, unit) for x in tokens]


@operator("tttvideo::split_heads")
def split_heads(x: Tensor, cos: Tensor | None, sin: Tensor | None, heads: int, silu: bool, unit: bool) -> Tensor:
    """Heads of ``x``.

    Args:
        x: [B, T, C], C a multiple of ``heads`` and a head's channels d a power of two.
        cos: of the angles by which pairs of channels are turned, [1 or B, T, d / 2], sin likewise; None: they are not.
        silu: before everything else; ``unit``: heads are divided by their lengths.

    Returns:
        [B, H, T, d].
    """
    batch, tokens, channels = x.shape
    y = x.new_empty(batch, heads, tokens, channels // heads)
    _launch(x, y, x, cos, sin, silu, unit)
    return y


@operator("tttvideo::merge_heads")
def merge_heads(y: Tensor, cos: Tensor | None, sin: Tensor | None) -> Tensor:
    """Tokens [B, T, H d] of heads ``y`` [B, H, T, d]: the inverse of ``split_heads`` without ``silu`` and ``unit``."""
    batch, heads, tokens, dim = y.shape
    x = y.new_empty(batch, tokens, heads * dim)
    _launch(y, x, y, cos, sin, back=True)
    return x


@operator("tttvideo::split_heads_backward")
def split_heads_backward(
    dy: Tensor, x: Tensor, cos: Tensor | None, sin: Tensor | None, silu: bool, unit: bool
) -> Tensor:
    """The gradient of ``split_heads`` at x."""
    dx = x.new_empty(x.shape)
    _launch(dy, dx, x, cos, sin, silu, unit, back=True)
    return dx


@split_heads.register_fake
def _(x, cos, sin, heads, silu, unit):
    return x.new_empty(x.shape[0], heads, x.shape[1], x.shape[2] // heads)


@merge_heads.register_fake
def _(y, cos, sin):
    return y.new_empty(y.shape[0], y.shape[2], y.shape[1] * y.shape[3])


@split_heads_backward.register_fake
def _(dy, x, cos, sin, silu, unit):
    return x.new_empty(x.shape)


def _launch(
    source: Tensor,
    target: Tensor,
    x: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    silu: bool = False,
    unit: bool = False,
    back: bool = False,
) -> None:
    from .heads_kernels import heads_kernel  # here, not above: tttvideo must import where Triton is not

    batch, heads, tokens, dim = source.shape if back else target.shape
    if not target.numel():
        return
    source, x = contiguous(source, x)
    angles = (source, source) if cos is None or sin is None else contiguous(cos, sin)
    per_row = 0 if cos is None or cos.shape[0] == 1 else tokens
    constants = heads_constants(dim, source.dtype, cos is not None, back, silu, unit)
    grid = (batch, -(-tokens // constants["TILE"]), heads)
    heads_kernel[grid](*(source, target, x, *angles, tokens, per_row), **constants)


def _keep_split(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, cos, sin, _, ctx.silu, ctx.unit = inputs
    ctx.bent = ctx.silu or ctx.unit
    ctx.save_for_backward(*(angle for angle in (cos, sin) if angle is not None), *((x,) if ctx.bent else ()))


def _split_backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    *angles, x = (*ctx.saved_tensors, *(() if ctx.bent else (None,)))
    angles = angles or (None, None)
    dx = split_heads_backward(dy, x, *angles, ctx.silu, ctx.unit) if ctx.bent else merge_heads(dy, *angles)
    return dx, None, None, None, None, None


def _keep_merge(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    y, cos, sin = inputs
    ctx.heads = y.shape[1]
    ctx.save_for_backward(*(angle for angle in (cos, sin) if angle is not None))


def _merge_backward(ctx: Any, dx: Tensor) -> tuple[Tensor | None, ...]:
    return split_heads(dx, *(ctx.saved_tensors or (None, None)), ctx.heads, False, False), None, None


split_heads.register_autograd(_split_backward, setup_context=_keep_split)
merge_heads.register_autograd(_merge_backward, setup_context=_keep_merge)
