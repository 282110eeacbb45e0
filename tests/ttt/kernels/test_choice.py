"""`fused`: what is computed by kernels, and what is said where there are none."""

import logging
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

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
from tttvideo.ttt.kernels import choice, launch

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
    with pytest.raises(ValueError, match="fused is require, but kernels run on GPUs, not on cpu"):
        ABLE.build(32)(torch.randn(1, 6, 32))


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


def test_layers_work_where_triton_is_not_installed():
    code = (
        "import sys, importlib.util as u; find = u.find_spec;"
        "u.find_spec = lambda name, *rest: None if name.startswith('triton') else find(name, *rest);"
        "sys.modules['triton'] = None;"
        "import torch; from tttvideo.ttt import TTT; TTT().build(32)(torch.randn(1, 6, 32));"
        "layer = TTT(fused='require').build(32)\n"
        "try: layer(torch.randn(1, 6, 32))\n"
        "except ValueError as error: assert 'Triton is not installed' in str(error)\n"
        "else: raise AssertionError"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_large_heads_have_smaller_chunks():
    """What the compiled kernels need of a device (kernels/README.md)."""
    config = replace(ABLE, chunk=TokenCausal(64))
    assert choice.not_for(config, 64, 1, "bf16") is None
    assert "MLP read chunks of 16 or 32 (heads of 128, bf16 products)" in choice.not_for(config, 128, 1, "bf16")
    assert "chunks of 16 or 32 (heads of 64, tf32 products)" in choice.not_for(config, 64, 1, "tf32")
    assert choice.not_for(config, 32, 1, "bf16") is None
    assert choice.not_for(replace(config, inner=Linear()), 64, 1, "tf32") is None
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
        found = launch.frame_tiles(kind, dim, hidden, mode, programs, frame, capability)
        assert (found == launch.WIDE.get((kind, mode))) == wide
    assert launch.frame_tiles(kind, dim, hidden, "tf32x3", programs, frame, capability) not in launch.WIDE.values()
