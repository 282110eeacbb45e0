"""All inner-gradient mathematics: the definition, and the dual form of one chunk. ``scan`` strings chunks together.

Mini-batch gradient descent (paper, section 2.4): every gradient of a chunk is taken at the weights W of the
chunk's start; with e[t, s] = scale[t] * mask[t, s] and G_s the gradient of sum_s rate[s] * loss_s,

    W_t = W - sum_s e[t, s] grad_s          out_t = read(g(q_t; W_t))          W <- W_K at the chunk's end.

The dual form (section 2.5) never forms W_t. For an affine map z = x A + b inside g, with x_s its inputs and
G_s the gradient at its outputs on the keys,

    z_t(q) = x_t A + b - sum_s e[t, s] (x_t . x_s + 1) G_s

map by map through g. It is a property of the affine map, not of the inner model, so it stands here once.
The rate is inside the loss: where g mixes tokens, a rate multiplied on afterwards would be wrong.

Where a whole chunk reads a whole chunk (no mask) the update comes first, and may be any inner optimizer's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .affine import Pass, affine, dual, moved
from .inner.base import InnerModel
from .objective import Norm, Objective
from .optimizer import InnerOptimizer, Moments
from .saved import at_hand
from .weights import Map, Weights, by_row, combine, cut, detached
from .weights import affine as affine_by_definition


class Problem(NamedTuple):
    """What stays the same over all chunks of a call: the inner model, loss and optimizer; W_0, to which a
    forget gate leads back; and the share of their rate that the warm-up allows."""

    model: InnerModel
    objective: Objective
    optimizer: InnerOptimizer
    norm: Norm
    start: Weights
    grid: tuple[int, int]
    warmup: float = 1.0


class Tokens(NamedTuple):
    """The views of a chunk's K tokens; V is the number of training pairs (k, v) that a token gives.

    Attributes:
        q: [B, H, P + K, d]: queries, after those of the P tokens before that the inner model looks back on.
        k: [B, H, V * K, d] (P + K for K where P is not 0; V is 1 then).
        v: [B, H, V * K, d].
        rate: inner learning rates [B, H, V * K, 1], 0 for padding.
        fade: logarithm of what is kept of the old weights, [B, H, K, 1], 0 for padding; none: no forget gate.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    rate: Tensor
    fade: Tensor | None = None

    @property
    def size(self) -> int:
        """K."""
        return self.q.shape[2] - max(0, self.k.shape[2] - self.v.shape[2])


class Steps(NamedTuple):
    """Sizes of the steps of a chunk, and who sees whom.

    Attributes:
        scale: of the step that each token's weights have taken, [K, 1].
        last: of the whole chunk's, [1].
        mask: [K, K]; None where the whole chunk is seen by all of it.
        seen: e, [K, V * K]; None likewise.
    """

    scale: Tensor
    last: Tensor
    mask: Tensor | None
    seen: Tensor | None

    @staticmethod
    def of(scale: Tensor, mask: Tensor | None, views: int) -> Steps:
        seen = None if mask is None else (scale * mask).repeat(1, views)
        return Steps(scale, scale[-1], None if mask is None else mask.to(scale.dtype), seen)

    def part(self, start: int, size: int) -> Steps:
        """The same for ``size`` tokens of a chunk from token ``start`` on."""
        if size == len(self.scale) or self.mask is None or self.seen is None:
            return self
        own = slice(start, start + size)
        rows = self.seen[own].unflatten(1, (-1, len(self.scale)))
        return Steps(self.scale[own], self.last, self.mask[own, own], rows[:, :, own].flatten(1))


class Traces(NamedTuple):
    """Inputs x_s [B, H, S, inputs] and output gradients G_s [B, H, S, outputs] of one affine map."""

    inputs: Tensor
    gradients: Tensor


def traces(problem: Problem, weights: Weights, tokens: Tokens) -> dict[str, Traces]:
    """Reads the keys at ``weights`` and differentiates sum_s rate[s] * loss_s at each affine map's output.

    Works with and without an outer graph: under ``no_grad``, and where nothing asks for an outer gradient, the inner
    one is still taken.

    Raises:
        ValueError: if the inner model does not apply each of its maps exactly once.
    """
    norm, (_, k, v, rate, _) = problem.norm, tokens
    sources = (k, v, rate, *norm, *(x for map in weights.values() for x in map if x is not None))
    outer = torch.is_grad_enabled() and any(x.requires_grad for x in sources)
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    model = type(problem.model).__name__
    within = Pass()

    def record(name: str, x: Tensor) -> Tensor:
        if name in inputs:
            raise ValueError(f"{model} applies its map {name!r} twice; give each use a map.")
        z = affine(weights[name], x, within)
        if not z.requires_grad:
            z = z.detach().requires_grad_()
        inputs[name], outputs[name] = x, z
        return z

    def last(z: Tensor) -> Tensor:
        if unused := sorted(set(weights) - set(inputs)):
            raise ValueError(f"{model} never applies its maps {', '.join(unused)}.")
        return problem.objective.gradient(z, _last(k, v.shape[2]), v, norm) * rate

    if torch.compiler.is_compiling():
        return _traces_by_vjp(problem, weights, k, inputs, last)
    with torch.inference_mode(False), torch.enable_grad(), at_hand():
        if not outer:
            weights, norm = detached(weights), Norm(*(cut(x) for x in norm))
            k, v, rate = cut(k), cut(v), cut(rate)
        z = problem.model(k, record, problem.grid)
        start = last(z) if outer else last(z).detach()
        within.inner = True
        gradients = torch.autograd.grad(z, list(outputs.values()), start, create_graph=outer)
        within.inner = False
    return {
        name: Traces(inputs[name] if outer else inputs[name].detach(), g)
        for name, g in zip(outputs, gradients, strict=True)
    }


def _traces_by_vjp(
    problem: Problem, weights: Weights, k: Tensor, inputs: dict[str, Tensor], last: Callable[[Tensor], Tensor]
) -> dict[str, Traces]:
    """``traces`` in terms that torch.compile follows: the derivative to a zero that is added to each map's output."""

    def record(name: str, x: Tensor) -> Tensor:
        inputs[name] = x
        return affine(weights[name], x)

    with torch.no_grad():
        problem.model(k, record, problem.grid)  # only to learn the shapes; what is not used is not compiled
    zeros = {name: torch.zeros_like(affine(weights[name], x)) for name, x in inputs.items()}

    def shifted(zeros: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        found: dict[str, Tensor] = {}

        def record(name: str, x: Tensor) -> Tensor:
            found[name] = x
            return affine(weights[name], x) + zeros[name]

        return problem.model(k, record, problem.grid), found

    z, pull, found = torch.func.vjp(shifted, zeros, has_aux=True)  # type: ignore[misc]
    (gradients,) = pull(last(z))
    return {name: Traces(found[name], gradients[name]) for name in found}


def summed(weights: Weights, found: dict[str, Traces]) -> Weights:
    """sum_s grad_s of every map: X^T G and sum G."""
    return {
        name: Map(
            trace.inputs.mT @ trace.gradients,
            None if weights[name].bias is None else trace.gradients.sum(-2, keepdim=True),
        )
        for name, trace in found.items()
    }


def descend(weights: Weights, found: dict[str, Traces], scale: Tensor) -> Weights:
    """weights - scale * sum_s grad_s."""
    return {name: moved(weights[name], *trace, scale) for name, trace in found.items()}


def read_whole(problem: Problem, weights: Weights, q: Tensor, size: int) -> Tensor:
    """The last ``size`` queries, all at the same ``weights``: [B, H, size, d]."""
    return problem.objective.read(apply_whole(problem, weights, q), _last(q, size), problem.norm)


def apply_whole(problem: Problem, weights: Weights, q: Tensor) -> Tensor:
    """g(q; W)."""
    return problem.model(q, lambda name, x: affine(weights[name], x), problem.grid)


def apply_dual(
    problem: Problem,
    fast: Weights,
    pending: Weights | None,
    found: dict[str, Traces],
    tokens: Tokens,
    steps: Steps,
    fading: Tensor,
) -> Tensor:
    """g(q_t; W_t) by the dual form, ``fast`` being W. ``pending`` gradients and the sum of gates ``fading``, of tokens
    that the chunk has read before, are seen by all.

    With a forget gate W_t begins at W_0 + kept[t] (W - W_0), kept[t] the product of the gates that token t sees.
    """
    seen, mask = steps.seen, steps.mask
    assert seen is not None
    assert mask is not None
    lost = None if tokens.fade is None else torch.expm1(fading + mask @ tokens.fade)  # kept - 1

    def ahead(name: str, x: Tensor) -> Tensor:
        if x.shape[-2] != seen.shape[0] or found[name].inputs.shape[-2] != seen.shape[1]:
            raise ValueError(
                f"{type(problem.model).__name__} gives its map {name!r} {x.shape[-2]} rows for {seen.shape[0]} tokens; "
                "a map's rows are the chunk's tokens, in their order; only chunks that are read as a whole "
                "(FrameCausal(1), Whole) take others."
            )
        z = dual(fast[name], x, *found[name], seen)
        if lost is not None:
            learned = affine(fast[name], x) - affine(problem.start[name], x)
            z = z + (lost if x.dim() == lost.dim() else lost[:, :, None]) * learned  # a grouped map has an axis more
        return z if pending is None else z - steps.scale * affine(pending[name], x)

    return problem.model(tokens.q, ahead, problem.grid)


def update_whole(
    problem: Problem, weights: Weights, moments: Moments, tokens: Tokens, scale: Tensor
) -> tuple[Weights, Moments]:
    """The inner optimizer's steps on a whole chunk, of size ``scale`` [1]: the weights and moments after it.

    A forget gate leads the old weights back towards W_0; gradients are taken before it does.
    """
    for step in range(problem.optimizer.steps):
        found = traces(problem, weights, tokens)
        gradient = None if problem.optimizer.linear else combine(lambda g: scale * g, summed(weights, found))
        if step == 0 and tokens.fade is not None:
            weights = faded(problem, weights, tokens.fade.sum(2, keepdim=True))
        if gradient is None:
            return descend(weights, found, scale), moments
        weights, moments = problem.optimizer.step(weights, gradient, moments, problem.start, problem.warmup)
    return weights, moments


def faded(problem: Problem, weights: Weights, fade: Tensor) -> Weights:
    """W_0 + exp(fade) (W - W_0), ``fade`` [B, H, 1, 1]."""
    kept = fade.exp()
    return combine(lambda w, start: torch.lerp(start.expand_as(w), w, by_row(kept, w)), weights, problem.start)


def read_primal(
    problem: Problem,
    weights: Weights,
    tokens: Tokens,
    scale: Tensor,
    mask: Tensor | None,
) -> tuple[Tensor, Weights]:
    """The definition, for tests and for reading: one gradient per token by autograd, one W_t per query.

    ``scale`` [K, 1], ``mask`` bool [K, K] or None as in ``scan``. Returns the outputs [B, H, K, d] and W_K. Slow: V * K
    inner gradients are formed, and K copies of the weights, at each of which all queries are read.
    """
    size = tokens.size
    leaves = [x for map in weights.values() for x in map if x is not None]
    names = [(name, field) for name, map in weights.items() for field, x in enumerate(map) if x is not None]
    with torch.enable_grad():
        if any(not x.requires_grad for x in leaves):
            leaves = [x.detach().requires_grad_() for x in leaves]
        live = _assemble(names, leaves, weights)
        z = problem.model(tokens.k, lambda name, x: affine_by_definition(live[name], x), problem.grid)
        k = _last(tokens.k, tokens.v.shape[2])
        losses = problem.objective.loss(z, k, tokens.v, problem.norm) * tokens.rate.squeeze(-1)
        count = losses.shape[2]
        grads = [torch.autograd.grad(losses[:, :, s].sum(), leaves, create_graph=True) for s in range(count)]
    outputs = []
    at = leaves
    first = [x for map in problem.start.values() for x in map if x is not None]
    for t in range(size):
        seen = [s for s in range(count) if mask is None or bool(mask[t, s % size])]
        start = leaves
        if tokens.fade is not None:
            own = range(size) if mask is None else [s for s in range(size) if bool(mask[t, s])]
            kept = torch.exp(sum(tokens.fade[:, :, s] for s in own))[..., None]  # type: ignore[call-overload]
            start = [w0 + by_row(kept, w) * (w - w0) for w, w0 in zip(leaves, first, strict=True)]
        at = [w - scale[t] * sum(grads[s][i] for s in seen) for i, w in enumerate(start)]
        outputs.append(read_whole(problem, _assemble(names, at, weights), tokens.q, size)[:, :, t])
    return torch.stack(outputs, dim=2), _assemble(names, at, weights)


def _assemble(names: Sequence[tuple[str, int]], leaves: Sequence[Tensor], like: Weights) -> Weights:
    fields: dict[str, list[Tensor | None]] = {name: [None, None] for name in like}
    for (name, field), x in zip(names, leaves, strict=True):
        fields[name][field] = x
    return {name: Map(pair[0], pair[1]) for name, pair in fields.items()}  # type: ignore[arg-type]


def _last(x: Tensor, size: int) -> Tensor:
    """The last ``size`` tokens: without those that are only looked back on."""
    return x if x.shape[2] == size else x[:, :, x.shape[2] - size :]
