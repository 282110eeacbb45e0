"""Properties of the layer, held by its kernels too: `fused: require` through Triton's interpreter."""

import dataclasses
from itertools import pairwise

import pytest
import torch

from tests.helpers import build, distance, name
from tests.ttt.test_ttt_lm import RECORDINGS, compare_with_recording
from tttvideo.ttt import (
    MLP,
    SGD,
    TTT,
    Conv,
    ConvDepthwise,
    DotProduct,
    DWConv,
    FrameCausal,
    Layout,
    Linear,
    TokenCausal,
)

DIM, GRID = 32, (2, 3)
N = GRID[0] * GRID[1]

LAYERS = [
    TTT(Linear(), 2, TokenCausal(16), fused="require"),
    *(
        pytest.param(config, marks=pytest.mark.kernels)
        for config in (
            TTT(
                MLP(2),
                2,
                TokenCausal(16),
                fused="require",
                short_conv="raster",
                conv_values=True,
                share_qk=True,
                gate=True,
            ),
            TTT(MLP(2), 2, FrameCausal(), fused="require"),
            TTT(Linear(), 2, FrameCausal(), fused="require"),
            TTT(Conv(), 2, FrameCausal(), fused="require"),
            TTT(ConvDepthwise(), 2, FrameCausal(), fused="require"),
            TTT(DWConv(), 2, FrameCausal(), DotProduct(), SGD(clip=1.0), fused="require"),
        )
    ),
]


@pytest.mark.parametrize("config", LAYERS, ids=name)
def test_the_layer_is_the_eager_one(config):
    """Outputs, state and gradients of all parameters, with padding, reading on after a first call."""
    x = torch.randn(2, 5 * N, DIM, generator=torch.Generator().manual_seed(1)).double()
    results = []
    for how in ("require", "never"):
        layer = build(dataclasses.replace(config, fused=how), dim=DIM)
        first, state = layer(x[:, : 3 * N], None, Layout(GRID, torch.tensor([3 * N, N])))
        second, state = layer(x[:, 3 * N :], state, Layout(GRID))
        (first.square().sum() + second.square().sum()).backward()
        parameters = dict(layer.named_parameters())
        pending = [map.weight for map in state.pending.values()]
        weights = [map.weight for map in state.weights.values()]
        results.append([first, second, *weights, *pending, *(p.grad for p in parameters.values())])
        assert state.position.tolist() == ([0, 0] if config.chunk.whole else [5 * N % 16, 3 * N % 16])
    for computed, expected in zip(*results, strict=True):
        assert (computed - expected).abs().max() <= 1e-10 * max(1.0, expected.abs().max().item())


@pytest.mark.parametrize("config", LAYERS, ids=name)
@torch.no_grad()
def test_streamed_is_whole(config):
    layer = build(config, dim=DIM)
    x = torch.randn(1, 6 * N, DIM).double()
    whole, end = layer(x, None, Layout(GRID))
    splits = [0, 2 * N, 3 * N, 6 * N] if config.chunk.whole else [0, 1, 16, 21, 6 * N]
    state, pieces = None, []
    for a, b in pairwise(splits):
        y, state = layer(x[:, a:b], state, Layout(GRID if config.chunk.whole else (1, 1)))
        pieces.append(y)
    assert (torch.cat(pieces, 1) - whole).abs().max() <= 1e-12
    for key, map in end.weights.items():
        assert (state.weights[key].weight - map.weight).abs().max() <= 1e-12


@pytest.mark.parametrize("config", LAYERS, ids=name)
@torch.no_grad()
def test_steps_are_the_whole_by_kernels_too(config, monkeypatch):
    monkeypatch.setattr("tttvideo.ttt.layer.scan", None)
    layer = build(config, dim=DIM)
    size = layer.step_unit(N)
    x = torch.randn(1, 2 * size, DIM).double()
    grid = GRID if config.chunk.whole else (1, 1)
    whole, end = layer(x, None, Layout(grid))
    first, state = layer.step(x[:, :size], layer.init_state(1), grid)
    second, state = layer.step(x[:, size:], state, grid)
    assert distance(torch.cat([first, second], 1), whole) <= 1e-12
    assert distance(state, end) <= 1e-12


@pytest.mark.parametrize("config", LAYERS, ids=name)
@torch.no_grad()
def test_packed_sequences_are_sequences_and_the_future_is_unseen(config):
    layer = build(config, dim=DIM)
    x = torch.randn(1, 5 * N, DIM).double()
    y, _ = layer(x, None, Layout(GRID, cu_seqlens=torch.tensor([0, 2 * N, 5 * N])))
    changed = x.clone()
    changed[:, 4 * N :] += 1.0
    for a, b in ((0, 2 * N), (2 * N, 5 * N)):
        assert (y[:, a:b] - layer(x[:, a:b], None, Layout(GRID))[0]).abs().max() <= 1e-12
    early, _ = layer(changed, None, Layout(GRID, cu_seqlens=torch.tensor([0, 2 * N, 5 * N])))
    assert (early[:, : 4 * N] - y[:, : 4 * N]).abs().max() <= 1e-12


@pytest.mark.kernels
@pytest.mark.parametrize("recording", RECORDINGS)
def test_the_authors_recorded_layers_through_the_kernels(recording):
    compare_with_recording(recording, fused="require")
