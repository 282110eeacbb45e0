"""RWKV-7 against its authors' layer (recorded), and against the recurrence."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from tests.helpers import distance, recorded
from tttvideo.mixers import RWKV7
from tttvideo.mixers.rwkv7 import generalized_delta_rule
from tttvideo.ttt.interface import NO_WEIGHT_DECAY

LAYER = RWKV7(heads=2)
SAME = {
    "decay.": "w",
    "rate.": "a",
    "gate.": "g",
    "key_scale": "k_k",
    "rate_scale": "k_a",
    "bonus": "r_k",
    "norm_scale": "ln_x.weight",
    "norm_shift": "ln_x.bias",
    "r_proj": "receptance",
    "k_proj": "key",
    "v_proj": "value",
    "o_proj": "output",
    "bias": "0",
    "down": "1",
    "up": "2",
}


def theirs(tensors, kind, name):
    """Their ``param``, ``grad`` or ``start`` of our parameter; six parameters are one here."""
    if name == "shift":
        return torch.cat([tensors[f"{kind}.x_{part}"].flatten(0, 1) for part in "rwkvag"])
    if name not in ("norm_scale", "norm_shift"):  # whose names hold others'
        for ours, other in SAME.items():
            name = name.replace(ours, other)
    return tensors[f"{kind}.{SAME.get(name, name)}"]


@pytest.mark.parametrize("chunk", [1, 5, 32])
def test_the_layer_is_the_authors(chunk):
    """Outputs, last state and every gradient."""
    tensors = recorded("rwkv7")
    layer = dataclasses.replace(LAYER, chunk=chunk).build(tensors["x"].shape[2]).double()
    parameters = dict(layer.named_parameters())
    with torch.no_grad():
        for key, p in parameters.items():
            p.copy_(theirs(tensors, "param", key).view_as(p))
    x = tensors["x"].requires_grad_()
    y, state = layer(x)
    assert distance(y, tensors["y"]) <= 1e-12
    assert distance(state.memory, tensors["state"]) <= 1e-12
    loss = (y * tensors["weight_y"]).sum() + (state.memory * tensors["weight_state"]).sum()
    gradients = torch.autograd.grad(loss, [x, *parameters.values()])
    assert distance(gradients[0], tensors["grad.x"]) <= 1e-11
    for key, gradient in zip(parameters, gradients[1:], strict=True):
        expected = theirs(tensors, "grad", key).view_as(gradient)
        assert distance(gradient, expected) <= 1e-12 * (1 + float(expected.abs().max())), key


def test_starting_values_are_theirs():
    torch.manual_seed(0)
    layer, tensors = RWKV7(heads=4).build(64), recorded("rwkv7")
    for name in ("shift", "decay.bias", "rate.bias", "key_scale", "rate_scale", "bonus"):
        p = layer.get_parameter(name)
        assert distance(p.double(), theirs(tensors, "start", name).view_as(p)) <= 1e-6, name
    for part in (layer.decay, layer.rate, layer.gate):
        assert not part.down.any()
        assert distance(part.up @ part.up.T, 0.01 * torch.eye(32)) <= 1e-7
    for projection, bound in ((layer.r_proj, 0.5), (layer.k_proj, 0.05), (layer.v_proj, 0.5), (layer.o_proj, 0)):
        assert 0.95 * bound / 8 <= projection.weight.abs().max() <= bound / 8


def test_only_the_projections_are_decayed():
    """As the authors' training does it."""
    decayed = {key for key, p in LAYER.build(8).named_parameters() if not hasattr(p, NO_WEIGHT_DECAY)}
    assert decayed == {f"{part}_proj.weight" for part in "rkvo"}


@pytest.mark.parametrize("length", [1, 8, 37])
def test_chunks_are_the_recurrence(length):
    """With an initial state, which the recording has not."""
    torch.manual_seed(0)
    r, k, a, b = (torch.randn(2, 3, length, 4).double() for _ in range(4))
    a, b = F.normalize(a, dim=-1), 0.5 * F.normalize(b, dim=-1)
    v, state = torch.randn(2, 3, length, 6).double(), torch.randn(2, 3, 4, 6).double()
    log_decay = -0.6 * torch.rand(2, 3, length, 4).double()
    y, last = generalized_delta_rule(r, log_decay, k, v, a, b, state, 8)
    outputs = []
    for t in range(length):
        read = a[:, :, t, None] @ state
        state = log_decay[:, :, t, :, None].exp() * state + b[:, :, t, :, None] * read
        state = state + k[:, :, t, :, None] * v[:, :, t, None]
        outputs.append(r[:, :, t, None] @ state)
    assert distance(y, torch.cat(outputs, 2)) <= 1e-12
    assert distance(last, state) <= 1e-12


@pytest.mark.parametrize("decay", [0.0, -0.6065])
def test_a_still_scene_in_float32(decay):
    """The same key again and again, wholly taken away each time, at the weakest and the strongest decay, in the
    largest chunk: outputs and gradients are as exact as one token at a time."""
    torch.manual_seed(0)
    k = F.normalize(torch.randn(1, 1, 1, 16) + 1e-3 * torch.randn(1, 1, 256, 16), dim=-1)
    v, state = torch.randn(1, 1, 256, 16), torch.zeros(1, 1, 16, 16)

    def run(dtype, chunk):
        key = k.to(dtype).requires_grad_()
        log_decay = torch.full_like(k, decay).to(dtype).requires_grad_()
        y, _ = generalized_delta_rule(key, log_decay, key, v.to(dtype), -key, key, state.to(dtype), chunk)
        return y.detach().double(), *(g.double() for g in torch.autograd.grad(y.square().sum(), [key, log_decay]))

    for close, exact in zip(run(torch.float32, 64), run(torch.float64, 1), strict=True):
        assert distance(close, exact) <= 1e-5 * float(exact.abs().max())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RWKV7(heads=0), "at least 1"),
        (lambda: RWKV7(chunk=65), "1 to 64"),
        (lambda: RWKV7(token_shift="none"), "raster or time"),
        (lambda: RWKV7(heads=3).build(8), "8 channels into 3 heads"),
        (lambda: RWKV7(heads=8).build(8), "at least 2"),
    ],
)
def test_what_cannot_be_built_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
