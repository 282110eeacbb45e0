"""`fused`: what is computed by kernels, and what is said where there are none."""

import logging
import re
from dataclasses import replace
from importlib.metadata import version

import pytest
import torch

from tests.helpers import name
from tttvideo.ttt import (
    GLU,
    L2,
    MLP,
    SGD,
    TTT,
    Conv,
    ConvDepthwise,
    DWConv,
    FrameCausal,
    Layout,
    Linear,
    Momentum,
    TokenCausal,
    Whole,
)
from tttvideo.ttt.kernels import choice, launch, read, self_check, verified

ABLE = TTT(MLP(), 2, TokenCausal(16), fused="require")

REFUSED = [
    (replace(ABLE, inner=GLU()), "inner model GLU"),
    (replace(ABLE, inner=Linear(bias=False)), "MLP, Linear with a bias, and Conv"),
    (replace(ABLE, inner=Conv(time=2), chunk=FrameCausal()), "DWConv with time: 1"),
    (replace(ABLE, inner=Conv(3), chunk=FrameCausal()), "48 hidden channels"),
    (replace(ABLE, inner=ConvDepthwise(), chunk=FrameCausal(), heads=4), "kernels of ConvDepthwise it is 16, 32 or 64"),
    (replace(ABLE, inner=DWConv(), chunk=FrameCausal()), "no kernel of DWConv for the objective ResidualL2"),
    (replace(ABLE, chunk=TokenCausal(4)), "chunks have 4 tokens"),
    (replace(ABLE, chunk=FrameCausal(2)), "no kernel for FrameCausal"),
    (replace(ABLE, chunk=Whole(2)), "no kernel for Whole"),
    (replace(ABLE, objective=L2()), "objective L2"),
    (replace(ABLE, chunk=FrameCausal(), optimizer=Momentum()), "optimizer Momentum"),
    (replace(ABLE, chunk=FrameCausal(), optimizer=SGD(clip=1.0)), "optimizer SGD"),
    (replace(ABLE, views=2), "several views"),
    (replace(ABLE, forget=True), "forget gate"),
    (replace(ABLE, heads=4), "head dimension is 8"),
    (replace(ABLE, inner=MLP(3)), "hidden width is 48"),
]


@pytest.mark.parametrize(("config", "reason"), REFUSED)
def test_what_kernels_cannot_do_is_refused_with_a_reason_or_left_to_the_eager_scan(config, reason):
    x = torch.randn(1, 6, 32)
    with pytest.raises(ValueError, match=f"TTT.fused is require, but .*{reason}.*; use fused: auto"):
        config.build(32)(x, None, Layout((2, 3)))
    assert replace(config, fused="auto").build(32)(x, None, Layout((2, 3)))[0].isfinite().all()


def test_require_without_a_gpu_is_one_sentence(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    layer, x = ABLE.build(32), torch.randn(1, 16, 32)
    for call in (layer, layer.step):
        with pytest.raises(ValueError, match="fused is require, but kernels run on GPUs, not on cpu"):
            call(x, layer.init_state(1))


def test_auto_on_a_cpu_is_the_eager_scan_even_with_an_interpreter(monkeypatch):
    monkeypatch.setattr("tttvideo.ttt.layer.read_fused", None)
    replace(ABLE, fused="auto").build(32)(torch.randn(1, 6, 32))


def test_only_the_three_words_are_taken():
    with pytest.raises(ValueError, match="auto, never or require"):
        TTT(fused="always")  # type: ignore[arg-type]


def test_the_choice_is_logged_once(caplog):
    caplog.set_level(logging.INFO, "tttvideo.ttt")
    choice._say.cache_clear()
    layer = ABLE.build(32)
    for _ in range(2):
        layer(torch.randn(1, 6, 32))
    assert [record.message for record in caplog.records] == ["TTT MLP: fused kernels"]


AUTO = TTT(Linear(), 2, TokenCausal(16), fused="auto")
ROW = verified.Verified("linear", "token", "tf32x3", "float32", 90, "", 16, 2, 6, 1e-7, 3.0)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """The CPU counts as a device (sm_90, as the interpreter says); returns what sets the table."""
    monkeypatch.setattr(choice, "not_here", lambda *_: None)
    monkeypatch.setattr(self_check, "_SMALL_BATCH", 1)
    for cached in (choice._say, choice._warn, self_check.failure):
        cached.cache_clear()
    release = ".".join(version("triton").split(".")[:2])

    def rows(*table):
        monkeypatch.setattr(verified, "table", lambda: tuple(row._replace(triton=release) for row in table))

    yield rows
    self_check.failure.cache_clear()


def test_the_committed_table_has_rows_of_the_bounds_only():
    for row in verified.table():
        assert row.error <= verified.BOUNDS[row.mode]
        assert row.speedup > 1


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ((), "was not verified on sm_90 with Triton"),
        (
            (ROW._replace(dtype="bfloat16"), ROW._replace(kernel="mlp"), ROW._replace(sm=80)),
            "tf32x3 products and tokens in float32, was not",
        ),
        ((ROW._replace(dim=64), ROW._replace(dim=128)), "was verified for heads of 64, 128, not 16"),
        ((ROW._replace(programs=3), ROW._replace(tokens=7)), "was not found faster for 1 x 2 rows x heads of 6 tokens"),
    ],
)
def test_auto_takes_what_was_verified_and_found_faster_and_says_once_why_not(
    table, reason, as_on_a_gpu, caplog, monkeypatch
):
    caplog.set_level(logging.INFO, "tttvideo.ttt")
    as_on_a_gpu(*table)
    monkeypatch.setattr("tttvideo.ttt.layer.read_fused", None)
    layer = AUTO.build(32)
    for _ in range(2):
        layer(torch.randn(1, 6, 32))
    (record,) = caplog.records
    assert record.message.startswith("TTT Linear: the eager scan: the linear kernel for token-causal chunks, ")
    assert reason in record.message


def test_auto_checks_kernels_once_and_then_uses_them(as_on_a_gpu, caplog, monkeypatch):
    caplog.set_level(logging.INFO, "tttvideo.ttt")
    as_on_a_gpu(ROW)
    tried = []
    all_of = self_check._all_of
    monkeypatch.setattr(self_check, "_all_of", lambda layer, *rest: (tried.append(layer), all_of(layer, *rest))[1])
    layer, x = AUTO.build(32), torch.randn(1, 6, 32)
    state, precision = torch.get_rng_state(), torch.get_float32_matmul_precision()
    with torch.inference_mode():
        first, second = (layer(x)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_float32_matmul_precision() == precision
    assert [one.config.fused for one in tried] == ["require", "never"]
    assert [record.message for record in caplog.records] == ["TTT Linear: fused kernels"]
    expected = replace(AUTO, fused="never").build(32)
    expected.load_state_dict(layer.state_dict())
    assert (expected(x)[0] - first).abs().max() <= 1e-5


def wrong(*arguments):
    out, *rest = read(*arguments)
    return (out + 0.1 * out.abs(), *rest)


@pytest.mark.parametrize(
    ("kernels", "reason"),
    [
        (wrong, r"the relative error of .* is .*e-0[123], above 1e-04"),
        (lambda *_: (_ for _ in ()).throw(RuntimeError("no kernel image")), "RuntimeError: no kernel image"),
    ],
)
def test_kernels_that_fail_their_self_check_are_left_alone_with_one_warning(
    kernels, reason, as_on_a_gpu, caplog, monkeypatch
):
    as_on_a_gpu(ROW)
    monkeypatch.setattr("tttvideo.ttt.layer.read_fused", kernels)
    layer, x = AUTO.build(32), torch.randn(1, 6, 32)
    outputs = [layer(x)[0] for _ in range(2)]
    (record,) = (record for record in caplog.records if record.levelname == "WARNING")
    assert re.search(rf"TTT Linear: kernels fail their self-check \(.*{reason}.*\); the eager scan", record.message)
    expected = replace(AUTO, fused="never").build(32)
    expected.load_state_dict(layer.state_dict())
    assert all(torch.equal(y, expected(x)[0]) for y in outputs)


@pytest.mark.parametrize(
    "config", [AUTO, pytest.param(TTT(MLP(), 2, FrameCausal(), fused="auto"), marks=pytest.mark.kernels)], ids=name
)
def test_kernels_of_a_layer_in_half_precision_are_checked_in_it(config, as_on_a_gpu, monkeypatch):
    as_on_a_gpu()
    given = (config, 16, (2, 3), torch.device("cpu"), "tf32", torch.bfloat16, False)
    dtypes = set()

    def also_wrong(*arguments):
        dtypes.add(arguments[2].q.dtype)
        return wrong(*arguments) if len(dtypes) > 1 else read(*arguments)

    monkeypatch.setattr("tttvideo.ttt.layer.read_fused", also_wrong)
    assert self_check.failure(*given) is None
    assert dtypes == {torch.bfloat16}
    dtypes.add(None)
    self_check.failure.cache_clear()
    assert "above 5e-02" in self_check.failure(*given)


def test_the_environment_switches_kernels_off(as_on_a_gpu, monkeypatch):
    as_on_a_gpu(ROW)
    monkeypatch.setattr("tttvideo.ttt.layer.read_fused", None)
    monkeypatch.setenv("TTTVIDEO_FUSED", "never")
    x = torch.randn(1, 6, 32)
    for fused in ("auto", "require"):  # a model that was trained with kernels serves where there are none
        replace(AUTO, fused=fused).build(32)(x)
    monkeypatch.setenv("TTTVIDEO_FUSED", "off")
    with pytest.raises(ValueError, match="TTTVIDEO_FUSED is 'off'; set it to never, or not at all"):
        AUTO.build(32)(x)


def test_large_heads_have_smaller_chunks():
    """What the compiled kernels need of a device (kernels/README.md)."""
    config = replace(ABLE, chunk=TokenCausal(64))
    assert choice.not_for(config, 64, 1, "bf16") is None
    assert "MLP read chunks of 16 or 32 (heads of 128, bf16 products)" in choice.not_for(config, 128, 1, "bf16")
    assert "chunks of 16 or 32 (heads of 64, tf32 products)" in choice.not_for(config, 64, 1, "tf32")
    assert choice.not_for(config, 32, 1, "bf16") is None
    assert choice.not_for(replace(config, inner=Linear()), 32, 1, "tf32") is None
    assert "chunks of 16 or 32 (heads of 64, tf32" in choice.not_for(replace(config, inner=Linear()), 64, 1, "tf32")
    assert "chunks of 16 (heads of 128" in choice.not_for(replace(ABLE, chunk=TokenCausal(32)), 128, 1, "tf32")


@pytest.mark.parametrize(
    ("kind", "dim", "hidden", "programs", "frame", "capability", "wide"),
    [
        ("mlp", 64, 256, 512, 196, 90, True),
        ("mlp", 64, 256, 512, 196, 80, False),
        ("mlp", 64, 256, 512, 196, 120, False),  # a later number, but tensor cores of the older kind
        ("mlp", 64, 256, 12, 196, 90, False),
        ("mlp", 64, 96, 512, 196, 90, False),  # the hidden width is not a multiple of a block
        ("mlp", 128, 512, 512, 196, 90, False),
        ("mlp", 64, 256, 512, 16, 90, False),
        ("linear", 64, 0, 512, 196, 90, True),
        ("conv", 64, 64, 512, 196, 90, False),
    ],
)
def test_tiles_are_wide_where_tensor_cores_are(kind, dim, hidden, programs, frame, capability, wide):
    for mode in ("bf16", "tf32"):
        tiles = launch.frame_tiles(kind, dim, hidden, mode, programs, frame, capability)
        assert (tiles == launch.WIDE.get((kind, mode))) == wide
    assert launch.frame_tiles(kind, dim, hidden, "tf32x3", programs, frame, capability) not in launch.WIDE.values()
