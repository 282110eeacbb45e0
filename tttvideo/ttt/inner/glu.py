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
        down: the last map; without it g(x) = silu(gate x) * up x (ViT^3, arXiv 2512.01643), and ``expansion`` is 1.
    """

    expansion: float = 2.0
    down: bool = True

    def __post_init__(self) -> None:
        check_expansion(self, self.expansion)
        if not self.down and self.expansion != 1:
            raise ValueError(f"GLU.expansion is {self.expansion}; without the map down it must be 1.")

    @property
    def last(self) -> str | None:  # type: ignore[override]
        return "down" if self.down else None

    def maps(self, dim: int) -> dict[str, MapShape]:
        hidden = max(1, round(self.expansion * dim))
        into = MapShape(dim, hidden, bias=False, std=dim**-0.5)
        out = {"down": MapShape(hidden, dim, bias=False, std=hidden**-0.5)} if self.down else {}
        return {"gate": into, "up": into, **out}

    def __call__(self, x: Tensor, affine: Affine, grid: tuple[int, int]) -> Tensor:
        hidden = F.silu(affine("gate", x)) * affine("up", x)
        return affine("down", hidden) if self.down else hidden

    def backward(self, grad: Tensor, outputs: dict[str, Tensor], transposed: Affine) -> dict[str, Tensor]:
        gate, hidden = outputs["gate"], transposed("down", grad) if self.down else grad
        s = torch.sigmoid(gate)
        slope = s * (1 + gate * (1 - s))  # of silu(gate) = gate * s
        out = {"down": grad} if self.down else {}
        return {**out, "up": hidden * F.silu(gate), "gate": hidden * outputs["up"] * slope}
