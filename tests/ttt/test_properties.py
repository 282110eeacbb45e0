"""Properties that every sequence layer must have, in float64."""

import itertools
import random

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from tests.helpers import (
    ALL_TTT,
    BASELINES,
    BIDIRECTIONAL,
    DIM,
    GRID,
    SOME_MIXERS,
    SOME_TTT,
    N,
    build,
    distance,
    each_kind,
    name,
)
from tttvideo.mixers import NoMixer
from tttvideo.ttt import GLU, TTT, Conv, DotProduct, FrameCausal, Layout, SelfAttention, TokenCausal

STREAMING = [mixer for mixer in SOME_MIXERS if mixer.build(DIM).streams]


@pytest.mark.parametrize("mixer", each_kind(STREAMING), ids=name)
def test_streamed_is_whole(mixer):
    """Outputs and final state do not depend on how a sequence is cut into calls: 4 ways, and every smallest piece."""
    layer = build(mixer)
    frames, unit = 7, layer.unit(N)
    x = torch.randn(2, frames * N, DIM).double()
    with torch.no_grad():
        whole, last = layer(x, None, Layout(GRID))
        rng = random.Random(0)
        places = range(unit, frames * N, unit)
        ways = [rng.sample(places, rng.randint(1, min(6, len(places)))) for _ in range(4)] + [list(places)]
        for way in ways:
            state, outputs = None, []
            for start, stop in itertools.pairwise([0, *sorted(way), frames * N]):
                y, state = layer(x[:, start:stop], state, Layout(GRID))
                outputs.append(y)
            assert (torch.cat(outputs, 1) - whole).abs().max() <= 1e-12
            assert distance(state, last) <= 1e-12


@pytest.mark.parametrize("mixer", each_kind(SOME_MIXERS), ids=name)
def test_padding_and_neighbours_are_invisible(mixer):
    """Rows of different lengths in one batch, over two calls, give what each gives alone; NaN in padding stays."""
    layer = build(mixer)
    first, second = torch.tensor([4, 2, 0]) * N, torch.tensor([3, 0, 5]) * N
    if layer.unit(N) == 1:
        first, second = first + torch.tensor([1, 5, 0]), second + torch.tensor([3, 0, 1])
    if not layer.streams:
        second = torch.zeros_like(second)
    x = torch.randn(3, 6 * N, DIM).double()
    y = torch.randn(3, 6 * N, DIM).double()
    for rows, lengths in ((x, first), (y, second)):
        for row, length in zip(rows, lengths.tolist(), strict=True):
            row[length:] = float("nan")
    out1, state = layer(x, None, Layout(GRID, first))
    out2 = torch.zeros_like(y)
    if layer.streams:
        out2, state = layer(y, state, Layout(GRID, second))
    for b in range(3):
        a, c = int(first[b]), int(second[b])
        alone, end = layer(torch.cat((x[b : b + 1, :a], y[b : b + 1, :c]), 1), None, Layout(GRID))
        both = torch.cat((out1[b : b + 1, :a], out2[b : b + 1, :c]), 1)
        if a + c:
            assert (both - alone).abs().max() <= 1e-12
        if isinstance(mixer, TTT):
            # a row that has read nothing yet has no tail, one in a batch has one of zeros
            row = pytree.tree_map_only(torch.Tensor, lambda t, b=b: t[b : b + 1], state._replace(tails={}))
            assert distance(row, end._replace(tails={})) <= 1e-12
        assert (out1[b, a:] == 0).all()
        assert (out2[b, c:] == 0).all()


@pytest.mark.parametrize("mixer", each_kind(SOME_MIXERS), ids=name)
def test_packed_is_separate(mixer):
    """Sequences packed into one row by cu_seqlens, one of them empty, give what each gives alone; then read on."""
    layer = build(mixer)
    lengths = torch.tensor([2, 0, 4]) * N + (0 if layer.unit(N) > 1 else torch.tensor([1, 0, 3]))
    ends = torch.cat((torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)))
    x = torch.randn(1, int(ends[-1]), DIM).double()
    y, state = layer(x, None, Layout(GRID, cu_seqlens=ends))
    assert y.shape == x.shape
    more = torch.randn(3, 2 * N, DIM).double()
    if layer.streams:
        next_packed, _ = layer(more.flatten(0, 1)[None], state, Layout(GRID, cu_seqlens=torch.arange(4) * 2 * N))
    for s, (start, stop) in enumerate(itertools.pairwise(ends.tolist())):
        alone, end = layer(x[:, start:stop], None, Layout(GRID))
        assert (stop == start) or (y[:, start:stop] - alone).abs().max() <= 1e-12
        if layer.streams:
            further, _ = layer(more[s : s + 1], end, Layout(GRID))
            assert (next_packed[:, s * 2 * N : (s + 1) * 2 * N] - further).abs().max() <= 1e-12


@pytest.mark.parametrize("mixer", each_kind(SOME_MIXERS), ids=name)
def test_gradients_ignore_padding(mixer):
    """Parameter gradients of a padded row are those of the row alone, even where the padding is NaN."""
    layer = build(mixer)
    x = torch.randn(2, 4 * N, DIM).double()
    x[1, 2 * N :] = float("nan")
    x.requires_grad_()
    y, _ = layer(x, None, Layout(GRID, torch.tensor([4, 2]) * N))
    y.square().sum().backward()
    assert (x.grad[1, 2 * N :] == 0).all()
    together = {key: p.grad.clone() for key, p in layer.named_parameters() if p.grad is not None}
    layer.zero_grad()
    for row, length in ((0, 4 * N), (1, 2 * N)):
        layer(x[row : row + 1, :length], None, Layout(GRID))[0].square().sum().backward()
    for key, p in layer.named_parameters():
        if p.grad is not None:
            assert (p.grad - together[key]).abs().max() <= 1e-10 * max(1.0, float(p.grad.abs().max())), key


@pytest.mark.parametrize("mixer", each_kind(STREAMING), ids=name)
def test_the_future_does_not_change_the_past(mixer):
    """To the bit; with chunks of several frames that see each other, from one such chunk to the next."""
    layer = build(mixer)
    x = torch.randn(1, 6 * N, DIM).double()
    before, _ = layer(x, None, Layout(GRID))
    unit = layer.unit(N)
    assert layer.causal == (unit <= N)
    for cut in range(unit, 6 * N, unit) if unit > 1 else range(1, 6 * N, 7):
        changed = x.clone()
        changed[:, cut:] += torch.randn_like(changed[:, cut:])
        after, _ = layer(changed, None, Layout(GRID))
        assert torch.equal(before[:, :cut], after[:, :cut])
        if not isinstance(mixer, NoMixer):
            assert not torch.equal(before[:, cut:], after[:, cut:])


@pytest.mark.parametrize("mixer", each_kind([*ALL_TTT, *BASELINES, *BIDIRECTIONAL[:2]]), ids=name)
def test_outer_gradients(mixer):
    """Every outer parameter, W_0 and the rates included, against finite differences: all at once, along a random
    direction in which each counts alike."""
    layer = build(mixer)
    leaves = {"x": torch.randn(1, 4 * N, DIM).double().requires_grad_(), **dict(layer.named_parameters())}

    def loss(leaves):
        own = {key: leaf for key, leaf in leaves.items() if key != "x"}
        y, _ = torch.func.functional_call(layer, own, (leaves["x"], None, Layout(GRID)))
        return (y * weights).sum()

    weights = torch.randn(1, 4 * N, DIM).double()
    found = torch.autograd.grad(loss(leaves), list(leaves.values()), materialize_grads=True)
    gradients = dict(zip(leaves, found, strict=True))
    ways = {key: torch.randn_like(leaf) for key, leaf in leaves.items()}
    ways = {key: way / way.norm() / gradients[key].norm().clamp_min(1e-3) for key, way in ways.items()}
    with torch.no_grad():
        ahead, behind = (loss({k: leaf + step * ways[k] for k, leaf in leaves.items()}) for step in (1e-6, -1e-6))
    expected = sum((gradients[key] * way).sum() for key, way in ways.items())
    assert ((ahead - behind) / 2e-6 - expected).abs() <= 1e-6


@pytest.mark.parametrize("mixer", each_kind(SOME_TTT), ids=name)
def test_checkpointing_changes_nothing(mixer):
    layer = build(mixer)
    x = torch.randn(1, 7 * N, DIM).double()
    results = []
    for group in (0, 1, 5):
        layer.checkpoint_group = group
        layer.zero_grad()
        y, _ = layer(x, None, Layout(GRID))
        y.square().sum().backward()
        results.append([y, *(p.grad.clone() for p in layer.parameters())])
    for other in results[1:]:
        assert torch.equal(results[0][0], other[0])
        for a, b in zip(results[0], other, strict=True):
            # where all chunks of a group stand side by side, their gradients are added in another order
            exact = torch.equal(a, b) or layer.cumulative or isinstance(mixer.objective, DotProduct)
            assert exact
            assert (a - b).abs().max() <= 1e-12 * max(1.0, float(a.abs().max()))


@pytest.mark.parametrize("mixer", each_kind(SOME_TTT), ids=name)
def test_no_grad_gives_the_same(mixer):
    layer = build(mixer)
    x = torch.randn(1, 3 * N, DIM).double()
    with torch.no_grad():
        quiet, state = layer(x, None, Layout(GRID))
    loud, _ = layer(x, None, Layout(GRID))
    # SiLU rounds its last bit by whether an element stands in a full vector of the processor or in the rest
    if isinstance(mixer.inner, GLU):
        assert (quiet - loud).abs().max() <= 1e-14
    else:
        assert torch.equal(quiet, loud)
    assert not quiet.requires_grad
    assert not any(t.requires_grad for t in pytree.tree_leaves(state) if t is not None)


@pytest.mark.parametrize("mixer", each_kind(SOME_TTT), ids=name)
def test_every_parameter_has_a_gradient(mixer):
    """Also where no chunk is full: several processes would wait for a parameter that has none."""
    layer = build(mixer)
    y, _ = layer(torch.randn(1, N, DIM).double(), None, Layout(GRID))
    y.sum().backward()
    assert [key for key, p in layer.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("mixer", each_kind([m for m in STREAMING if m in SOME_TTT]), ids=name)
def test_gradients_flow_through_the_state(mixer):
    """Read in two calls, with the state between them: the gradients of one call, with checkpointing too."""
    layer = build(mixer)
    x = torch.randn(1, 6 * N, DIM).double()
    found = []
    for cut, group in ((None, 0), (4 * N, 0), (4 * N, 1)):
        layer.checkpoint_group = group
        layer.zero_grad()
        if cut is None:
            y = layer(x, None, Layout(GRID))[0]
        else:
            first, state = layer(x[:, :cut], None, Layout(GRID))
            y = torch.cat((first, layer(x[:, cut:], state, Layout(GRID))[0]), 1)
        y.square().sum().backward()
        found.append([p.grad.clone() for p in layer.parameters()])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert (a - b).abs().max() <= 1e-10 * max(1.0, float(a.abs().max()))


def test_bf16_keeps_its_state_in_float32():
    torch.manual_seed(0)
    layer = TTT(heads=2).build(DIM)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = layer(torch.randn(1, 2 * N, DIM), None, Layout(GRID))
    assert state.weights["1"].weight.dtype == torch.float32
    assert torch.isfinite(y.float()).all()


@pytest.mark.parametrize("mixer", each_kind(STREAMING), ids=name)
def test_steps_are_the_whole(mixer):
    """``step`` after ``step`` gives what ``forward`` gives, the state included."""
    layer = build(mixer)
    size = 2 * layer.step_unit(N)
    x = torch.randn(2, 3 * size, DIM).double()
    with torch.no_grad():
        whole, last = layer(x, None, Layout(GRID))
        state, outputs = layer.init_state(2), []
        for piece in x.split(size, 1):
            y, state = layer.step(piece, state, GRID)
            outputs.append(y)
    assert distance(torch.cat(outputs, 1), whole) <= 1e-12
    assert distance(state, last) <= 1e-12


class Step(torch.nn.Module):
    """``layer.step`` with the state's tensors one by one."""

    def __init__(self, layer, tree):
        super().__init__()
        self.layer, self.tree = layer, tree

    def forward(self, x, *leaves):
        y, state = self.layer.step(x, pytree.tree_unflatten(list(leaves), self.tree), GRID)
        return y, *pytree.tree_leaves(state)


STEPPED = [TTT(heads=2), TTT(heads=2, chunk=FrameCausal(3), short_conv="time"), TTT(heads=2, chunk=TokenCausal(4))]
STEPPED += [TTT(SelfAttention(), 2, forget=True), TTT(Conv(time=2), 2)]
STEPPED += {type(mixer): mixer for mixer in BASELINES}.values()  # one of each class


@pytest.mark.parametrize("mixer", STEPPED, ids=name)
def test_a_step_branches_on_no_value(mixer):
    """It can be traced without any values, and the trace is right for the steps after it."""
    layer = build(mixer)
    size, names = layer.step_unit(N), [key for key, _ in layer.named_parameters()]
    x = torch.randn(2, 4 * size, DIM).double()
    pieces, parameters = x.split(size, 1), [p.detach() for p in layer.parameters()]
    with torch.no_grad():
        whole, _ = layer(x, None, Layout(GRID))
        state = layer.step(pieces[0], layer.init_state(2), GRID)[1]
        state = layer.step(pieces[1], state, GRID)[1]  # tails and windows are full now
        leaves, tree = pytree.tree_flatten(state)
        step = Step(layer, tree)

        def run(x, *tensors):
            own = {f"layer.{key}": p for key, p in zip(names, tensors, strict=False)}
            return torch.func.functional_call(step, own, (x, *tensors[len(names) :]))

        traced = make_fx(run, tracing_mode="fake")(pieces[2], *parameters, *leaves)
        for i in (2, 3):
            y, *leaves = traced(pieces[i], *parameters, *leaves)
            assert distance(y, whole[:, i * size : (i + 1) * size]) <= 1e-12


def test_steps_that_cannot_be_say_so():
    x = torch.randn(1, N, DIM).double()
    frames, both = build(TTT(heads=2, chunk=FrameCausal(2))), build(BIDIRECTIONAL[0])
    with pytest.raises(ValueError, match=r"T a multiple of 12, got \[1, 6, 8\]"):
        frames.step(x, frames.init_state(1), GRID)
    with pytest.raises(ValueError, match="sees the end of a sequence first"):
        both.step(x, both.init_state(1), GRID)
