"""TTT layers on equal work: the dual against the primal form, our scan against a plain one, products of matrices."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import Run, counted_flops, in_turn, only_forward, products, ratio, step
from benchmarks.plain_scan import PlainTTTMLP
from benchmarks.primal import PrimalTTT
from tttvideo.ttt import L2, TTT, Layout, Learning, Linear, TokenCausal, Whole
from tttvideo.ttt.layer import TTTLayer
from tttvideo.ttt.scan import scan
from tttvideo.ttt.tokens import Tokens

HEADS = 2


def comparisons(rounds: int, device: torch.device) -> tuple[dict[str, Any], dict[str, Any]]:
    """The dual against the primal form, our scan against the plain one, the delta rule against its loop, and TTT-MLP
    against matrix products."""
    dual = [dual_over_primal(size, dim, rounds, device) for size in (16, 64) for dim in (32, 64)]
    plain = [over_plain_scan(batch, heads, rounds, device) for batch, heads in ((1, HEADS), (1, 8), (4, 8))]
    delta = [delta_over_loop(size, rounds, device) for size in (1, 2, 4, 8)]
    floor = [
        floor_of_mlp(size, batch, heads, rounds, device) for size in (16, 64) for batch, heads in ((16, HEADS), (4, 8))
    ]
    at = next(row for row in floor if (row["chunk"], row["heads"]) == (64, HEADS))
    summary = {
        "dual_over_primal_k16_d64": next(r["train"] for r in dual if (r["chunk"], r["head_dim"]) == (16, 64)),
        "over_plain_scan_k16_d64": plain[0]["train"],
        "over_plain_scan_k16_d64_scan_alone": plain[0]["train_scan_alone"],
        "fraction_of_matmul_rate_mlp_k64_d64": at["fraction_of_matmul_rate"],
        "matmul_gflops": at["matmul_gflops"],
    }
    return summary, {"dual_over_primal": dual, "over_plain_scan": plain, "delta_over_loop": delta, "floor": floor}


def dual_over_primal(size: int, dim: int, rounds: int, device: torch.device) -> dict[str, Any]:
    """Time of the primal form over that of ours, T = 1,024, B = 1, H = 2."""
    layer = TTT(heads=HEADS, chunk=TokenCausal(size)).build(HEADS * dim).to(device)
    primal = PrimalTTT(layer)
    x = torch.randn(1, 1024, HEADS * dim, device=device)
    check(layer, primal, x)
    train = in_turn({"ours": step(layer, x), "primal": step(primal, x)}, rounds, device)
    forward = in_turn({"ours": only_forward(layer, x), "primal": only_forward(primal, x)}, rounds, device)
    return {
        "chunk": size,
        "head_dim": dim,
        "train": ratio(train["primal"], train["ours"]),
        "forward": ratio(forward["primal"], forward["ours"]),
    }


def delta_over_loop(size: int, rounds: int, device: torch.device) -> dict[str, Any]:
    """Time of the delta rule chunk after chunk over that of many chunks at a time: T = 1,024, d = 64, B = 8, H = 1."""
    config = TTT(
        inner=Linear(bias=False),
        heads=1,
        chunk=Whole(size),  # of frames that have one token each
        objective=L2(),
        base_rate=1 / size,
        normalize_qk=True,
        silu=True,
        learning=Learning(rate_scale=None, start="zero"),
    )
    layer = config.build(64).to(device)
    loop = copy.copy(layer)  # of the same parameters
    loop.delta = False
    x = torch.randn(8, 1024, 64, device=device)
    check(layer, lambda x: loop(x)[0], x[:2, :256])
    times = in_turn({"ours": step(layer, x), "loop": step(loop, x)}, rounds, device)
    return {"chunk": size, "train": ratio(times["loop"], times["ours"])}


def over_plain_scan(batch: int, heads: int, rounds: int, device: torch.device) -> dict[str, Any]:
    """Time of the authors' eager scan restated over that of ours: K = 16, d = 64, T = 1,024."""
    layer = TTT(heads=heads, chunk=TokenCausal(16)).build(64 * heads).to(device)
    plain = PlainTTTMLP(layer)
    x = torch.randn(batch, 1024, 64 * heads, device=device)
    check(layer, plain, x)
    runs = {"ours": step(layer, x), "plain": step(plain, x)}
    forward = {"ours": only_forward(layer, x), "plain": only_forward(plain, x)}
    alone = scans(layer, plain, x)
    train, forward, alone = (in_turn(r, rounds, device) for r in (runs, forward, alone))
    return {
        "batch": batch,
        "heads": heads,
        "train": ratio(train["plain"], train["ours"]),
        "forward": ratio(forward["plain"], forward["ours"]),
        "train_scan_alone": ratio(alone["plain"], alone["ours"]),
        "seconds_ours": statistics.median(train["ours"]),
        "seconds_plain": statistics.median(train["plain"]),
    }


def scans(layer: TTTLayer, plain: PlainTTTMLP, x: Tensor) -> dict[str, Run]:
    """Training steps of the two scans without projections and output."""
    layout = Layout()
    with torch.no_grad():
        tokens, _ = layer._tokens(x, {}, 0, layout)
        eta = plain.step_sizes(x)
    tokens = Tokens(*(None if t is None else t.requires_grad_() for t in tokens))
    mine = [plain.mini_batches(t.detach().squeeze(2) if t.dim() == 5 else t.detach()) for t in tokens[:3]]
    mine = [t.contiguous().requires_grad_() for t in (*mine, eta)]

    def ours() -> None:
        state, settings = layer.init_state(x.shape[0]), layer._chunks(tokens, layout)
        scan(layer._loop(tokens, layout), state._replace(pending=None), tokens, **settings)[0].sum().backward()

    return {"ours": ours, "plain": lambda: plain.scan(*mine).sum().backward()}


def floor_of_mlp(size: int, batch: int, heads: int, rounds: int, device: torch.device) -> dict[str, Any]:
    """The share of the rate of [B*H, 64, 64] x [B*H, 64, 256] products that a training step of TTT-MLP reaches."""
    layer = TTT(heads=heads, chunk=TokenCausal(size)).build(64 * heads).to(device)
    x = torch.randn(batch, 1024, 64 * heads, device=device)
    bmm, bmm_flops = products(batch * heads, device)
    times = in_turn({"bmm": bmm, "step": step(layer, x)}, rounds, device)
    counted, least = counted_flops(step(layer, x)), minimal_flops(layer, batch * 1024)
    share = [b / s / bmm_flops for b, s in zip(times["bmm"], times["step"], strict=True)]
    return {
        "chunk": size,
        "batch": batch,
        "heads": heads,
        "flops_counted": counted,
        "flops_minimal": least,
        "fraction_of_matmul_rate": statistics.median(share) * counted,
        "fraction_of_matmul_rate_minimal": statistics.median(share) * least,
        "matmul_gflops": bmm_flops / statistics.median(times["bmm"]) / 1e9,
    }


def minimal_flops(layer: TTTLayer, tokens: int) -> float:
    """Of a training step of a token-causal layer: what the formulas ask for, every product done once.

    Per token and map of m inputs and n outputs: read with key and query, differentiate to its input (not the first
    map), add to the weights; between the chunk's K tokens x X^T and (..) G. Backward: two products for each.
    """
    config, dim = layer.config, layer.o_proj.weight.shape[0]
    size = config.chunk.size(1) or 1
    shapes = list(config.inner.maps(dim // config.heads).values())
    inner = sum((4 - (i == 0)) * s.inputs * s.outputs + size * (s.inputs + s.outputs) for i, s in enumerate(shapes))
    return 3.0 * 2.0 * tokens * (config.heads * inner + 4 * dim * dim)


def check(layer: TTTLayer, other: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Raises AssertionError unless outputs and all gradients are the same, to 1e-7 of the largest, in float64."""
    results = []
    layer.double()
    for run in (lambda x: layer(x)[0], other):
        leaf = x.double().requires_grad_()
        y = run(leaf)
        results.append([y, *torch.autograd.grad(y.square().mean(), [leaf, *layer.parameters()])])
    for a, b in zip(*results, strict=True):
        assert (a - b).abs().max() <= 1e-7 * a.abs().max()
    layer.float()
