"""What needs a GPU: `make test-gpu`. Kernels are compiled here, not interpreted."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.ttt.kernels.cases import case, eager, fused, gradients
from tttvideo.ttt import (
    MLP,
    SGD,
    TTT,
    Conv,
    ConvDepthwise,
    DotProduct,
    DWConv,
    FrameCausal,
    Layout,
    Linear,
    Stream,
    TokenCausal,
)
from tttvideo.ttt.kernels import launch, mode_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted: use make test-gpu"),
]

CASES = [
    (Linear(), TokenCausal(16), 1, (1000, 37)),
    (MLP(), TokenCausal(16), 1, (1000, 37)),
    (MLP(), TokenCausal(32), 1, (1000, 37)),
    (MLP(), FrameCausal(), 196, (5 * 196, 196)),
    (MLP(), FrameCausal(), 1024, (2 * 1024,)),
    (Linear(), FrameCausal(), 196, (5 * 196, 196)),
    (Linear(), FrameCausal(), 1024, (2 * 1024,)),
    (Conv(), FrameCausal(), (14, 14), (5 * 196, 196)),
    (ConvDepthwise(), FrameCausal(), (14, 14), (5 * 196, 196)),
    (DWConv(), FrameCausal(), (14, 14), (5 * 196, 196)),
    (MLP(), TokenCausal(16), 1, (65536,)),
    (MLP(), FrameCausal(), 256, (65536,)),
    (Linear(), FrameCausal(), 256, (65536,)),
]
SHORT = [arguments for arguments in CASES if max(arguments[3]) < 65536]


def learning(model):
    """Loss and optimizer that there are kernels for."""
    return {"objective": DotProduct(), "optimizer": SGD(clip=1.0)} if isinstance(model, DWConv) else {}


def rounded(one, dtype):
    """The same case in float32, its tokens rounded to ``dtype``."""

    def leaf(x):
        return x.detach().float().requires_grad_()

    def weights(fast):
        return {name: type(map)(*(None if x is None else leaf(x) for x in map)) for name, map in fast.items()}

    tokens = {name: leaf(x.detach().to(dtype) if name in "qkv" else x) for name, x in one.tensors.items()}
    return one._replace(tensors=tokens, weights=weights(one.weights), pending=weights(one.pending))


def error(found, exact):
    """Root mean square, by tensor."""
    return {name: (found[name].double() - x).square().mean().sqrt() for name, x in exact.items()}


@pytest.fixture(params=["few heads", "many heads"])
def heads_fill_the_device(request, monkeypatch):
    """Frames: a launch for each phase, or one for all, with wide tiles where there are some."""
    if request.param == "many heads":
        if not request.node.callspec.params["chunk"].whole:
            pytest.skip("token-causal kernels have one way")
        monkeypatch.setattr(launch, "FEW_PROGRAMS", 1)


@pytest.mark.usefixtures("heads_fill_the_device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("model", "chunk", "frame", "lengths"), CASES)
def test_the_error_is_at_most_twice_that_of_the_eager_scan(model, chunk, frame, lengths, dtype):
    """Both against float64, on tokens of ``dtype``; outputs, states and all gradients."""
    exact = case(model, chunk, dim=64, heads=2, lengths=lengths, frame=frame, device="cuda", **learning(model))
    expected = gradients(eager, exact)
    plain = error(gradients(eager, rounded(exact, dtype)), expected)
    found = error(gradients(lambda one: fused(one, mode_of(dtype)), rounded(exact, dtype)), expected)
    for name, mine in found.items():
        assert mine <= 2 * plain[name] + 1e-7 * expected[name].square().mean().sqrt(), name


@pytest.mark.parametrize(("mode", "bound"), [("tf32x3", 1e-4), ("tf32", 1e-2), ("bf16", 5e-2)])
@pytest.mark.parametrize("model", [MLP(), Linear(), Conv()])
def test_many_heads_are_near_float64(model, mode, bound):
    """More programs than a device has multiprocessors. The bounds are of the products' precision: bf16 has no eager
    counterpart."""
    exact = case(model, FrameCausal(), dim=64, heads=12, lengths=(784,) * 12, frame=(14, 14), device="cuda")
    expected = gradients(eager, exact)
    found = error(gradients(lambda one: fused(one, mode), rounded(exact, torch.float32)), expected)
    for name, mine in found.items():
        assert mine <= bound * expected[name].square().mean().sqrt(), name


@pytest.mark.usefixtures("heads_fill_the_device")
@pytest.mark.parametrize(("model", "chunk", "frame", "lengths"), SHORT)
def test_two_runs_give_the_same_bits(model, chunk, frame, lengths):
    exact = case(model, chunk, dim=64, lengths=lengths, frame=frame, device="cuda", **learning(model))
    one = rounded(exact, torch.bfloat16)
    first, second = (gradients(lambda one: fused(one, "tf32"), one) for _ in range(2))
    for name, x in first.items():
        assert torch.equal(x, second[name]), name


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
@torch.no_grad()
def test_a_replayed_step_is_a_step(inner, chunk, autocast):
    """A CUDA graph of one frame or token, against calls of the layer; more steps than a chunk has places."""
    if inner.mixes_tokens and not chunk.whole:
        return
    torch.manual_seed(0)
    layer = TTT(inner, heads=2, chunk=chunk, short_conv="raster", share_qk=True, fused="require").build(128).cuda()
    layout = Layout((4, 4) if chunk.whole else (1, 1))
    pieces = torch.randn(1, 40 * layout.tokens_per_frame, 128, device="cuda").split(layout.tokens_per_frame, 1)
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        stream = Stream(lambda x, state: layer(x, state, layout), pieces[0], layer.init_state(1))
        state = None
        for piece in pieces:
            expected, state = layer(piece, state, layout)
            assert torch.equal(stream(piece), expected)
    for name, map in state.weights.items():
        assert torch.equal(stream.state.weights[name].weight, map.weight)
    assert stream.graphs == (1 if chunk.whole else 16)


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


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer_finds_nothing(tool):
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not installed")
    command = [sanitizer, f"--tool={tool}", "--error-exitcode=1", sys.executable, "-c", SMALL]
    subprocess.run(command, check=True, timeout=600, env=os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
