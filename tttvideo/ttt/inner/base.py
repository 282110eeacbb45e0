"""An inner model: the hidden state as a small network, written as plain forward code over affine maps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

Affine = Callable[[str, Tensor], Tensor]
"""``affine(name, x [..., T, inputs]) -> [..., T, outputs]``: one affine map of the inner model, by name."""


class MapShape(NamedTuple):
    """Sizes of one affine map, and the standard deviation of its starting weights.

    With ``groups`` the map is that many small ones side by side, each on inputs of its own: it takes
    [B, H, groups, T, inputs] to [B, H, groups, T, outputs]. A depthwise convolution is one, a group per channel.
    """

    inputs: int
    outputs: int
    bias: bool = True
    groups: int | None = None
    std: float = 0.02


@dataclass(frozen=True)
class InnerModel(ABC):
    """``g(x; W)``: tokens of a frame or chunk [B, H, T, d] -> [B, H, T, d].

    Subclass it as a frozen dataclass (its fields are its configuration), say in ``maps`` which affine maps it
    has, and write the forward pass in ``__call__`` with ``affine(name, x)`` once for each of them; everything
    else (gradients, the dual form, streaming, padding) follows from that. All that depends on the fast weights
    must go through ``affine``; between maps any differentiable function of the tokens is allowed. ``backward``
    may be left out: it makes the layer faster, and changes nothing.
    """

    mixes_tokens: ClassVar[bool] = False
    """True if a token's output depends on other tokens of its frame: then only frame-wise chunks make sense."""

    sees_positions: ClassVar[bool] = False
    """True if it knows where in the frame a token is (a convolution does): then rotary positions are off by default."""

    linear: ClassVar[bool] = False
    """True if it is one affine map of inputs that do not depend on the weights, and nothing after it."""

    last: ClassVar[str | None] = None
    """The map whose output is the model's, where there are others before it (``Learning.update: last`` needs it)."""

    base_rate: ClassVar[float] = 0.1
    """Inner learning rate where the layer's configuration names none (paper, section 2.7 and appendix C)."""

    largest_rate: ClassVar[float] = 0.1
    """Largest ``base_rate`` with L2 on keys of unit length and ``Learning.rate_scale: null``, as far as measured."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__call__" in cls.__dict__ and "backward" not in cls.__dict__:
            cls.backward = InnerModel.backward  # an inherited one is that of another model

    @property
    def past_frames(self) -> int:
        """Earlier frames that the output of a frame looks back on (a kernel over time); they are part of the
        streaming state, and ``__call__`` gets them before the frames it is to put out."""
        return 0

    @abstractmethod
    def maps(self, dim: int) -> dict[str, MapShape]:
        """The affine maps for head dimension ``dim``, by name."""

    @abstractmethod
    def __call__(self, x: Tensor, affine: Affine, grid: tuple[int, int]) -> Tensor:
        """``x`` [B, H, T, d] with T whole frames of ``grid`` tokens if ``mixes_tokens`` -> [B, H, T, d].

        With ``past_frames`` P, ``x`` begins with P frames more, for which nothing is put out.
        """

    def backward(self, grad: Tensor, outputs: dict[str, Tensor], transposed: Affine) -> dict[str, Tensor] | None:
        """The inner gradient by hand: the gradient at every map's output.

        Args:
            grad: the gradient at the model's output, [B, H, T, d].
            outputs: what each map has put out, by name.
            transposed: ``transposed(name, z)``: z times the transposed weight, the derivative of ``affine(name, x)``.

        Returns:
            By name, shaped like ``outputs``; None: autograd finds them from ``__call__``.
        """
        return None

    def init(self, dim: int, heads: int) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Starting values of W_0 (learned by the outer loop): weights N(0, std), biases 0 (the paper: std 0.02)."""
        start = {}
        for name, shape in self.maps(dim).items():
            lead = (heads,) if shape.groups is None else (heads, shape.groups)
            start[name] = (
                torch.randn(*lead, shape.inputs, shape.outputs) * shape.std,
                torch.zeros(*lead, 1, shape.outputs) if shape.bias else None,
            )
        return start


def check_expansion(model: InnerModel, expansion: float) -> None:
    """Raises ValueError unless the hidden layer is wide enough to be one."""
    if expansion <= 0:
        raise ValueError(f"{type(model).__name__}.expansion is {expansion}; it must be above 0.")
