"""One affine map at fast weights: as they stand, ahead of them by the dual form, and moved by gradient descent.

    affine    z = x A + b
    dual      z_t = x_t A + b - sum_s e[t, s] (x_t . x_s + 1) G_s
    moved     A - r X^T G,  b - r sum_s G_s

Shapes: x [..., K, inputs], A [..., inputs, outputs], b [..., 1, outputs] or None, X and G [..., S, inputs or outputs].

The derivatives are written out. Autograd finds the same ones, but in more and slower pieces: it differentiates a
matrix's transpose into a transposed matrix, on which every later operation takes up to ten times as long, and forms
copies as large as the weights where something as small as the tokens will do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .weights import Map


class Pass:
    """Which gradients are being taken: those of the inner loss (``inner``), which end at the tokens, or the outer
    ones. Autograd leaves out what no one asked for, but cannot tell a Function so."""

    inner = False


OUTER = Pass()


def affine(map: Map, x: Tensor, within: Pass = OUTER) -> Tensor:
    """x A + b. Derivatives taken while ``within.inner`` are those to ``x`` alone."""
    map = _spread(map, x)
    if torch.compiler.is_compiling():
        return _affine(x, *map)
    return _Affine.apply(x, *map, within)


def dual(map: Map, x: Tensor, inputs: Tensor, gradients: Tensor, steps: Tensor) -> Tensor:
    """x_t A_t + b_t, ``steps`` [K, S] being e."""
    map = _spread(map, x)
    return (_dual if torch.compiler.is_compiling() else _Dual.apply)(x, *map, inputs, gradients, steps)


def moved(map: Map, inputs: Tensor, gradients: Tensor, step: Tensor) -> Map:
    """The map after one step of size r = ``step`` [1]."""
    weight, bias = (_moved if torch.compiler.is_compiling() else _Moved.apply)(*map, inputs, gradients, step)  # type: ignore[misc]
    return Map(weight, bias)


def _spread(map: Map, x: Tensor) -> Map:
    """``map`` with all of the leading axes of ``x``."""
    lead = x.shape[:-2]
    if map.weight.shape[:-2] == lead:
        return map
    bias = None if map.bias is None else map.bias.expand(*lead, 1, map.bias.shape[-1])
    return Map(map.weight.expand(*lead, *map.weight.shape[-2:]), bias)


def _affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x @ weight if bias is None else (x @ weight).add_(bias)


class _Affine(torch.autograd.Function):
    """dx = dz A^T, itself a Function: the inner gradient is differentiated again;  dA = x^T dz,  db = sum dz."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, within: Pass) -> Tensor:
        ctx.within = within
        ctx.save_for_backward(x, weight)
        return _affine(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias, _ = ctx.needs_input_grad
        outer = not ctx.within.inner
        return (
            _Transposed.apply(grad, weight) if to_x else None,
            x.mT @ grad if to_weight and outer else None,
            grad.sum(-2, keepdim=True) if to_bias and outer else None,
            None,
        )


class _Transposed(torch.autograd.Function):
    """y = z A^T:  dz = dy A,  dA = dy^T z."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(z, weight)
        return z @ weight.mT

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, weight = ctx.saved_tensors
        to_z, to_weight = ctx.needs_input_grad
        return grad @ weight if to_z else None, grad.mT @ z if to_weight else None


def _dual(x: Tensor, weight: Tensor, bias: Tensor | None, inputs: Tensor, gradients: Tensor, steps: Tensor) -> Tensor:
    products = x @ inputs.mT
    weighted = steps * products if bias is None else torch.addcmul(steps, steps, products)
    return _affine(x, weight, bias).sub_(weighted @ gradients)


class _Dual(torch.autograd.Function):
    """With P = x X^T + 1 (without bias: x X^T) and E = e P:  z = x A + b - E G,

    dE = -dz G^T,  dP = e dE,  de = P dE;   dx = dz A^T + dP X,  dX = dP^T x,  dG = -E^T dz,  dA = x^T dz,  db = sum dz.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, inputs: Tensor, gradients: Tensor, steps: Tensor
    ) -> Tensor:
        ctx.has_bias = bias is not None
        ctx.save_for_backward(x, weight, inputs, gradients, steps)
        return _dual(x, weight, bias, inputs, gradients, steps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inputs, gradients, steps = ctx.saved_tensors
        products = x @ inputs.mT
        if ctx.has_bias:
            products.add_(1.0)
        to_products = (grad @ gradients.mT).neg_()
        to_steps = (to_products * products).sum_to_size(steps.shape) if ctx.needs_input_grad[5] else None
        to_products.mul_(steps)
        return (
            (grad @ weight.mT).add_(to_products @ inputs),
            x.mT @ grad if ctx.needs_input_grad[1] else None,
            grad.sum(-2, keepdim=True) if ctx.has_bias else None,
            to_products.mT @ x,
            (products.mul_(steps).mT @ grad).neg_(),
            to_steps,
        )


def _moved(
    weight: Tensor, bias: Tensor | None, inputs: Tensor, gradients: Tensor, step: Tensor
) -> tuple[Tensor, Tensor | None]:
    shifted = None if bias is None else torch.addcmul(bias, step, gradients.sum(-2, keepdim=True), value=-1)
    if inputs.shape[-1] < gradients.shape[-1]:
        inputs = -step * inputs
    else:
        gradients = -step * gradients
    return (inputs.mT @ gradients).add_(weight), shifted


class _Moved(torch.autograd.Function):
    """dG = -r (X dA + db),  dX = -r G dA^T,  dr = -sum((X dA + db) G);  A and b pass theirs on."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, bias: Tensor | None, inputs: Tensor, gradients: Tensor, step: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(inputs, gradients, step)
        return _moved(weight, bias, inputs, gradients, step)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_weight: Tensor, to_bias: Tensor | None) -> tuple[Tensor | None, ...]:
        inputs, gradients, step = ctx.saved_tensors
        to_gradients = _affine(inputs, to_weight, to_bias)
        to_step = (to_gradients * gradients).sum_to_size(step.shape).neg_() if ctx.needs_input_grad[4] else None
        to_inputs = (gradients @ to_weight.mT).mul_(-step)
        return to_weight, to_bias, to_inputs, to_gradients.mul_(-step), to_step
