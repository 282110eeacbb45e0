"""Random problems for the kernels, and the eager scan on them."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tttvideo.ttt import SGD, FrameCausal, ResidualL2, TokenCausal
from tttvideo.ttt.derivatives import EPS
from tttvideo.ttt.inner_gradient import InnerLoop
from tttvideo.ttt.interface import merge_heads
from tttvideo.ttt.kernels import read
from tttvideo.ttt.objective import Norm, Objective
from tttvideo.ttt.primitives import rotate
from tttvideo.ttt.ragged import Slots, closing
from tttvideo.ttt.scan import scan
from tttvideo.ttt.state import Map, Moments, TTTState, Weights, where, zeros_like
from tttvideo.ttt.tokens import Tokens


class Case(NamedTuple):
    """Arguments of a kernel, as leaves that ask for gradients, and what decides the shapes."""

    model: object
    chunk: TokenCausal | FrameCausal
    grid: tuple[int, int]
    objective: Objective
    optimizer: SGD
    tensors: dict[str, Tensor]
    weights: Weights
    pending: Weights
    position: Tensor
    lengths: Tensor

    @property
    def frame(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def leaves(self) -> dict[str, Tensor]:
        unused = {"scale"} if self.chunk.whole else set()
        unused |= set() if self.objective.uses_norm else {"gamma", "beta"}
        named = {name: x for name, x in self.tensors.items() if name not in unused}
        for kind, weights in (("W_0", self.weights), ("pending", self.pending)):
            for name, map in weights.items():
                named |= {f"{kind} {name}.{part}": x for part, x in zip(map._fields, map) if x is not None}
        return named


def case(
    model,
    chunk,
    *,
    dim=16,
    heads=2,
    lengths=(37,),
    position=None,
    frame=1,
    objective=None,
    optimizer=None,
    seed=0,
    dtype=torch.float64,
    device="cpu",
) -> Case:
    """``lengths`` and ``position`` of the rows; ``frame``: its grid, or the tokens of one row of it. Every tensor is
    random and asks for its gradient."""
    objective, optimizer = objective or ResidualL2(), optimizer or SGD()
    grid = frame if isinstance(frame, tuple) else (1, frame)
    frame = grid[0] * grid[1]
    rng = torch.Generator().manual_seed(seed)
    batch, tokens = len(lengths), max(lengths)
    read = torch.zeros(batch, dtype=torch.int64) if position is None else torch.tensor(position)
    kept = torch.float64 if dtype == torch.float64 else torch.float32

    def leaf(*shape, std=1.0, about=0.0, dtype=kept):
        x = about + std * torch.randn(*shape, generator=rng, dtype=torch.float64)
        return x.to(device, dtype).requires_grad_()

    def fast(std):
        return {
            name: type(one)(
                leaf(batch, heads, *one.weight.shape[1:], std=std),
                None if one.bias is None else leaf(batch, heads, *one.bias.shape[1:], std=std),
            )
            for name, one in shapes.items()
        }

    shapes = {name: Map(*pair) for name, pair in model.init(dim, heads).items()}
    tensors = {name: leaf(batch, heads, tokens, dim, dtype=dtype) for name in "qkv"}
    size = chunk.size(frame)
    tensors |= {
        "rate": (0.3 * torch.rand(batch, heads, tokens, generator=rng, dtype=torch.float64))
        .to(device, kept)
        .requires_grad_(),
        "scale": leaf(size, std=0.05, about=0.3)
        if isinstance(chunk, TokenCausal)
        else leaf(1, std=0.0, about=1 / frame),
        "gamma": leaf(heads, 1, dim, std=0.2, about=1.0),
        "beta": leaf(heads, 1, dim, std=0.2),
    }
    return Case(model, chunk, grid, objective, optimizer, tensors, fast(0.3), fast(0.1), read, torch.tensor(lengths))


def eager(one: Case) -> tuple[Tensor, Weights, Weights]:
    """The scan: outputs (zero in padding), weights and pending gradients after."""
    x = one.tensors
    size = one.chunk.size(one.frame)
    device = x["q"].device
    norm = Norm(x["gamma"], x["beta"])
    optimizer = None if one.optimizer.linear else one.optimizer
    loop = InnerLoop(one.model, one.objective, optimizer, norm, one.weights, one.grid)
    ends = one.position + one.lengths
    tokens = Tokens(x["q"], x["k"][:, :, None], x["v"][:, :, None], x["rate"][:, :, None, :, None])
    open_ = (one.position > 0).to(device)[:, None, None, None]  # a chunk that has read nothing has no gradients
    pending = None if one.chunk.whole else where(open_, one.pending, zeros_like(one.pending))
    nothing = x["q"].new_zeros(*x["q"].shape[:2], 1, 1)
    slots = Slots(one.position, ends, size, device)
    out, after = scan(
        loop,
        TTTState(one.weights, pending, nothing, Moments((), nothing[:, :0]), one.position, {}),
        slots.gather(tokens),
        size=size,
        scale=x["scale"].expand(size)[:, None],
        mask=one.chunk.mask(one.frame, size, device),
        closes=closing(ends, size, one.chunk.whole, device),
    )
    out = slots.scatter(out, x["q"].shape[2])
    valid = (torch.arange(out.shape[2]) < one.lengths[:, None]).to(device)[:, None, :, None]
    pending = zeros_like(one.weights) if after.pending is None else after.pending
    return torch.where(valid, out, 0.0), after.weights, pending


def fused(one: Case, mode: str = "ieee") -> tuple[Tensor, Weights, Weights]:
    """The same by the kernels."""
    x = one.tensors
    tokens = Tokens(x["q"], x["k"][:, :, None], x["v"][:, :, None], x["rate"][:, :, None, :, None])
    norm, grid = Norm(x["gamma"], x["beta"]), one.grid if one.chunk.whole else None
    state = (one.weights, one.pending, one.position, one.lengths)
    return read(one.model, one.optimizer, tokens, norm, x["scale"], *state, grid, mode)


def gradients(run, one: Case, seed: int = 1) -> dict[str, Tensor]:
    """Everything that ``run`` puts out, and the gradients of a random sum of it at every leaf, by name."""
    out, weights, pending = run(one)
    outputs = {"out": out}
    for kind, fast in (("W", weights), ("opened", pending)):
        for name, map in fast.items():
            outputs |= {f"{kind} {name}.{part}": x for part, x in zip(map._fields, map) if x is not None}
    rng = torch.Generator().manual_seed(seed)
    # rounded, so that they are the same numbers in every dtype
    sums = {name: torch.randn(x.shape, generator=rng, dtype=torch.float64).bfloat16() for name, x in outputs.items()}
    total = sum((x * sums[name].to(x)).sum() for name, x in outputs.items())
    leaves = one.leaves
    grads = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    outputs |= {
        f"gradient at {name}": torch.zeros_like(leaf) if g is None else g
        for (name, leaf), g in zip(leaves.items(), grads, strict=True)
    }
    return {name: x.detach() for name, x in outputs.items()}


def plain_heads(x: Tensor, positions: Tensor | None, heads: int, silu: bool = False, unit: bool = False) -> Tensor:
    """``kernels.split`` by PyTorch's operations."""
    y = x.unflatten(-1, (heads, -1)).transpose(1, 2)
    y = F.silu(y) if silu else y
    y = F.normalize(y, dim=-1) if unit else y
    return y if positions is None else rotate(positions, 1e4, y)[0]


def plain_output(heads: Tensor, weight: Tensor, bias: Tensor, gate: Tensor | None) -> Tensor:
    """``kernels.norm_and_gate`` likewise."""
    y = F.layer_norm(merge_heads(heads), weight.shape, weight, bias, EPS)
    return y if gate is None else y * F.gelu(gate, approximate="tanh")


def worst(computed: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, str]:
    """The largest error relative to the largest entry of its tensor, and whose it is."""
    assert computed.keys() == expected.keys()
    errors = {}
    for name, x in expected.items():
        error = (computed[name].double() - x.double()).abs().max() / x.double().abs().max().clamp_min(1e-3)
        errors[name] = float("inf") if error.isnan() else float(error)
    name = max(errors, key=lambda n: errors[n])
    return errors[name], name
