"""The GPU benchmark goes through, interpreted and at tiny sizes, so that the first minute on a GPU gives figures."""

import pytest
import torch

from benchmarks import gpu, gpu_report
from benchmarks.contestants import CONTESTANTS

NAMED = {
    "train_over_plain_scan",
    "forward_crossover_tokens_vs_flash",
    "train_crossover_tokens_vs_flash",
    "train_over_flash_128k",
    "fraction_of_matmul_rate_frame_chunk",
    "device",
}


def test_the_benchmark_runs_dry(tmp_path):
    found = gpu.measure(dry=True)
    assert not [r["why"] for r in found["rows"] if r["seconds"] is None and r["layer"] not in CONTESTANTS]
    measured = {(r["shape"], r["layer"], r["what"]) for r in found["rows"] if r["seconds"]}
    for shape in ("paper", "video"):
        for layer in ("ttt_mlp", "ttt_linear"):
            assert {(shape, layer, what) for what in ("forward", "train", "decode", "decode_graph")} <= measured
    assert ("paper", "plain_scan", "train") in measured
    assert ("video", "ttt_conv", "train") in measured
    assert found["summary"].keys() >= NAMED
    skipped = {r["layer"]: r["why"] for r in found["rows"] if r["seconds"] is None}
    assert skipped.keys() == CONTESTANTS.keys()
    table = gpu_report.table(found["rows"])
    assert "video, train: nanoseconds per token" in table
    assert "mamba_ssm_mamba2: mamba-ssm" in table
    gpu_report.plot(found["rows"], "dry", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


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
    found = gpu_report.summary(rows, 1e15)
    assert found["train_over_plain_scan"] == pytest.approx(50)
    assert found["token_causal_train_over_plain_scan"] == pytest.approx(30)
    assert found["forward_crossover_tokens_vs_flash"] == found["train_crossover_tokens_vs_flash"] == 8036
    assert found["train_over_flash_128k"] == pytest.approx(131124 * 2e-4)
    assert found["fraction_of_matmul_rate_frame_chunk"] == pytest.approx(3 * 8 * 2 * 64 * 256 * 12 / 1e-6 / 1e15)
    assert found["time_per_token_spread_from_8k"] == pytest.approx(1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    with pytest.raises(SystemExit, match="No CUDA device is to be seen"):
        gpu.measure()
