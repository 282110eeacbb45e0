"""torch.compile changes nothing but the time: the chunk is one graph, the loop over chunks stays outside."""

import pytest
import torch

from tests.helpers import GRID, name
from tests.ttt.test_dual import case
from tttvideo.mixers import Attention, LinearAttention, Mamba
from tttvideo.ttt import MLP, TTT, Adam, Conv, DotProduct, FrameCausal, Layout, Linear, TokenCausal
from tttvideo.ttt.objective import ResidualL2
from tttvideo.ttt.step import read_ahead_then_update, steps_of

N = GRID[0] * GRID[1]


@pytest.mark.parametrize("inner", [pytest.param(MLP(), marks=pytest.mark.slow), Conv(time=2)], ids=name)
def test_a_chunk_is_one_graph(inner):
    loop, state, tokens = case(inner, ResidualL2())
    mask = FrameCausal(2).mask(N // 2, N, torch.device("cpu"))
    scale = torch.rand(N, 1).double()
    arguments = (loop, state, tokens, steps_of(scale, mask, 0, N, 1), True)
    torch._dynamo.reset()
    compiled, after = torch.compile(read_ahead_then_update, fullgraph=True, backend="aot_eager")(*arguments)
    plain, expected = read_ahead_then_update(*arguments)
    assert (compiled - plain).abs().max() <= 1e-12
    for key, map in expected.weights.items():
        assert (after.weights[key].weight - map.weight).abs().max() <= 1e-12


CONFIGURATIONS = [
    TTT(heads=2, chunk=TokenCausal(4)),
    TTT(inner=Conv(), heads=2, chunk=FrameCausal(2)),
    TTT(heads=2, optimizer=Adam()),
    TTT(inner=Linear(), objective=DotProduct(), heads=2, chunk=TokenCausal(4)),
    Attention(heads=2),
    LinearAttention(heads=2),
    Mamba(heads=2),
]


@pytest.mark.parametrize(
    ("mixer", "backend"),
    [
        (TTT(inner=Linear(), heads=2), "eager"),
        *(pytest.param(mixer, "aot_eager", marks=pytest.mark.slow) for mixer in CONFIGURATIONS),
    ],
    ids=name,
)
def test_a_compiled_layer_is_the_layer(mixer, backend):
    """Outputs, state and gradients; reading on under no_grad."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    layer = mixer.build(8).double()
    compiled = torch.compile(layer, backend=backend)
    x = torch.randn(2, 3 * N, 8).double()
    results = []
    for run in (layer, compiled):
        layer.zero_grad()
        y, state = run(x, None, Layout(GRID))
        y.square().sum().backward()
        with torch.no_grad():
            more, _ = run(x, state, Layout(GRID))
        results.append([y.detach(), more, *(p.grad.clone() for p in layer.parameters())])
    for a, b in zip(*results, strict=True):
        assert (a - b).abs().max() <= 1e-12 * max(1.0, float(a.abs().max()))
