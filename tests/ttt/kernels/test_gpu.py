"""What needs a GPU: `make test-gpu`. Kernels are compiled here, not interpreted."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.helpers import name
from tests.ttt.kernels.accuracy import PROBLEMS, around, measured, replayed
from tttvideo.ttt import MLP, TTT, Conv, FrameCausal, Layout, Linear, TokenCausal

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted: use make test-gpu"),
]


@pytest.mark.parametrize("problem", PROBLEMS, ids=name)
def test_errors_keep_to_the_bounds_and_two_runs_give_the_same_bits(problem):
    """Against float64 on the same tokens: outputs, states and all gradients, in every mode; frames with a launch for
    each phase and with one for all."""
    rows = list(measured(problem, "cuda"))
    for row in rows:
        print(row)
    assert [row for row in rows if not (row["within"] and row.get("same_bits"))] == []


def test_errors_of_the_kernels_around_the_scan():
    assert [row for row in around("cuda") if not (row["within"] and row.get("same_bits"))] == []


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("index", [0, 1, 6], ids=["frame", "token", "cumulative"])
def test_tensors_of_another_gpu_than_the_current_one(index):
    assert torch.cuda.current_device() == 0
    assert all(row["within"] for row in measured(PROBLEMS[index], "cuda:1"))


@pytest.mark.parametrize("chunk", [TokenCausal(16), FrameCausal()])
def test_training_curves_overlap(chunk):
    """200 steps of recalling the token sixteen before, in bfloat16: with and without kernels."""
    config = TTT(MLP(), heads=2, chunk=chunk)
    curves = []
    for how in ("require", "never"):
        torch.manual_seed(0)
        layer = replace(config, fused=how).build(64).cuda()
        into, out = nn.Embedding(16, 64).cuda(), nn.Linear(64, 16).cuda()
        parameters = [p for module in (layer, into, out) for p in module.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=3e-3)
        draw, losses = torch.Generator().manual_seed(1), []
        for _ in range(200):
            tokens = torch.randint(16, (8, 128), generator=draw).cuda()
            with torch.autocast("cuda", torch.bfloat16):
                y = out(layer(into(tokens), None, Layout((4, 4)))[0])
            loss = nn.functional.cross_entropy(y[:, 16:].float().flatten(0, 1), tokens[:, :-16].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        curves.append(torch.tensor(losses))
    kernels, plain = curves
    assert plain[-20:].mean() < plain[:20].mean()
    assert (kernels - plain).abs().mean() <= 0.02 * plain.mean()


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("chunk", [TokenCausal(16), FrameCausal()])
@pytest.mark.parametrize("inner", [MLP(), Linear(), Conv()])
def test_a_replayed_step_is_a_step(inner, chunk, autocast):
    if inner.mixes_tokens and not chunk.whole:
        return
    row = replayed(inner, chunk, autocast, "cuda")
    assert row["same"]
    assert row["graphs"] == (1 if chunk.whole else 16)


SMALL = """
import torch
from tttvideo.ttt import MLP, TTT, Conv, FrameCausal, Layout, Linear, TokenCausal
from tttvideo.ttt.kernels import launch
torch.set_float32_matmul_precision("high")  # tf32: wide tiles where the heads are many
cases = [(inner, chunk) for inner in (MLP(), Linear()) for chunk in (TokenCausal(16), FrameCausal())]
for few in (64, 1):
    launch.FEW_PROGRAMS = few
    for inner, chunk in [*cases, (Conv(), FrameCausal())]:
        layer = TTT(inner, heads=1, chunk=chunk, fused="require").build(32).cuda()
        layer(torch.randn(2, 70, 32, device="cuda"), None, Layout((5, 7)))[0].sum().backward()
torch.cuda.synchronize()
"""


@pytest.mark.slow
def test_the_kernels_read_and_write_what_is_theirs():
    """By compute-sanitizer. Its racecheck sees shared memory only; these kernels hand things on through global memory,
    whose races show in `two_runs_give_the_same_bits`."""
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not installed")
    command = [sanitizer, "--tool=memcheck", "--error-exitcode=1", sys.executable, "-c", SMALL]
    subprocess.run(command, check=True, timeout=600, env=os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
