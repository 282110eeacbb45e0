"""Nested learning: the inner model is a self-attention layer over the frame (design, section 3)."""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from .base import Affine, InnerModel, MapShape


@dataclass(frozen=True)
class SelfAttention(InnerModel):
    """g = softmax(Q K^T / sqrt(d)) V O among the tokens of one frame, with Q, K, V and O learned at test time.

    Attributes:
        bias: biases of the four maps.
    """

    bias: bool = False

    mixes_tokens: ClassVar[bool] = True
    last: ClassVar[str] = "o"

    def maps(self, dim: int) -> dict[str, MapShape]:
        return {name: MapShape(dim, dim, self.bias, std=dim**-0.5) for name in ("q", "k", "v", "o")}

    def __call__(self, x: Tensor, affine: Affine, grid: tuple[int, int]) -> Tensor:
        size = grid[0] * grid[1]
        q, k, v = (affine(name, x).unflatten(2, (-1, size)) for name in ("q", "k", "v"))
        # written out: the fused kernel has no second derivative
        weights = F.softmax(q @ k.mT * x.shape[-1] ** -0.5, dim=-1)
        return affine("o", (weights @ v).flatten(2, 3))
