"""The inner loop's gradients: what each affine map of the inner model read and how the loss changes with its output.

With X_s the input of a map z = x A + b at key s, and G_s the gradient of sum_s rate[s] * loss_s at its output, the
gradient at A is X^T G and that at b the sum of G. The dual form (``step``) needs no more than X and G either.
The rate is inside the loss: where the inner model mixes tokens, a rate multiplied on afterwards would be wrong.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .derivatives import affine, transposed
from .inner.base import InnerModel
from .objective import Norm, Objective
from .optimizer import InnerOptimizer
from .state import Map, Weights
from .tokens import Tokens


class InnerLoop(NamedTuple):
    """What stays the same over all chunks of a call.

    Attributes:
        model: the inner model g(x; W); ``objective``: its loss; ``optimizer``: what is made of its gradient.
        norm: the inner LayerNorm.
        start: W_0, to which a forget gate leads back and whose lengths a weight norm keeps.
        grid: (rows, columns) of a frame's tokens.
        warmup: share of their rate that Adam and Muon take.
        cumulative: no gradient depends on the weights, so that those after every chunk are one cumulative sum.
    """

    model: InnerModel
    objective: Objective
    optimizer: InnerOptimizer
    norm: Norm
    start: Weights
    grid: tuple[int, int]
    warmup: float = 1.0
    cumulative: bool = False


class Trace(NamedTuple):
    """Inputs X [B, H, S, inputs] and output gradients G [B, H, S, outputs] of one affine map, S = V * K keys."""

    inputs: Tensor
    gradients: Tensor


def traces(loop: InnerLoop, weights: Weights, tokens: Tokens) -> dict[str, Trace]:
    """Reads the keys at ``weights`` and goes back from the loss to the output of every map.

    Works with and without an outer graph: under ``no_grad`` the inner gradient is taken all the same.

    Raises:
        ValueError: if the inner model does not apply each of its maps exactly once.
    """
    k, v, rate = tokens.k.flatten(2, 3), tokens.v.flatten(2, 3), tokens.rate.flatten(2, 3)
    taught = k[:, :, k.shape[2] - v.shape[2] :]  # without those that are only looked back on
    if type(loop.model).backward is InnerModel.backward:
        from .inner_autograd import traces_by_autograd

        return traces_by_autograd(loop, weights, k, taught, v, rate)
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def record(name: str, x: Tensor) -> Tensor:
        if name in inputs:
            raise applied_twice(loop.model, name)
        inputs[name], outputs[name] = x, affine(weights[name], x)
        return outputs[name]

    def back(name: str, z: Tensor) -> Tensor:
        return transposed(weights[name], z)

    z = loop.model(k, record, loop.grid)
    if inputs.keys() != weights.keys():
        raise never_applied(loop.model, weights.keys() - inputs.keys())
    gradients = loop.model.backward(rate * loop.objective.gradient(z, taught, v, loop.norm), outputs, back)
    if gradients is None or gradients.keys() != weights.keys():
        raise ValueError(f"{type(loop.model).__name__}.backward must give a gradient for each of {list(weights)}.")
    parts = {}
    for name, x in inputs.items():
        parts[name] = Trace(x, gradients[name])
    return parts


def summed(weights: Weights, parts: dict[str, Trace]) -> Weights:
    """sum_s of the gradients of every map: X^T G and sum G."""
    sums = {}
    for name, map in weights.items():
        inputs, gradients = parts[name]
        sums[name] = Map(inputs.mT @ gradients, None if map.bias is None else gradients.sum(-2, keepdim=True))
    return sums


def applied_twice(model: InnerModel, name: str) -> ValueError:
    return ValueError(f"{type(model).__name__} applies its map {name!r} twice; give each use a map.")


def never_applied(model: InnerModel, names: set[str]) -> ValueError:
    return ValueError(f"{type(model).__name__} never applies its maps {', '.join(sorted(names))}.")
