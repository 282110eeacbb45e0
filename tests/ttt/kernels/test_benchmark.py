"""The GPU benchmark goes through, interpreted and at tiny sizes, so that the first minute on a GPU gives figures."""

import pytest
import torch

from benchmarks import gpu


@pytest.mark.kernels
def test_the_benchmark_runs_dry():
    found = gpu.measure(dry=True)
    measured = {(r["shape"], r["layer"], r["what"]) for r in found["rows"] if r["seconds"]}
    for shape in ("paper", "video"):
        assert {(shape, "ttt_mlp", what) for what in ("forward", "train", "decode")} <= measured
    assert ("paper", "plain_scan", "train") in measured
    assert found["summary"].keys() == {
        "train_over_plain_scan",
        "forward_crossover_tokens_vs_flash",
        "train_crossover_tokens_vs_flash",
        "train_over_flash_128k",
        "fraction_of_matmul_rate_frame_chunk",
        "device",
    }


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    with pytest.raises(SystemExit, match="No CUDA device is to be seen"):
        gpu.measure()
