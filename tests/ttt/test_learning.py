"""How the hidden state learns where it departs from the paper: each option against its definition, in float64."""

import dataclasses
import math
from unittest import mock

import pytest
import torch
import torch.nn.functional as F

from tests.helpers import DELTA_BY_FRAMES, DELTA_RULE, DIM, GRID, N, build, distance, name
from tttvideo.mixers.gated_delta_net import GatedDeltaNet, gated_delta_rule
from tttvideo.ttt import (
    GLU,
    L2,
    MLP,
    SGD,
    TTT,
    Conv,
    ConvDepthwise,
    DotProduct,
    DWConv,
    FrameCausal,
    Layout,
    Learning,
    Linear,
    Momentum,
    Muon,
    ResidualL2,
    TokenCausal,
    scan,
)
from tttvideo.ttt.kernels.choice import not_for
from tttvideo.ttt.optimizer import orthogonalized
from tttvideo.ttt.state import Map

LAYOUT = Layout(GRID)


def weights_after(layer, x):
    """W after ``x`` by plain autograd on one sequence, chunk after chunk of ``FrameCausal(1)``, and the weights of
    every chunk."""
    config, learning = layer.config, layer.config.learning
    tokens, _ = layer._tokens(x, layer.init_state(1).tails, 0, LAYOUT)
    start = {key: [t for t in map if t is not None] for key, map in layer._start().items()}
    weights, history = start, []
    for c in range(x.shape[1] // N):
        part = slice(c * N, (c + 1) * N)
        k, v, rate = (t[:, :, 0, part] for t in (tokens.k, tokens.v, tokens.rate))
        if tokens.fade is not None:
            kept = tokens.fade[:, :, part].sum(2, keepdim=True).exp()
            faded = {key: [a + kept * (b - a) for a, b in zip(start[key], weights[key])] for key in start}
        else:
            faded = weights
        at = start if learning.gradient_at == "start" else faded if learning.forget_first else weights
        at = {key: [t.detach().requires_grad_() for t in ts] for key, ts in at.items()}

        def affine(key, z, at=at):
            return z @ at[key][0] + (at[key][1] if len(at[key]) > 1 else 0)

        losses = config.objective.loss(config.inner(k, affine, GRID), k, v, layer._loop(tokens, Layout(GRID)).norm)
        new = {}
        for i, key in enumerate(start):
            own = rate[..., i if rate.shape[-1] > 1 else 0]
            gradients = torch.autograd.grad((own * losses).sum(), at[key], retain_graph=True)
            learns = learning.update == "all" or key == (config.inner.last or "1")
            new[key] = [w - learns * g / N for w, g in zip(faded[key], gradients)]
        weights = new
        history.append(weights)
    return weights


@pytest.mark.parametrize("inner", [MLP(), GLU(), Linear()], ids=name)
@pytest.mark.parametrize(
    ("learning", "options"),
    [
        (Learning(), {}),
        (Learning(update="last"), {}),
        (Learning(update="last"), {"forget": True}),
        (Learning(update="last"), {"objective": DotProduct()}),
        (Learning(gradient_at="start"), {}),
        (Learning(gradient_at="start"), {"forget": True}),
        (Learning(direction="ascent"), {}),
        (Learning(rate_per_map=True), {}),
        (Learning(forget_first=True), {"forget": True}),
        (Learning(rate_scale=None), {"normalize_qk": True, "objective": ResidualL2(eps=1e-3), "base_rate": 0.01}),
        (Learning(update="last", gradient_at="start", direction="ascent"), {"objective": L2()}),
    ],
)
def test_the_weights_are_those_of_the_definition(inner, learning, options):
    layer = build(TTT(inner=inner, heads=2, learning=learning, **options))
    x = torch.randn(1, 4 * N, DIM).double()
    expected = weights_after(layer, x)
    _, state = layer(x, None, LAYOUT)
    assert list(state.weights) == (list(expected) if learning.update == "all" else [inner.last or "1"])
    for key, map in state.weights.items():
        assert distance([t for t in map if t is not None], expected[key]) <= 1e-12
    sign = -1 if learning.direction == "ascent" else 1
    tokens, _ = layer._tokens(x, {}, 0, LAYOUT)
    rates = 1 if learning.rate_scale is None else 1 / layer.head_dim
    assert (sign * tokens.rate > 0).all()
    assert tokens.rate.abs().max() <= layer.base_rate * rates


@pytest.mark.parametrize("chunk", [FrameCausal(1), FrameCausal(2), TokenCausal(4)], ids=name)
@pytest.mark.parametrize(
    "options",
    [
        {"learning": Learning(gradient_at="start")},
        {"learning": Learning(gradient_at="start", update="last"), "inner": GLU()},
        {"learning": Learning(update="last"), "objective": DotProduct()},
        {"learning": Learning(gradient_at="start", rate_per_map=True), "objective": L2()},
    ],
)
def test_what_needs_no_loop_is_the_loop(chunk, options):
    """The cumulative sum, outputs and state, against chunk after chunk."""
    layer = build(TTT(heads=2, chunk=chunk, **options))
    assert layer.cumulative
    x = torch.randn(2, 5 * N, DIM).double()
    with torch.no_grad():
        y, state = layer(x, None, LAYOUT)
        layer.cumulative = False
        expected, last = layer(x, None, LAYOUT)
    assert distance(y, expected) <= 1e-12
    assert distance(state, last) <= 1e-12


@pytest.mark.parametrize("chunk", [FrameCausal(1), TokenCausal(1)], ids=name)
@pytest.mark.parametrize(("group", "learning"), [(0, {}), (3, {}), (0, {"rate_per_map": True})])
def test_the_delta_rule_solved_for_many_chunks_is_the_loop(chunk, group, learning):
    """Outputs, state and gradients over several spans, from a state on, in rows of different lengths; and it is used
    where chunks are small, and only there."""
    learning = dataclasses.replace(DELTA_BY_FRAMES.learning, **learning)
    config = dataclasses.replace(DELTA_BY_FRAMES, chunk=chunk, silu=True, checkpoint_group=group, learning=learning)
    layer = build(config)
    assert layer.delta
    begin, x = (torch.randn(2, frames * N, DIM).double().requires_grad_() for frames in (2, 25))
    layout = Layout(GRID, lengths=torch.tensor([25 * N, 13 * N]))
    counted, results = [], []
    for solved in (True, False):
        layer.delta = solved
        with mock.patch.object(scan, "read_delta_rule", side_effect=scan.read_delta_rule) as calls:
            y, state = layer(x, layer(begin, None, LAYOUT)[1], layout)
        counted.append(calls.call_count > 0)
        lost = (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum() + state.weights["1"].weight.sum()
        results.append([y, state, *torch.autograd.grad(lost, [begin, x, *layer.parameters()], materialize_grads=True)])
    assert counted == [True, False]
    for own, expected in zip(*results, strict=True):
        assert distance(own, expected) <= 1e-12


def test_one_chunk_and_large_ones_are_read_by_the_loop():
    layer = build(DELTA_BY_FRAMES)
    with mock.patch.object(scan, "read_delta_rule", side_effect=AssertionError("solved for")):
        layer(torch.randn(2, N, DIM).double(), None, LAYOUT)
        layer(torch.randn(2, 36, DIM).double(), None, Layout((3, 3)))
        with pytest.raises(AssertionError, match="solved for"):
            layer(torch.randn(2, 32, DIM).double(), None, Layout((2, 4)))


@pytest.mark.parametrize(
    "options",
    [
        {"inner": Linear()},
        {"inner": MLP()},
        {"objective": DotProduct()},
        {"objective": ResidualL2()},
        {"optimizer": SGD(clip=1.0)},
        {"optimizer": SGD(steps=2)},
        {"forget": True},
        {"views": 2},
        {"chunk": FrameCausal(2)},
        {"learning": Learning(gradient_at="start")},
    ],
)
def test_what_is_not_the_delta_rule_is_not_solved_for(options):
    plain = TTT(inner=Linear(bias=False), objective=L2(), chunk=FrameCausal(1), heads=2)
    assert plain.build(DIM).delta
    assert not dataclasses.replace(plain, **options).build(DIM).delta


@pytest.mark.parametrize("forget", [True, False])
def test_the_delta_rules_are_ttt(forget):
    """Gated DeltaNet's recurrence, and without the gate DeltaNet's: a linear hidden state without bias that begins at
    0, plain least squares, chunks of one token, keys of unit length, rates not divided by the head dimension."""
    learning = dataclasses.replace(DELTA_RULE.learning, forget_first=forget)
    layer = build(dataclasses.replace(DELTA_RULE, forget=forget, learning=learning))
    x = torch.randn(2, 5 * N, DIM).double()
    y, state = layer(x, None, LAYOUT)
    q, k, v, rate, fade, _ = layer._tokens(x, {}, 0, LAYOUT)[0]
    step = (1 + layer.scale_shift).clamp_min(0)  # learned by position in the chunk: here one number
    beta, log_decay = (
        step * rate[:, :, 0, :, 0],
        torch.zeros_like(rate[:, :, 0, :, 0]) if fade is None else fade[..., 0],
    )
    zeros = torch.zeros(2, 2, 4, 4).double()
    out, memory = gated_delta_rule(q * math.sqrt(4), k[:, :, 0], v[:, :, 0], beta, log_decay, zeros, 8)
    assert distance(state.weights["1"].weight, memory) <= 1e-14
    assert distance(y, layer._output(x, out)) <= 1e-13
    assert beta.max() > 0.5  # a rate worth the name


def test_with_convolutions_on_values_all_before_the_norm_is_deltanets():
    """From tokens to the state: projections, convolutions, SiLU, unit keys, rates. DeltaNet adds 1e-6 to |k|^2."""
    theirs = build(GatedDeltaNet(heads=2, expand=1, decay=False, gate=False, short_conv="raster"))
    like_theirs = {"chunk": TokenCausal(1), "base_rate": 1.0, "silu": True, "short_conv": "raster", "conv_values": True}
    layer = build(dataclasses.replace(DELTA_BY_FRAMES, **like_theirs))
    project = layer.project
    with torch.no_grad():
        for to, weight in zip((project.q_proj, project.k_proj, project.v_proj), theirs.qkv_proj.weight.chunk(3)):
            to.weight.copy_(weight)
        for to, weight in zip("qkv", theirs.conv.weight.chunk(3)):
            project.convs[to].weight.copy_(weight)
            project.convs[to].bias.zero_()
        project.rate.weight.copy_(theirs.beta_proj.weight)
        project.rate.bias.zero_()
        layer.scale_shift.zero_()
    x = torch.randn(2, 5 * N, DIM).double()
    assert distance(layer(x, None, LAYOUT)[1].weights["1"].weight, theirs(x, None, LAYOUT)[1].memory) <= 1e-5


def test_a_zero_start_is_no_parameter():
    layer = TTT(Linear(), 2, objective=L2(), learning=Learning(start="zero")).build(DIM)
    assert not [key for key, _ in layer.named_parameters() if key.startswith(("weights", "biases"))]
    assert all((t == 0).all() for t in layer.init_state(3).weights["1"])


def test_clipping_by_column():
    """ViT^3's: every output column by its own length, its bias included; a channel of a depthwise kernel."""
    torch.manual_seed(0)
    dense = Map(torch.randn(2, 3, 4, 5).double(), torch.randn(2, 3, 1, 5).double())
    grouped = Map(torch.randn(2, 3, 4, 9, 1).double(), None)
    clipped = SGD(clip=0.5, clip_by="column").clipped({"1": dense, "2": grouped})
    for column in range(5):
        own = torch.cat((dense.weight[0, 0, :, column], dense.bias[0, 0, :, column]))
        expected = own * 0.5 / (own.norm() + 0.5)
        found = torch.cat((clipped["1"].weight[0, 0, :, column], clipped["1"].bias[0, 0, :, column]))
        assert distance(found, expected) <= 1e-15
    for channel in range(4):
        own = grouped.weight[1, 2, channel, :, 0]
        assert distance(clipped["2"].weight[1, 2, channel, :, 0], own * 0.5 / (own.norm() + 0.5)) <= 1e-15


def test_silu_comes_before_the_lengths():
    layer, plain = build(TTT(heads=2, silu=True, normalize_qk=True, rope=False)), build(TTT(heads=2, rope=False))
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(1, N, DIM).double()
    tokens, raw = (own._tokens(x, {}, 0, LAYOUT)[0] for own in (layer, plain))
    assert distance(tokens.v, F.silu(raw.v)) <= 1e-15
    assert distance(tokens.k, F.normalize(F.silu(raw.k), dim=-1)) <= 1e-15
    assert distance(tokens.q, F.normalize(F.silu(raw.q), dim=-1)) <= 1e-15


@pytest.mark.parametrize(("coefficients", "low", "high"), [("jordan", 0.65, 1.2), ("lact", 0.95, 1.05)])
def test_newton_schulz_brings_singular_values_to_one(coefficients, low, high):
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(8, 8).double())
    x = u @ torch.diag(torch.logspace(-1.5, 0, 8).double()) @ v
    values = torch.linalg.svdvals(orthogonalized(x, 5, coefficients))
    assert low <= values.min()
    assert values.max() <= high


UNSCALED = {"normalize_qk": True, "objective": L2(), "learning": Learning(rate_scale=None)}


def ttt(**options):
    return TTT(heads=2, **options)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Learning(update="first"), "must be all or last"),
        (lambda: Learning(rate_scale="width"), "must be head_dim or null"),
        (lambda: ttt(learning=Learning(start="zero")), "MLP with ResidualL2 cannot learn from there"),
        (lambda: ttt(inner=Linear(), learning=Learning(start="zero")), "Linear with ResidualL2 cannot"),
        (lambda: ttt(learning=Learning(forget_first=True)), "needs forget: true"),
        (
            lambda: ttt(forget=True, chunk=FrameCausal(2), learning=Learning(forget_first=True)),
            "read as a whole: FrameCausal",
        ),
        (lambda: ttt(optimizer=SGD(steps=2), learning=Learning(gradient_at="start")), "use steps: 1"),
        (lambda: ttt(inner=Conv(), learning=Learning(rate_per_map=True)), "Conv mixes the tokens"),
        (lambda: ttt(base_rate=2.0, normalize_qk=True, learning=Learning(rate_scale=None)), "up to 0.015 only"),
        (lambda: ttt(inner=DWConv(), **UNSCALED, base_rate=2.1), "DWConv with L2 is known to train up to 2.0"),
        (lambda: ttt(inner=Conv(), **UNSCALED, base_rate=1.1), "Conv with L2 is known to train up to 1.0"),
        (lambda: ttt(inner=MLP(), **UNSCALED, base_rate=0.3), "MLP with L2 is known to train up to 0.1"),
        (lambda: ttt(learning={}), "must be a Learning"),
        (lambda: ttt(base_rate=0.01, learning=Learning(rate_scale=None)), "set normalize_qk: true"),
        (lambda: ttt(normalize_qk=True, learning=Learning(rate_scale=None)), "base_rate is null"),
        (lambda: GLU(down=False), "it must be 1"),
        (lambda: ResidualL2(eps=0.0), "above 0"),
        (lambda: SGD(clip=1.0, clip_by="row"), "head or column"),
        (lambda: Muon(coefficients="mine"), "jordan or lact"),
        (lambda: Muon(coefficients="lact", iterations=4), "there are 5"),
        (lambda: Muon(momentum="given"), "1 excluded, or is learned"),
        (lambda: Momentum(momentum=1.0), "1 excluded, or is learned"),
        (lambda: Learning(start_rank=0), "at least 1, or null"),
        (lambda: ttt(rope="3d"), "true, false, frame_row_column or null"),
        (lambda: ttt(rope="frame_row_column", chunk=TokenCausal(4)), "use chunk: FrameCausal, or rope: true"),
        (lambda: ttt(rope="frame_row_column").build(8), "it needs 8"),
        (lambda: ttt(inner=ConvDepthwise(), learning=Learning(start_rank=2)), "W_0 of ConvDepthwise"),
        (
            lambda: ttt(inner=Linear(), objective=L2(), learning=Learning(start="zero", start_rank=2)),
            "with start: zero is no product",
        ),
        (lambda: ttt(inner=Linear(), learning=Learning(start_rank=2)), "Linear has no map that is the last of several"),
        (lambda: ttt(inner=GLU(1.0, down=False), learning=Learning(start_rank=2)), "GLU has no map that is the last"),
    ],
)
def test_what_does_not_go_together_says_so(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"learning": Learning(direction="ascent")}, "only for the defaults"),
        ({"objective": ResidualL2(eps=1e-8)}, "in kernels it is 1e-06"),
        ({"objective": ResidualL2(normalize_target=True)}, "no kernel for normalize_target"),
        ({"rope": "frame_row_column"}, "no kernel for rope"),
        (
            {"inner": DWConv(), "objective": DotProduct(), "optimizer": SGD(clip=1.0, clip_by="column")},
            "clip_by: column",
        ),
    ],
)
def test_kernels_leave_new_options_to_the_eager_scan(options, words):
    assert words in not_for(TTT(heads=2, **options), 16, 4, "tf32")
    assert not_for(TTT(heads=2), 16, 4, "tf32") is None
