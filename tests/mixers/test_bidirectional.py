"""Any mixer in both directions."""

import pytest
import torch

from tests.helpers import BIDIRECTIONAL, DIM, GRID, N, build, name
from tests.helpers import distance as difference
from tests.mixers.test_mixers import tokens
from tttvideo.mixers import LSTM, TTT, Bidirectional, Mamba
from tttvideo.ttt import Layout

# Bidirectional


@pytest.mark.parametrize("mixer", BIDIRECTIONAL, ids=name)
def test_bidirectional_is_a_flip_by_hand(mixer):
    layer = build(mixer)
    assert not layer.streams
    assert not layer.causal
    forwards, backwards = layer.forwards, layer.forwards if mixer.share else layer.backwards
    lengths = torch.tensor([5, 2]) * N
    x = tokens(5 * N)
    y, _ = layer(x, None, Layout(GRID, lengths))

    def flip(row):
        if layer.unit(N) == 1:
            return row.flip(1)
        return torch.cat(row.split(N, dim=1)[::-1], dim=1)

    for b, length in enumerate(lengths.tolist()):
        row = x[b : b + 1, :length]
        expected = forwards(row, None, Layout(GRID))[0] + flip(backwards(flip(row), None, Layout(GRID))[0])
        assert difference(y[b : b + 1, :length], expected) <= 1e-12


@pytest.mark.parametrize("mixer", BIDIRECTIONAL[:4], ids=name)
def test_bidirectional_does_not_stream(mixer):
    layer = build(mixer)
    _, state = layer(tokens(2 * N), None, Layout(GRID, torch.tensor([2, 0]) * N))
    layer(tokens(N), state, Layout(GRID, torch.tensor([0, 1]) * N))  # the row that has read nothing may begin
    with pytest.raises(ValueError, match="in one call"):
        layer(tokens(N), state, Layout(GRID))


def test_sharing_halves_the_weights():
    for mixer in (TTT(heads=2), Mamba(heads=2), LSTM()):
        counts = [
            sum(p.numel() for p in Bidirectional(mixer, share=share).build(DIM).parameters()) for share in (True, False)
        ]
        assert counts[1] == 2 * counts[0]


def test_shared_directions_do_not_know_which_came_first():
    """The sum of both directions with the same weights, averaged over the video, is that of the reversed video."""
    layer = build(Bidirectional(TTT(heads=2), share=True))
    own = build(Bidirectional(TTT(heads=2)))
    x = tokens(5 * N, 1)
    reversed_ = x.unflatten(1, (5, N)).flip(1).flatten(1, 2)
    for stack, same in ((layer, True), (own, False)):
        a, b = (stack(t, None, Layout(GRID))[0].mean(1) for t in (x, reversed_))
        assert (difference(a, b) <= 1e-12) == same
