"""GELU in its tanh form, with a second derivative that costs little.

A layer that learns by gradient descent inside is trained through the derivative of its activations, so that their
second derivative is on the path of every step. PyTorch composes that of GELU of some thirty elementwise operations,
a hyperbolic cosine among them; on a CPU they took more time than all of an MLP's matrix products. With

    gelu(x) = x s        s = sigmoid(u),  u = c x + a c x^3        (the tanh form: s = (1 + tanh(u / 2)) / 2)

and x u' = x (c + 3 a c x^2),  2 u' + x u'' = 4 (c + 3 a c x^2) - 2 c:

    gelu'(x)  = s + s (1 - s) x u'
    gelu''(x) = s (1 - s) (2 u' + x u'' + (1 - 2 s) x u'^2).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

C = 2.0 * math.sqrt(2.0 / math.pi)
A = 0.044715


def gelu(x: Tensor) -> Tensor:
    """``torch.nn.functional.gelu(x, approximate="tanh")``, of any shape."""
    if torch.compiler.is_compiling():
        return F.gelu(x, approximate="tanh")  # a compiler fuses what PyTorch composes
    return _Gelu.apply(x)


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.gelu(x, approximate="tanh")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _Derivative.apply(grad.contiguous(), *ctx.saved_tensors)  # transposed, it would take ten times as long


class _Derivative(torch.autograd.Function):
    """grad * gelu'(x)."""

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
