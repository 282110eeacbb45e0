"""The inner loop's gradients: what each affine map of the inner model read and how the loss changes with its output.

With X_s the input of a map z = x A + b at key s, and G_s the gradient of sum_s rate[s] * loss_s at its output, the
gradient at A is X^T G and that at b the sum of G. The dual form (``step``) needs no more than X and G either.
The rate is inside the loss: where the inner model mixes tokens, a rate multiplied on afterwards would be wrong.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .derivatives import Recorder
from .inner.base import InnerModel
from .learning import Learning
from .objective import Norm, Objective
from .optimizer import InnerOptimizer
from .state import Map, Weights
from .tokens import Tokens


class InnerLoop(NamedTuple):
    """What stays the same over all chunks of a call.

    Attributes:
        model: the inner model g(x; W); ``objective``: its loss.
        optimizer: what is made of its gradient; None: plain gradient descent, one step a chunk.
        norm: the inner LayerNorm.
        start: W_0, to which a forget gate leads back and whose lengths a weight norm keeps.
        grid: (rows, columns) of a frame's tokens.
        warmup: share of their rate that Adam and Muon take.
        cumulative: no gradient depends on the weights, so that those after every chunk are one cumulative sum.
        delta: it is the delta rule, whose chunks may be solved for together.
        frozen: the maps that do not learn, as W_0 has them; a state's weights are the others.
        learning: where gradients are taken, and of what.
    """

    model: InnerModel
    objective: Objective
    optimizer: InnerOptimizer | None
    norm: Norm
    start: Weights
    grid: tuple[int, int]
    warmup: float = 1.0
    cumulative: bool = False
    delta: bool = False
    frozen: Weights = {}  # noqa: RUF012
    learning: Learning = Learning()


class Trace(NamedTuple):
    """Inputs X [B, H, S, inputs] and output gradients G [B, H, S, outputs] of one affine map, S = V * K keys."""

    inputs: Tensor
    gradients: Tensor


def traces(loop: InnerLoop, weights: Weights, tokens: Tokens) -> dict[str, Trace]:
    """Reads the keys at ``weights`` and goes back from the loss to the output of every map that learns.

    Works with and without an outer graph: under ``no_grad`` the inner gradient is taken all the same.

    Raises:
        ValueError: if the inner model does not apply each of its maps exactly once.
    """
    k, v, rate = tokens.k.flatten(2, 3), tokens.v.flatten(2, 3), tokens.rate.flatten(2, 3)
    taught = k[:, :, k.shape[2] - v.shape[2] :]  # without those that are only looked back on
    maps = loop.start if loop.learning.gradient_at == "start" else {**loop.frozen, **weights}
    by_map = None
    if loop.learning.rate_per_map:
        by_map, rate = dict(zip(weights, rate.split(1, -1), strict=True)), torch.ones_like(rate[..., :1])
    if type(loop.model).backward is InnerModel.backward and not loop.frozen:
        from .inner_autograd import traces_by_autograd

        parts = traces_by_autograd(loop, maps, k, taught, v, rate)
        return parts if by_map is None else weighed(parts, by_map)
    record = Recorder(loop.model, maps)
    z = loop.model(k, record, loop.grid)
    if record.inputs.keys() != maps.keys():
        raise never_applied(loop.model, maps.keys() - record.inputs.keys())
    slope = rate * loop.objective.gradient(z, taught, v, loop.norm)
    if loop.frozen:  # only the last map learns; its output is the model's
        gradients = dict.fromkeys(weights, slope)
    else:
        gradients = loop.model.backward(slope, record.outputs, record.transposed)
    if gradients is None or gradients.keys() != weights.keys():
        raise ValueError(f"{type(loop.model).__name__}.backward must give a gradient for each of {list(weights)}.")
    parts = {}
    for name in weights:
        parts[name] = Trace(record.inputs[name], gradients[name])
    return parts if by_map is None else weighed(parts, by_map)


def weighed(parts: dict[str, Trace], rates: dict[str, Tensor]) -> dict[str, Trace]:
    """Every map's gradients times its own rates, [B, H, S, 1] each."""
    return {name: Trace(inputs, rates[name] * gradients) for name, (inputs, gradients) in parts.items()}


def summed(weights: Weights, parts: dict[str, Trace]) -> Weights:
    """sum_s of the gradients of every map: X^T G and sum G."""
    sums = {}
    for name, map in weights.items():
        inputs, gradients = parts[name]
        sums[name] = Map(inputs.mT @ gradients, None if map.bias is None else gradients.sum(-2, keepdim=True))
    return sums


def never_applied(model: InnerModel, names: set[str]) -> ValueError:
    return ValueError(f"{type(model).__name__} never applies its maps {', '.join(sorted(names))}.")
