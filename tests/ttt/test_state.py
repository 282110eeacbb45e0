"""The state of a layer as a thing: it can be saved, loaded and cut from the graph; and it stays bounded."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch.utils import _pytree as pytree

from tests.helpers import GRID, SOME_MIXERS, N, each_kind, name
from tttvideo.mixers import Attention
from tttvideo.ttt import SGD, TTT, DotProduct, Layout, Linear, TokenCausal, detach, state_from, state_tensors


@pytest.mark.parametrize("mixer", each_kind([m for m in SOME_MIXERS if m.build(8).streams]), ids=name)
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


@pytest.mark.parametrize("mixer", each_kind(SOME_MIXERS), ids=name)
def test_the_state_does_not_grow(mixer):
    """What its tensors hold in memory, not only what they show: a view keeps the whole of what it was cut from."""
    layer = mixer.build(8)
    sizes, state = [], None
    for frames in (12, 36):
        with torch.no_grad():
            _, state = layer(torch.randn(1, frames * N, 8), state if layer.streams else None, Layout(GRID))
        tensors = [t for t in pytree.tree_leaves(state) if isinstance(t, torch.Tensor)]
        sizes.append(sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values()))
        assert sizes[-1] <= 2 * sum(t.numel() * t.element_size() for t in tensors)
    if not isinstance(mixer, Attention) or mixer.window:
        assert sizes[1] <= sizes[0]


def test_a_frozen_layer_keeps_no_graph():
    layer = TTT(heads=2).build(8).requires_grad_(False)
    y, state = layer(torch.randn(1, 3 * N, 8), None, Layout(GRID))
    assert not y.requires_grad
    assert not any(t.requires_grad for t in pytree.tree_leaves(state) if isinstance(t, torch.Tensor))


def test_a_state_without_gradients_is_not_the_parameters():
    layer = TTT(heads=2, chunk=TokenCausal(16)).build(8)
    with torch.no_grad():
        _, state = layer(torch.randn(1, 3, 8))
        before = state.weights["1"].weight.clone()
        layer.weights["1_weight"] += 1.0
    assert torch.equal(state.weights["1"].weight, before)


def test_training_goes_on_from_a_state_read_in_inference_mode():
    layer = TTT(heads=2).build(8)
    with torch.inference_mode():
        _, state = layer(torch.randn(1, N, 8), None, Layout(GRID))
    y, _ = layer(torch.randn(1, N, 8), detach(state), Layout(GRID))
    y.sum().backward()
    assert layer.o_proj.weight.grad is not None


def test_a_state_of_another_width_is_refused():
    small, large = TTT(heads=2).build(8), TTT(heads=2).build(16)
    with pytest.raises(ValueError, match="another layer"):
        state_from(state_tensors(small.init_state(1)), large.init_state(1))
    double = state_from(state_tensors(small.init_state(1)), small.double().init_state(1))
    assert double.weights["1"].weight.dtype == torch.float64


@pytest.mark.slow
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        TTT(inner=Linear(), heads=2, chunk=TokenCausal(1)),
        TTT(heads=2, chunk=TokenCausal(1)),
        TTT(inner=Linear(), objective=DotProduct(), heads=2, forget=True),
        TTT(inner=Linear(), objective=DotProduct(), optimizer=SGD(weight_norm=True), heads=2),
    ],
    ids=name,
)
def test_a_hundred_thousand_updates_stay_bounded(config, bf16):
    assert largest_weight(config, 100_000, bf16) < 100


@pytest.mark.parametrize(
    ("config", "bf16"),
    [
        (TTT(heads=2, chunk=TokenCausal(1)), True),
        (TTT(inner=Linear(), objective=DotProduct(), heads=2, forget=True), False),
    ],
    ids=name,
)
def test_a_thousand_updates_stay_bounded(config, bf16):
    assert largest_weight(config, 1_000, bf16) < 100


def test_dot_products_without_decay_grow_linearly():
    config = TTT(inner=Linear(), objective=DotProduct(), heads=2)
    one, four = largest_weight(config, 1_000), largest_weight(config, 4_000)
    assert 2.5 < four / one < 6


def largest_weight(config, updates: int, bf16: bool = False) -> float:
    """Of the hidden state after a normalised random walk; everything on the way must be finite."""
    torch.manual_seed(0)
    layer, state, walk = config.build(16), None, torch.zeros(1, 1, 16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        for _ in range(updates // 1_000):
            walk = walk[:, -1:] + torch.randn(1, 1_000, 16).cumsum(1)
            y, state = layer(F.layer_norm(walk, (16,)), state)
            assert torch.isfinite(y).all()
    return max(float(t.abs().max()) for map in state.weights.values() for t in map if t is not None)
