"""Inner losses: what the hidden state is trained on, and how it is read (design: views k -> v, read with q)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

EPS = 1e-6


class Norm(NamedTuple):
    """Scale and shift of the inner LayerNorm, learned per head by the outer loop: [H, 1, d] each."""

    scale: Tensor
    shift: Tensor


@dataclass(frozen=True)
class Objective(ABC):
    """An inner loss. ``z`` is the inner model's output g(x; W), [B, H, T, d]."""

    uses_norm: ClassVar[bool] = False
    """True if the loss contains the inner LayerNorm."""

    constant_gradient: ClassVar[bool] = False
    """True if ``gradient`` does not depend on ``z``: then a model that is linear in its weights needs no
    sequential loop, its weights after every chunk are one cumulative sum."""

    @abstractmethod
    def loss(self, z: Tensor, k: Tensor, v: Tensor, norm: Norm) -> Tensor:
        """Loss of every token, [B, H, T]: the definition; ``gradient`` is its derivative."""

    @abstractmethod
    def gradient(self, z: Tensor, k: Tensor, v: Tensor, norm: Norm) -> Tensor:
        """d loss / d z, [B, H, T, d], in closed form."""

    def read(self, z: Tensor, q: Tensor, norm: Norm) -> Tensor:
        """The layer's output from z = g(q; W), [B, H, T, d]."""
        return z


@dataclass(frozen=True)
class ResidualL2(Objective):
    """The paper's: f(x) = x + LN(g(x)), loss 1/2 || f(k) - v ||^2 (paper, section 2.7)."""

    uses_norm: ClassVar[bool] = True

    def loss(self, z: Tensor, k: Tensor, v: Tensor, norm: Norm) -> Tensor:
        return 0.5 * (self.read(z, k, norm) - v).square().sum(-1)

    def gradient(self, z: Tensor, k: Tensor, v: Tensor, norm: Norm) -> Tensor:
        apply = _residual_gradient if torch.compiler.is_compiling() else _ResidualGradient.apply
        return apply(z, v - k, *norm)

    def read(self, z: Tensor, q: Tensor, norm: Norm) -> Tensor:
        return torch.addcmul(q + norm.shift, norm.scale, F.layer_norm(z, z.shape[-1:], eps=EPS))


@dataclass(frozen=True)
class L2(Objective):
    """Plain least squares: loss 1/2 || g(k) - v ||^2, read as g(q) (paper, equation 4)."""

    def loss(self, z: Tensor, k: Tensor, v: Tensor, norm: Norm) -> Tensor:
        return 0.5 * (z - v).square().sum(-1)

    def gradient(self, z: Tensor, k: Tensor, v: Tensor, norm: Norm) -> Tensor:
        return z - v


@dataclass(frozen=True)
class DotProduct(Objective):
    """Loss -<g(k), v>, read as g(q) (LaCT, arXiv 2505.23884; ViT^3, arXiv 2512.01643).

    It has no minimum: without a forget gate or weight norm the weights grow with the length of the sequence.
    """

    constant_gradient: ClassVar[bool] = True

    def loss(self, z: Tensor, k: Tensor, v: Tensor, norm: Norm) -> Tensor:
        return -(z * v).sum(-1)

    def gradient(self, z: Tensor, k: Tensor, v: Tensor, norm: Norm) -> Tensor:
        return -v


def _standardised(z: Tensor) -> tuple[Tensor, Tensor]:
    """h = (z - mean) / deviation, and r = 1 / deviation [..., 1]. (On a CPU, var_mean takes ten times as long.)"""
    centred = z - z.mean(-1, keepdim=True)
    r = torch.rsqrt(centred.square().mean(-1, keepdim=True) + EPS)
    return centred * r, r


def _across(y: Tensor, h: Tensor, r: Tensor) -> Tensor:
    """(y - mean y - h mean(y h)) r: dz where y = dh. A symmetric map."""
    along = (y * h).mean(-1, keepdim=True)
    return torch.addcmul(y - y.mean(-1, keepdim=True), h, along, value=-1).mul_(r)


def _residual_gradient(z: Tensor, target: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    h, r = _standardised(z)
    return _across(scale * (torch.addcmul(shift, scale, h) - target), h, r)


class _ResidualGradient(torch.autograd.Function):
    """G = across(u), u = scale * e, e = scale * h + shift - target, with its derivative by hand: half the operations.

    With p the gradient at G:  du = across(p),  de = scale * du,  dh = scale * de - r (p mean(u h) + u mean(p h)), and
    r = 1 / deviation, a factor of G, adds  -h r mean(p G)  to  dz = across(dh).
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, target: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        h, r = _standardised(z)
        error = torch.addcmul(shift, scale, h).sub_(target)
        found = _across(scale * error, h, r)
        ctx.save_for_backward(h, r, error, found, scale)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, p: Tensor) -> tuple[Tensor, ...]:
        h, r, error, found, scale = ctx.saved_tensors
        du, u = _across(p, h, r), scale * error
        de = scale * du
        to_scale = (du * error).addcmul_(de, h).sum_to_size(scale.shape)
        to_shift = de.sum_to_size(scale.shape)
        bent = (p * (u * h).mean(-1, keepdim=True)).addcmul_(u, (p * h).mean(-1, keepdim=True))
        dh = (scale * de).addcmul_(bent, r, value=-1)
        dz = _across(dh, h, r).addcmul_(h, r * (p * found).mean(-1, keepdim=True), value=-1)
        return dz, de.neg_(), to_scale, to_shift
