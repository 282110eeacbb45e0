"""Every kernel, forward and backward, against the eager scan in float64: outputs, states and all gradients.

A few cases belong to the quick suite, the others to `make test-kernels`.
"""

import pytest
import torch

from tests.helpers import name
from tests.ttt.kernels.cases import case, eager, fused, gradients, worst
from tttvideo.ttt import MLP, SGD, Conv, ConvDepthwise, DotProduct, DWConv, FrameCausal, Linear, TokenCausal
from tttvideo.ttt.kernels import launch
from tttvideo.ttt.kernels.token_causal import token_causal

TOLERANCE = 1e-10

TOKEN_CASES = [
    # model, chunk, head dimension, lengths and positions of the rows
    (Linear(), 16, 16, (21, 2), (9, 3)),
    (MLP(2), 16, 16, (14, 0), (9, 0)),
    *(
        pytest.param(*arguments, marks=pytest.mark.kernels)
        for arguments in (
            (MLP(), 16, 16, (37, 5), (3, 9)),
            (MLP(), 16, 32, (32,), None),
            (MLP(), 16, 16, (16, 0, 3), (0, 5, 13)),
            (MLP(), 32, 32, (33, 70), (31, 0)),
            (MLP(expansion=8), 64, 32, (65,), (0,)),
            (MLP(), 16, 64, (20,), (15,)),
            (MLP(expansion=1), 16, 128, (17,), (1,)),
            (Linear(), 16, 16, (16, 0, 3), (0, 5, 13)),
            (Linear(), 32, 64, (70,), (0,)),
            (Linear(), 64, 32, (65, 1), (63, 63)),
            (Linear(), 16, 128, (17,), (1,)),
            (Linear(), 16, 16, (200,), (5,)),
            (MLP(expansion=2), 16, 16, (100,), (5,)),
            (MLP(expansion=2), 16, 16, (200,), None),
        )
    ),
]


@pytest.mark.parametrize(("model", "size", "dim", "lengths", "position"), TOKEN_CASES, ids=name)
def test_token_causal_kernels_are_the_eager_scan(model, size, dim, lengths, position):
    one = case(model, TokenCausal(size), dim=dim, lengths=lengths, position=position)
    error, whose = worst(gradients(fused, one), gradients(eager, one))
    assert error <= TOLERANCE, whose


FRAME_CASES = [
    # model, grid of a frame, head dimension, tokens of the rows
    # the first two are also in the quick suite
    (MLP(), (1, 5), 16, (10,)),  # two blocks of hidden units
    (Conv(), (2, 3), 16, (12,)),
    *(
        pytest.param(*arguments, marks=pytest.mark.kernels)
        for arguments in (
            (Linear(), (1, 5), 16, (10,)),
            (MLP(2), (1, 5), 16, (10, 5)),
            (MLP(), (5, 7), 16, (70, 35, 0)),  # wide tiles
            (MLP(8), (9, 8), 16, (144, 72)),
            (MLP(), (3, 7), 16, (63, 21)),
            (MLP(), (7, 10), 32, (140, 0)),
            (MLP(), (4, 4), 64, (16,)),
            (MLP(2), (14, 14), 16, (392,)),
            (Linear(), (3, 7), 16, (63, 21)),
            (Linear(), (7, 10), 32, (140, 0)),
            (Linear(), (4, 4), 64, (64,)),
            (Linear(), (14, 14), 128, (392,)),
            (Linear(), (32, 32), 16, (1024,)),
            (Conv(), (3, 7), 16, (63, 21)),
            (Conv(2), (7, 10), 32, (140, 0)),
            (Conv(), (1, 1), 16, (3,)),
            (Conv(), (1, 5), 64, (10,)),
            (Conv(), (5, 1), 16, (5, 10, 5)),
            (ConvDepthwise(), (2, 3), 16, (12,)),
            (ConvDepthwise(), (3, 7), 16, (63, 21)),
            (ConvDepthwise(), (7, 10), 32, (140, 0)),
            (ConvDepthwise(), (5, 1), 64, (5, 10)),
        )
    ),
]


def frame_cases():
    """Each with enough heads to fill a device (one launch takes all phases) and without; those of the quick suite are
    one way there."""
    for number, some in enumerate(FRAME_CASES):
        arguments, marks = (some.values, some.marks) if hasattr(some, "values") else (some, ())
        for fill in (False, True):
            other = () if fill == (number == 0) else (pytest.mark.kernels,)
            yield pytest.param(*arguments, fill, marks=marks or other)


@pytest.mark.parametrize(("model", "grid", "dim", "lengths", "heads_fill_the_device"), list(frame_cases()), ids=name)
def test_frame_kernels_are_the_eager_scan(model, grid, dim, lengths, heads_fill_the_device, monkeypatch):
    """In one launch, and phase by phase."""
    monkeypatch.setattr(launch, "FEW_PROGRAMS", 1 if heads_fill_the_device else 64)
    one = case(model, FrameCausal(), dim=dim, lengths=lengths, frame=grid, heads=1)
    error, whose = worst(gradients(fused, one), gradients(eager, one))
    assert error <= TOLERANCE, whose


@pytest.mark.kernels
@pytest.mark.parametrize("mode", ["bf16", "tf32"])
def test_tiles_of_other_precisions_are_the_eager_scan_in_float64(mode, monkeypatch):
    monkeypatch.setattr(launch, "FEW_PROGRAMS", 1)
    monkeypatch.setitem(launch.WIDE, ("mlp", "ieee"), launch.WIDE["mlp", mode])
    one = case(MLP(), FrameCausal(), dim=32, lengths=(280, 140), frame=(10, 14), heads=1)
    error, whose = worst(gradients(fused, one), gradients(eager, one))
    assert error <= TOLERANCE, whose


CUMULATIVE_CASES = [
    # clip, grid of a frame, head dimension, tokens of the rows
    (1.0, (2, 3), 16, (12, 6)),
    *(
        pytest.param(*arguments, marks=pytest.mark.kernels)
        for arguments in (
            (None, (2, 3), 16, (18, 6)),
            (1.0, (5, 7), 16, (70,)),
            (None, (7, 10), 32, (140, 0, 70)),
            (0.3, (1, 1), 16, (5, 2)),
            (1.0, (1, 5), 64, (10,)),
            (None, (14, 14), 128, (392,)),
        )
    ),
]


@pytest.mark.parametrize(("clip", "grid", "dim", "lengths"), CUMULATIVE_CASES, ids=name)
def test_the_cumulative_sum_is_the_eager_scan(clip, grid, dim, lengths):
    given = {"objective": DotProduct(), "optimizer": SGD(clip=clip)}
    one = case(DWConv(), FrameCausal(), dim=dim, lengths=lengths, frame=grid, **given)
    error, whose = worst(gradients(fused, one), gradients(eager, one))
    assert error <= TOLERANCE, whose


@pytest.mark.kernels
def test_half_precision_tokens_keep_the_state_in_float32():
    one = case(MLP(2), TokenCausal(16), lengths=(21,), dtype=torch.float16)
    computed, expected = gradients(fused, one), gradients(fused, case(MLP(2), TokenCausal(16), lengths=(21,)))
    assert computed["out"].dtype == torch.float16
    assert computed["W 1.weight"].dtype == torch.float32
    assert computed["gradient at k"].dtype == torch.float16
    error, whose = worst(computed, expected)
    assert error <= 1e-2, whose


@pytest.mark.kernels
def test_the_operator_keeps_its_promises():
    """Schema, fake tensors, autograd registration and what compilers trace are checked by PyTorch itself."""
    one = case(Linear(), TokenCausal(16), lengths=(17, 3), position=(2, 1))
    x = one.tensors
    weights, pending = (torch.randn(2, 2, 16 * 17).double().requires_grad_() for _ in range(2))
    tokens = (x["q"], x["k"], x["v"], x["rate"], x["scale"], x["gamma"][:, 0], x["beta"][:, 0])
    torch.library.opcheck(token_causal, (*tokens, weights, pending, one.position, one.lengths, 0, True, "ieee", True))
