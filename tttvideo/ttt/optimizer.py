"""Inner optimizers: what a chunk's gradient does to the hidden state.

Plain gradient descent is linear in the gradients, which is what lets the dual form give every token of a chunk
its own weights. Everything else here is not: it needs chunks that are read as a whole (``FrameCausal(1)`` or
``Whole``), where the update comes first and every query is read at the updated weights.

The gradient that arrives is already scaled: the step's scale times the sum over the chunk's tokens of
rate * gradient, so that plain descent subtracts it as it is.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from .state import Map, Moments, Weights, by_row, combine, length, lengths_of_columns


@dataclass(frozen=True)
class InnerOptimizer(ABC):
    """One update of the inner model per chunk, or several.

    Attributes:
        steps: updates per chunk, each with the gradient taken anew.
        clip: the gradient becomes g * clip / (|g| + clip), shorter than ``clip`` and smooth (ViT^3, arXiv 2512.01643,
            with clip = 1); null: as it is.
        clip_by: what |g| is taken of: all maps of a ``head`` together, or every output ``column`` of every map (a
            channel of a depthwise kernel), its bias included, as in ViT^3.
        weight_norm: after an update every column of every affine map, its bias included, gets back the length
            that it has in W_0 (LaCT, arXiv 2505.23884, which has no biases).
    """

    steps: int = 1
    clip: float | None = None
    weight_norm: bool = False
    clip_by: Literal["head", "column"] = "head"

    averages: ClassVar[int] = 0
    """Running averages that are kept, each like the weights."""
    counts: ClassVar[bool] = False
    """True if the steps taken are counted."""
    descends: ClassVar[bool] = False
    """True if ``update`` gives back the gradient as it is: plain gradient descent."""
    follows_length: ClassVar[bool] = True
    """True if a gradient of twice the length makes the step twice as long, so that the layer's base_rate matters."""
    momentum: ClassVar[float | Literal["learned"]] = 0.0
    """Share of the former average that is kept; ``learned``: the layer has shortened it before ``update``, by a share
    that it learns per token and head, the mean over a chunk (LaCT)."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.steps != int(self.steps):
            raise ValueError(f"{type(self).__name__}.steps is {self.steps}; a chunk takes 1 inner step, or 2, ...")
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise ValueError(f"{type(self).__name__}.clip is {self.clip}; it must be above 0, or null.")
        if self.clip_by not in ("head", "column"):
            raise ValueError(f"{type(self).__name__}.clip_by is {self.clip_by!r}; it must be head or column.")

    @property
    def cumulative(self) -> bool:
        """True if a gradient that does not depend on the weights may be summed up over chunks, without a loop."""
        return self.descends and self.steps == 1 and not self.weight_norm

    @property
    def linear(self) -> bool:
        """True if the update is linear in the gradient, so that every token may have its own weights."""
        return self.cumulative and self.clip is None

    @abstractmethod
    def update(self, gradient: Weights, moments: Moments, warmup: float) -> tuple[Weights, Moments]:
        """What to subtract from the weights. ``warmup`` in 0..1 scales steps whose length is not the gradient's."""

    def step(
        self, weights: Weights, gradient: Weights, moments: Moments, start: Weights, warmup: float
    ) -> tuple[Weights, Moments]:
        """The weights after one update; ``start`` is W_0."""
        update, moments = self.update(self.clipped(gradient), moments, warmup)
        weights = combine(torch.sub, weights, update)
        if self.weight_norm:
            weights = {name: _renormed(map, start[name]) for name, map in weights.items()}
        return weights, moments

    def clipped(self, gradient: Weights) -> Weights:
        if self.clip is None:
            return gradient
        if self.clip_by == "column":
            return {name: _clipped_columns(map, self.clip) for name, map in gradient.items()}
        factor = self.clip / (length(gradient) + self.clip)
        return combine(lambda g: by_row(factor, g) * g, gradient)


@dataclass(frozen=True)
class SGD(InnerOptimizer):
    """Gradient descent (paper, section 2.4): online with chunks of one token, mini-batch, or full batch with
    ``Whole(frames=None)``."""

    descends: ClassVar[bool] = True

    def update(self, gradient: Weights, moments: Moments, warmup: float) -> tuple[Weights, Moments]:
        return gradient, moments


@dataclass(frozen=True)
class Momentum(InnerOptimizer):
    """Heavy-ball momentum: m <- momentum * m + g, the update is m.

    Attributes:
        momentum: share of the former update kept; a constant gradient is followed 1 / (1 - momentum) as fast.
            ``learned``: see ``Muon``.
    """

    momentum: float | Literal["learned"] = 0.9

    averages: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_momentum(self)

    def update(self, gradient: Weights, moments: Moments, warmup: float) -> tuple[Weights, Moments]:
        average = _averaged(self.momentum, moments, gradient)
        return average, Moments((average,), moments.count)


@dataclass(frozen=True)
class Adam(InnerOptimizer):
    """Adam (arXiv 1412.6980) as the inner optimizer.

    Its step is ``rate`` long in every weight whatever the gradient's length, so the layer's base_rate does not
    matter here; the learned rates of tokens say what each contributes.

    Attributes:
        rate: step per chunk.
        beta1: decay of the average gradient.
        beta2: decay of the average squared gradient.
        eps: gradients far below this move nothing; inside the root, where it keeps the outer gradient finite.
    """

    rate: float = 0.003
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-4

    averages: ClassVar[int] = 2
    counts: ClassVar[bool] = True
    follows_length: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_share(self, "beta1", self.beta1)
        _check_share(self, "beta2", self.beta2)
        if self.rate < 0 or self.eps <= 0:
            raise ValueError(f"Adam needs rate at least 0 and eps above 0, not {self.rate} and {self.eps}.")

    def update(self, gradient: Weights, moments: Moments, warmup: float) -> tuple[Weights, Moments]:
        first, second = moments.averages
        first = combine(lambda m, g: self.beta1 * m + (1 - self.beta1) * g, first, gradient)
        second = combine(lambda s, g: self.beta2 * s + (1 - self.beta2) * g * g, second, gradient)
        count = moments.count + 1
        unbias1, unbias2 = 1 - self.beta1**count, 1 - self.beta2**count

        def update(m: Tensor, s: Tensor) -> Tensor:
            root = torch.sqrt(s / by_row(unbias2, s) + self.eps**2)
            return (self.rate * warmup) * (m / by_row(unbias1, m)) / root

        return combine(update, first, second), Moments((first, second), count)


@dataclass(frozen=True)
class Muon(InnerOptimizer):
    """Muon with weight norm (as LaCT, arXiv 2505.23884, section 3): the averaged gradient of every weight matrix is
    replaced by the nearest orthogonal one, by Newton-Schulz iteration; biases follow the average scaled to unit
    length. As with Adam, the layer's base_rate does not matter. LaCT itself has ``rate: 1, momentum: 0, coefficients:
    lact``.

    Attributes:
        rate: length of the step: the largest singular value of what is subtracted from a matrix.
        momentum: share of the former average kept; 0 is LaCT's plain form. ``learned``: sigmoid(w x + b) of every
            token and head, of which a chunk takes the mean (LaCT's other form).
        iterations: of Newton-Schulz.
        coefficients: of the iteration: ``jordan``, the same each time (singular values to 0.68 to 1.13), or ``lact``,
            five in turn (to 0.98 to 1.03).
        weight_norm: see ``InnerOptimizer``; on, as in LaCT: without it the weights can grow without bound.
    """

    weight_norm: bool = True
    rate: float = 0.1
    momentum: float | Literal["learned"] = 0.9
    iterations: int = 5
    coefficients: Literal["jordan", "lact"] = "jordan"

    averages: ClassVar[int] = 1
    follows_length: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_momentum(self)
        if self.rate < 0 or self.iterations < 1:
            raise ValueError(
                f"Muon needs rate at least 0 and at least 1 iteration, not {self.rate} and {self.iterations}."
            )
        if self.coefficients not in COEFFICIENTS:
            raise ValueError(f"Muon.coefficients is {self.coefficients!r}; it must be jordan or lact.")
        if self.coefficients == "lact" and self.iterations != len(COEFFICIENTS["lact"]):
            raise ValueError(f"Muon.iterations is {self.iterations}; there are 5 with coefficients: lact.")

    def update(self, gradient: Weights, moments: Moments, warmup: float) -> tuple[Weights, Moments]:
        average = _averaged(self.momentum, moments, gradient)
        step = combine(lambda m: self.rate * warmup * orthogonalized(m, self.iterations, self.coefficients), average)
        return step, Moments((average,), moments.count)


COEFFICIENTS = {
    "jordan": [(3.4445, -4.7750, 2.0315)],
    "lact": [
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ],
}
"""Of x, x x^T x and (x x^T)^2 x in each iteration of Newton-Schulz, repeated."""


def orthogonalized(x: Tensor, iterations: int, coefficients: str = "jordan") -> Tensor:
    """U V^T of x = U S V^T, roughly, for matrices [..., m, n]: the quintic Newton-Schulz iteration of Muon (K.
    Jordan, 2024), which brings every singular value to about 1. Zero stays zero."""
    transpose = x.shape[-2] > x.shape[-1]
    x = x.mT if transpose else x
    squares = x.square().sum((-2, -1), keepdim=True)
    x = x * torch.rsqrt(squares + 1e-14)
    for a, b, c in itertools.islice(itertools.cycle(COEFFICIENTS[coefficients]), iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if transpose else x


def _clipped_columns(map: Map, clip: float) -> Map:
    factor = clip / (lengths_of_columns(map) + clip)
    return Map(map.weight * factor, None if map.bias is None else map.bias * factor)


def _renormed(map: Map, start: Map) -> Map:
    """``map`` with columns, biases included, as long as those of ``start``."""
    factor = torch.sqrt(_squares(start) / _squares(map))
    return Map(map.weight * factor, None if map.bias is None else map.bias * factor)


def _squares(map: Map) -> Tensor:
    """Squared length of every column, [B, H, 1, outputs]; the bias is the weight of an input that is always 1."""
    squares = map.weight.square().sum(-2, keepdim=True) + 1e-20
    return squares if map.bias is None else squares + map.bias.square()


def _averaged(momentum: float | str, moments: Moments, gradient: Weights) -> Weights:
    share = 1.0 if momentum == "learned" else momentum
    return combine(lambda m, g: share * m + g, moments.averages[0], gradient)


def _check_momentum(optimizer: Momentum | Muon) -> None:
    momentum = optimizer.momentum
    if momentum != "learned" and not (isinstance(momentum, float | int) and 0 <= momentum < 1):
        name = type(optimizer).__name__
        raise ValueError(f"{name}.momentum is {momentum!r}; it lies in 0 to 1, 1 excluded, or is learned.")


def _check_share(optimizer: InnerOptimizer, name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{type(optimizer).__name__}.{name} is {value}; it lies in 0 to 1, 1 excluded.")
