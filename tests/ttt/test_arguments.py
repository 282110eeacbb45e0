"""What cannot be, or does not fit together, is refused in a sentence that says what to do."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from tests.helpers import DIM, GRID, N, build, name
from tttvideo.mixers import LSTM, Attention, Mamba
from tttvideo.ttt import L2, SGD, TTT, Adam, Conv, DotProduct, FrameCausal, Layout, TokenCausal, Whole
from tttvideo.ttt.inner import InnerModel, MapShape


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"inner": Conv(), "chunk": TokenCausal(16)}, "FrameCausal"),
        ({"base_rate": -1.0}, "unlearn"),
        ({"base_rate": float("nan")}, "unlearn"),
        ({"base_rate": 100.0}, "overshoot"),
        ({"base_rate": 1.0, "normalize_qk": True}, "rates above 0.5 diverge"),
        ({"base_rate": 5.0, "objective": L2()}, "with L2 use at most 2.0"),
        ({"heads": 0}, "at least 1"),
        ({"views": 0}, "at least 1"),
        ({"views": 2, "share_qk": True, "short_conv": "raster"}, "at least 1, and 1 with share_qk"),
        ({"short_conv": "rows"}, "none, raster or time"),
        ({"conv_values": True}, "set short_conv: raster or time"),
        ({"tanh_gate": float("nan")}, "where alpha starts"),
        ({"chunk": 16}, "must be a Chunk"),
        ({"inner": "MLP"}, "must be a InnerModel"),
    ],
)
def test_bad_settings_say_so(settings, words):
    with pytest.raises(ValueError, match=words):
        TTT(**settings)


def test_a_rate_that_does_not_matter_is_not_refused():
    TTT(base_rate=1.0, normalize_qk=True, optimizer=Adam())
    TTT(base_rate=1.0, normalize_qk=True, objective=DotProduct())


def test_bad_numbers_say_so():
    for wrong in (lambda: TokenCausal(0), lambda: TokenCausal(1.5), lambda: FrameCausal(0), lambda: Whole(0)):
        with pytest.raises(ValueError, match="at least 1"):
            wrong()
    with pytest.raises(ValueError, match="8 channels into 3 heads"):
        TTT(heads=3).build(8)
    for wrong in (lambda: SGD(steps=0), lambda: SGD(steps=1.5)):
        with pytest.raises(ValueError, match="1 inner step, or 2"):
            wrong()
    for wrong in (lambda: SGD(clip=0.0), lambda: SGD(clip=float("nan"))):
        with pytest.raises(ValueError, match="above 0, or null"):
            wrong()
    with pytest.raises(ValueError, match="frame or token"):
        Attention(causality="tokens")


@pytest.mark.parametrize("mixer", [TTT(heads=2), Attention(heads=2), Mamba(heads=2), LSTM()], ids=name)
@pytest.mark.parametrize(
    ("shape", "layout", "words"),
    [
        ((N + 1, DIM), Layout(GRID), "tokens x .B, T, C."),
        ((1, N, DIM), Layout((0, 1)), "at least one row and one column"),
        ((1, N, DIM), Layout(GRID, torch.tensor([2 * N])), "how many of its 6 tokens"),
        ((1, N, DIM), Layout(GRID, torch.tensor([-N])), "how many of its 6 tokens"),
        ((1, N, DIM), Layout(GRID, torch.tensor([N, N])), "each of the 1 rows"),
        ((1, N, DIM), Layout(GRID, [N]), "int64 tensor"),
        ((1, N, DIM), Layout(GRID, cu_seqlens=torch.tensor([0, 2 * N])), "must rise from 0 to the 6"),
        ((2, N, DIM), Layout(GRID, cu_seqlens=torch.tensor([0, N])), "one row"),
    ],
)
def test_what_does_not_fit_together_says_so(mixer, shape, layout, words):
    with pytest.raises(ValueError, match=words):
        build(mixer)(torch.randn(*shape).double(), None, layout)


@pytest.mark.parametrize("mixer", [TTT(heads=2), Attention(heads=2)], ids=name)
def test_frames_and_states_that_do_not_fit_say_so(mixer):
    layer = build(mixer)
    x = torch.randn(1, N, DIM).double()
    with pytest.raises(ValueError, match="whole frames"):
        layer(torch.randn(1, N + 1, DIM).double(), None, Layout(GRID))
    _, state = layer(x, None, Layout(GRID))
    with pytest.raises(ValueError, match="whole frames"):
        layer(torch.randn(1, N + 1, DIM).double(), state, Layout(GRID))
    with pytest.raises(ValueError, match="state is that of 1 sequences"):
        layer(x.expand(2, -1, -1), state, Layout(GRID))


@pytest.mark.parametrize("mixer", [TTT(heads=2, chunk=FrameCausal(3)), TTT(heads=2, short_conv="time")], ids=name)
def test_a_grid_that_changes_is_refused(mixer):
    layer = build(mixer)
    _, state = layer(torch.randn(1, N, DIM).double(), None, Layout(GRID))
    with pytest.raises(ValueError, match="grid of a sequence must not change"):
        layer(torch.randn(1, 4, DIM).double(), state, Layout((2, 2)))


def test_a_chunk_that_was_closed_early_cannot_be_reopened():
    layer = build(TTT(heads=2, chunk=Whole(2)))
    _, state = layer(torch.randn(1, 3 * N, DIM).double(), None, Layout(GRID))
    with pytest.raises(ValueError, match="split it at whole chunks"):
        layer(torch.randn(1, N, DIM).double(), state, Layout(GRID))


@dataclass(frozen=True)
class Tied(InnerModel):
    def maps(self, dim):
        return {"1": MapShape(dim, dim), "2": MapShape(dim, dim)}

    def __call__(self, x, affine, grid):
        return affine("1", affine("1", x))


@dataclass(frozen=True)
class Lazy(Tied):
    def __call__(self, x, affine, grid):
        return affine("1", x)


@pytest.mark.parametrize(("inner", "words"), [(Tied(), "twice"), (Lazy(), "never applies its maps 2")])
def test_inner_models_apply_each_map_once(inner, words):
    with pytest.raises(ValueError, match=words):
        build(TTT(inner=inner, heads=2))(torch.randn(1, N, DIM).double(), None, Layout(GRID))


@dataclass(frozen=True)
class Pooled(InnerModel):
    """One pooled token per frame goes through its map."""

    mixes_tokens: ClassVar[bool] = True

    def maps(self, dim):
        return {"1": MapShape(dim, dim)}

    def __call__(self, x, affine, grid):
        frames = x.unflatten(2, (-1, grid[0] * grid[1]))
        return (frames + affine("1", frames.mean(3)).unsqueeze(3)).flatten(2, 3)


def test_maps_of_something_else_than_tokens_need_whole_chunks():
    x = torch.randn(1, 2 * N, DIM).double()
    build(TTT(inner=Pooled(), heads=2))(x, None, Layout(GRID))
    with pytest.raises(ValueError, match="a map's rows are the chunk's tokens"):
        build(TTT(inner=Pooled(), heads=2, chunk=FrameCausal(2)))(x, None, Layout(GRID))
