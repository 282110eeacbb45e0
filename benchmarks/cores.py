"""Sequence operators alone, without the layer's projections, norms and gates around them: what kernels cost by
themselves. q, k and v [B, H, T, d] are made once for a size of x, whose values do not matter."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.ttt.kernels.cases import Case, eager, fused
from tttvideo.ttt import MLP, SGD, Linear, ResidualL2, TokenCausal
from tttvideo.ttt.kernels import mode_of
from tttvideo.ttt.kernels.choice import not_interpreted
from tttvideo.ttt.state import Map, zeros_like

if TYPE_CHECKING:
    from benchmarks.gpu_layers import Shape

Operator = Callable[["Core"], Tensor]


class Core(nn.Module):
    """``operator`` on tokens of the size of x [B, T, C]."""

    def __init__(self, shape: Shape, operator: Operator, dtype: torch.dtype):
        super().__init__()
        self.shape, self.operator, self.dtype = shape, operator, dtype
        self.q = self.k = self.v = self.rate = nn.Parameter(torch.empty(0))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        heads = self.shape.heads
        size = (batch, heads, tokens, dim // heads)
        if self.q.shape != size:
            self.q, self.k, self.v = (nn.Parameter(torch.randn(size, device=x.device, dtype=self.dtype)) for _ in "qkv")
            self.rate = nn.Parameter(0.01 * torch.rand(size[:3], device=x.device))
        with torch.autocast(x.device.type, enabled=False):
            return self.operator(self)


def ours(inner: Any, exact: bool) -> Operator:
    """Our kernels, by the call that layers make; ``exact``: in the mode nearest to float32. On a CPU whose Triton
    cannot interpret them the eager scan stands in."""
    cases: dict[tuple[int, ...], Case] = {}

    def run(core: Core) -> Tensor:
        size = tuple(core.q.shape)
        if size not in cases:
            cases.clear()
            cases[size] = _case(core, inner)
        if core.q.device.type == "cpu" and not_interpreted():
            return eager(cases[size])[0]
        return fused(cases[size], "tf32x3" if exact else mode_of(torch.bfloat16))[0]

    return run


def _case(core: Core, inner: Any) -> Case:
    """The layer's own start: its W_0, steps of the paper."""
    chunk, (batch, heads, tokens, dim), device = core.shape.chunk, core.q.shape, core.q.device
    weights = {
        name: Map(*(None if x is None else x.detach().to(device).expand(batch, *x.shape) for x in pair))
        for name, pair in inner.init(dim, heads).items()
    }
    grid = core.shape.grid
    steps = torch.arange(1, chunk.tokens + 1) if isinstance(chunk, TokenCausal) else torch.tensor([grid[0] * grid[1]])
    tensors = {
        **{"q": core.q, "k": core.k, "v": core.v, "rate": core.rate},
        "scale": 1.0 / steps.to(device),
        **{"gamma": torch.ones(heads, 1, dim, device=device), "beta": torch.zeros(heads, 1, dim, device=device)},
    }
    counts = (torch.zeros(batch, dtype=torch.int64), torch.full((batch,), tokens))
    return Case(inner, chunk, grid, ResidualL2(), SGD(), tensors, weights, zeros_like(weights), *counts)


def flash(core: Core) -> Tensor:
    return F.scaled_dot_product_attention(core.q, core.k, core.v, is_causal=True)


def gated_deltanet(core: Core) -> Tensor:
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule  # type: ignore[import-not-found]

    q, k, v = (x.transpose(1, 2) for x in (core.q, core.k, core.v))
    decay, beta = -core.rate.transpose(1, 2), core.rate.transpose(1, 2).to(core.dtype)
    return chunk_gated_delta_rule(q, F.normalize(k, dim=-1), v, decay, beta)[0]


def mamba2(core: Core) -> Tensor:
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined  # type: ignore[import-not-found]

    q, k, v = (x.transpose(1, 2) for x in (core.q, core.k, core.v))
    decay = -torch.ones(core.shape.heads, device=core.q.device)
    step = core.rate.transpose(1, 2).to(core.dtype)
    return mamba_chunk_scan_combined(v, step, decay, k, q, chunk_size=256)  # as many groups as heads


PACKAGES = {"fla_gated_deltanet_core": ("fla", gated_deltanet), "mamba_ssm_mamba2_core": ("mamba_ssm", mamba2)}
CORES = ("ttt_mlp_core_bf16", "attention_core", "ttt_mlp_core", "ttt_linear_core", *PACKAGES)
"""In the order of their weight. ``_bf16``: products that read bfloat16."""
DRY = ("ttt_linear_core", "attention_core", *PACKAGES)


def build(name: str, shape: Shape, device: torch.device) -> nn.Module | str:
    """The operator, or why there is none."""
    if name in PACKAGES:
        module, operator = PACKAGES[name]
        if importlib.util.find_spec(module) is None or device.type != "cuda":
            return f"{module} is not installed" if device.type == "cuda" else f"{module} needs a GPU"
        return Core(shape, operator, torch.bfloat16)
    if name == "attention_core":
        return Core(shape, flash, torch.bfloat16 if device.type == "cuda" else torch.float32)
    on_cpu = device.type == "cpu"
    operator = ours(MLP() if "mlp" in name else Linear(), exact=on_cpu)
    return Core(shape, operator, torch.float32 if on_cpu else torch.bfloat16)  # tokens as layers give them
