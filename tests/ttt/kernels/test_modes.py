"""What the products read on a device, emulated by the interpreter: TensorFloat-32 and bfloat16 operands, rounded to
nearest, so that every mode runs on the numbers that a GPU would give."""

import contextlib

import pytest
import torch
import triton
import triton.language as tl

from tests.helpers import name
from tests.ttt.kernels.accuracy import INPUTS, relative, rounded
from tests.ttt.kernels.cases import case, eager, fused, gradients
from tttvideo.ttt import MLP, SGD, Conv, ConvDepthwise, DotProduct, DWConv, FrameCausal, Linear, TokenCausal
from tttvideo.ttt.kernels import depthwise, frame_causal, heads, launch, output, split, token_causal
from tttvideo.ttt.kernels.pointwise import mm, to_bf16, to_tf32
from tttvideo.ttt.kernels.verified import BOUNDS

LEAST = {"tf32x3": 1e-8, "tf32": 5e-5, "bf16": 5e-4}
"""Errors that a mode cannot stay under: below, nothing would have been rounded."""

CASES = [
    (Linear(), TokenCausal(16), 1, (18, 2)),
    (Linear(), FrameCausal(), (1, 3), (6, 3)),
    *(
        pytest.param(*arguments, marks=pytest.mark.kernels)
        for arguments in (
            (MLP(2), TokenCausal(16), 1, (37, 5)),
            (MLP(), FrameCausal(), (1, 5), (10, 5)),
            (MLP(), FrameCausal(), (5, 13), (130,)),  # wide tiles
            (Conv(), FrameCausal(), (2, 3), (12, 6)),
            (ConvDepthwise(), FrameCausal(), (2, 3), (12, 6)),
        )
    ),
]


def with_modes():
    """Each mode and each of the quick cases once in the quick suite."""
    for number, some in enumerate(CASES):
        arguments, marks = (some.values, some.marks) if hasattr(some, "values") else (some, ())
        for other, inputs in enumerate(INPUTS):
            quick = not marks and (other % 2 == number) and other < len(BOUNDS)
            yield pytest.param(*arguments, *inputs, marks=() if quick else pytest.mark.kernels)


@pytest.mark.parametrize(("model", "chunk", "frame", "lengths", "mode", "dtype"), list(with_modes()), ids=name)
def test_every_mode_keeps_to_its_bound(model, chunk, frame, lengths, mode, dtype):
    """On tokens of every dtype that layers of this mode give."""
    one = rounded(case(model, chunk, lengths=lengths, frame=frame, heads=1), dtype)
    computed = gradients(lambda c: fused(c, mode), one)
    assert computed["out"].dtype == computed["gradient at k"].dtype == dtype
    errors = relative(computed, gradients(eager, rounded(one, torch.float64, torch.float64)))
    assert {n: error for n, error in errors.items() if not error <= BOUNDS[mode]} == {}
    assert max(errors.values()) > LEAST[mode]


def test_the_cumulative_kernels_have_no_products_to_round():
    one = case(DWConv(), FrameCausal(), lengths=(4,), frame=(1, 2), objective=DotProduct(), optimizer=SGD(clip=1.0))
    for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, 5e-3)):  # what comes out is rounded
        some = rounded(one, dtype)
        exact = gradients(eager, rounded(some, torch.float64, torch.float64))
        errors = relative(gradients(lambda c: fused(c, "bf16"), some), exact)
        assert max(errors.values()) <= bound
        assert max(errors[name] for name in errors if name.startswith("W ")) <= 1e-5


@triton.jit
def _round(x, as_tf32, as_bf16, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    tl.store(as_tf32 + i, to_tf32(tl.load(x + i)))
    tl.store(as_bf16 + i, to_bf16(tl.load(x + i)))


def test_operands_are_rounded_to_nearest_and_what_is_no_number_stays_none():
    largest = torch.finfo(torch.float32).max
    x = torch.cat(
        [torch.tensor([0.0, -0.0, float("inf"), -float("inf"), largest, -largest, float("nan")]), torch.randn(1017)]
    )
    x[7] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)  # a GPU's NaN
    x[8:10] = torch.tensor([1 + 2**-11, -1 - 2**-11])  # halfway: away from zero
    as_tf32, as_bf16 = torch.empty_like(x), torch.empty_like(x)
    _round[(1,)](x, as_tf32, as_bf16, 1024)
    assert torch.equal(as_bf16.nan_to_num(7.0), x.bfloat16().float().nan_to_num(7.0))
    assert as_tf32[6:8].isnan().all()
    assert as_tf32[8:10].tolist() == [1 + 2**-10, -1 - 2**-10]
    numbers = x.isfinite() & (x.abs() < largest)
    assert not (as_tf32.view(torch.int32)[numbers] & 0x1FFF).any()
    assert ((as_tf32 - x)[numbers].abs() <= x[numbers].abs() * 2**-11).all()
    assert torch.equal(as_tf32[:4], x[:4])
    assert (as_tf32[4:6].abs() == torch.inf).all()


@triton.jit
def _multiply(x, y, product, MODE: tl.constexpr):
    at = tl.arange(0, 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
    tl.store(product + at, mm(tl.load(x + at), tl.load(y + at), MODE))


def test_products_in_bfloat16_are_those_of_rounded_operands():
    """Triton's interpreter by itself multiplies the integers that the bits are."""
    x, y, multiplied = torch.randn(16, 16), torch.randn(16, 16), torch.empty(16, 16)
    _multiply[(1,)](x, y, multiplied, "bf16")
    assert (multiplied - x.bfloat16().float() @ y.bfloat16().float()).abs().max() <= 1e-5


OPERATORS = [
    depthwise.convolve,
    depthwise.correlate,
    frame_causal.frame_causal,
    frame_causal.frame_causal_backward,
    heads.split_heads,
    heads.split_heads_backward,
    heads.merge_heads,
    output.norm_and_gate,
    output.norm_and_gate_backward,
    token_causal.token_causal,
    token_causal.token_causal_backward,
]


def test_every_operator_launches_on_the_device_of_its_tensors(monkeypatch):
    """Triton launches on the current device. Here the guard's argument and extent are seen; two GPUs: test_gpu.py."""
    held, launched = [], []

    @contextlib.contextmanager
    def device_of(tensor):
        held.append(tensor)
        yield
        held.pop()

    contiguous = launch.contiguous
    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    for module in (depthwise, frame_causal, heads, output, token_causal):
        monkeypatch.setattr(module, "contiguous", lambda *x: (launched.append(len(held)), contiguous(*x))[1])
    given = {"objective": DotProduct(), "optimizer": SGD(clip=1.0)}
    for one in (
        case(Linear(), TokenCausal(16), lengths=(3,), heads=1),
        case(Linear(), FrameCausal(), lengths=(3,), frame=(1, 3), heads=1),
        case(DWConv(), FrameCausal(), lengths=(3,), frame=(1, 3), heads=1, **given),
    ):
        gradients(fused, one)
    y = split(None, torch.randn(1, 2, 16, requires_grad=True), heads=1, theta=1e4, silu=True)[0]
    output.norm_and_gate(y, torch.ones(16), torch.zeros(16), None, torch.float32).sum().backward()
    assert launched
    assert set(launched) == {1}
    assert {op._qualname for op in OPERATORS} == {
        f"tttvideo::{n}" for n in dir(torch.ops.tttvideo) if f"tttvideo::{n}" in torch._library.custom_ops.OPDEFS
    }
