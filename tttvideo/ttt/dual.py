"""All inner-gradient mathematics: the definition, the dual form of one chunk, the scan over chunks.

Mini-batch gradient descent (paper, section 2.4): every gradient of a chunk is taken at the weights W of the
chunk's start; with e[t, s] = scale[t] * mask[t, s] and G_s the gradient of sum_s rate[s] * loss_s,

    W_t = W - sum_s e[t, s] grad_s          out_t = read(g(q_t; W_t))          W <- W_K at the chunk's end.

The dual form (section 2.5) never forms W_t. For an affine map z = x A + b inside g, with x_s its inputs and
G_s the gradient at its outputs on the keys,

    z_t(q) = x_t A + b - sum_s e[t, s] (x_t . x_s + 1) G_s

map by map through g. It is a property of the affine map, not of the inner model, so it stands here once.
The rate is inside the loss: where g mixes tokens, a rate multiplied on afterwards would be wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .inner.base import InnerModel, Map, Weights
from .objective import Norm, Objective


class Problem(NamedTuple):
    """What stays the same over all chunks of a call."""

    model: InnerModel
    objective: Objective
    norm: Norm
    grid: tuple[int, int]


class Tokens(NamedTuple):
    """The views of the tokens, [B, H, T, d] each, and their inner learning rates [B, H, T, 1] (0: padding)."""

    q: Tensor
    k: Tensor
    v: Tensor
    rate: Tensor

    def narrow(self, start: int, size: int) -> Tokens:
        return Tokens(*(x.narrow(2, start, size) for x in self))


class Traces(NamedTuple):
    """Inputs x_s [B, H, K, inputs] and output gradients G_s [B, H, K, outputs] of one affine map."""

    inputs: Tensor
    gradients: Tensor


def affine(map: Map, x: Tensor) -> Tensor:
    """x A + b."""
    return x @ map.weight if map.bias is None else x @ map.weight + map.bias


def traces(problem: Problem, weights: Weights, tokens: Tokens) -> dict[str, Traces]:
    """Reads the keys at ``weights`` and differentiates sum_s rate[s] * loss_s at each affine map's output.

    Works with and without an outer graph: inside ``no_grad`` the inner gradient is still taken.
    """
    outer = torch.is_grad_enabled()
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def record(name: str, x: Tensor) -> Tensor:
        if name in inputs:
            raise ValueError(f"{type(problem.model).__name__} applies its map {name!r} twice; give each use a map.")
        z = affine(weights[name], x)
        if not z.requires_grad:
            z = z.detach().requires_grad_()
        inputs[name], outputs[name] = x, z
        return z

    with torch.inference_mode(False), torch.enable_grad():
        norm = problem.norm
        if not outer:
            weights = detached(weights)
            tokens = Tokens(*(_cut(x) for x in tokens))
            norm = Norm(*(_cut(x) for x in norm))
        z = problem.model(tokens.k, record, problem.grid)
        if unused := sorted(set(weights) - set(inputs)):
            raise ValueError(f"{type(problem.model).__name__} never applies its maps {', '.join(unused)}.")
        last = problem.objective.gradient(z, tokens.k, tokens.v, norm) * tokens.rate
        if not outer:
            last = last.detach()
        gradients = torch.autograd.grad(z, list(outputs.values()), last, create_graph=outer)
    return {name: Traces(inputs[name], g) for name, g in zip(outputs, gradients, strict=True)}


def detached(weights: Weights) -> Weights:
    """The same weights, cut from the graph."""
    return {name: Map(_cut(map.weight), None if map.bias is None else _cut(map.bias)) for name, map in weights.items()}


def _cut(x: Tensor) -> Tensor:
    """``x`` cut from the graph; a copy where autograd may not touch it (inference mode)."""
    return x.clone() if x.is_inference() else x.detach()


def summed(weights: Weights, found: dict[str, Traces]) -> Weights:
    """sum_s grad_s of every map: X^T G and sum G."""
    return {
        name: Map(
            trace.inputs.mT @ trace.gradients,
            None if weights[name].bias is None else trace.gradients.sum(-2, keepdim=True),
        )
        for name, trace in found.items()
    }


def combine(function: Callable[[Tensor, Tensor], Tensor], a: Weights, b: Weights) -> Weights:
    """Applies ``function`` to each pair of tensors of two sets of weights."""
    return {
        name: Map(
            function(a[name].weight, b[name].weight),
            None if (bias := a[name].bias) is None else function(bias, b[name].bias),  # type: ignore[arg-type]
        )
        for name in a
    }


def descend(weights: Weights, gradient: Weights, scale: Tensor) -> Weights:
    """weights - scale * gradient."""
    return combine(lambda w, g: w - scale * g, weights, gradient)


def read_whole(problem: Problem, weights: Weights, q: Tensor) -> Tensor:
    """Every query at the same ``weights``."""
    z = problem.model(q, lambda name, x: affine(weights[name], x), problem.grid)
    return problem.objective.read(z, q, problem.norm)


def read_dual(
    problem: Problem,
    weights: Weights,
    pending: Weights | None,
    found: dict[str, Traces],
    q: Tensor,
    scale: Tensor,
    mask: Tensor,
) -> Tensor:
    """Query t at W_t, by the dual form; ``scale`` [K, 1], ``mask`` [K, K]."""
    steps = scale * mask

    def moved(name: str, x: Tensor) -> Tensor:
        trace = found[name]
        products = x @ trace.inputs.mT
        if weights[name].bias is not None:
            products = products + 1.0
        z = affine(weights[name], x) - (steps * products) @ trace.gradients
        return z if pending is None else z - scale * affine(pending[name], x)

    return problem.objective.read(problem.model(q, moved, problem.grid), q, problem.norm)


def read_primal(
    problem: Problem,
    weights: Weights,
    tokens: Tokens,
    scale: Tensor,
    mask: Tensor | None,
) -> tuple[Tensor, Weights]:
    """The definition, for tests and for reading: one gradient per token by autograd, one W_t per query.

    Returns the outputs [B, H, K, d] and W_K. Slow: K^2 inner gradients are formed, K copies of the weights.
    """
    size = tokens.q.shape[2]
    leaves = [x for map in weights.values() for x in map if x is not None]
    names = [(name, field) for name, map in weights.items() for field, x in enumerate(map) if x is not None]
    with torch.enable_grad():
        if any(not x.requires_grad for x in leaves):
            leaves = [x.detach().requires_grad_() for x in leaves]
        live = _assemble(names, leaves, weights)
        z = problem.model(tokens.k, lambda name, x: affine(live[name], x), problem.grid)
        losses = problem.objective.loss(z, tokens.k, tokens.v, problem.norm) * tokens.rate.squeeze(-1)
        grads = [torch.autograd.grad(losses[:, :, s].sum(), leaves, create_graph=True) for s in range(size)]
    outputs = []
    at = leaves
    for t in range(size):
        seen = [s for s in range(size) if mask is None or bool(mask[t, s])]
        at = [w - scale[t] * sum(grads[s][i] for s in seen) for i, w in enumerate(leaves)]
        outputs.append(read_whole(problem, _assemble(names, at, weights), tokens.q)[:, :, t])
    return torch.stack(outputs, dim=2), _assemble(names, at, weights)


def _assemble(names: Sequence[tuple[str, int]], leaves: Sequence[Tensor], like: Weights) -> Weights:
    fields: dict[str, list[Tensor | None]] = {name: [None, None] for name in like}
    for (name, field), x in zip(names, leaves, strict=True):
        fields[name][field] = x
    return {name: Map(pair[0], pair[1]) for name, pair in fields.items()}  # type: ignore[arg-type]


def scan(
    problem: Problem,
    weights: Weights,
    pending: Weights | None,
    tokens: Tokens,
    *,
    size: int,
    scale: Tensor,
    mask: Tensor | None,
    closes: Sequence[bool | Tensor],
    group: int = 0,
) -> tuple[Tensor, Weights, Weights | None]:
    """Reads tokens chunk by chunk.

    Args:
        weights: W at the start of the first chunk.
        pending: sum of rate * gradient of the tokens that the first chunk has already read, None if none.
        tokens: [B, H, T, d]; chunk c is tokens c*K ... (c+1)*K - 1, the last one may be shorter.
        size: chunk size K.
        scale: [K, 1], the step's scale at each position of a chunk.
        mask: bool [K, K], or None where all of a chunk may be read by all of it.
        closes: for every chunk, whether its last token has been read: a bool, or bool [B, 1, 1, 1] by row. A
            chunk that is not closed leaves W where it was and its gradients in ``pending``.
        group: chunks per activation checkpoint, 0 for none.

    Returns:
        outputs [B, H, T, d], weights at the start of the open chunk, and what is pending in it (None: nothing).
    """

    def some(first: int, last: int, weights: Weights, pending: Weights | None):
        outputs = []
        for c in range(first, last):
            part = tokens.narrow(c * size, min(size, tokens.q.shape[2] - c * size))
            out, weights, pending = _chunk(problem, weights, pending, part, scale, mask, closes[c])
            outputs.append(out)
        return torch.cat(outputs, dim=2), weights, pending

    count = len(closes)
    group = group or count
    outputs = []
    for first in range(0, count, group):
        last = min(first + group, count)
        if group < count and torch.is_grad_enabled():
            out, weights, pending = checkpoint(some, first, last, weights, pending, use_reentrant=False)  # type: ignore[misc]
        else:
            out, weights, pending = some(first, last, weights, pending)
        outputs.append(out)
    return torch.cat(outputs, dim=2), weights, pending


def _chunk(
    problem: Problem,
    weights: Weights,
    pending: Weights | None,
    tokens: Tokens,
    scale: Tensor,
    mask: Tensor | None,
    closes: bool | Tensor,
) -> tuple[Tensor, Weights, Weights | None]:
    """One chunk: outputs, and the weights and pending gradients after it."""
    size = tokens.q.shape[2]
    found = traces(problem, weights, tokens)
    total = summed(weights, found)
    if pending is not None:
        total = combine(torch.add, pending, total)
    if mask is None:
        moved = descend(weights, total, scale[-1])
        out = read_whole(problem, moved, tokens.q)
    else:
        out = read_dual(problem, weights, pending, found, tokens.q, scale[:size], mask[:size, :size])
        if closes is False:
            return out, weights, total
        moved = descend(weights, total, scale[-1])
    if isinstance(closes, bool):
        return out, moved, None
    return (
        out,
        combine(lambda new, old: torch.where(closes, new, old), moved, weights),
        combine(lambda new, _: torch.where(closes, torch.zeros_like(new), new), total, total),
    )
