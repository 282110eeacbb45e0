"""Inner losses: what the hidden state is trained on (to map keys k to values v), and how it is read (with q)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .derivatives import EPS, residual_gradient


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
    """The paper's: f(x) = x + LN(g(x)), loss 1/2 || f(k) - v ||^2 (paper, section 2.7).

    Attributes:
        eps: of LN, added to the variance of z. The paper has 1e-6, which is as large as that variance at W_0 where |k|
            = 1 (``normalize_qk``); ttt-video has 1e-8.
        normalize_target: LN(g(k)) learns LN(v - k) in place of v - k, by the same scale and shift (ttt-video, with the
            sample's standard deviation).
    """

    eps: float = EPS
    normalize_target: bool = False

    uses_norm: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.eps < math.inf:
            raise ValueError(f"ResidualL2.eps is {self.eps}; it must be above 0 (the paper: 1e-6).")

    def loss(self, z: Tensor, k: Tensor, v: Tensor, norm: Norm) -> Tensor:
        return 0.5 * (self.read(z, k, norm) - k - self.target(k, v, norm)).square().sum(-1)

    def gradient(self, z: Tensor, k: Tensor, v: Tensor, norm: Norm) -> Tensor:
        return residual_gradient(z, self.target(k, v, norm), *norm, self.eps)

    def target(self, k: Tensor, v: Tensor, norm: Norm) -> Tensor:
        """What LN(g(k)) learns, [B, H, T, d]."""
        change = v - k
        if not self.normalize_target:
            return change
        deviation, mean = torch.std_mean(change, dim=-1, keepdim=True)
        return torch.addcmul(norm.shift, norm.scale, (change - mean) / (deviation + self.eps))

    def read(self, z: Tensor, q: Tensor, norm: Norm) -> Tensor:
        return torch.addcmul(q + norm.shift, norm.scale, F.layer_norm(z, z.shape[-1:], eps=self.eps))


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
