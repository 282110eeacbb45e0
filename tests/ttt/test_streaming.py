"""``Stream``: static memory gives what the layer gives. On a CPU a recording runs the step again on the same memory,
with the host side of the state as it was when recorded, as a CUDA graph would."""

import pytest
import torch

from tests.helpers import name
from tttvideo.mixers import Attention, LinearAttention
from tttvideo.ttt import MLP, TTT, FrameCausal, Layout, Linear, Stream, TokenCausal

DIM, GRID = 16, (2, 2)

LAYERS = [
    # layer, grid, recordings that it needs
    (TTT(MLP(2), 2, FrameCausal()), GRID, 1),
    (TTT(Linear(), 2, TokenCausal(4)), (1, 1), 4),
    (
        TTT(Linear(), 2, TokenCausal(6), short_conv="raster", share_qk=True),
        (2, 2),
        3,
    ),  # lcm(4, 6) / 4 places in a chunk
]


def step(layer, grid):
    return lambda x, state: layer(x, state, Layout(grid))


@pytest.mark.parametrize(("config", "grid", "graphs"), LAYERS, ids=name)
@torch.no_grad()
def test_a_stream_is_the_layer(config, grid, graphs):
    torch.manual_seed(0)
    layer = config.build(DIM).double()
    size = grid[0] * grid[1]
    x = torch.randn(2, 12 * size, DIM).double()
    whole, end = layer(x, None, Layout(grid))
    stream = Stream(step(layer, grid), x[:, :size], layer.init_state(2))
    pieces = [stream(piece).clone() for piece in x.split(size, 1)]
    assert (torch.cat(pieces, 1) - whole).abs().max() <= 1e-12
    state = stream.state
    assert state.position.equal(end.position)
    for key, map in end.weights.items():
        assert (state.weights[key].weight - map.weight).abs().max() <= 1e-12
    assert stream.graphs == graphs


@torch.no_grad()
def test_memory_stands_still_and_the_state_handed_out_does_not_move():
    layer = TTT(MLP(2), 2, FrameCausal()).build(DIM)
    start = layer.init_state(1)
    stream = Stream(step(layer, GRID), torch.zeros(1, 4, DIM), start)
    stream(torch.randn(1, 4, DIM))
    first, handed = stream(torch.randn(1, 4, DIM)), stream.state
    kept = handed.weights["1"].weight.clone()
    second = stream(torch.randn(1, 4, DIM))
    assert first.data_ptr() == second.data_ptr()
    assert handed.weights["1"].weight.equal(kept)
    assert not stream.state.weights["1"].weight.equal(kept)
    assert start.weights["1"].weight.equal(layer.init_state(1).weights["1"].weight)


@pytest.mark.parametrize(
    ("config", "says"),
    [(Attention(2, "token"), "grows with every step"), (LinearAttention(2), "counts on without end")],
)
def test_states_without_an_end_are_refused(config, says):
    layer = config.build(DIM)
    x = torch.randn(1, 4, DIM)
    stream = Stream(step(layer, GRID), x, layer.init_state(1))

    def read_on():
        for _ in range(100):
            stream(x)

    with pytest.raises(ValueError, match=says):
        read_on()


def test_other_shapes_are_refused_in_one_sentence():
    layer = TTT(MLP(2), 2, FrameCausal()).build(DIM)
    stream = Stream(step(layer, GRID), torch.zeros(1, 4, DIM), layer.init_state(1))
    with pytest.raises(ValueError, match=r"reads inputs of \[1, 4, 16\] in torch.float32, not \[1, 8, 16\]"):
        stream(torch.zeros(1, 8, DIM))
