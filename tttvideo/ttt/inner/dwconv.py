"""One depthwise convolution (ViT^3, arXiv 2512.01643)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import Affine, MapShape
from .neighbourhood import Convolution, depthwise, neighbourhoods


@dataclass(frozen=True)
class DWConv(Convolution):
    """g = depthwise conv3x3(x): 9 weights per channel.

    With ``objective: DotProduct`` its gradient does not depend on its weights, so the weights after every frame
    are one cumulative sum over frames, without a sequential loop. ViT^3 clips them: ``optimizer: SGD(clip=1)``.

    Attributes:
        time: frames the kernel covers: 1 is the frame itself; it only looks back.
    """

    time: int = 1

    linear: ClassVar[bool] = True
    base_rate: ClassVar[float] = 1.0
    largest_rate: ClassVar[float] = 2.0

    def maps(self, dim: int) -> dict[str, MapShape]:
        return {"1": MapShape(9 * self.time, 1, bias=False, groups=dim, std=1 / 3)}

    def __call__(self, x: Tensor, affine: Affine, grid: tuple[int, int]) -> Tensor:
        return affine("1", depthwise(neighbourhoods(x, grid, self.time))).squeeze(-1).mT

    def backward(self, grad: Tensor, outputs: dict[str, Tensor], transposed: Affine) -> dict[str, Tensor]:
        return {"1": grad.mT.unsqueeze(-1)}
