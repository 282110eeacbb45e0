"""Heads to the tokens that a layer's last projection reads: LayerNorm over all channels, and the gate.

    y = (h(x) weight + bias) gelu(gate)        x [B, H, T, d] read as [B, T, H d]; without a gate: the first factor

One pass each way: heads and gate are read once and tokens written once, in whatever dtype they are; everything between
is computed in float32. The gradients at weight and bias are sums over tokens: each program sums its own, PyTorch the
programs'.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .launch import contiguous, operator, output_constants

PROGRAMS = 264
"""Of a backward pass at most: two for each multiprocessor of an H100 or H200. Each writes sums of its own."""


@operator("tttvideo::norm_and_gate")
def norm_and_gate(heads: Tensor, weight: Tensor, bias: Tensor, gate: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Tokens for the last projection.

    Args:
        heads: [B, H, T, d], d a power of two.
        weight: of the LayerNorm, [C], C = H d; bias likewise. Its epsilon is ``derivatives.EPS``.
        gate: [B, T, C], before its GELU (the tanh form); None: no gate.
        dtype: of the result.

    Returns:
        [B, T, C].
    """
    from .output_kernels import forward_kernel  # here, not above: tttvideo must import where Triton is not

    heads, weight, bias = contiguous(heads, weight, bias)
    batch, count, tokens, dim = heads.shape
    y = heads.new_empty(batch, tokens, count * dim, dtype=dtype)
    constants = output_constants(count, dim, heads.dtype, gate is not None)
    if y.numel():
        grid = (-(-batch * tokens // constants["TILE"]),)
        gate = y if gate is None else gate.contiguous()  # y: in the place of what is not read
        forward_kernel[grid](heads, weight, bias, gate, y, batch * tokens, tokens, **constants)
    return y


@operator("tttvideo::norm_and_gate_backward")
def norm_and_gate_backward(
    dy: Tensor, heads: Tensor, weight: Tensor, bias: Tensor, gate: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of ``norm_and_gate`` at heads, weight, bias and gate (of no gate: empty)."""
    from .output_kernels import backward_kernel

    dy, heads, weight, bias = contiguous(dy, heads, weight, bias)
    batch, count, tokens, dim = heads.shape
    dheads = torch.empty_like(heads)
    gated = gate is not None
    gate = heads if gate is None else gate.contiguous()  # heads: in the place of what is not read
    dgate = torch.empty_like(gate) if gated else heads.new_empty(0)
    constants = output_constants(count, dim, heads.dtype, gated)
    programs = min(PROGRAMS, -(-batch * tokens // constants["TILE"]))
    summed = torch.float64 if heads.dtype == torch.float64 else torch.float32
    dweight, dbias = heads.new_empty(2, programs, count * dim, dtype=summed)
    if programs:
        backward_kernel[(programs,)](
            dy, heads, weight, bias, gate, dheads, dgate, dweight, dbias, batch * tokens, tokens, **constants
        )
    return dheads, dweight.sum(0).to(weight.dtype), dbias.sum(0).to(bias.dtype), dgate


@norm_and_gate.register_fake
def _(heads, weight, bias, gate, dtype):
    batch, count, tokens, dim = heads.shape
    return heads.new_empty(batch, tokens, count * dim, dtype=dtype)


@norm_and_gate_backward.register_fake
def _(dy, heads, weight, bias, gate):
    dgate = heads.new_empty(0) if gate is None else gate.new_empty(gate.shape)
    return heads.new_empty(heads.shape), weight.new_empty(weight.shape), bias.new_empty(bias.shape), dgate


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, gate, _ = inputs
    ctx.save_for_backward(*tensors, *(() if gate is None else (gate,)))


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    heads, weight, bias, *gate = ctx.saved_tensors
    *gradients, dgate = norm_and_gate_backward(dy, heads, weight, bias, gate[0] if gate else None)
    return *gradients, dgate if gate else None, None


norm_and_gate.register_autograd(_backward, setup_context=_keep)
