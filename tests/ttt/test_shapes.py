"""Shapes nobody thinks of: one token, one head, odd lengths, grids of one column, rows of nothing."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import ALL_MIXERS
from tttvideo.mixers import NoMixer
from tttvideo.ttt import TTT, Layout, TokenCausal


@st.composite
def batches(draw):
    mixer = draw(st.sampled_from([m for m in ALL_MIXERS if not isinstance(m, NoMixer)]))
    grid = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    layer = mixer.build(8).double()
    unit = layer.unit(grid[0] * grid[1])
    step = unit if not layer.streams or unit > 1 else 1
    lengths = draw(st.lists(st.integers(0, 7).map(lambda n: n * step), min_size=1, max_size=4))
    room = max(lengths) + step * draw(st.integers(0, 2))
    return layer, grid, lengths, room, draw(st.integers(0, 2**31))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(batches())
def test_any_batch_is_its_rows(batch):
    layer, grid, lengths, room, seed = batch
    torch.manual_seed(seed)
    x = torch.randn(len(lengths), room, 8).double()
    y, _ = layer(x, None, Layout(grid, torch.tensor(lengths)))
    assert y.shape == x.shape
    for row, length in enumerate(lengths):
        alone, _ = layer(x[row : row + 1, :length], None, Layout(grid))
        assert alone.shape == (1, length, 8)
        assert torch.isfinite(y[row]).all()
        if length:
            assert (y[row, :length] - alone[0]).abs().max() <= 1e-12
        assert (y[row, length:] == 0).all()


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 40))
def test_any_number_of_heads_and_chunk_size(heads, chunk, tokens):
    torch.manual_seed(0)
    layer = TTT(heads=heads, chunk=TokenCausal(chunk)).build(4 * heads).double()
    x = torch.randn(1, tokens, 4 * heads).double().requires_grad_()
    y, state = layer(x)
    y.sum().backward()
    assert y.shape == x.shape
    assert torch.isfinite(x.grad).all()
    assert int(state.position) == tokens % chunk
