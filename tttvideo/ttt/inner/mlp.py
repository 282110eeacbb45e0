"""TTT-MLP: g(x) = gelu(x W1 + b1) W2 + b2 (paper, section 2.7)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..derivatives import gelu, gelu_backward
from .base import Affine, InnerModel, MapShape, check_expansion


@dataclass(frozen=True)
class MLP(InnerModel):
    """A two-layer perceptron with the tanh form of GELU.

    Attributes:
        expansion: hidden width as a multiple of the head dimension (4 in the paper).
    """

    expansion: int = 4

    last: ClassVar[str] = "2"

    def __post_init__(self) -> None:
        check_expansion(self, self.expansion)

    def maps(self, dim: int) -> dict[str, MapShape]:
        hidden = max(1, round(self.expansion * dim))
        return {"1": MapShape(dim, hidden), "2": MapShape(hidden, dim)}

    def __call__(self, x: Tensor, affine: Affine, grid: tuple[int, int]) -> Tensor:
        return affine("2", gelu(affine("1", x)))

    def backward(self, grad: Tensor, outputs: dict[str, Tensor], transposed: Affine) -> dict[str, Tensor]:
        return {"2": grad, "1": gelu_backward(transposed("2", grad), outputs["1"])}
