"""torch.func on a TTT layer: gradients, and batches of weights."""

import pytest
import torch
from torch.func import functional_call, grad, vmap

from tests.helpers import DIM, GRID, N, build, distance, name
from tttvideo.ttt import TTT, DotProduct, DWConv, FrameCausal, Layout, SelfAttention, TokenCausal

LAYERS = [
    TTT(heads=2),
    TTT(heads=2, chunk=TokenCausal(4), checkpoint_group=1),
    TTT(SelfAttention(), 2),  # its inner gradient is autograd's
    TTT(DWConv(), 2, FrameCausal(), DotProduct()),
]


@pytest.mark.parametrize("mixer", LAYERS, ids=name)
def test_gradients_and_batches_of_weights(mixer):
    layer = build(mixer)
    x = torch.randn(2, 2 * N, DIM).double()
    parameters = {key: p.detach() for key, p in layer.named_parameters()}

    def loss(parameters):
        return functional_call(layer, parameters, (x, None, Layout(GRID)))[0].square().sum()

    layer(x, None, Layout(GRID))[0].square().sum().backward()
    expected = {key: p.grad for key, p in layer.named_parameters() if p.grad is not None}
    gradients = grad(loss)(parameters)
    assert distance({key: gradients[key] for key in expected}, expected) <= 1e-10

    batch = {key: torch.stack((p, 1.1 * p)) for key, p in parameters.items()}
    losses, both = vmap(loss)(batch), vmap(grad(loss))(batch)
    for i in range(2):
        own = {key: p[i] for key, p in batch.items()}
        assert distance(losses[i], loss(own)) <= 1e-10
        assert distance({key: g[i] for key, g in both.items()}, grad(loss)(own)) <= 1e-10
