"""Attention with a window, its cache, and attention inside frames."""

import pytest
import torch
import torch.nn.functional as F

from tests.helpers import GRID, N, build
from tests.helpers import distance as difference
from tests.mixers.test_mixers import tokens
from tttvideo.mixers import Attention, FrameAttention
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
