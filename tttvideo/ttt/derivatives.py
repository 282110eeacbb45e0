"""The operations of the inner loop with derivatives written out. For speed only: each is one plain expression, which
serves where nobody differentiates.

    affine               x A + b                                  an affine map of the inner model
    transposed           z A^T                                    its derivative, which inner gradients pass through
    dual                 x_t A + b - sum_s e[t, s] (x_t . x_s + 1) G_s    the map ahead of its weights (the dual form)
    moved                A - r X^T G,  b - r sum_s G_s            the map after a step of gradient descent
    gelu, gelu_backward                                           and its derivative times a gradient
    residual_gradient                                             of 1/2 | LN(z) - target |^2 at z

Shapes: x [..., K, inputs], A [..., inputs, outputs], b [..., 1, outputs] or None, X and G [..., S, inputs or outputs].

Autograd finds the same derivatives, but in more and slower pieces: it differentiates a matrix's transpose into a
transposed matrix, on which every later operation takes up to ten times as long, forms copies as large as the weights
where something as small as the tokens will do, and composes the second derivative of GELU of some thirty operations.
Without all this training takes 1.1 to 1.5 times as long, and up to 1.5 times the memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .state import Map, Weights

EPS = 1e-6
"""Of the inner LayerNorm."""


def transformed() -> bool:
    """True under torch.compile and the transforms of torch.func, which take no autograd Function like these."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()  # type: ignore[attr-defined]


class Pass:
    """Which gradients are being taken: those of the inner loss (``inner``), which end at the tokens, or the outer
    ones. Autograd leaves out what no one asked for, but cannot tell a Function so."""

    inner = False


def affine(map: Map, x: Tensor, within: Pass | None = None) -> Tensor:
    """x A + b. Derivatives taken while ``within.inner`` are those to ``x`` alone."""
    if not torch.is_grad_enabled() or transformed():
        return x @ map.weight if map.bias is None else torch.add(x @ map.weight, map.bias)
    if map.weight.shape[:-2] != x.shape[:-2]:
        map = _spread(map, x)
    return _Affine.apply(x, *map, within)


def applied(weights: Weights) -> Callable[[str, Tensor], Tensor]:
    """The maps of ``weights``, as an inner model applies them: by name."""
    return lambda name, x: affine(weights[name], x)


@dataclass
class Recorder:
    """The same, and what each map has read and put out, for the way back. ``model``: the inner model that applies them.

    Raises:
        ValueError: if the model applies a map a second time.
    """

    model: object
    weights: Weights
    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, name: str, x: Tensor) -> Tensor:
        if name in self.inputs:
            raise applied_twice(self.model, name)
        self.inputs[name], self.outputs[name] = x, affine(self.weights[name], x)
        return self.outputs[name]

    def transposed(self, name: str, z: Tensor) -> Tensor:
        return transposed(self.weights[name], z)


def applied_twice(model: object, name: str) -> ValueError:
    return ValueError(f"{type(model).__name__} applies its map {name!r} twice; give each use a map.")


def transposed(map: Map, z: Tensor) -> Tensor:
    """z A^T."""
    if not torch.is_grad_enabled() or transformed():
        return z @ map.weight.mT
    if map.weight.shape[:-2] != z.shape[:-2]:
        map = _spread(map, z)
    return _Transposed.apply(z, map.weight)


def dual(map: Map, x: Tensor, inputs: Tensor, gradients: Tensor, steps: Tensor) -> Tensor:
    """x_t A_t + b_t, ``steps`` [K, S] being e."""
    if torch.is_grad_enabled() and not transformed():
        if map.weight.shape[:-2] != x.shape[:-2]:
            map = _spread(map, x)
        return _Dual.apply(x, *map, inputs, gradients, steps)
    products = x @ inputs.mT
    weighted = steps * products if map.bias is None else torch.addcmul(steps, steps, products)
    z = x @ map.weight if map.bias is None else torch.add(x @ map.weight, map.bias)
    return z.sub_(weighted @ gradients)


def moved(map: Map, inputs: Tensor, gradients: Tensor, step: Tensor) -> Map:
    """The map after one step of size r = ``step`` [1]."""
    if torch.is_grad_enabled() and not transformed():
        return Map(*_Moved.apply(*map, inputs, gradients, step))
    bias = None if map.bias is None else torch.addcmul(map.bias, step, gradients.sum(-2, keepdim=True), value=-1)
    if inputs.shape[-1] < gradients.shape[-1]:
        inputs = -step * inputs
    else:
        gradients = -step * gradients
    return Map((inputs.mT @ gradients).add_(map.weight), bias)


def descended(weights: Weights, traces: Mapping[str, tuple[Tensor, Tensor]], step: Tensor) -> Weights:
    """All maps after one step of size r, from the X and G of each."""
    after = {}
    for name, map in weights.items():
        after[name] = moved(map, *traces[name], step)
    return after


def _spread(map: Map, x: Tensor) -> Map:
    """``map`` with all of the leading axes of ``x``."""
    lead = x.shape[:-2]
    bias = None if map.bias is None else map.bias.expand(*lead, 1, map.bias.shape[-1])
    return Map(map.weight.expand(*lead, *map.weight.shape[-2:]), bias)


class _Affine(torch.autograd.Function):
    """dx = dz A^T, itself a Function: the inner gradient is differentiated again;  dA = x^T dz,  db = sum dz."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, within: Pass | None) -> Tensor:
        ctx.within = within
        ctx.save_for_backward(x, weight)
        return x @ weight if bias is None else (x @ weight).add_(bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias, _ = ctx.needs_input_grad
        outer = ctx.within is None or not ctx.within.inner
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
        return dual(Map(weight, bias), x, inputs, gradients, steps)  # the plain expression: gradients are off here

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


class _Moved(torch.autograd.Function):
    """dG = -r (X dA + db),  dX = -r G dA^T,  dr = -sum((X dA + db) G);  A and b pass theirs on."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, bias: Tensor | None, inputs: Tensor, gradients: Tensor, step: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(inputs, gradients, step)
        moved_map = moved(Map(weight, bias), inputs, gradients, step)
        return moved_map.weight, moved_map.bias

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_weight: Tensor, to_bias: Tensor | None) -> tuple[Tensor | None, ...]:
        inputs, gradients, step = ctx.saved_tensors
        to_gradients = inputs @ to_weight
        if to_bias is not None:
            to_gradients.add_(to_bias)
        to_step = (to_gradients * gradients).sum_to_size(step.shape).neg_() if ctx.needs_input_grad[4] else None
        to_inputs = (gradients @ to_weight.mT).mul_(-step)
        return to_weight, to_bias, to_inputs, to_gradients.mul_(-step), to_step


# GELU in its tanh form: gelu(x) = x s with s = sigmoid(u), u = c x + a c x^3 (s = (1 + tanh(u / 2)) / 2). With
# x u' = x (c + 3 a c x^2) and 2 u' + x u'' = 4 (c + 3 a c x^2) - 2 c:
#
#     gelu'(x)  = s + s (1 - s) x u'
#     gelu''(x) = s (1 - s) (2 u' + x u'' + (1 - 2 s) x u'^2).

C = 2.0 * math.sqrt(2.0 / math.pi)
A = 0.044715


def gelu(x: Tensor) -> Tensor:
    """``torch.nn.functional.gelu(x, approximate="tanh")``, of any shape."""
    if torch.is_grad_enabled() and not transformed():
        return _Gelu.apply(x)
    return F.gelu(x, approximate="tanh")


def gelu_backward(grad: Tensor, x: Tensor) -> Tensor:
    """grad * gelu'(x)."""
    if torch.is_grad_enabled() and not transformed():
        return _GeluBackward.apply(grad.contiguous(), x)  # transposed, it would take ten times as long
    return torch.ops.aten.gelu_backward(grad, x, approximate="tanh")


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.gelu(x, approximate="tanh")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _GeluBackward.apply(grad.contiguous(), *ctx.saved_tensors)


class _GeluBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(grad, x)
        return torch.ops.aten.gelu_backward(grad, x, approximate="tanh")

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor]:
        grad, x = ctx.saved_tensors
        slope = (x * x).mul_(3 * A * C).add_(C)  # u'
        s = (slope + 2 * C).mul_(x).div_(3).sigmoid_()
        bell = torch.addcmul(s, s, s, value=-1)  # s (1 - s)
        bend = x * slope  # x u'
        first = torch.addcmul(s, bell, bend).mul_(upstream)
        bend = bend.mul_(slope).mul_(s.mul_(-2).add_(1))
        second = bend.add_(slope, alpha=4).sub_(2 * C).mul_(bell).mul_(grad).mul_(upstream)
        return first, second


def residual_gradient(z: Tensor, target: Tensor, scale: Tensor, shift: Tensor, eps: float = EPS) -> Tensor:
    """d/dz of 1/2 | scale * h + shift - target |^2, h being z standardised: G = across(scale * e), e the difference."""
    if torch.is_grad_enabled() and not transformed():
        return _ResidualGradient.apply(z, target, scale, shift, eps)
    h, r = _standardised(z, eps)
    return _across(scale * (torch.addcmul(shift, scale, h) - target), h, r)


def _standardised(z: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """h = (z - mean) / deviation, and r = 1 / deviation [..., 1]. (On a CPU, var_mean takes ten times as long.)"""
    centred = z - z.mean(-1, keepdim=True)
    r = torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    return centred * r, r


def _across(y: Tensor, h: Tensor, r: Tensor) -> Tensor:
    """(y - mean y - h mean(y h)) r: dz where y = dh. A symmetric map."""
    along = (y * h).mean(-1, keepdim=True)
    return torch.addcmul(y - y.mean(-1, keepdim=True), h, along, value=-1).mul_(r)


class _ResidualGradient(torch.autograd.Function):
    """With p the gradient at G, u = scale * e:  du = across(p),  de = scale * du,
    dh = scale * de - r (p mean(u h) + u mean(p h)), and r, a factor of G, adds  -h r mean(p G)  to  dz = across(dh).
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, target: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
        h, r = _standardised(z, eps)
        error = torch.addcmul(shift, scale, h).sub_(target)
        gradient = _across(scale * error, h, r)
        ctx.save_for_backward(h, r, error, gradient, scale)
        return gradient

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, p: Tensor) -> tuple[Tensor | None, ...]:
        h, r, error, gradient, scale = ctx.saved_tensors
        du, u = _across(p, h, r), scale * error
        de = scale * du
        to_scale = (du * error).addcmul_(de, h).sum_to_size(scale.shape)
        to_shift = de.sum_to_size(scale.shape)
        bent = (p * (u * h).mean(-1, keepdim=True)).addcmul_(u, (p * h).mean(-1, keepdim=True))
        dh = (scale * de).addcmul_(bent, r, value=-1)
        dz = _across(dh, h, r).addcmul_(h, r * (p * gradient).mean(-1, keepdim=True), value=-1)
        return dz, de.neg_(), to_scale, to_shift, None
