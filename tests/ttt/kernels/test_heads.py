"""Tokens to heads and back by a kernel: values, gradients, dtypes, and how much it spares."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tttvideo.ttt import TTT, FrameCausal, Layout, Linear
from tttvideo.ttt.interface import merge_heads
from tttvideo.ttt.kernels import heads as kernels
from tttvideo.ttt.kernels import merged, split
from tttvideo.ttt.primitives import rotate

HEADS, DIM, TOKENS = 3, 16, 35  # two tiles of tokens


def plain(x, positions):
    y = x.unflatten(-1, (HEADS, DIM)).transpose(1, 2)
    return y if positions is None else rotate(positions, 1e4, y)[0]


POSITIONS = [None, torch.arange(TOKENS) % 16, torch.arange(TOKENS) + torch.tensor([[5], [0]])]


@pytest.mark.parametrize("positions", POSITIONS, ids=["as they are", "common positions", "positions of each row"])
def test_heads_are_those_of_plain_operations(positions):
    """Values, and gradients at first and second order: the derivative of one is the other."""
    x = torch.randn(2, TOKENS, HEADS * DIM, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, HEADS, TOKENS, DIM, dtype=torch.float64, requires_grad=True)
    results = []
    for way in (lambda x: split(positions, x, heads=HEADS, theta=1e4)[0], lambda x: plain(x, positions)):
        y = way(x)
        (first,) = torch.autograd.grad((weight * y).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), weight)
        results.append((y, first, second))
    for mine, expected in zip(*results, strict=True):
        assert (mine - expected).abs().max() <= 1e-14
    assert torch.equal(merged(results[1][0], torch.float64), merge_heads(results[1][0]))


def test_tokens_in_half_precision_are_rotated_in_float32():
    x = torch.randn(2, TOKENS, HEADS * DIM).half().requires_grad_()
    (y,) = split(POSITIONS[1], x, heads=HEADS, theta=1e4)
    assert y.dtype == torch.float32
    assert (y - plain(x.float(), POSITIONS[1])).abs().max() <= 1e-6
    back = merged(y, torch.float16)
    assert back.dtype == torch.float16
    (gradient,) = torch.autograd.grad(back.float().square().sum(), x)
    assert gradient.dtype == torch.float16
    assert (gradient - 2 * x).abs().max() <= 0.02  # a rotation keeps lengths


@pytest.mark.kernels
def test_the_operators_keep_their_promises():
    cos, sin = torch.rand(2, 1, 4, 8).double().unbind()
    x = torch.randn(2, 4, 32, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(kernels.split_heads, (x, cos, sin, 2, torch.float64))
    y = torch.randn(2, 2, 4, 16, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(kernels.merge_heads, (y, None, None, torch.float64))


class Traffic(TorchDispatchMode):
    """Bytes that operations read and write. Matrix products are left out, and views cost nothing."""

    free = ("aten::mm", "aten::addmm", "aten::_unsafe_view")

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function._schema.name not in self.free and not function.is_view:
            tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)]
            self.bytes += sum(x.numel() * x.element_size() for x in tensors)
        return out


def around(fused: str) -> float:
    """Bytes that a token more costs around the scan, a channel, forward, in bfloat16 as under autocast."""
    layer, bytes_moved = TTT(Linear(), 4, FrameCausal(), fused=fused).build(256), []
    for count in (64, 128):
        x = torch.randn(1, count, 256, dtype=torch.bfloat16)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), Traffic() as traffic:
            tokens, _ = layer._tokens(x, {}, 0, Layout((8, 8)), by_kernels=fused == "require")
            layer._output(x, tokens.q, by_kernels=fused == "require")
        bytes_moved.append(traffic.bytes)
    return (bytes_moved[1] - bytes_moved[0]) / (64 * 256)


def test_a_kernel_spares_bytes_around_the_scan():
    before, after = around("never"), around("require")
    print(f"{before:.1f} bytes a token and channel before, {after:.1f} after")
    assert after <= 0.5 * before
