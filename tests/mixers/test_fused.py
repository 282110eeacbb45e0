"""The kernels of other packages, by stand-ins: their documented signatures, computed token by token in PyTorch."""

import logging
import sys
import types

import pytest
import torch
import torch.nn.functional as F

from tests.helpers import GRID
from tttvideo.mixers import GatedDeltaNet, LinearAttention, Mamba, fused
from tttvideo.ttt import Layout

N = GRID[0] * GRID[1]
DIM = 8
MAMBA = Mamba(heads=2, state_dim=3, chunk=5)
DELTA = GatedDeltaNet(heads=2, head_dim=3, chunk=5)
LINEAR = LinearAttention(heads=2, causality="token", chunk=5)
ELU = LinearAttention(heads=2, causality="token", feature_map="elu", normalizer=True, gate=True, short_conv="raster")


def chunk_linear_attn(
    q, k, v, scale=None, initial_state=None, output_final_state=False, normalize=True, head_first=False
):
    """fla/ops/linear_attn/chunk.py: q, k [B, T, H, K], v [B, T, H, V], state [B, H, K, V]."""
    batch, tokens, heads, dim = q.shape
    assert k.shape == q.shape
    assert v.shape[:3] == q.shape[:3]
    assert initial_state.shape == (batch, heads, dim, v.shape[3])
    assert tokens >= heads
    assert not head_first
    scale = dim**-0.5 if scale is None else scale
    kept, (q, k, v) = q.dtype, (t.float() for t in (q, k, v))
    state, outputs = initial_state, []
    for t in range(tokens):
        state = state + torch.einsum("bhk,bhv->bhkv", k[:, t], v[:, t])
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t] * scale, state))
    out = torch.stack(outputs, dim=1)
    if normalize:
        out = out / ((q * scale * k.cumsum(1)).sum(-1, keepdim=True) + 1e-10)
    return out.to(kept), state if output_final_state else None


def chunk_gated_delta_rule(
    q,
    k,
    v,
    g,
    beta,
    scale=None,
    initial_state=None,
    output_final_state=False,
    use_qk_l2norm_in_kernel=False,
    use_beta_sigmoid_in_kernel=False,
    allow_neg_eigval=False,
    state_v_first=False,
    cu_seqlens=None,
    cu_seqlens_cpu=None,
    chunk_indices=None,
    cp_context=None,
):
    """fla/ops/gated_delta_rule/chunk.py: q, k [B, T, H, K], v [B, T, H, V], g, beta [B, T, H], state [B, H, K, V]."""
    batch, tokens, heads, dim = q.shape
    assert k.shape == q.shape
    assert q.dtype == k.dtype == v.dtype
    assert g.shape == beta.shape == (batch, tokens, heads)
    assert initial_state.shape == (batch, heads, dim, v.shape[3])
    assert [use_qk_l2norm_in_kernel, use_beta_sigmoid_in_kernel, state_v_first] == [False] * 3
    kept, (q, k, v) = q.dtype, (t.float() for t in (q, k, v))
    state, outputs = initial_state, []
    for t in range(tokens):
        state = state * g[:, t, :, None, None].exp()
        error = v[:, t] - torch.einsum("bhk,bhkv->bhv", k[:, t], state)
        state = state + torch.einsum("bhk,bhv->bhkv", k[:, t], beta[:, t, :, None] * error)
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t] * dim**-0.5, state))
    return torch.stack(outputs, dim=1).to(kept), state if output_final_state else None


def mamba_chunk_scan_combined(
    x,
    dt,
    A,
    B,
    C,
    chunk_size,
    D=None,
    z=None,
    dt_bias=None,
    initial_states=None,
    seq_idx=None,
    cu_seqlens=None,
    dt_softplus=False,
    dt_limit=(0.0, float("inf")),
    return_final_states=False,
    return_varlen_states=False,
):
    """mamba_ssm/ops/triton/ssd_combined.py: x [B, T, H, d], dt [B, T, H], A [H], B and C [B, T, groups, S],
    D [H], initial_states [B, H, d, S]."""
    batch, tokens, heads, dim = x.shape
    assert dt.shape == (batch, tokens, heads)
    assert A.shape == (heads,)
    assert B.shape == C.shape
    assert B.shape[:2] == (batch, tokens)
    assert initial_states.shape == (batch, heads, dim, B.shape[3])
    assert chunk_size >= 16
    assert chunk_size & (chunk_size - 1) == 0
    if dt_bias is not None:
        dt = dt + dt_bias
    kept, (x, B, C) = x.dtype, (t.float() for t in (x, B, C))
    dt = (F.softplus(dt) if dt_softplus else dt).clamp(*dt_limit)
    B, C = (t.repeat_interleave(heads // t.shape[2], dim=2) for t in (B, C))
    state, outputs = initial_states, []
    for t in range(tokens):
        kept = torch.exp(dt[:, t] * A)[..., None, None]
        state = kept * state + torch.einsum("bhd,bhs->bhds", dt[:, t, :, None] * x[:, t], B[:, t])
        y = torch.einsum("bhds,bhs->bhd", state, C[:, t])
        outputs.append(y if D is None else y + D[:, None] * x[:, t])
    out = torch.stack(outputs, dim=1)
    out = (out if z is None else out * F.silu(z)).to(kept)
    return (out, state) if return_final_states else out


class Calls(list):
    """Names of the kernels called; ``dtypes``: of their first inputs."""

    def __init__(self):
        super().__init__()
        self.dtypes = []


@pytest.fixture
def calls(monkeypatch):
    """Both packages are installed, and every tensor is on a GPU."""
    called = Calls()

    def install(module, kernel):
        def counted(*args, **kwargs):
            called.append(kernel.__name__)
            called.dtypes.append(args[0].dtype)
            return kernel(*args, **kwargs)

        stand_in = types.ModuleType(module)
        setattr(stand_in, kernel.__name__, counted)
        monkeypatch.setitem(sys.modules, module, stand_in)
        for parent in [module.rsplit(".", i)[0] for i in range(1, module.count(".") + 1)]:
            monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))

    install("fla.ops.linear_attn", chunk_linear_attn)
    install("fla.ops.gated_delta_rule", chunk_gated_delta_rule)
    install("mamba_ssm.ops.triton.ssd_combined", mamba_chunk_scan_combined)
    monkeypatch.setattr(fused, "_on_gpu", lambda x: True)
    fused._find.cache_clear()
    yield called
    fused._find.cache_clear()


def build(mixer):
    torch.manual_seed(0)
    return mixer.build(DIM)


def read(layer, dtype=torch.float32):
    """Two calls, the second with padding; outputs, last state and every gradient."""
    torch.manual_seed(1)
    layer = layer.to(dtype)
    first, second = (torch.randn(3, 7 * N, DIM, dtype=dtype, requires_grad=True) for _ in range(2))
    y, state = layer(first, None, Layout(GRID))
    z, state = layer(second, state, Layout(GRID, torch.tensor([7 * N, 11, 0])))
    leaves = [t for t in torch.utils._pytree.tree_leaves(state) if t.is_floating_point()]
    loss = sum(t.square().sum() for t in (y, z, *leaves))
    return [y, z, *leaves, *torch.autograd.grad(loss, (first, second, *layer.parameters()))]


@pytest.mark.parametrize(
    ("mixer", "kernel"),
    [
        (MAMBA, "mamba_chunk_scan_combined"),
        (LINEAR, "chunk_linear_attn"),
        (ELU, "chunk_linear_attn"),
        (DELTA, "chunk_gated_delta_rule"),
    ],
)
def test_the_kernel_gives_what_the_plain_form_gives(mixer, kernel, calls, monkeypatch):
    found = read(build(mixer))
    assert calls == [kernel] * 2
    monkeypatch.setattr(fused, "_on_gpu", lambda x: False)
    for a, b in zip(found, read(build(mixer)), strict=True):
        assert (a - b).abs().max() <= 1e-5 * (1 + b.abs().max())
    assert calls == [kernel] * 2


@pytest.mark.parametrize("mixer", [MAMBA, LINEAR, DELTA], ids=lambda m: type(m).__name__)
def test_half_precision_reaches_the_kernel(mixer, calls, monkeypatch):
    """In a half-precision layer and under autocast; the state is float32, and the values those of the plain form."""
    layer, x = build(mixer), torch.randn(2, 4 * N, DIM)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = layer(x)
    half, half_state = build(mixer).bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert state[0].dtype == half_state[0].dtype == torch.float32
    layer(x)
    assert calls.dtypes == [torch.bfloat16, torch.bfloat16, torch.float32]
    monkeypatch.setattr(fused, "_on_gpu", lambda x: False)
    exact, last = layer(x)
    assert (y - exact).abs().max() <= 0.05 * (1 + exact.abs().max())
    assert (state[0] - last[0]).abs().max() <= 0.05 * (1 + last[0].abs().max())


def test_a_divisor_is_summed_in_float32(calls):
    with torch.autocast("cpu", torch.bfloat16):
        build(ELU)(torch.randn(2, 4 * N, DIM))
    assert calls.dtypes == [torch.float32]


def test_the_plain_form_serves_where_the_kernel_cannot(calls):
    read(build(MAMBA), torch.float64)
    read(build(LINEAR), torch.float64)
    read(build(DELTA), torch.float64)
    build(GatedDeltaNet(heads=1, head_dim=257))(torch.randn(2, 4 * N, DIM))
    build(LinearAttention(heads=2))(
        torch.randn(2, 4 * N, DIM), None, Layout(GRID)
    )  # frames whose tokens see each other
    build(LINEAR)(torch.randn(2, 1, DIM))  # fewer tokens than heads
    for mixer in (MAMBA, LINEAR, DELTA):
        build(mixer)(torch.randn(0, 5, DIM))
        build(mixer)(torch.randn(2, 0, DIM))
    assert calls == []


@pytest.mark.parametrize("mixer", [MAMBA, *(pytest.param(m, marks=pytest.mark.slow) for m in (LINEAR, DELTA))])
def test_what_is_compiled_is_the_plain_form(mixer, calls):
    layer, x = build(mixer), torch.randn(2, 4 * N, DIM)
    expected, _ = layer(x)
    compiled, _ = torch.compile(layer, backend="eager")(x)
    assert len(calls) == 1
    assert (compiled - expected).abs().max() <= 1e-5


def test_the_log_says_once_which_form_serves(calls, caplog):
    caplog.set_level(logging.INFO)
    for _ in range(3):
        read(build(MAMBA))
    assert [record.getMessage() for record in caplog.records] == ["mamba_chunk_scan_combined of mamba_ssm serves."]


def test_without_the_packages_the_plain_form_serves(calls, caplog, monkeypatch):
    for module in [name for name in sys.modules if name.split(".")[0] in ("fla", "mamba_ssm")]:
        monkeypatch.setitem(sys.modules, module, None)
    caplog.set_level(logging.INFO)
    for mixer in (MAMBA, LINEAR, MAMBA, LINEAR):
        read(build(mixer))
    assert calls == []
    assert len(caplog.records) == 2
    assert all("Plain PyTorch serves" in record.getMessage() for record in caplog.records)


def test_a_kernel_that_reads_heads_first_is_left_alone(calls, caplog, monkeypatch):
    def chunk_linear_attn(q, k, v, scale=None, head_first=True):
        raise AssertionError

    monkeypatch.setattr(sys.modules["fla.ops.linear_attn"], "chunk_linear_attn", chunk_linear_attn)
    read(build(LINEAR))
    assert "older releases" in caplog.text
