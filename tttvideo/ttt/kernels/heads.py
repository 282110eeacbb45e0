"""Channels to heads, rotated on the way, and back: what stands between a layer's projections and the other kernels.

    split    x [B, T, H d] -> y [B, H, T, d],  y_t = R_t x_t      merge    y -> x,  x_t = R_t^T y_t

R_t rotates pairs of channels (``primitives.rotate``). Each is the other's derivative. Tokens are read and written once,
in whatever dtype they are and are to be; in PyTorch's own operations a rotation of two tensors and the change of their
layout and dtype read and write them some ten times.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..primitives import rotation
from .launch import contiguous, heads_constants, operator


def split(positions: Tensor | None, *tokens: Tensor, heads: int, theta: float) -> list[Tensor]:
    """Heads [B, H, T, d] of tokens [B, T, C], in float32 at least, rotated by their positions [T] or [B, T] (None: not
    rotated)."""
    like = tokens[0]
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    cos = sin = None
    if positions is not None:
        cos, sin = rotation(positions, theta, like.shape[-1] // heads, like.device, dtype)
        cos, sin = (cos, sin) if cos.dim() == 3 else (cos[None], sin[None])
    return [split_heads(x, cos, sin, heads, dtype) for x in tokens]


def merged(y: Tensor, dtype: torch.dtype) -> Tensor:
    """Tokens [B, T, C] of heads [B, H, T, d]."""
    return merge_heads(y, None, None, dtype)


@operator("tttvideo::split_heads")
def split_heads(x: Tensor, cos: Tensor | None, sin: Tensor | None, heads: int, dtype: torch.dtype) -> Tensor:
    """Heads of ``x``.

    Args:
        x: [B, T, C], C a multiple of ``heads`` and a head's channels d a power of two.
        cos: of the angles by which pairs of channels are turned, [1 or B, T, d / 2], sin likewise; None: they are not.
        dtype: of the result.

    Returns:
        [B, H, T, d].
    """
    batch, tokens, channels = x.shape
    y = x.new_empty(batch, heads, tokens, channels // heads, dtype=dtype)
    _launch(x, y, cos, sin, tuple(y.shape), back=False)
    return y


@operator("tttvideo::merge_heads")
def merge_heads(y: Tensor, cos: Tensor | None, sin: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Tokens [B, T, H d] of heads ``y`` [B, H, T, d]: the inverse."""
    batch, heads, tokens, dim = y.shape
    x = y.new_empty(batch, tokens, heads * dim, dtype=dtype)
    _launch(y, x, cos, sin, tuple(y.shape), back=True)
    return x


@split_heads.register_fake
def _(x, cos, sin, heads, dtype):
    return x.new_empty(x.shape[0], heads, x.shape[1], x.shape[2] // heads, dtype=dtype)


@merge_heads.register_fake
def _(y, cos, sin, dtype):
    return y.new_empty(y.shape[0], y.shape[2], y.shape[1] * y.shape[3], dtype=dtype)


def _launch(
    source: Tensor, target: Tensor, cos: Tensor | None, sin: Tensor | None, shape: tuple[int, ...], back: bool
) -> None:
    from .heads_kernels import heads_kernel  # here, not above: tttvideo must import where Triton is not

    batch, heads, tokens, dim = shape
    if not target.numel():
        return
    (source,) = contiguous(source)
    angles = (source, source) if cos is None or sin is None else contiguous(cos, sin)
    per_row = 0 if cos is None or cos.shape[0] == 1 else tokens
    constants = heads_constants(dim, source.dtype, cos is not None, back)
    grid = (batch, -(-tokens // constants["TILE"]), heads)
    heads_kernel[grid](source, target, *angles, tokens, per_row, **constants)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, cos, sin, *_ = inputs
    ctx.dtype, ctx.heads = x.dtype, x.shape[1]
    ctx.save_for_backward(*(angle for angle in (cos, sin) if angle is not None))


def _split_backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    return merge_heads(dy, *(ctx.saved_tensors or (None, None)), ctx.dtype), None, None, None, None


def _merge_backward(ctx: Any, dx: Tensor) -> tuple[Tensor | None, ...]:
    return split_heads(dx, *(ctx.saved_tensors or (None, None)), ctx.heads, ctx.dtype), None, None, None


split_heads.register_autograd(_split_backward, setup_context=_keep)
merge_heads.register_autograd(_merge_backward, setup_context=_keep)
