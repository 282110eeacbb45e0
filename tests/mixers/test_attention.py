"""Attention with a window, its cache, and attention inside frames."""

import pytest
import torch

from tests.helpers import GRID
from tests.mixers.test_mixers import N, build, difference, tokens
from tttvideo.mixers import Attention, FrameAttention
from tttvideo.ttt import Layout
from tttvideo.ttt.interface import merge_heads, split_heads

# Attention with a window


@pytest.mark.parametrize("window", [1, 2, 5, 100])
@pytest.mark.parametrize("causality", ["frame", "token"])
def test_window_is_masked_attention(window, causality):
    wide, narrow = (build(Attention(heads=2, causality=causality, window=w)) for w in (None, window))
    unit = N if causality == "frame" else 1
    count = 25 * N  # several parts of the loop
    x = tokens(count)
    wide._mask = lambda queries, cached, unit: masked(queries, cached, unit, window)  # type: ignore[method-assign]
    expected, _ = wide(x, None, Layout(GRID))
    y, state = narrow(x, None, Layout(GRID))
    assert difference(y, expected) <= 1e-12
    assert state.keys.shape[2] == min(count, (window - 1) * unit)


def masked(queries, cached, unit, window):
    age = queries[:1, :, None] // unit - cached[:1, None, :] // unit
    return ((age >= 0) & (age < window))[:, None]


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


def test_frame_attention_is_attention_of_each_frame():
    layer = build(FrameAttention(heads=2))
    x = tokens(4 * N)
    y, _ = layer(x, None, Layout(GRID))
    for t in range(4):
        frame = x[:, t * N : (t + 1) * N]
        q, k, v = (split_heads(part, 2) for part in layer.qkv(frame).chunk(3, -1))
        expected = layer.o_proj(merge_heads((q @ k.mT / 2.0).softmax(-1) @ v))
        assert difference(y[:, t * N : (t + 1) * N], expected) <= 1e-12
