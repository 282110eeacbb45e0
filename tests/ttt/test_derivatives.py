"""Derivatives that are written out against finite differences, and what a checkpoint costs."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.flop_counter import FlopCounterMode

from tttvideo.ttt import TTT, ResidualL2, TokenCausal
from tttvideo.ttt.derivatives import affine, dual, gelu, gelu_backward, moved, transposed
from tttvideo.ttt.objective import Norm
from tttvideo.ttt.state import Map


def leaf(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(("lead", "bias"), [((2, 2), True), ((2, 1, 3), False)], ids=["plain", "grouped"])
def test_maps(lead, bias):
    """Of an affine map twice, since inner gradients pass through it; of its dual form and its step once."""
    torch.manual_seed(0)
    x, inputs, gradients = leaf(*lead, 4, 2), leaf(*lead, 5, 2), leaf(*lead, 5, 3)
    maps = [leaf(*lead, 2, 3), leaf(*lead, 1, 3)][: 1 + bias]
    steps, step = leaf(4, 5), leaf(1)

    def weights(maps):
        return Map(maps[0], maps[1] if bias else None)

    assert torch.equal(affine(weights(maps), x), x @ maps[0] + (maps[1] if bias else 0.0))
    assert gradcheck(lambda z, w: transposed(Map(w, None), z), (gradients, maps[0]))
    assert gradgradcheck(lambda x, *maps: affine(weights(maps), x), (x, *maps))
    assert gradcheck(lambda x, *maps: affine(weights(maps), x), (x, *maps))
    assert gradcheck(lambda x, i, g, e, *maps: dual(weights(maps), x, i, g, e), (x, inputs, gradients, steps, *maps))
    assert gradcheck(lambda i, g, r, *maps: moved(weights(maps), i, g, r)[: 1 + bias], (inputs, gradients, step, *maps))


def test_maps_spread_over_rows():
    """Weights of one row and head serve all of them, and gather their gradients."""
    torch.manual_seed(0)
    x, weight, bias = leaf(2, 3, 5, 3), leaf(1, 1, 3, 4), leaf(1, 1, 1, 4)
    assert gradcheck(lambda x, w, b: affine(Map(w, b), x), (x, weight, bias))


def test_gelu():
    torch.manual_seed(0)
    x = leaf(50)
    assert torch.equal(gelu(x), F.gelu(x, approximate="tanh"))
    assert gradcheck(gelu, x)
    assert gradgradcheck(gelu, x)
    assert gradcheck(gelu_backward, (leaf(50), x))


def test_gelu_far_out():
    """Where it is straight, its second derivative is zero."""
    x = torch.tensor([-1e5, -50.0, 0.0, 50.0, 1e5], requires_grad=True)
    (first,) = torch.autograd.grad(gelu(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert torch.equal(first, torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]))
    assert torch.equal(second[[0, 1, 3, 4]], torch.zeros(4))


def test_residual_gradient():
    torch.manual_seed(0)
    z, k, v, scale, shift = leaf(2, 3, 5, 4), leaf(2, 3, 5, 4), leaf(2, 3, 5, 4), leaf(3, 1, 4), leaf(3, 1, 4)
    assert gradcheck(lambda z, k, v, *norm: ResidualL2().gradient(z, k, v, Norm(*norm)), (z, k, v, scale, shift))


def test_a_checkpoint_computes_the_forward_pass_once_more():
    """And not once more for every inner gradient: those find what they need at hand."""
    layer = TTT(heads=2, chunk=TokenCausal(4)).build(16)
    x = torch.randn(1, 32, 16)
    flops = {}
    for group in (0, 1, 4):
        layer.checkpoint_group = group
        with FlopCounterMode(display=False) as counter:
            layer(x)[0].sum().backward()
        flops[group] = counter.get_total_flops()
    assert flops[1] == flops[4]
    assert flops[0] < flops[4] < 1.34 * flops[0]
