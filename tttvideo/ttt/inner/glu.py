"""A gated perceptron: g(x) = down(silu(gate x) * up x) (LaCT, arXiv 2505.23884, section 3)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Affine, InnerModel, MapShape, check_expansion


@dataclass(frozen=True)
class GLU(InnerModel):
    """SwiGLU without biases. A product of two small numbers is very small, so its weights start larger than the
    paper's 0.02: at 1 / sqrt(inputs), as LaCT's.

    Attributes:
        expansion: hidden width as a multiple of the head dimension; 2.67 gives the default MLP's weight count.
    """

    expansion: float = 2.0

    def __post_init__(self) -> None:
        check_expansion(self, self.expansion)

    def maps(self, dim: int) -> dict[str, MapShape]:
        hidden = max(1, round(self.expansion * dim))
        into = MapShape(dim, hidden, bias=False, std=dim**-0.5)
        return {"gate": into, "up": into, "down": MapShape(hidden, dim, bias=False, std=hidden**-0.5)}

    def __call__(self, x: Tensor, affine: Affine, grid: tuple[int, int]) -> Tensor:
        return affine("down", F.silu(affine("gate", x)) * affine("up", x))

    def backward(self, grad: Tensor, outputs: dict[str, Tensor], transposed: Affine) -> dict[str, Tensor]:
        gate, hidden = outputs["gate"], transposed("down", grad)
        s = torch.sigmoid(gate)
        slope = s * (1 + gate * (1 - s))  # of silu(gate) = gate * s
        return {"down": grad, "up": hidden * F.silu(gate), "gate": hidden * outputs["up"] * slope}
