"""TTT-Linear: g(x) = x W + b (paper, section 2.7)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import Affine, InnerModel, MapShape


@dataclass(frozen=True)
class Linear(InnerModel):
    """A linear map of the head dimension.

    Attributes:
        bias: False leaves the bias out (the linear-attention theorem needs that).
    """

    bias: bool = True

    linear: ClassVar[bool] = True
    base_rate: ClassVar[float] = 1.0
    largest_rate: ClassVar[float] = 2.0

    def maps(self, dim: int) -> dict[str, MapShape]:
        return {"1": MapShape(dim, dim, self.bias)}

    def __call__(self, x: Tensor, affine: Affine, grid: tuple[int, int]) -> Tensor:
        return affine("1", x)

    def backward(self, grad: Tensor, outputs: dict[str, Tensor], transposed: Affine) -> dict[str, Tensor]:
        return {"1": grad}
