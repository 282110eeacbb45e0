"""The cheaper CNN: depthwise conv3x3 -> GELU -> conv1x1."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..derivatives import gelu, gelu_backward
from .base import Affine, MapShape
from .neighbourhood import Convolution, depthwise, neighbourhoods


@dataclass(frozen=True)
class ConvDepthwise(Convolution):
    """g = conv1x1(gelu(depthwise conv3x3(x))) on the frame's token grid: d^2 + 9d weights, next to 10 d^2 of
    ``Conv``.

    Attributes:
        time: frames the kernel covers: 1 is the frame itself; it only looks back.
    """

    time: int = 1

    last: ClassVar[str] = "2"
    largest_rate: ClassVar[float] = 1.0

    def maps(self, dim: int) -> dict[str, MapShape]:
        return {"1": MapShape(9 * self.time, 1, groups=dim, std=1 / 3), "2": MapShape(dim, dim)}

    def __call__(self, x: Tensor, affine: Affine, grid: tuple[int, int]) -> Tensor:
        z = affine("1", depthwise(neighbourhoods(x, grid, self.time))).squeeze(-1).mT
        return affine("2", gelu(z))

    def backward(self, grad: Tensor, outputs: dict[str, Tensor], transposed: Affine) -> dict[str, Tensor]:
        hidden = outputs["1"].squeeze(-1).mT
        return {"2": grad, "1": gelu_backward(transposed("2", grad), hidden).mT.unsqueeze(-1)}
