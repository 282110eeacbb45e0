"""Inner gradients of a model without a ``backward`` of its own: autograd finds them, next to checkpoints too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .derivatives import Pass, affine, applied_twice, transformed
from .inner_gradient import InnerLoop, Trace, never_applied
from .objective import Norm
from .state import Weights, combine


def traces_by_autograd(
    loop: InnerLoop, weights: Weights, k: Tensor, own: Tensor, v: Tensor, rate: Tensor
) -> dict[str, Trace]:
    """See ``inner_gradient.traces``; ``own`` are the keys ``k`` without those that are only looked back on."""
    if transformed():
        return _traces_by_vjp(loop, weights, k, lambda z: rate * loop.objective.gradient(z, own, v, loop.norm))
    sources = (k, v, rate, *loop.norm, *(x for map in weights.values() for x in map))
    outer = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in sources)
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    within = Pass()

    def record(name: str, x: Tensor) -> Tensor:
        if name in inputs:
            raise applied_twice(loop.model, name)
        z = affine(weights[name], x, within)
        if not z.requires_grad:
            z = z.detach().requires_grad_()
        inputs[name], outputs[name] = x, z
        return z

    with torch.inference_mode(False), torch.enable_grad(), at_hand():
        if not outer:
            weights, norm = combine(_cut, weights), Norm(*(_cut(x) for x in loop.norm))
            k, own, v, rate = (_cut(x) for x in (k, own, v, rate))
            loop = loop._replace(norm=norm)
        z = loop.model(k, record, loop.grid)
        if inputs.keys() != weights.keys():
            raise never_applied(loop.model, weights.keys() - inputs.keys())
        slope = rate * loop.objective.gradient(z, own, v, loop.norm)
        within.inner = True
        gradients = torch.autograd.grad(
            z, list(outputs.values()), slope if outer else slope.detach(), create_graph=outer
        )
        within.inner = False
    return {
        name: Trace(inputs[name] if outer else inputs[name].detach(), gradient)
        for name, gradient in zip(outputs, gradients, strict=True)
    }


def _traces_by_vjp(loop: InnerLoop, weights: Weights, k: Tensor, slope: Callable[[Tensor], Tensor]) -> dict[str, Trace]:
    """The same in terms that torch.compile and torch.func follow: the derivative to a zero that is added to each map's
    output. ``slope``: the gradient at the model's output."""
    outputs = {}

    def record(name: str, x: Tensor) -> Tensor:
        outputs[name] = affine(weights[name], x)
        return outputs[name]

    with torch.no_grad():
        loop.model(k, record, loop.grid)  # only to learn the shapes; what is not used is not compiled
    zeros = {name: torch.zeros_like(z) for name, z in outputs.items()}

    def shifted(zeros: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        inputs: dict[str, Tensor] = {}

        def record(name: str, x: Tensor) -> Tensor:
            inputs[name] = x
            return affine(weights[name], x) + zeros[name]

        return loop.model(k, record, loop.grid), inputs

    z, pull, inputs = torch.func.vjp(shifted, zeros, has_aux=True)  # type: ignore[misc]
    (gradients,) = pull(slope(z))
    return {name: Trace(x, gradients[name]) for name, x in inputs.items()}


def _cut(x: Tensor) -> Tensor:
    """``x`` cut from the graph; a copy where autograd may not touch it (inference mode)."""
    return x.clone() if x.is_inference() else x.detach()


@contextmanager
def at_hand() -> Iterator[None]:
    """Keeps tensors saved for backward alive, so that an inner ``autograd.grad`` does not trigger recomputation.

    A gradient taken inside a checkpointed function asks for tensors that the checkpoint has already thrown away, and
    the whole function is computed again for it: for every chunk of a group all chunks before it, which took up to
    twenty times as long as without checkpoints, and more memory. Inside this block tensors are handed to the hooks
    in force, as ever, but also kept until its end.
    """
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)  # type: ignore[attr-defined]
    if hooks is None:
        yield
        return
    pack, unpack = hooks
    kept: list[_Saved] = []

    def keep(x: Tensor) -> _Saved:
        kept.append(_Saved(x, pack(x), unpack))
        return kept[-1]

    with torch.autograd.graph.saved_tensors_hooks(keep, _Saved.tensor):
        yield
    for saved in kept:
        saved.x = None


class _Saved:
    """A tensor, while it is at hand, and what the hooks in force made of it."""

    def __init__(self, x: Tensor, packed: Any, unpack: Callable[[Any], Tensor]):
        self.x: Tensor | None = x
        self.packed, self.unpack = packed, unpack

    def tensor(self) -> Tensor:
        return self.unpack(self.packed) if self.x is None else self.x
