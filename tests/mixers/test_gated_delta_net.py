"""Gated DeltaNet and DeltaNet against flash-linear-attention's layers (recorded), and against the recurrence."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from tests.helpers import distance, recorded
from tttvideo.mixers import GatedDeltaNet
from tttvideo.mixers.gated_delta_net import gated_delta_rule

LAYERS = {
    "gated_delta_net": GatedDeltaNet(heads=2, head_dim=4, negative_eigenvalues=True),
    "delta_net": GatedDeltaNet(heads=2, expand=1, decay=False, gate=False),
}
SAME = {"beta_proj.weight": "b_proj.weight", "decay_proj.weight": "a_proj.weight", "norm_scale": "o_norm.weight"}


def theirs(tensors, kind, name):
    """Their ``param`` or ``grad`` of our parameter; q, k and v share a projection and a convolution here."""
    for ours, suffix in (("qkv_proj.weight", "_proj.weight"), ("conv.weight", "_conv1d.weight")):
        if name == ours:
            return torch.cat([tensors[f"{kind}.{part}{suffix}"] for part in "qkv"])
    return tensors[f"{kind}.{SAME.get(name, name)}"]


@pytest.mark.parametrize("chunk", [1, 5, 32])
@pytest.mark.parametrize("name", LAYERS)
def test_the_layer_is_flash_linear_attentions(name, chunk):
    """Outputs, last state and every gradient."""
    tensors = recorded(name)
    layer = dataclasses.replace(LAYERS[name], chunk=chunk).build(tensors["x"].shape[2]).double()
    parameters = dict(layer.named_parameters())
    with torch.no_grad():
        for key, p in parameters.items():
            p.copy_(theirs(tensors, "param", key))
    x = tensors["x"].requires_grad_()
    y, state = layer(x)
    assert distance(y, tensors["y"]) <= 1e-13
    assert distance(state.memory, tensors["state"]) <= 1e-14
    loss = (y * tensors["weight_y"]).sum() + (state.memory * tensors["weight_state"]).sum()
    gradients = torch.autograd.grad(loss, [x, *parameters.values()])
    assert distance(gradients[0], tensors["grad.x"]) <= 1e-12
    for key, gradient in zip(parameters, gradients[1:], strict=True):
        expected = theirs(tensors, "grad", key)
        assert distance(gradient, expected) <= 1e-13 * (1 + float(expected.abs().max())), key


@pytest.mark.parametrize("length", [1, 8, 37])
def test_chunks_are_the_recurrence(length):
    """With an initial state, which the recordings have not."""
    torch.manual_seed(0)
    q, k = (F.normalize(torch.randn(2, 3, length, 4).double(), dim=-1) for _ in range(2))
    v, state = torch.randn(2, 3, length, 6).double(), torch.randn(2, 3, 4, 6).double()
    beta, log_decay = 2 * torch.rand(2, 3, length).double(), -3 * torch.rand(2, 3, length).double()
    y, last = gated_delta_rule(q, k, v, beta, log_decay, state, 8)
    outputs = []
    for t in range(length):
        state = log_decay[:, :, t, None, None].exp() * state
        error = v[:, :, t, None] - k[:, :, t, None] @ state
        state = state + beta[:, :, t, None, None] * k[:, :, t, :, None] * error
        outputs.append(q[:, :, t, None] @ state / 2)
    assert distance(y, torch.cat(outputs, 2)) <= 1e-14
    assert distance(last, state) <= 1e-14


def test_keys_that_are_alike_do_not_cancel():
    """A still scene: the same key and beta 1 again and again, in float32. Powers of A would be off by 1e2."""
    torch.manual_seed(0)
    k = F.normalize(torch.randn(1, 1, 1, 16) + 1e-3 * torch.randn(1, 1, 256, 16), dim=-1)
    v, ones, state = torch.randn(1, 1, 256, 16), torch.ones(1, 1, 256), torch.zeros(1, 1, 16, 16)
    inputs = (k, k, v, ones, 0 * ones, state)
    y, _ = gated_delta_rule(*inputs, 32)
    exact, _ = gated_delta_rule(*(t.double() for t in inputs), 1)
    assert distance(y.double(), exact) <= 1e-5 * float(exact.abs().max())


def test_starting_values_are_theirs():
    torch.manual_seed(0)
    layer = GatedDeltaNet(heads=64).build(64)
    assert 0 < layer.A_log.exp().min() < 1
    assert 15 < layer.A_log.exp().max() <= 16
    steps = F.softplus(layer.dt_bias)
    assert 0.99e-3 <= steps.min() < 2e-3
    assert 0.05 < steps.max() <= 1.01e-1
    assert layer.conv.bias is None
