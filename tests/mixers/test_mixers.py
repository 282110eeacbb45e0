"""What is particular to each baseline: its definition, written down a second time and plainly."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.helpers import BASELINES, BIDIRECTIONAL, DIM, GRID, N, build, name
from tests.helpers import distance as difference
from tttvideo.mixers import (
    GRU,
    LSTM,
    TTT,
    Attention,
    Bidirectional,
    ConvLSTM,
    FrameAttention,
    GatedDeltaNet,
    LinearAttention,
    Mamba,
    NoMixer,
)
from tttvideo.mixers.mamba import segment_sum
from tttvideo.ttt import FrameCausal, Layout, TokenCausal
from tttvideo.ttt.interface import merge_heads, split_heads
from tttvideo.ttt.primitives import query_key_value


def tokens(count, batch=2):
    return torch.randn(batch, count, DIM).double()


# every baseline


def with_dtypes(*dtypes):
    """Every baseline with one of the types in turn."""
    return [(mixer, dtypes[i % len(dtypes)]) for i, mixer in enumerate([*BASELINES, *BIDIRECTIONAL[:4]])]


@pytest.mark.parametrize(("mixer", "dtype"), with_dtypes(torch.bfloat16, torch.float16), ids=name)
def test_half_precision(mixer, dtype):
    """Under autocast sums and recurrences stay in float32; a half-precision layer runs."""
    torch.manual_seed(0)
    layer = mixer.build(DIM)
    x = torch.randn(2, 40 * N, DIM)
    with torch.no_grad():
        exact, _ = layer(x, None, Layout(GRID))
    with torch.autocast("cpu", dtype):
        y, state = layer(x, None, Layout(GRID))
        y, state = layer(x, state if layer.streams else None, Layout(GRID))
    assert torch.isfinite(y).all()
    for field in ("sums", "ssm", "memory", "hidden", "cell"):
        assert getattr(state, field, x).dtype == torch.float32
    half = layer.bfloat16()
    y, _ = half(x.bfloat16(), None, Layout(GRID))
    assert y.dtype == torch.bfloat16
    assert difference(y.float(), exact) <= 0.05 * (1 + float(exact.abs().max()))


@pytest.mark.parametrize("mixer", [*BASELINES, *BIDIRECTIONAL[:4]], ids=name)
def test_calls_with_nothing(mixer):
    """No tokens at all, or none in any row: nothing is put out, and what follows is as if it had been first."""
    layer = build(mixer)
    y, state = layer(tokens(0), None, Layout(GRID))
    assert y.shape == (2, 0, DIM)
    nothing, state = layer(tokens(N), state, Layout(GRID, torch.tensor([0, 0])))
    assert (nothing == 0).all()
    x = tokens(3 * N)
    assert difference(layer(x, state, Layout(GRID))[0], layer(x, None, Layout(GRID))[0]) <= 1e-12


@pytest.mark.parametrize(("mixer", "dtype"), with_dtypes(torch.float64, torch.float32, torch.bfloat16), ids=name)
def test_no_sequences_at_all(mixer, dtype):
    """B = 0, with and without tokens, with and without lengths."""
    layer, state, total = build(mixer).to(dtype), None, torch.zeros(())
    for count in (3 * N, 0, 3 * N):
        for lengths in (None, torch.zeros(0, dtype=torch.int64)):
            x = tokens(count, 0).to(dtype).requires_grad_()
            y, state = layer(x, state, Layout(GRID, lengths))
            assert y.shape == x.shape
            total = total + y.sum()
    total.backward()
    assert all(leaf.shape[0] == 0 for leaf in torch.utils._pytree.tree_leaves(state))
    assert all((p.grad == 0).all() for p in layer.parameters() if p.grad is not None)


@pytest.mark.parametrize("mixer", [*BASELINES, *BIDIRECTIONAL[:4]], ids=name)
def test_packed_sequences_without_tokens(mixer):
    layer = build(mixer)
    y, state = layer(tokens(0, 1), None, Layout(GRID, cu_seqlens=torch.tensor([0, 0, 0])))
    assert y.shape == (1, 0, DIM)
    x = tokens(2 * N, 1)
    y, _ = layer(x, state, Layout(GRID, cu_seqlens=torch.tensor([0, 0, 2 * N])))
    assert difference(y, layer(x, None, Layout(GRID))[0]) <= 1e-12


# LSTM


def test_lstm_is_torchs():
    layer = build(LSTM())
    plain = nn.LSTM(DIM, DIM, batch_first=True).double()
    plain.load_state_dict(layer.lstm.state_dict())
    x = tokens(17)
    expected, (hidden, cell) = plain(x)
    y, state = layer(x)
    assert difference(y, expected) <= 1e-14
    assert difference(state.hidden, hidden[0]) <= 1e-14
    assert difference(state.cell, cell[0]) <= 1e-14


def test_gru_is_torchs():
    layer = build(GRU())
    plain = nn.GRU(DIM, DIM, batch_first=True).double()
    plain.load_state_dict(layer.gru.state_dict())
    x = tokens(17)
    expected, hidden = plain(x)
    y, state = layer(x)
    assert difference(y, expected) <= 1e-14
    assert difference(state.hidden, hidden[0]) <= 1e-14


# Mamba


def plain_mamba(layer, x):
    """One sequence x [T, C], token by token, from the paper's equations."""
    heads, columns = layer.config.heads, layer.config.state_dim
    inner = layer.config.expand * DIM
    z, xbc, dt = layer.in_proj(x).split([inner, inner + 2 * columns, heads], -1)
    past = torch.cat((torch.zeros(3, xbc.shape[1]).double(), xbc))
    state = torch.zeros(heads, inner // heads, columns).double()
    outputs = []
    for t in range(len(x)):
        mixed = F.silu((past[t : t + 4] * layer.conv.weight[:, 0].T).sum(0) + layer.conv.bias)
        u, B, C = mixed.split([inner, columns, columns])
        u = u.view(heads, -1)
        step = torch.log1p(torch.exp(dt[t] + layer.dt_bias))
        for h in range(heads):
            kept = torch.exp(-step[h] * torch.exp(layer.A_log[h]))
            state = state.clone()
            state[h] = kept * state[h] + step[h] * torch.outer(u[h], B)
        y = (torch.einsum("hds,s->hd", state, C) + layer.D[:, None] * u).flatten() * F.silu(z[t])
        outputs.append(layer.out_proj(y / torch.sqrt(y.square().mean() + 1e-5) * layer.norm_scale))
    return torch.stack(outputs), state


@pytest.mark.parametrize("length", [1, 4, 5, 23])
def test_mamba_is_the_recurrence(length):
    layer = build(Mamba(heads=2, state_dim=3, chunk=5))
    x = tokens(length)
    y, state = layer(x)
    for row in range(2):
        expected, last = plain_mamba(layer, x[row])
        assert difference(y[row], expected) <= 1e-12
        assert difference(state.ssm[row], last) <= 1e-12


def test_mamba_starts_as_the_authors_do():
    torch.manual_seed(0)
    layer = Mamba(heads=64).build(64)
    assert 1 <= layer.A_log.exp().min() < 2
    assert 15 < layer.A_log.exp().max() <= 16
    steps = F.softplus(layer.dt_bias)
    assert 0.99e-3 <= steps.min() < 2e-3
    assert 0.05 < steps.max() <= 1.01e-1


def test_segment_sums_do_not_cancel():
    """In float32, short segments far into a chunk of strong decay: a difference of two sums would be off by 1e-3."""
    torch.manual_seed(0)
    x = -torch.rand(256) * 100
    x[200:] /= 1e4
    found, exact = segment_sum(x), segment_sum(x.double())
    lower = torch.ones(256, 256, dtype=torch.bool).tril()
    assert difference(found.exp()[lower], exact.exp()[lower]) <= 1e-6
    assert (found[~lower] == -torch.inf).all()
    sums = x.cumsum(0)
    assert difference((sums[255] - sums[210]).exp(), exact[255, 210].exp()) > 1e-5


# Linear attention


@pytest.mark.parametrize("causality", ["frame", "token"])
@pytest.mark.parametrize("chunk", [1, 7, 64])
@pytest.mark.parametrize(("feature_map", "normalizer"), [("identity", False), ("elu", True), ("silu", False)])
def test_linear_attention_is_its_quadratic_form(causality, chunk, feature_map, normalizer):
    options = {"heads": 2, "causality": causality, "feature_map": feature_map, "normalizer": normalizer}
    layer = build(LinearAttention(rope_period=0, chunk=chunk, **options))
    x = tokens(4 * N)
    phi = {"identity": lambda t: t, "elu": lambda t: F.elu(t) + 1, "silu": F.silu}[feature_map]
    q, k, v = (split_heads(p(x), 2) for p in (layer.q_proj, layer.k_proj, layer.v_proj))
    time = torch.arange(4 * N) // (N if causality == "frame" else 1)
    scores = (phi(q) @ phi(k).mT) * (time[:, None] >= time)
    if normalizer:
        scores = scores / scores.sum(-1, keepdim=True)
    expected = layer.o_proj(layer.post_norm(merge_heads(scores @ v)))
    assert difference(layer(x, None, Layout(GRID))[0], expected) <= 1e-12


@pytest.mark.parametrize("chunk", [TokenCausal(4), FrameCausal(2)])
def test_linear_attention_has_the_views_of_the_ttt_layer(chunk):
    """Same projections, convolutions, positions: only the update rule and what it learns differ."""
    options = {"heads": 2, "short_conv": "raster", "share_qk": True, "gate": True, "normalize_qk": True}
    causality = "token" if isinstance(chunk, TokenCausal) else "frame"
    ttt = build(TTT(chunk=chunk, **options))
    control = build(LinearAttention(causality=causality, rope_period=4 if causality == "token" else None, **options))
    names = ("q_proj.weight", "v_proj.weight", "o_proj.weight", "g_proj.weight", "post_norm.weight")
    own = {key.removeprefix("project."): p for key, p in ttt.named_parameters()}
    for key, p in control.named_parameters():
        assert own[key].shape == p.shape
    assert set(names) <= set(own)
    with torch.no_grad():
        for key, p in control.named_parameters():
            p.copy_(own[key])
    x = tokens(3 * N)
    state = ttt.init_state(2)
    positions = torch.arange(3 * N) % (4 if causality == "token" else N)
    tokens_, _ = ttt._tokens(x, state.tails, 0, Layout(GRID))
    q, k, v, _ = query_key_value(control, x, control.init_state(2).tails, positions, Layout(GRID))
    assert difference(q, tokens_.q) == 0
    assert difference(k, tokens_.k[:, :, 0]) == 0
    assert difference(v, tokens_.v[:, :, 0]) == 0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LinearAttention(causality="both"), "frame or token"),
        (lambda: LinearAttention(feature_map="relu"), "one of identity, elu, silu"),
        (lambda: LinearAttention(normalizer=True), "use feature_map: elu"),
        (lambda: LinearAttention(share_qk=True), "set short_conv: raster"),
        (lambda: LinearAttention(short_conv="yes"), "none, raster or time"),
        (lambda: LinearAttention(chunk=0), "at least 1"),
        (lambda: LinearAttention(heads=3).build(8), "8 channels into 3 heads"),
        (lambda: LinearAttention(heads=8).build(8), "even dimension"),
        (lambda: LinearAttention(heads=0).build(8), "into 0 heads"),
        (lambda: Mamba(state_dim=0), "at least 1"),
        (lambda: Mamba(short_conv="none"), "must be raster or time"),
        (lambda: Mamba(heads=3).build(8), "2 x 8 channels into 3 heads"),
        (lambda: GatedDeltaNet(chunk=0), "at least 1"),
        (lambda: GatedDeltaNet(head_dim=0), "at least 1"),
        (lambda: GatedDeltaNet(short_conv="yes"), "none, raster or time"),
        (lambda: GatedDeltaNet(heads=3).build(8), "or set head_dim"),
        (lambda: Attention(window=0), "at least its own frame"),
        (lambda: Attention(rope="place"), "time or time_and_place"),
        (lambda: Attention(short_conv="yes"), "none, raster or time"),
        (lambda: FrameAttention(heads=3).build(8), "into 3 heads"),
        (lambda: Bidirectional(Bidirectional(NoMixer())), "is Bidirectional itself"),
    ],
)
def test_bad_settings_say_so(make, words):
    with pytest.raises(ValueError, match=words):
        make()


# ConvLSTM


def test_conv_lstm_on_one_token_is_nn_lstm():
    layer = build(ConvLSTM(kernel=1))
    lstm = nn.LSTM(DIM, DIM, batch_first=True).double()

    def reordered(weight):  # gates in, forget, output, new -> in, forget, new, output
        return torch.cat([weight.chunk(4)[i] for i in (0, 1, 3, 2)])

    with torch.no_grad():
        lstm.weight_ih_l0.copy_(reordered(layer.from_input.weight[:, :, 0, 0]))
        lstm.weight_hh_l0.copy_(reordered(layer.from_hidden.weight[:, :, 0, 0]))
        lstm.bias_ih_l0.copy_(reordered(layer.from_input.bias))
        lstm.bias_hh_l0.zero_()
    x = tokens(7)
    out, (hidden, cell) = lstm(x)
    y, state = layer(x, None, Layout((1, 1)))
    assert difference(y, out) < 1e-12
    assert difference(state.hidden[:, :, 0, 0], hidden[0]) < 1e-12
    assert difference(state.cell[:, :, 0, 0], cell[0]) < 1e-12


def test_conv_lstm_sees_one_neighbour_further_each_frame():
    layer, grid = build(ConvLSTM()), (5, 5)
    x = tokens(3 * 25, batch=1)
    changed = x.clone()
    changed[:, 0] += 1.0  # the upper left corner of the first frame
    moved = layer(x, None, Layout(grid))[0] - layer(changed, None, Layout(grid))[0]
    reached = moved.abs().amax(-1).view(3, *grid) > 1e-9
    for frame in range(3):
        expected = torch.zeros(grid, dtype=torch.bool)
        expected[: frame + 2, : frame + 2] = True
        assert torch.equal(reached[frame], expected)
