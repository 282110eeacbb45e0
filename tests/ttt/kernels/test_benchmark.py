"""The GPU benchmark goes through, interpreted and at tiny sizes, so that the first minute on a GPU gives figures."""

import json

import pytest
import torch
from torch import nn

from benchmarks import cores, cycles, gpu, gpu_layers, gpu_report
from benchmarks.contestants import CONTESTANTS
from tttvideo.ttt import Layout

PART = next(part for part in gpu_layers.parts(True) if part.layer == "ttt_mlp")
NAMED = {
    "train_over_plain_scan",
    "forward_crossover_tokens_vs_flash",
    "train_crossover_tokens_vs_flash",
    "train_over_flash_128k",
    "fraction_of_matmul_rate_frame_chunk",
    "device",
}


@pytest.mark.slow
def test_the_benchmark_runs_dry(tmp_path):
    figures = gpu.measure(dry=True, keep=tmp_path / "rows.jsonl")
    kept = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert kept == json.loads(json.dumps(figures["rows"]))
    missing = CONTESTANTS.keys() | cores.PACKAGES.keys()
    assert not [r["why"] for r in figures["rows"] if r["seconds"] is None and r["layer"] not in missing]
    measured = {(r["shape"], r["layer"], r["what"]) for r in figures["rows"] if r["seconds"]}
    for shape in ("paper", "video"):
        for layer in ("ttt_mlp", "ttt_linear"):
            assert {(shape, layer, what) for what in ("forward", "train", "decode", "decode_graph")} <= measured
        for what in ("forward", "train", "forward_graph", "train_graph"):
            assert (shape, "ttt_linear_core", what) in measured
        assert (shape, "attention_core", "train") in measured
    assert ("paper", "plain_scan", "train") in measured
    assert ("video", "ttt_conv", "train") in measured
    assert figures["summary"].keys() >= NAMED
    skipped = {r["layer"]: r["why"] for r in figures["rows"] if r["seconds"] is None}
    assert skipped.keys() == missing
    profiles = {(r["shape"], r["layer"]): r for r in figures["rows"] if r["what"] == "profile"}
    assert profiles.keys() >= {(shape, layer) for shape in ("paper", "video") for layer in ("ttt_mlp", "ttt_linear")}
    for row in profiles.values():
        assert 0 < sum(kernel["seconds"] for kernel in row["kernels"]) <= row["seconds"]
    table = gpu_report.table(figures["rows"])
    assert "video, ttt_mlp: a training step of 1 x 16 tokens by kernel" in table
    assert "video, train: nanoseconds per token" in table
    assert "mamba_ssm_mamba2: mamba-ssm" in table
    gpu_report.plot(figures["rows"], "dry", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_only_some_layers_are_measured_in_the_order_of_the_words():
    parts = gpu.chosen(False, ("video:attention", "ttt_mlp_core_bf16"))
    assert [(part.shape.name, part.layer) for part in parts] == [
        ("video", "attention"),
        ("video", "ttt_mlp_core_bf16"),
        ("paper", "ttt_mlp_core_bf16"),
    ]
    assert gpu.chosen(False, ()) == gpu_layers.parts(False)
    with pytest.raises(ValueError, match="No layer is called ttt; there are ttt_mlp_core_bf16, attention_core"):
        gpu.chosen(False, ("ttt",))


def test_what_fails_is_a_row_and_not_tried_again():
    class Failing(nn.Module):
        def forward(self, x):
            raise (torch.OutOfMemoryError if torch.is_grad_enabled() else RuntimeError)("a bad kernel")

    part = PART
    slow = set()
    rows = list(gpu.timed(part, Failing(), 16, torch.device("cpu"), slow))
    assert [r for r in rows if isinstance(r, str)] == ["forward, 16 tokens", "train, 16 tokens"]
    assert [(r["what"], r["seconds"], r["why"]) for r in rows if isinstance(r, dict)] == [
        ("forward", None, "forward: RuntimeError: a bad kernel"),
        ("train", None, "out of memory"),
    ]
    assert list(gpu.timed(part, Failing(), 16, torch.device("cpu"), slow)) == []


@pytest.mark.parametrize(("later", "measured"), [(0.01, [16, 32]), (6.0, [16])])
def test_what_is_slow_only_at_first_is_measured_on_longer_sequences(monkeypatch, later, measured):
    """The first call compiles the kernels."""
    times = iter([6.0, later] * 100)
    monkeypatch.setattr(gpu, "repeated", lambda run, device, rounds: {"first": next(times), "times": [next(times)]})
    slow, lengths = set(), []
    for length in (16, 32):
        rows = gpu.timed(PART, nn.Identity(), length, torch.device("cpu"), slow)
        lengths += [row["length"] for row in rows if isinstance(row, dict) and row["what"] == "train"]
    assert lengths == measured


def test_a_part_that_ends_early_hides_no_figure():
    part = PART
    row = {"shape": "video", "layer": part.layer, "what": "train", "length": 16, "batch": 1, "seconds": 16e-6}
    table = gpu_report.table([row, gpu._without(part, "the time was up")])
    assert "1,000.0" in table
    assert f"{part.layer}: the time was up" in table


def test_attention_is_measured_without_a_mask(monkeypatch):
    """FlashAttention takes none, and one of 262,144 x 262,144 would fill the host."""
    given = []
    attend = nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        nn.functional, "scaled_dot_product_attention", lambda *a, **k: (given.append(k), attend(*a, **k))[1]
    )
    for part in gpu_layers.parts(True):
        if part.layer == "attention":
            layer = gpu_layers.build(part, torch.device("cpu"))
            layer(torch.randn(2, 32, 16), None, Layout(part.shape.grid))
    assert given == [{"is_causal": True}] * 2


def test_where_kernels_cannot_be_interpreted_the_eager_scan_stands_in(monkeypatch):
    outputs = {}
    for why in (None, "this Triton with this NumPy"):
        monkeypatch.setattr(cores, "not_interpreted", lambda why=why: why)
        if why:
            monkeypatch.setattr(cores, "fused", None)
        for part in gpu_layers.parts(True):
            if part.layer == "ttt_linear_core":
                torch.manual_seed(0)
                core = gpu_layers.build(part, torch.device("cpu"))
                outputs[part.shape.name, why] = core(torch.randn(1, 16, part.shape.dim))
    assert len(outputs) == 4
    for shape in ("paper", "video"):
        interpreted, eager = (y for (name, _), y in outputs.items() if name == shape)
        assert (interpreted - eager).abs().max() <= 1e-4


def test_the_summary_says_what_the_rows_say():
    def row(layer, what, length, seconds, shape="video"):
        return {
            "shape": shape,
            "layer": layer,
            "what": what,
            "length": length,
            "batch": 2,
            "seconds": seconds * 2 * length,
        }

    rows = [row("ttt_mlp", what, n, 1e-6) for what in ("forward", "train") for n in (980, 8036, 131124)]
    rows += [row("attention", what, n, n * 2e-10) for what in ("forward", "train") for n in (980, 8036, 131124)]
    rows += [row("ttt_mlp", "train", 1024, 1e-6, "paper"), row("plain_scan", "train", 1024, 3e-5, "paper")]
    rows += [row("plain_scan", "train", 980, 5e-5)]
    summary = gpu_report.summary(rows, 1e15)
    assert summary["train_over_plain_scan"] == pytest.approx(50)
    assert summary["token_causal_train_over_plain_scan"] == pytest.approx(30)
    assert summary["forward_crossover_tokens_vs_flash"] == summary["train_crossover_tokens_vs_flash"] == 8036
    assert summary["train_over_flash_128k"] == pytest.approx(131124 * 2e-4)
    assert summary["fraction_of_matmul_rate_frame_chunk"] == pytest.approx(3 * 8 * 2 * 64 * 256 * 12 / 1e-6 / 1e15)
    assert summary["time_per_token_spread_from_8k"] == pytest.approx(1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    with pytest.raises(SystemExit, match="No CUDA device is to be seen"):
        gpu.measure()


SASS = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0020*/              @!P0 LDS R8, [R9] ;
        /*0030*/                   HGMMA.64x32x16.F32.BF16 R24, gdesc[UR8], R24 ;
        /*0038*/                   HGMMA.64x32x8.F32.TF32 R24, R60, gdesc[UR8], R24 ;
        /*003c*/                   HMMA.16816.F32.BF16 R4, R12, R14, R4 ;
        /*003e*/                   LDSM.16.M88.4 R12, [R9] ;
        /*0040*/                   MUFU.EX2 R10, R11 ;
        /*0050*/               @P1 BRA 0x30 ;
        /*0054*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0060*/               @P2 BRA 0x10 ;
        /*0070*/                   FADD R5, R5, R6 ;
        /*0080*/               @P3 BRA 0x70 ;
        /*0090*/                   EXIT ;
"""


def test_instructions_count_as_often_as_their_loops_turn():
    """The last loop has no matrix product: it is left out."""
    assert cycles.loops(cycles.instructions(SASS)) == [(0x10, 0x60), (0x30, 0x50), (0x70, 0x80)]
    figures = cycles.bounds(cycles.instructions(SASS), (5, 3), warps=4)
    inner, outer = 5 * 3, 5  # turns; four warps, which one instruction of HGMMA belongs to together
    assert figures["issue"] == 2 + outer * 4 + inner * 6  # first and last, the outer loop's, the inner loop's
    wide, tf32, older = 2 * 64 * 32 * 16 / 4096, 2 * 2 * 64 * 32 * 8 / 4096, 4 * 2 * 16 * 8 * 16 / 4096 / 0.62
    assert figures["tensor"] == pytest.approx(inner * (wide + tf32 + older))
    both, right = (64 + 32) * 16 * 2, 32 * 8 * 4  # operands that come from shared memory; the other's left one does not
    assert figures["shared"] == (outer * 4 * (512 + 128) + inner * (both + right + 4 * 512)) / 128
    assert figures["special"] == 4 * inner * 2
    assert figures["barriers"] == outer  # of the program
    assert figures["global_kB"] == outer * 4 * 512 / 1000
