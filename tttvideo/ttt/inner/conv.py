"""A small CNN over the frame's grid of tokens: conv3x3 -> GELU -> conv1x1."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..derivatives import gelu, gelu_backward
from .base import Affine, MapShape, check_expansion
from .neighbourhood import Convolution, neighbourhoods


@dataclass(frozen=True)
class Conv(Convolution):
    """g = conv1x1(gelu(conv3x3(x))) on the frame's token grid, zero padding at the frame's border.

    A 3x3 convolution is an affine map on the 9d-long neighbourhood of each token, so the dual form holds for
    it as it stands; tokens of a frame mix, so chunks must be frame-wise.

    Attributes:
        expansion: hidden channels as a multiple of the head dimension. The 3x3 kernel already sees nine
            tokens, so 1 gives it 10 d^2 weights, next to the 8 d^2 of the default MLP.
        time: frames the kernel covers: 1 is the frame itself; it only looks back.
    """

    expansion: int = 1
    time: int = 1

    last: ClassVar[str] = "2"
    largest_rate: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        check_expansion(self, self.expansion)
        super().__post_init__()

    def maps(self, dim: int) -> dict[str, MapShape]:
        hidden = max(1, round(self.expansion * dim))
        return {"1": MapShape(9 * self.time * dim, hidden), "2": MapShape(hidden, dim)}

    def __call__(self, x: Tensor, affine: Affine, grid: tuple[int, int]) -> Tensor:
        patches = neighbourhoods(x, grid, self.time).flatten(-2)
        return affine("2", gelu(affine("1", patches)))

    def backward(self, grad: Tensor, outputs: dict[str, Tensor], transposed: Affine) -> dict[str, Tensor]:
        return {"2": grad, "1": gelu_backward(transposed("2", grad), outputs["1"])}
