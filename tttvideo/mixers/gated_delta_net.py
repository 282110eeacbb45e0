"""Gated DeltaNet: a matrix as hidden state that forgets by a gate and is corrected by the delta rule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ttt.interface import Layout, Mixer, SequenceLayer, exempt_from_decay, merge_heads, split_heads, valid_tokens
from ..ttt.primitives import CausalConv, at_least_float32, in_chunks, product_dtype, states_of_chunks
from . import fused
from .mamba import segment_sum


@dataclass(frozen=True)
class GatedDeltaNet(Mixer):
    """Gated delta rule (arXiv 2412.06464); causal over tokens. Per head, with q, k, v after short convolutions and
    SiLU, q and k of unit length, beta_t = sigmoid(w . x_t) and log_decay_t = -exp(A_log) softplus(w' . x_t + bias):

        S_t = a S_{t-1} + beta_t k_t (v_t - a S_{t-1}^T k_t)^T,  a = exp(log_decay_t)        y_t = S_t^T q_t / sqrt(d)

    Then RMSNorm over each head, times silu(W x), and the output projection. Layer and starting values are those of
    flash-linear-attention. In plain PyTorch, or by its kernel where it is installed and a GPU is there (``fused``).

    ``GatedDeltaNet(decay=False, gate=False, expand=1)`` is DeltaNet (arXiv 2406.06484).

    Attributes:
        heads: H.
        head_dim: d, of queries and keys; null: channels / heads. (The paper has 256, and heads * d = 3/4 channels.)
        expand: dimension of a head's values as a multiple of ``head_dim``.
        decay: the learned gate that forgets; without it a = 1.
        gate: multiply the normalised output by silu(W x).
        negative_eigenvalues: beta to 2 instead of 1, so that a key can turn what it finds around (arXiv 2411.12537).
        short_conv: the convolutions see the last 4 tokens in ``raster`` order (the paper) or, along ``time``, those at
            the same place of the last 4 frames; ``none`` leaves them out, which costs the paper much.
        chunk: tokens per matrix product. It sets the speed and, but for rounding, no value.
    """

    heads: int = 4
    head_dim: int | None = None
    expand: int = 2
    decay: bool = True
    gate: bool = True
    negative_eigenvalues: bool = False
    short_conv: Literal["none", "raster", "time"] = "raster"
    chunk: int = 32

    def __post_init__(self) -> None:
        if self.short_conv not in ("none", "raster", "time"):
            raise ValueError(f"GatedDeltaNet.short_conv is {self.short_conv!r}; it must be none, raster or time.")
        if min(self.heads, self.head_dim or 1, self.expand, self.chunk) < 1 or self.head_dim == 0:
            raise ValueError(
                "GatedDeltaNet.heads, head_dim, expand and chunk must be at least 1, not "
                f"{self.heads}, {self.head_dim}, {self.expand} and {self.chunk}."
            )

    def build(self, dim: int) -> GatedDeltaNetLayer:
        return GatedDeltaNetLayer(self, dim)


class GatedDeltaNetState(NamedTuple):
    """``memory`` S [B, H, d, expand * d] in float32 at least, and the convolution's last inputs ``tail``
    [B, up to 3 tokens or frames of tokens, channels of q, k and v]."""

    memory: Tensor
    tail: Tensor


class GatedDeltaNetLayer(SequenceLayer):
    """See ``GatedDeltaNet``.

    Raises:
        ValueError: if ``dim`` does not divide into heads and no ``head_dim`` is given.
    """

    def __init__(self, config: GatedDeltaNet, dim: int):
        super().__init__()
        heads = config.heads
        if config.head_dim is None and dim % heads:
            raise ValueError(
                f"GatedDeltaNet cannot divide {dim} channels into {heads} heads; change heads or the width, or set "
                "head_dim."
            )
        self.config = config
        self.head_dim = dim // heads if config.head_dim is None else config.head_dim
        keys, values = heads * self.head_dim, heads * self.head_dim * config.expand
        self.sizes = [keys, keys, values]
        self.qkv_proj = nn.Linear(dim, sum(self.sizes), bias=False)
        self.conv = None if config.short_conv == "none" else CausalConv(sum(self.sizes), bias=False)
        self.beta_proj = nn.Linear(dim, heads, bias=False)
        self.decay_proj = nn.Linear(dim, heads, bias=False) if config.decay else None
        if config.decay:
            self.A_log = nn.Parameter(torch.empty(heads).uniform_(1e-4, 16).log())
            steps = torch.exp(torch.empty(heads).uniform_(math.log(1e-3), math.log(1e-1)))
            self.dt_bias = nn.Parameter(steps + torch.log(-torch.expm1(-steps)))  # the inverse of softplus
            exempt_from_decay(self.A_log, self.dt_bias)
        self.g_proj = nn.Linear(dim, values, bias=False) if config.gate else None
        self.norm_scale = nn.Parameter(torch.ones(config.expand * self.head_dim))
        exempt_from_decay(self.norm_scale)
        self.o_proj = nn.Linear(values, dim, bias=False)

    def init_state(self, batch: int) -> GatedDeltaNetState:
        weight, heads, d = self.o_proj.weight, self.config.heads, self.head_dim
        memory = at_least_float32(weight).new_zeros(batch, heads, d, self.config.expand * d)
        tail = weight.new_zeros(batch, 0, sum(self.sizes)) if self.conv is None else self.conv.init_state(batch)
        return GatedDeltaNetState(memory, tail)

    def read(self, x: Tensor, state: GatedDeltaNetState, layout: Layout) -> tuple[Tensor, GatedDeltaNetState]:
        if not x.shape[1]:
            return x, state
        qkv, tail, kernel_dtype = self.qkv_proj(x), state.tail, product_dtype(x)
        if self.conv is not None:
            step = layout.tokens_per_frame if self.config.short_conv == "time" else 1
            qkv, tail = self.conv(qkv, tail, layout.lengths, step)
        beta, decay = self.beta_proj(x), None if self.decay_proj is None else self.decay_proj(x)
        with torch.autocast(x.device.type, enabled=False):
            parts = F.silu(at_least_float32(qkv)).split(self.sizes, dim=-1)
            q, k, v = (split_heads(t, self.config.heads) for t in parts)
            q, k = (t * torch.rsqrt(t.square().sum(-1, keepdim=True) + 1e-6) for t in (q, k))
            beta = torch.sigmoid(at_least_float32(beta)) * (2 if self.config.negative_eigenvalues else 1)
            log_decay = torch.zeros_like(beta)
            if decay is not None:
                rate = self.A_log.to(beta.dtype).exp()
                log_decay = -rate * F.softplus(at_least_float32(decay) + self.dt_bias)
            valid = valid_tokens(layout.lengths, x.shape[1], x.device)
            if valid is not None:  # what neither forgets nor learns
                beta, log_decay = (t.masked_fill(~valid[..., None], 0.0) for t in (beta, log_decay))
            form = fused.gated_delta_rule(q, kernel_dtype) or gated_delta_rule
            y, memory = form(q, k, v, beta.mT, log_decay.mT, state.memory, self.config.chunk)
            y = F.rms_norm(at_least_float32(y), y.shape[-1:], eps=1e-5) * self.norm_scale
        y = merge_heads(y)
        if self.g_proj is not None:
            y = y * F.silu(at_least_float32(self.g_proj(x)))
        return self.o_proj(y.to(x.dtype)), GatedDeltaNetState(memory, tail)


def gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor, state: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """S_t = a S_{t-1} + beta_t k_t (v_t - a S_{t-1}^T k_t)^T with a = exp(log_decay_t); y_t = S_t^T q_t / sqrt(d).

    Within a chunk S_t = decay[t, 0] S_0 + sum_s decay[t, s] k_s u_s^T over s <= t, where what the tokens write is
    (I + A) u = beta (v - decay[:, 0] S_0^T k), A[t, s] = beta_t decay[t, s] k_t . k_s below the diagonal (the WY
    form; arXiv 2412.06464, section 3.3). So u = values - keys S_0 by one triangular solve for all chunks, and
    the loop over chunks is one product each.

    Args:
        q: [B, H, T, d], and k likewise, of unit length.
        v: [B, H, T, e].
        beta: [B, H, T].
        log_decay: [B, H, T], at most 0.
        state: S before the first token, [B, H, d, e].
        chunk: tokens per chunk, at most.

    Returns:
        y [B, H, T, e] and S after the last token.
    """
    length, dim = q.shape[2:]
    size = min(chunk, length)
    # what completes the last chunk neither forgets nor learns
    q, k, v, beta, log_decay = (in_chunks(t, size) for t in (q * dim**-0.5, k, v, beta, log_decay))

    decay = segment_sum(log_decay).exp()  # from the token of the column to that of the row
    kept = log_decay.cumsum(-1).exp()[..., None]  # of S_0, by each token
    strong = beta[..., None] * k
    # Not by powers of A, which cancel: with keys alike they reach 1e8 in a chunk of 32.
    written = torch.linalg.solve_triangular(
        (strong @ k.mT * decay).tril(-1),
        torch.cat((beta[..., None] * v, strong * kept), dim=-1),
        upper=False,
        unitriangular=True,
    )
    values, keys = written.split([v.shape[-1], dim], dim=-1)
    late = (decay[..., -1, :, None] * k).mT
    added = late @ values
    moved = kept[..., -1:, :] * torch.eye(dim, dtype=k.dtype, device=k.device) - late @ keys
    start, state = states_of_chunks(moved, added, state)
    y = (q * kept) @ start + (q @ k.mT * decay) @ (values - keys @ start)
    return y.flatten(2, 3)[:, :, :length], state
