"""A small CNN over one frame's grid of tokens: conv3x3 -> GELU -> conv1x1."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Affine, InnerModel, MapShape


@dataclass(frozen=True)
class Conv(InnerModel):
    """g = conv1x1(gelu(conv3x3(x))) on the frame's token grid, zero padding at the frame's border.

    A 3x3 convolution is an affine map on the 9d-long neighbourhood of each token, so the dual form holds for
    it as it stands; tokens of a frame mix, so chunks must be frame-causal.

    Attributes:
        expansion: hidden channels as a multiple of the head dimension. The 3x3 kernel already sees nine
            tokens, so 1 gives it 10 d^2 weights, next to the 8 d^2 of the default MLP.
    """

    expansion: int = 1

    mixes_tokens: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.expansion < 1:
            raise ValueError(f"Conv.expansion is {self.expansion}; the hidden layer needs at least 1.")

    def maps(self, dim: int) -> dict[str, MapShape]:
        hidden = self.expansion * dim
        return {"1": MapShape(9 * dim, hidden), "2": MapShape(hidden, dim)}

    def __call__(self, x: Tensor, affine: Affine, grid: tuple[int, int]) -> Tensor:
        return affine("2", F.gelu(affine("1", neighbourhoods(x, grid)), approximate="tanh"))


def neighbourhoods(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """The 3x3 neighbourhood of every token within its frame: [B, H, F*N, d] -> [B, H, F*N, 9d]."""
    rows, columns = grid
    frames = x.unflatten(2, (-1, rows, columns))
    padded = F.pad(frames, (0, 0, 1, 1, 1, 1))
    shifted = [padded[..., i : i + rows, j : j + columns, :] for i in range(3) for j in range(3)]
    return torch.cat(shifted, dim=-1).flatten(2, 4)
