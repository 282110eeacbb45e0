"""Layers of other packages that the GPU benchmark measures beside ours, where they are installed.

    pip install flash-linear-attention mamba-ssm

Written after the packages' sources (flash-linear-attention 0.6.0, mamba-ssm 2.2); not run here, where there is no GPU.
What cannot be built or run is a row with the reason.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Contestant(NamedTuple):
    """A layer of ``package`` (to import: ``module``); ``build(channels, heads)``, x [B, T, C] -> y [B, T, C]."""

    package: str
    module: str
    build: Callable[[int, int], nn.Module]


class FlaTTTLinear(nn.Module):
    """flash-linear-attention's TTT-Linear between the projections of our layer: K = 16, rates of the paper. Its rate
    multiplies a gradient that is taken at the chunk's start for all tokens of a chunk alike, without the scale
    1 / (t + 1): a layer of the same cost, not the same function."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        from fla.ops.ttt import chunk_ttt_linear  # type: ignore[import-not-found]

        self.operator, self.heads = chunk_ttt_linear, heads
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.rate, self.post_norm = nn.Linear(dim, heads), nn.LayerNorm(dim)
        head = dim // heads
        self.scale, self.shift = nn.Parameter(torch.ones(heads, head)), nn.Parameter(torch.zeros(heads, head))
        self.start = nn.Parameter(0.02 * torch.randn(heads, head, head))
        self.start_bias = nn.Parameter(torch.zeros(heads, 1, head))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)) for t in self.qkv(x).chunk(3, -1))
        rate = torch.sigmoid(self.rate(x))[..., None].to(q.dtype) / q.shape[-1]
        start, bias = (w.expand(x.shape[0], *w.shape).contiguous() for w in (self.start, self.start_bias))
        y, *_ = self.operator(
            *(t.contiguous() for t in (q, k, v)),
            self.scale.to(q.dtype),
            self.shift.to(q.dtype),
            rate,
            scale=1.0,
            chunk_size=16,
            initial_state=start,
            initial_state_bias=bias,
        )
        return self.out(self.post_norm((q + y).flatten(-2)))


class First(nn.Module):
    """A layer that puts out more than its tokens."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return y[0] if isinstance(y, tuple) else y


def _gated_deltanet(dim: int, heads: int) -> nn.Module:
    from fla.layers import GatedDeltaNet  # type: ignore[import-not-found]

    return First(GatedDeltaNet(hidden_size=dim, num_heads=heads, head_dim=dim // heads, expand_v=1, layer_idx=0))


def _fla_mamba2(dim: int, heads: int) -> nn.Module:
    from fla.layers import Mamba2  # type: ignore[import-not-found]

    return First(Mamba2(hidden_size=dim, num_heads=2 * heads, head_dim=dim // heads, state_size=128, layer_idx=0))


def _mamba2(dim: int, heads: int) -> nn.Module:
    from mamba_ssm import Mamba2  # type: ignore[import-not-found]

    return First(Mamba2(d_model=dim, d_state=128, headdim=dim // heads))


CONTESTANTS = {
    "fla_ttt_linear": Contestant("flash-linear-attention", "fla", FlaTTTLinear),
    "fla_gated_deltanet": Contestant("flash-linear-attention", "fla", _gated_deltanet),
    "fla_mamba2": Contestant("flash-linear-attention", "fla", _fla_mamba2),
    "mamba_ssm_mamba2": Contestant("mamba-ssm", "mamba_ssm", _mamba2),
}


def build(name: str, dim: int, heads: int, device: torch.device) -> nn.Module | str:
    """The layer, or why there is none."""
    one = CONTESTANTS[name]
    if importlib.util.find_spec(one.module) is None:
        return f"{one.package} is not installed"
    if device.type != "cuda":
        return f"{one.package} needs a GPU"
    try:
        return one.build(dim, heads).to(device)
    except Exception as error:  # a package built for another torch fails in its own ways
        return f"{one.package} cannot build it: {type(error).__name__}: {error}"


def versions() -> dict[str, str]:
    """Of everything that takes part."""
    by_package: dict[str, Any] = {}
    for package in ("triton", *sorted({one.package for one in CONTESTANTS.values()}), "fla-core", "causal-conv1d"):
        try:
            by_package[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            by_package[package] = "not installed"
    return by_package | {"cuda": str(torch.version.cuda)}
