"""The mathematics of one chunk against its definition, in float64."""

import itertools
import math
from dataclasses import dataclass, fields

import pytest
import torch
import torch.nn.functional as F

from tests.helpers import ALL_CHUNKS, ALL_INNER, ALL_OBJECTIVES, ALL_OPTIMIZERS, GRID, allowed, distance, name
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
    reference,
)
from tttvideo.ttt.derivatives import affine
from tttvideo.ttt.inner import InnerModel
from tttvideo.ttt.inner_gradient import InnerLoop, summed, traces
from tttvideo.ttt.objective import Norm
from tttvideo.ttt.optimizer import InnerOptimizer, orthogonalized
from tttvideo.ttt.scan import cut, scan
from tttvideo.ttt.state import Map, Moments, TTTState, combine, zeros_like
from tttvideo.ttt.step import faded
from tttvideo.ttt.tokens import Tokens

N = GRID[0] * GRID[1]
B, H, D = 3, 2, 4


def case(inner, objective, optimizer=ALL_OPTIMIZERS[0], *, frames=1, pairs=1, forget=False, seed=0):
    """A random inner loop, weights away from their start, and tokens of ``frames`` frames."""
    torch.manual_seed(seed)

    def weights(batch):
        maps = {}
        for key, shape in inner.maps(D).items():
            lead = (batch, H) if shape.groups is None else (batch, H, shape.groups)
            bias = 0.5 * torch.randn(*lead, 1, shape.outputs).double() if shape.bias else None
            maps[key] = Map(0.5 * torch.randn(*lead, shape.inputs, shape.outputs).double(), bias)
        return maps

    norm = Norm(torch.rand(H, 1, D).double() + 0.5, torch.randn(H, 1, D).double())
    loop = InnerLoop(inner, objective, None if optimizer.linear else optimizer, norm, weights(1), GRID)
    size, past = frames * N, inner.past_frames * N
    tokens = Tokens(
        torch.randn(B, H, past + size, D).double(),
        torch.randn(B, H, pairs, past + size, D).double(),
        torch.randn(B, H, pairs, size, D).double(),
        0.2 * torch.rand(B, H, pairs, size, 1).double(),
        -torch.rand(B, H, size, 1).double() if forget else None,
    )
    return loop, state_of(weights(B), optimizer), tokens


def state_of(weights, optimizer=ALL_OPTIMIZERS[0]):
    """The state of a layer that has read nothing."""
    batch, heads = next(iter(weights.values())).weight.shape[:2]
    count = torch.zeros(batch, int(optimizer.counts), 1, 1).double()
    moments = Moments((zeros_like(weights),) * optimizer.averages, count)
    return TTTState(weights, None, torch.zeros(batch, heads, 1, 1).double(), moments, None, {})


def definition(loop, weights, tokens, scale, mask=None):
    """``reference.chunk`` on our types: outputs [B, H, K, d], and the weights after the chunk."""
    size = tokens.v.shape[3]
    names = [(key, i) for key, map in weights.items() for i, w in enumerate(map) if w is not None]

    def maps(leaves):
        fields = {key: [None, None] for key in weights}
        for (key, i), w in zip(names, leaves, strict=True):
            fields[key][i] = w
        return {key: Map(*pair) for key, pair in fields.items()}

    def g(x, leaves):
        live = maps(leaves)
        bias = {key: 0.0 if map.bias is None else map.bias for key, map in live.items()}
        return loop.model(x, lambda key, x: x @ live[key].weight + bias[key], loop.grid)

    k, v, rate = (x.flatten(2, 3) for x in tokens[1:4])
    out, leaves = reference.chunk(
        g,
        lambda z, k, v: loop.objective.loss(z, k[:, :, -v.shape[2] :], v, loop.norm),
        lambda z, q: loop.objective.read(z, q[:, :, -size:], loop.norm),
        [weights[key][i] for key, i in names],
        tokens.q,
        k,
        v,
        rate[..., 0],
        scale[:, 0],
        torch.ones(size, size, dtype=torch.bool) if mask is None else mask,
        [loop.start[key][i] for key, i in names],
        None if tokens.fade is None else tokens.fade[..., 0].exp(),
    )
    return out, maps(leaves)


KINDS = [(1, 1, False), (2, 1, True), (3, 1, False), (2, 2, True)]
"""Frames, training pairs of a token, a forget gate."""

ALLOWED = [(inner, chunk) for inner, chunk in itertools.product(ALL_INNER, ALL_CHUNKS) if allowed(inner, chunk)]

COMBINATIONS = [
    # every inner model with every chunk, and in turn every loss with every kind
    (inner, chunk, ALL_OBJECTIVES[i % 3], *(KINDS[2] if inner.past_frames and kind[1] > 1 else kind))
    for i, (inner, chunk) in enumerate(ALLOWED)
    for kind in (KINDS[i % 4], KINDS[(i + 1) % 4])
]


@pytest.mark.parametrize(("inner", "chunk", "objective", "frames", "pairs", "forget"), COMBINATIONS, ids=name)
def test_dual_form_is_the_definition(inner, chunk, objective, frames, pairs, forget):
    """One chunk, whole or ragged: outputs and weights by the dual form against one gradient per token."""
    loop, state, tokens = case(inner, objective, frames=frames, pairs=pairs, forget=forget)
    full = chunk.size(N)
    size = min(full, frames * N)
    tokens = Tokens(*(None if x is None else x[..., : x.shape[-2] - frames * N + size, :] for x in tokens))
    scale = torch.rand(full, 1).double() + 0.1
    if chunk.unit(N) > 1:
        scale = scale[:1].expand(full, 1)  # constant over frames, as frame mode defines it
    mask = chunk.mask(N, size, torch.device("cpu"))
    expected, last = definition(loop, state.weights, tokens, scale[:size], mask)
    out, after = scan(loop, state, tokens, size=full, scale=scale, mask=mask)
    assert (out - expected).abs().max() <= 1e-10
    moved = after.weights
    if not (size == full or chunk.whole):
        moved = faded(loop, moved, after.fading)
        moved = combine(lambda w, g: w - scale[size - 1] * g, moved, after.pending)
    assert distance(moved, last) <= 1e-10


@pytest.mark.parametrize("chunk", [TokenCausal(4), FrameCausal(1), FrameCausal(2)], ids=name)
def test_a_layer_is_the_definition_chunk_after_chunk(chunk):
    """From the layer's tokens to its heads' outputs, in plain PyTorch."""
    torch.manual_seed(0)
    layer = TTT(heads=H, chunk=chunk).build(H * D).double()
    x = torch.randn(B, 4 * N, H * D).double()
    tokens, _ = layer._tokens(x, {}, 0, Layout(GRID))
    settings = layer._chunks(tokens, Layout(GRID))
    size, scale = settings["size"], settings["scale"][:, 0]
    mask = torch.ones(size, size, dtype=torch.bool) if settings["mask"] is None else settings["mask"]
    w1, w2, b1, b2 = (w.expand(B, *w.shape) for w in (*layer.weights.values(), *layer.biases.values()))

    def read(z, q):
        return q + F.layer_norm(z, (D,), eps=1e-6) * layer.norm_scale + layer.norm_shift

    expected = reference.sequence(
        lambda x, w: F.gelu(x @ w[0] + w[1], approximate="tanh") @ w[2] + w[3],
        lambda z, k, v: 0.5 * (read(z, k) - v).square().sum(-1),
        read,
        [w1, b1, w2, b2],
        [(t.q, t.k[:, :, 0], t.v[:, :, 0], t.rate[:, :, 0, :, 0], scale, mask) for t in cut(tokens, size)],
    )
    expected = layer.o_proj(layer.post_norm(expected.transpose(1, 2).flatten(2)))
    assert (layer(x, None, Layout(GRID))[0] - expected).abs().max() <= 1e-10


@pytest.mark.parametrize("inner", [m for m in ALL_INNER if type(m).backward is not InnerModel.backward], ids=name)
def test_backward_by_hand_is_autograds(inner):
    """Map by map, with and without an outer graph, and through it."""

    class ByAutograd(type(inner)):
        backward = InnerModel.backward

    loop, state, tokens = case(inner, ALL_OBJECTIVES[0], frames=2)
    other = ByAutograd(**{f.name: getattr(inner, f.name) for f in fields(inner)})
    leaves = [x.requires_grad_() for map in state.weights.values() for x in map if x is not None]
    found = []
    for model in (inner, other):
        with torch.no_grad():
            quiet = traces(loop._replace(model=model), state.weights, tokens)
        loud = traces(loop._replace(model=model), state.weights, tokens)
        total = sum(x.square().sum() for trace in loud.values() for x in trace)
        outer = torch.autograd.grad(total, leaves)
        found.append([*(x for parts in (quiet, loud) for key in sorted(parts) for x in parts[key]), *outer])
    for a, b in zip(*found, strict=True):
        assert (a - b).abs().max() <= 1e-12 * max(1.0, float(a.abs().max()))


@pytest.mark.parametrize("objective", ALL_OBJECTIVES, ids=name)
def test_the_gradient_of_a_loss_is_its_derivative(objective):
    torch.manual_seed(0)
    norm = Norm(torch.rand(H, 1, D).double() + 0.5, torch.randn(H, 1, D).double())
    z, k, v = (torch.randn(B, H, 5, D).double() for _ in range(3))
    z.requires_grad_()
    (expected,) = torch.autograd.grad(objective.loss(z, k, v, norm).sum(), z)
    assert (objective.gradient(z, k, v, norm) - expected).abs().max() <= 1e-12


STEPS = [(ALL_INNER[0], optimizer) for optimizer in ALL_OPTIMIZERS] + [
    (inner, ALL_OPTIMIZERS[i % len(ALL_OPTIMIZERS)]) for i, inner in enumerate(ALL_INNER[1:] + ALL_INNER[1:3], 1)
]


@pytest.mark.parametrize(("inner", "optimizer"), STEPS, ids=name)
def test_whole_chunks_take_the_optimizers_steps(inner, optimizer):
    """Three chunks of a frame: the scan against plain autograd on the loss and a plainly written optimizer."""
    loop, state, tokens = case(inner, ALL_OBJECTIVES[0], optimizer, frames=3)
    scale = torch.full((N, 1), 0.3, dtype=torch.float64)
    out, after = scan(loop, state, tokens, size=N, scale=scale, mask=None)
    for b in range(B):
        for h in range(H):
            expected, last = _one_head(loop, optimizer, state.weights, tokens, b, h, 0.3)
            assert (out[b, h] - expected).abs().max() <= 1e-9
            mine = {key: Map(*(None if x is None else x[b, h] for x in map)) for key, map in after.weights.items()}
            assert distance(mine, last) <= 1e-9


def _one_head(loop, optimizer, weights, tokens, b, h, scale):
    """The same by hand for one row and head: tensors without leading axes, torch.optim's formulas."""
    norm = Norm(*(x[h] for x in loop.norm))
    w = {key: [None if x is None else x[b, h].clone() for x in map] for key, map in weights.items()}
    w0 = {key: torch.cat([x[0, h] for x in map if x is not None], -2) for key, map in loop.start.items()}
    memory = {
        key: [[torch.zeros_like(x), torch.zeros_like(x)] for x in pair if x is not None] for key, pair in w.items()
    }
    past, outs, t = tokens.q.shape[2] - tokens.v.shape[3], [], 0

    def model(x, leaves):
        live = {
            key: Map(pair[0][None, None], None if pair[1] is None else pair[1][None, None])
            for key, pair in leaves.items()
        }
        return loop.model(x[None, None], lambda key, x: affine(live[key], x), loop.grid)[0, 0]

    for c in range(3):
        q = tokens.q[b, h, c * N : c * N + past + N]
        k = tokens.k[b, h, 0, c * N : c * N + past + N]
        v, rate = (x[b, h, 0, c * N : (c + 1) * N] for x in (tokens.v, tokens.rate))
        for _ in range(optimizer.steps):
            leaves = {
                key: [None if x is None else x.detach().requires_grad_() for x in pair] for key, pair in w.items()
            }
            flat = [x for pair in leaves.values() for x in pair if x is not None]
            loss = loop.objective.loss(model(k, leaves), k[past:], v, norm)
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
        outs.append(loop.objective.read(z, q[past:], norm))
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


def test_keys_without_a_rate_teach_nothing():
    loop, state, tokens = case(MLP(), ALL_OBJECTIVES[0])
    total = summed(state.weights, traces(loop, state.weights, tokens._replace(rate=torch.zeros_like(tokens.rate))))
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

    loop, state, tokens = case(Linear(), DotProduct(), Sign(), frames=2)
    scale = torch.full((N, 1), 0.3, dtype=torch.float64)
    _, after = scan(loop, state, tokens, size=N, scale=scale, mask=None)
    moved = combine(torch.sub, after.weights, state.weights)
    assert set(moved["1"].weight.round().flatten().tolist()) <= {-2.0, 0.0, 2.0}


def test_several_chunks_with_a_gate_and_an_open_one():
    """The scan over chunks, the last one open, against one definition after the other."""
    loop, state, tokens = case(MLP(), ALL_OBJECTIVES[0], frames=3, forget=True)
    size = 2 * N
    scale = torch.full((size, 1), 0.3, dtype=torch.float64)
    mask = FrameCausal(2).mask(N, size, torch.device("cpu"))
    out, after = scan(loop, state, tokens, size=size, scale=scale, mask=mask)
    first, second = cut(tokens, size)
    expected, weights = definition(loop, state.weights, first, scale, mask)
    rest, last = definition(loop, weights, second, scale[:N], mask[:N, :N])
    assert (out - torch.cat((expected, rest), 2)).abs().max() <= 1e-10
    assert distance(after.weights, weights) <= 1e-10
    assert after.pending is not None
    moved = faded(loop, after.weights, after.fading)
    assert distance(combine(lambda w, g: w - 0.3 * g, moved, after.pending), last) <= 1e-10
