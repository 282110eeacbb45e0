"""The state of a layer as a thing: it can be saved, loaded and cut from the graph; and it stays bounded."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers import ALL_MIXERS, GRID, name
from tttvideo.ttt import TTT, FrameCausal, Layout, TokenCausal, detach, state_from, state_tensors

N = GRID[0] * GRID[1]


@pytest.mark.parametrize("mixer", [m for m in ALL_MIXERS if m.build(8).streams], ids=name)
def test_a_stream_goes_on_from_a_file(mixer, tmp_path):
    torch.manual_seed(0)
    layer = mixer.build(8).double()
    x = torch.randn(2, 6 * N, 8).double()
    _, state = layer(x[:, : 4 * N], None, Layout(GRID))
    save_file(state_tensors(state), tmp_path / "state.safetensors")
    loaded = state_from(load_file(tmp_path / "state.safetensors"), layer.init_state(1))
    a, _ = layer(x[:, 4 * N :], state, Layout(GRID))
    b, _ = layer(x[:, 4 * N :], loaded, Layout(GRID))
    assert torch.equal(a, b)


def test_a_state_of_another_layer_is_refused():
    state = TTT(heads=2).build(8).init_state(1)
    with pytest.raises(ValueError, match="another layer"):
        state_from(state_tensors(state), TTT(heads=2, short_conv="raster").build(8).init_state(1))


def test_detach_truncates_backpropagation():
    torch.manual_seed(0)
    layer = TTT(heads=2, chunk=TokenCausal(4)).build(8)
    x = torch.randn(1, 20, 8, requires_grad=True)
    _, state = layer(x[:, :10])
    y, _ = layer(x[:, 10:], detach(state))
    y.sum().backward()
    assert (x.grad[:, :10] == 0).all()
    assert (x.grad[:, 10:] != 0).any()
    _, state = layer(x[:, :10])
    y, _ = layer(x[:, 10:], state)
    x.grad = None
    y.sum().backward()
    assert (x.grad[:, :10] != 0).any()


def test_the_state_does_not_grow():
    for mixer in (TTT(heads=2), TTT(heads=2, chunk=FrameCausal(3), short_conv="time")):
        layer = mixer.build(8)
        sizes = set()
        state = None
        for _ in range(3):
            _, state = layer(torch.randn(1, 6 * N, 8), state, Layout(GRID))
            sizes.add(sum(t.numel() for t in state_tensors(state).values()))
        assert len(sizes) == 1
