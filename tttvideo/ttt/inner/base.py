"""An inner model: the hidden state as a small network, written as plain forward code over affine maps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

Affine = Callable[[str, Tensor], Tensor]
"""``affine(name, x [..., T, inputs]) -> [..., T, outputs]``: one affine map of the inner model, by name."""


class Map(NamedTuple):
    """The fast weights of one affine map, ``x @ weight + bias``, per sequence and head.

    ``weight`` [B, H, inputs, outputs], ``bias`` [B, H, 1, outputs] or None.
    """

    weight: Tensor
    bias: Tensor | None


Weights = dict[str, Map]
"""The fast weights of a whole inner model: its affine maps by name."""


class MapShape(NamedTuple):
    """Sizes of one affine map."""

    inputs: int
    outputs: int
    bias: bool = True


@dataclass(frozen=True)
class InnerModel(ABC):
    """``g(x; W)``: tokens of a frame or chunk [B, H, T, d] -> [B, H, T, d].

    Subclass it as a frozen dataclass (its fields are its configuration), say in ``maps`` which affine maps it
    has, and write the forward pass in ``__call__`` with ``affine(name, x)`` for each of them; everything else
    (gradients, the dual form, streaming, padding) follows from that. All that depends on the fast weights
    must go through ``affine``; between maps any differentiable function of the tokens is allowed.
    """

    mixes_tokens: ClassVar[bool] = False
    """True if a token's output depends on other tokens of its frame: then only frame-causal chunks make sense."""

    base_rate: ClassVar[float] = 0.1
    """Inner learning rate where the layer's configuration names none (paper, section 2.7 and appendix C)."""

    @abstractmethod
    def maps(self, dim: int) -> dict[str, MapShape]:
        """The affine maps for head dimension ``dim``, by name."""

    @abstractmethod
    def __call__(self, x: Tensor, affine: Affine, grid: tuple[int, int]) -> Tensor:
        """``x`` [B, H, T, d] with T whole frames of ``grid`` tokens if ``mixes_tokens`` -> [B, H, T, d]."""

    def init(self, dim: int, heads: int) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Starting values of W_0 (learned by the outer loop): weights N(0, 0.02), biases 0, as the paper's."""
        return {
            name: (
                torch.randn(heads, shape.inputs, shape.outputs) * 0.02,
                torch.zeros(heads, 1, shape.outputs) if shape.bias else None,
            )
            for name, shape in self.maps(dim).items()
        }
