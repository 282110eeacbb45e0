"""Inner losses: what the hidden state is trained on, and how it is read (design: views k -> v, read with q)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

EPS = 1e-6


class Norm(NamedTuple):
    """Scale and shift of the inner LayerNorm, learned per head by the outer loop: [H, 1, d] each."""

    scale: Tensor
    shift: Tensor


@dataclass(frozen=True)
class Objective(ABC):
    """An inner loss. ``z`` is the inner model's output g(x; W), [B, H, T, d]."""

    @abstractmethod
    def loss(self, z: Tensor, k: Tensor, v: Tensor, norm: Norm) -> Tensor:
        """Loss of every token, [B, H, T]: the definition; ``gradient`` is its derivative."""

    @abstractmethod
    def gradient(self, z: Tensor, k: Tensor, v: Tensor, norm: Norm) -> Tensor:
        """d loss / d z, [B, H, T, d], in closed form."""

    @abstractmethod
    def read(self, z: Tensor, q: Tensor, norm: Norm) -> Tensor:
        """The layer's output from z = g(q; W), [B, H, T, d]."""


@dataclass(frozen=True)
class ResidualL2(Objective):
    """The paper's: f(x) = x + LN(g(x)), loss 1/2 || f(k) - v ||^2 (paper, section 2.7)."""

    def loss(self, z: Tensor, k: Tensor, v: Tensor, norm: Norm) -> Tensor:
        return 0.5 * (self.read(z, k, norm) - v).square().sum(-1)

    def gradient(self, z: Tensor, k: Tensor, v: Tensor, norm: Norm) -> Tensor:
        centred, deviation = _standardise(z)
        u = norm.scale * (norm.scale * centred + norm.shift - (v - k))
        along = (u * centred).mean(-1, keepdim=True)
        return (u - u.mean(-1, keepdim=True) - centred * along) / deviation

    def read(self, z: Tensor, q: Tensor, norm: Norm) -> Tensor:
        centred, _ = _standardise(z)
        return q + norm.scale * centred + norm.shift


def _standardise(z: Tensor) -> tuple[Tensor, Tensor]:
    """(z - mean) / deviation and the deviation [..., 1], over the last axis."""
    variance, mean = torch.var_mean(z, dim=-1, keepdim=True, correction=0)
    deviation = torch.sqrt(variance + EPS)
    return (z - mean) / deviation, deviation
