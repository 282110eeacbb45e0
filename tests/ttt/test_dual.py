"""The mathematics of one chunk against its definition, and the two theorems of the paper, in float64."""

import itertools
import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

from tests.helpers import ALL_CHUNKS, ALL_INNER, ALL_OBJECTIVES, ALL_OPTIMIZERS, GRID, allowed, name
from tttvideo.ttt import (
    MLP,
    SGD,
    TTT,
    Adam,
    DotProduct,
    FrameCausal,
    Layout,
    Linear,
    Momentum,
    Muon,
    TokenCausal,
    Whole,
)
from tttvideo.ttt.dual import Problem, faded, read_primal, read_whole, summed, traces
from tttvideo.ttt.kernel_regression import nadaraya_watson
from tttvideo.ttt.objective import Norm
from tttvideo.ttt.optimizer import InnerOptimizer, orthogonalized
from tttvideo.ttt.scan import Fast, Views, scan
from tttvideo.ttt.weights import Map, affine, combine, zeros_like

N = GRID[0] * GRID[1]
B, H, D = 3, 2, 4


def case(inner, objective, optimizer=ALL_OPTIMIZERS[0], *, frames=1, pairs=1, forget=False, seed=0):
    """A random problem, weights away from their start, and views of ``frames`` frames."""
    torch.manual_seed(seed)

    def weights(batch):
        found = {}
        for key, shape in inner.maps(D).items():
            lead = (batch, H) if shape.groups is None else (batch, H, shape.groups)
            bias = 0.5 * torch.randn(*lead, 1, shape.outputs).double() if shape.bias else None
            found[key] = Map(0.5 * torch.randn(*lead, shape.inputs, shape.outputs).double(), bias)
        return found

    norm = Norm(torch.rand(H, 1, D).double() + 0.5, torch.randn(H, 1, D).double())
    problem = Problem(inner, objective, optimizer, norm, weights(1), GRID)
    size, past = frames * N, inner.past_frames * N
    views = Views(
        torch.randn(B, H, past + size, D).double(),
        torch.randn(B, H, pairs, past + size, D).double(),
        torch.randn(B, H, pairs, size, D).double(),
        0.2 * torch.rand(B, H, pairs, size, 1).double(),
        -torch.rand(B, H, size, 1).double() if forget else None,
    )
    start = weights(B)
    return problem, Fast(start, None, torch.zeros(B, H, 1, 1).double(), optimizer.init_state(start)), views


def distance(a, b) -> float:
    pairs = [(x, y) for key in a for x, y in zip(a[key], b[key], strict=True) if x is not None]
    return max(float((x - y).abs().max()) for x, y in pairs)


COMBINATIONS = [
    (inner, chunk, objective, frames, pairs, forget)
    for inner, chunk, objective in itertools.product(ALL_INNER, ALL_CHUNKS, ALL_OBJECTIVES)
    for frames, pairs, forget in ((1, 1, False), (2, 1, True), (3, 1, False), (2, 2, True))
    if allowed(inner, chunk) and not (pairs > 1 and inner.past_frames)
]


@pytest.mark.parametrize(("inner", "chunk", "objective", "frames", "pairs", "forget"), COMBINATIONS, ids=name)
def test_dual_form_is_the_definition(inner, chunk, objective, frames, pairs, forget):
    """One chunk, whole or ragged: outputs and weights by the dual form against one gradient per token."""
    problem, fast, views = case(inner, objective, frames=frames, pairs=pairs, forget=forget)
    full = chunk.size(N)
    size = min(full, frames * N)
    views = Views(*(None if x is None else x[..., : x.shape[-2] - frames * N + size, :] for x in views))
    scale = torch.rand(full, 1).double() + 0.1
    if chunk.unit(N) > 1:
        scale = scale[:1].expand(full, 1)  # constant over frames, as frame mode defines it
    mask = chunk.mask(N, full, torch.device("cpu"))
    part = None if mask is None else mask[:size, :size]
    expected, last = read_primal(problem, fast.weights, views.split(size)[0].tokens(), scale[:size], part)
    closes = [size == full or chunk.whole]
    out, after = scan(problem, fast, views, size=full, scale=scale, mask=mask, closes=closes)
    assert (out - expected).abs().max() <= 1e-10
    moved = after.weights
    if not closes[0]:
        assert after.pending is not None
        moved = faded(problem, moved, after.fading)
        moved = combine(lambda w, g: w - scale[size - 1] * g, moved, after.pending)
    assert distance(moved, last) <= 1e-10


@pytest.mark.parametrize("objective", ALL_OBJECTIVES, ids=name)
def test_the_gradient_of_a_loss_is_its_derivative(objective):
    torch.manual_seed(0)
    norm = Norm(torch.rand(H, 1, D).double() + 0.5, torch.randn(H, 1, D).double())
    z, k, v = (torch.randn(B, H, 5, D).double() for _ in range(3))
    z.requires_grad_()
    (expected,) = torch.autograd.grad(objective.loss(z, k, v, norm).sum(), z)
    assert (objective.gradient(z, k, v, norm) - expected).abs().max() <= 1e-12


@pytest.mark.parametrize("inner", ALL_INNER, ids=name)
@pytest.mark.parametrize("optimizer", ALL_OPTIMIZERS, ids=name)
def test_whole_chunks_take_the_optimizers_steps(inner, optimizer):
    """Three chunks of a frame: the scan against plain autograd on the loss and a plainly written optimizer."""
    problem, fast, views = case(inner, ALL_OBJECTIVES[0], optimizer, frames=3)
    scale = torch.full((N, 1), 0.3, dtype=torch.float64)
    out, after = scan(problem, fast, views, size=N, scale=scale, mask=None, closes=[True] * 3)
    for b in range(B):
        for h in range(H):
            expected, last = _one_head(problem, fast.weights, views, b, h, 0.3)
            assert (out[b, h] - expected).abs().max() <= 1e-9
            mine = {key: Map(*(None if x is None else x[b, h] for x in map)) for key, map in after.weights.items()}
            assert distance(mine, last) <= 1e-9


def _one_head(problem, weights, views, b, h, scale):
    """The same by hand for one row and head: tensors without leading axes, torch.optim's formulas."""
    optimizer, norm = problem.optimizer, Norm(*(x[h] for x in problem.norm))
    w = {key: [None if x is None else x[b, h].clone() for x in map] for key, map in weights.items()}
    w0 = {key: torch.cat([x[0, h] for x in map if x is not None], -2) for key, map in problem.start.items()}
    memory = {
        key: [[torch.zeros_like(x), torch.zeros_like(x)] for x in pair if x is not None] for key, pair in w.items()
    }
    past, outs, t = views.past, [], 0

    def model(x, leaves):
        live = {
            key: Map(pair[0][None, None], None if pair[1] is None else pair[1][None, None])
            for key, pair in leaves.items()
        }
        return problem.model(x[None, None], lambda key, x: affine(live[key], x), problem.grid)[0, 0]

    for c in range(3):
        q = views.q[b, h, c * N : c * N + past + N]
        k = views.k[b, h, 0, c * N : c * N + past + N]
        v, rate = (x[b, h, 0, c * N : (c + 1) * N] for x in (views.v, views.rate))
        for _ in range(optimizer.steps):
            leaves = {
                key: [None if x is None else x.detach().requires_grad_() for x in pair] for key, pair in w.items()
            }
            flat = [x for pair in leaves.values() for x in pair if x is not None]
            loss = problem.objective.loss(model(k, leaves), k[past:], v, norm)
            grads = list(torch.autograd.grad(scale * (loss * rate[:, 0]).sum(), flat))
            if optimizer.clip is not None:
                total = math.sqrt(sum(float(g.square().sum()) for g in grads))
                grads = [g * optimizer.clip / (total + optimizer.clip) for g in grads]
            t += 1
            moved, i = {}, 0
            for key, pair in w.items():
                moved[key] = [None, None]
                for j, x in enumerate(pair):
                    if x is not None:
                        moved[key][j] = x - _update(optimizer, grads[i], memory[key][j], t)
                        i += 1
                if optimizer.weight_norm:
                    now = torch.cat([x for x in moved[key] if x is not None], -2)
                    now = now / now.norm(dim=-2, keepdim=True) * w0[key].norm(dim=-2, keepdim=True)
                    moved[key] = [now[..., :-1, :], now[..., -1:, :]] if pair[1] is not None else [now, None]
            w = moved
        z = model(q, w)
        outs.append(problem.objective.read(z, q[past:], norm))
    return torch.cat(outs), {key: Map(*pair) for key, pair in w.items()}


def _update(optimizer, g, memory, t):
    if isinstance(optimizer, Momentum):
        memory[0] = optimizer.momentum * memory[0] + g
        return memory[0]
    if isinstance(optimizer, Adam):
        memory[0] = optimizer.beta1 * memory[0] + (1 - optimizer.beta1) * g
        memory[1] = optimizer.beta2 * memory[1] + (1 - optimizer.beta2) * g * g
        first, second = memory[0] / (1 - optimizer.beta1**t), memory[1] / (1 - optimizer.beta2**t)
        return optimizer.rate * first / (second + optimizer.eps**2).sqrt()
    if isinstance(optimizer, Muon):
        memory[0] = optimizer.momentum * memory[0] + g
        return optimizer.rate * orthogonalized(memory[0], optimizer.iterations)
    return g


def test_newton_schulz_makes_matrices_orthogonal():
    torch.manual_seed(0)
    for shape in ((4, 16), (16, 4), (8, 8)):
        x = torch.randn(*shape).double()
        values = torch.linalg.svdvals(orthogonalized(x, 10))
        assert ((values > 0.6) & (values < 1.3)).all()
        u, _, vh = torch.linalg.svd(x, full_matrices=False)
        cosine = F.cosine_similarity(orthogonalized(x, 10).flatten(), (u @ vh).flatten(), dim=0)
        assert cosine > 0.97
    assert torch.equal(orthogonalized(torch.zeros(3, 5), 5), torch.zeros(3, 5))


@pytest.mark.parametrize("inner", [m for m in ALL_INNER if m.linear], ids=name)
@pytest.mark.parametrize(
    ("chunk", "clip"), [(FrameCausal(1), None), (FrameCausal(2), None), (Whole(2), None), (Whole(2), 1.0)], ids=name
)
def test_the_cumulative_sum_is_the_loop(inner, chunk, clip):
    """Where no gradient depends on the weights, all chunks at once give what one after the other gives."""
    problem, fast, views = case(inner, DotProduct(), SGD(clip=clip), frames=5)
    loop = problem._replace(model=_NotLinear(inner))
    size = chunk.size(N)
    settings = dict(
        size=size,
        scale=torch.full((size, 1), 0.3, dtype=torch.float64),
        mask=chunk.mask(N, size, torch.device("cpu")),
        closes=[(c + 1) * size <= 5 * N or chunk.whole for c in range(math.ceil(5 * N / size))],
    )
    one, a = scan(loop, fast, views, **settings)
    two, b = scan(problem, fast, views, **settings)
    assert (one - two).abs().max() <= 1e-12
    assert distance(a.weights, b.weights) <= 1e-12


class _NotLinear:
    """An inner model that does not say that it is linear."""

    linear = False

    def __init__(self, model):
        self.model = model

    def __call__(self, *arguments):
        return self.model(*arguments)


def test_theorem_1_a_linear_model_is_linear_attention():
    """Bias-free linear inner model, W_0 = 0, batch gradient, rate 1, loss 1/2 |W k - v|^2 (paper, theorem 1)."""
    torch.manual_seed(0)
    length = 20
    q, k, v = (torch.randn(2, 3, length, 8).double() for _ in range(3))
    problem, _, _ = case(Linear(bias=False), ALL_OBJECTIVES[1])
    start = {"1": Map(torch.zeros(2, 3, 8, 8).double(), None)}
    problem = problem._replace(start=start)
    views = Views(q, k[:, :, None], v[:, :, None], torch.ones(2, 3, 1, length, 1).double(), None)
    fast = Fast(start, None, torch.zeros(2, 3, 1, 1).double(), SGD().init_state(start))
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    out, _ = scan(problem, fast, views, size=length, scale=torch.ones(length, 1).double(), mask=causal, closes=[True])
    expected = ((q @ k.mT) * causal) @ v
    assert (out - expected).abs().max() <= 1e-12


def test_theorem_2_nadaraya_watson_is_softmax_attention():
    """Forward and gradients (paper, theorem 2)."""
    torch.manual_seed(0)
    leaves = [torch.randn(2, 3, 10, 8).double().requires_grad_() for _ in range(3)]
    found = nadaraya_watson(*leaves, causal=True)
    expected = F.scaled_dot_product_attention(*leaves, is_causal=True)
    assert (found - expected).abs().max() <= 1e-12
    a = torch.autograd.grad(found.square().sum(), leaves)
    b = torch.autograd.grad(expected.square().sum(), leaves)
    for x, y in zip(a, b, strict=True):
        assert (x - y).abs().max() <= 1e-12


def test_reading_does_not_train():
    problem, fast, views = case(MLP(), ALL_OBJECTIVES[0])
    tokens = views.split(N)[0].tokens()
    out = read_whole(problem, fast.weights, tokens.q, N)
    again = read_whole(problem, fast.weights, tokens.q, N)
    assert torch.equal(out, again)
    total = summed(fast.weights, traces(problem, fast.weights, tokens._replace(rate=torch.zeros_like(tokens.rate))))
    assert distance(total, zeros_like(total)) == 0


def test_padding_skips_whole_chunks_of_momentum_and_decay():
    """A row that ends early keeps weights, momentum and gate as they were at its end."""
    torch.manual_seed(0)
    for extra in (dict(optimizer=Momentum()), dict(optimizer=Adam()), dict(optimizer=Muon()), dict(forget=True)):
        layer = TTT(heads=2, chunk=FrameCausal(1), **extra).build(8).double()
        x = torch.randn(2, 6 * N, 8).double()
        _, state = layer(x, None, Layout(GRID, torch.tensor([6, 2]) * N))
        _, alone = layer(x[1:, : 2 * N], None, Layout(GRID))
        row = {key: Map(*(w[1:] for w in map)) for key, map in state.weights.items()}
        assert distance(row, alone.weights) <= 1e-12
        for a, b in zip(state.moments.averages, alone.moments.averages, strict=True):
            assert distance({key: Map(*(w[1:] for w in map)) for key, map in a.items()}, b) <= 1e-12
        assert torch.equal(state.moments.count[1:], alone.moments.count)


def test_a_forget_gate_that_forgets_all_returns_to_the_start():
    torch.manual_seed(0)
    layer = TTT(heads=2, chunk=FrameCausal(1), base_rate=0.0, forget=True).build(8).double()
    with torch.no_grad():
        layer.project.forget.bias.fill_(-50.0)
    state = layer.init_state(1)
    state = state._replace(weights=combine(lambda w: w + 1.0, state.weights))
    _, after = layer(torch.randn(1, N, 8).double(), state, Layout(GRID))
    assert distance(after.weights, layer.init_state(1).weights) <= 1e-12


def test_what_cannot_combine_says_so():
    for optimizer in (Momentum(), Adam(), Muon(), SGD(steps=2), SGD(clip=1.0), SGD(weight_norm=True)):
        for chunk in (TokenCausal(16), FrameCausal(2)):
            with pytest.raises(ValueError, match="FrameCausal with frames: 1, or Whole"):
                TTT(optimizer=optimizer, chunk=chunk)
        TTT(optimizer=optimizer, chunk=Whole(2))
    for inner in ALL_INNER:
        if inner.mixes_tokens:
            with pytest.raises(ValueError, match="mixes the tokens"):
                TTT(inner=inner, chunk=TokenCausal(4))


def test_an_optimizer_of_the_users_own_is_not_taken_for_descent():
    """Where gradients do not depend on the weights, too."""

    @dataclass(frozen=True)
    class Sign(InnerOptimizer):
        def update(self, gradient, moments, warmup):
            return combine(torch.sign, gradient), moments

    problem, fast, views = case(Linear(), DotProduct(), Sign(), frames=2)
    scale = torch.full((N, 1), 0.3, dtype=torch.float64)
    _, after = scan(problem, fast, views, size=N, scale=scale, mask=None, closes=[True] * 2)
    moved = combine(torch.sub, after.weights, fast.weights)
    assert set(moved["1"].weight.round().flatten().tolist()) <= {-2.0, 0.0, 2.0}


def test_several_chunks_with_a_gate_and_an_open_one():
    """The scan over chunks, the last one open, against one definition after the other."""
    problem, fast, views = case(MLP(), ALL_OBJECTIVES[0], frames=3, forget=True)
    size = 2 * N
    scale = torch.full((size, 1), 0.3, dtype=torch.float64)
    mask = FrameCausal(2).mask(N, size, torch.device("cpu"))
    out, after = scan(problem, fast, views, size=size, scale=scale, mask=mask, closes=[True, False])
    first, second = (piece.tokens() for piece in views.split(size))
    expected, weights = read_primal(problem, fast.weights, first, scale, mask)
    rest, last = read_primal(problem, weights, second, scale[:N], mask[:N, :N])
    assert (out - torch.cat((expected, rest), 2)).abs().max() <= 1e-10
    assert distance(after.weights, weights) <= 1e-10
    assert after.pending is not None
    moved = faded(problem, after.weights, after.fading)
    assert distance(combine(lambda w, g: w - 0.3 * g, moved, after.pending), last) <= 1e-10
