"""Attention with a window, its cache, and attention inside frames."""

import pytest
import torch
import torch.nn.functional as F

from tests.helpers import GRID, N, build
from tests.helpers import distance as difference
from tests.mixers.test_mixers import tokens
from tttvideo.mixers import Attention, FrameAttention
from tttvideo.mixers.attention import causal_attention
from tttvideo.mixers.frame_attention import rotate_grid
from tttvideo.ttt import Layout
from tttvideo.ttt.interface import merge_heads, split_heads
from tttvideo.ttt.primitives import rotate

# Attention with a window


@pytest.mark.parametrize("window", [1, 2, 5, 100])
@pytest.mark.parametrize("causality", ["frame", "token"])
def test_window_is_masked_attention(window, causality):
    layer = build(Attention(heads=2, causality=causality, window=window))
    unit = N if causality == "frame" else 1
    count = 25 * N  # several parts of the loop
    x = tokens(count)
    y, state = layer(x, None, Layout(GRID))
    assert difference(y, whole(layer, x, unit, window)) <= 1e-12
    assert state.keys.shape[2] == min(count, (window - 1) * unit)


def whole(layer, x, unit, window):
    """The definition: one attention over the whole sequence, with an explicit mask."""
    time = torch.arange(x.shape[1]) // unit
    q, k, v = (split_heads(t, layer.config.heads) for t in layer.qkv(x).chunk(3, dim=-1))
    q, k = rotate(time, layer.config.rope_theta, q, k)
    age = time[:, None] - time
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=(age >= 0) & (age < window))
    return layer.o_proj(merge_heads(y))


def test_a_window_remembers_a_constant_number_of_tokens_of_rows_of_any_age():
    layer = build(Attention(heads=2, window=3))
    sizes, state = [], None
    alone = [[], [], []]
    outputs = [[], [], []]
    for lengths in ([4, 1, 0], [2, 0, 0], [3, 2, 7], [0, 1, 2], [5, 5, 1]):
        lengths = torch.tensor(lengths) * N
        x = tokens(int(lengths.max()), 3)
        y, state = layer(x, state, Layout(GRID, lengths))
        sizes.append(state.keys.shape[2])
        for row, length in enumerate(lengths.tolist()):
            alone[row].append(x[row, :length])
            outputs[row].append(y[row, :length])
    assert sizes == [2 * N] * 5
    for given, found in zip(alone, outputs, strict=True):
        expected, _ = layer(torch.cat(given)[None], None, Layout(GRID))
        assert difference(torch.cat(found), expected[0]) <= 1e-12


@pytest.mark.parametrize("causality", ["frame", "token"])
def test_a_cache_has_no_columns_of_padding(causality):
    """Calls that read nothing, and rows that take turns, leave as many columns as the longest row has tokens."""
    layer = build(Attention(heads=2, causality=causality))
    state = None
    alone, outputs = [[], []], [[], []]
    for lengths in ([0, 0], [2, 0], [0, 0], [0, 3], [0, 0], [1, 1]):
        lengths = torch.tensor(lengths) * N
        x = tokens(4 * N)
        y, state = layer(x, state, Layout(GRID, lengths))
        assert state.keys.shape[2] == state.values.shape[2] == state.slots.shape[1] == int(state.seen.max())
        for row, length in enumerate(lengths.tolist()):
            alone[row].append(x[row, :length])
            outputs[row].append(y[row, :length])
    assert state.seen.tolist() == [3 * N, 4 * N]
    for given, found in zip(alone, outputs, strict=True):
        expected, _ = layer(torch.cat(given)[None], None, Layout(GRID))
        assert difference(torch.cat(found), expected[0]) <= 1e-12


# Attention without a window


@pytest.mark.parametrize("past", [0, 4])
@pytest.mark.parametrize(("unit", "block"), [(4, 8), (4, 4), (4, 3), (1, 5), (1, 64), (4, 64)])
def test_blocks_are_masked_attention(unit, block, past):
    """Outputs and gradients, for whole, several and single units of a block, the last block smaller."""
    torch.manual_seed(0)
    q = torch.randn(2, 3, 20, 8).double().requires_grad_()
    k, v = (torch.randn(2, 3, past + 20, 8).double().requires_grad_() for _ in range(2))
    time = torch.arange(past + 20) // unit
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=time[past:, None] >= time)
    y = causal_attention(q, k, v, unit, block)
    assert difference(y, expected) <= 1e-14
    pairs = (torch.autograd.grad(out.square().sum(), (q, k, v)) for out in (y, expected))
    assert difference(*pairs) <= 1e-13


def test_a_training_step_keeps_no_mask_of_all_tokens_by_all_tokens():
    """What autograd keeps grows as the number of tokens, not as its square."""

    def kept(tokens):
        seen = {}

        def pack(x):
            seen[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        q, k, v = (torch.randn(1, 1, tokens, 8, requires_grad=True) for _ in range(3))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            causal_attention(q, k, v, 4, 64)
        return sum(seen.values())

    assert kept(2048) <= 2.1 * kept(1024)


@pytest.mark.parametrize("causality", ["frame", "token"])
def test_positions_turn_with_time_and_place(causality):
    """A head of 8 channels: 4 turn with the frame, 2 with the row, 2 with the column."""
    layer = build(Attention(heads=1, rope="time_and_place", causality=causality))
    x = tokens(4 * N)
    frame = torch.arange(4).repeat_interleave(N).double()
    place = torch.cartesian_prod(torch.arange(GRID[0]), torch.arange(GRID[1])).double().repeat(4, 1)
    angles = torch.stack((frame, frame / 100.0, *place.T), -1)
    q, k, v = (split_heads(part, 1) for part in layer.qkv(x).chunk(3, -1))
    time = torch.arange(4 * N) // (N if causality == "frame" else 1)
    scores = (turned(q, angles) @ turned(k, angles).mT / 8**0.5).masked_fill(time[:, None] < time, -torch.inf)
    expected = layer.o_proj(merge_heads(scores.softmax(-1) @ v))
    assert difference(layer(x, None, Layout(GRID))[0], expected) <= 1e-12
    with pytest.raises(ValueError, match="must divide by 8"):
        Attention(heads=2, rope="time_and_place").build(8)


def test_only_place_tells_the_tokens_of_a_frame_apart():
    """Permuting them permutes what ``rope: time`` puts out; not so with ``time_and_place``."""
    x = tokens(3 * N)
    other = x.unflatten(1, (3, N)).flip(2).flatten(1, 2)
    for rope, differs in (("time", False), ("time_and_place", True)):
        layer = build(Attention(heads=1, rope=rope))
        y, z = (layer(t, None, Layout(GRID))[0].unflatten(1, (3, N)) for t in (x, other))
        assert (difference(y.flip(2), z) > 1e-3) == differs


# Frame attention


def turned(x, angles):
    """Pairs of channels [..., 2] as complex numbers, turned."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


@pytest.mark.parametrize("rope", [False, True])
def test_frame_attention_is_attention_of_each_frame(rope):
    layer = build(FrameAttention(heads=2, rope=rope))
    x = tokens(4 * N)
    y, _ = layer(x, None, Layout(GRID))
    place = torch.cartesian_prod(torch.arange(GRID[0]), torch.arange(GRID[1])).double()
    for t in range(4):
        frame = x[:, t * N : (t + 1) * N]
        q, k, v = (split_heads(part, 2) for part in layer.qkv(frame).chunk(3, -1))
        if rope:  # heads of 4 channels: one pair turns with the row, one with the column, both by 1 a step
            q, k = turned(q, place), turned(k, place)
        expected = layer.o_proj(merge_heads((q @ k.mT / 2.0).softmax(-1) @ v))
        assert difference(y[:, t * N : (t + 1) * N], expected) <= 1e-12


def test_wavelengths_of_rotated_grids():
    x = torch.randn(1, 1, N, 16).double()
    place = torch.cartesian_prod(torch.arange(GRID[0]), torch.arange(GRID[1])).double()
    speeds = 100.0 ** -(torch.arange(4).double() / 4)
    expected = turned(x, torch.cat([place[:, :1] * speeds, place[:, 1:] * speeds], -1))
    assert difference(rotate_grid(x, GRID, 100.0), expected) <= 1e-12
    with pytest.raises(ValueError, match="must divide by 4"):
        FrameAttention(heads=4).build(8)
