"""The two theorems of the paper, and the models whose chunks are one cumulative sum, in float64."""

import pytest
import torch
import torch.nn.functional as F

from tests.helpers import ALL_INNER, ALL_OBJECTIVES, distance, name
from tests.ttt.test_dual import N, case, state_of
from tttvideo.ttt import SGD, DotProduct, FrameCausal, Linear, Whole
from tttvideo.ttt.scan import scan
from tttvideo.ttt.state import Map
from tttvideo.ttt.tokens import Tokens


@pytest.mark.parametrize("inner", [m for m in ALL_INNER if m.linear], ids=name)
@pytest.mark.parametrize(
    ("chunk", "clip"), [(FrameCausal(1), None), (FrameCausal(2), None), (Whole(2), None), (Whole(2), 1.0)], ids=name
)
def test_the_cumulative_sum_is_the_loop(inner, chunk, clip):
    """Where no gradient depends on the weights, all chunks at once give what one after the other gives."""
    loop, state, tokens = case(inner, DotProduct(), SGD(clip=clip), frames=5)
    size = chunk.size(N)
    settings = dict(
        size=size,
        scale=torch.full((size, 1), 0.3, dtype=torch.float64),
        mask=chunk.mask(N, size, torch.device("cpu")),
    )
    one, a = scan(loop, state, tokens, **settings)
    two, b = scan(loop._replace(cumulative=True), state, tokens, **settings)
    assert (one - two).abs().max() <= 1e-12
    assert distance(a.weights, b.weights) <= 1e-12


def test_theorem_1_a_linear_model_is_linear_attention():
    """Bias-free linear inner model, W_0 = 0, batch gradient, rate 1, loss 1/2 |W k - v|^2 (paper, theorem 1)."""
    torch.manual_seed(0)
    length = 20
    q, k, v = (torch.randn(2, 3, length, 8).double() for _ in range(3))
    loop, _, _ = case(Linear(bias=False), ALL_OBJECTIVES[1])
    start = {"1": Map(torch.zeros(2, 3, 8, 8).double(), None)}
    loop = loop._replace(start=start)
    tokens = Tokens(q, k[:, :, None], v[:, :, None], torch.ones(2, 3, 1, length, 1).double())
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    out, _ = scan(loop, state_of(start), tokens, size=length, scale=torch.ones(length, 1).double(), mask=causal)
    expected = ((q @ k.mT) * causal) @ v
    assert (out - expected).abs().max() <= 1e-12


def nadaraya_watson(q, k, v):
    """v at q from all pairs (k, v) up to the query's own, weighted by the kernel exp(<q, k> / sqrt(d)): the estimate of
    a learner whose hidden state is the whole training set."""
    kernel = torch.exp(q @ k.mT * q.shape[-1] ** -0.5).tril()
    return kernel @ v / kernel.sum(-1, keepdim=True)


def test_theorem_2_nadaraya_watson_is_softmax_attention():
    """Forward and gradients (paper, theorem 2)."""
    torch.manual_seed(0)
    leaves = [torch.randn(2, 3, 10, 8).double().requires_grad_() for _ in range(3)]
    output = nadaraya_watson(*leaves)
    expected = F.scaled_dot_product_attention(*leaves, is_causal=True)
    assert (output - expected).abs().max() <= 1e-12
    a = torch.autograd.grad(output.square().sum(), leaves)
    b = torch.autograd.grad(expected.square().sum(), leaves)
    for x, y in zip(a, b, strict=True):
        assert (x - y).abs().max() <= 1e-12
