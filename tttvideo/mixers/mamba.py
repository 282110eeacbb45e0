"""Mamba-2: a selective state space whose recurrence is computed in chunks of matrix products."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ttt.interface import Layout, Mixer, SequenceLayer, exempt_from_decay, merge_heads, split_heads, valid_tokens
from ..ttt.primitives import CausalConv, at_least_float32, in_chunks, product_dtype
from . import fused


@dataclass(frozen=True)
class Mamba(Mixer):
    """State-space duality layer (arXiv 2405.21060, sections 6 and 7); causal over tokens.

    Per head, with x, B, C from a short causal convolution and the step dt_t = softplus(w . x_t + bias):

        h_t = exp(-dt_t exp(A_log)) h_{t-1} + dt_t x_t B_t^T        y_t = h_t C_t + D x_t

    Then RMSNorm(y * silu(z)) and the output projection. B and C are shared by all heads, as in the paper. In plain
    PyTorch, or by mamba-ssm's kernel where that is installed and a GPU is there (``fused``).

    Attributes:
        heads: H; the head dimension is expand * channels / heads (64 in the paper).
        state_dim: S, columns of a head's state (128 in the paper).
        expand: inner channels as a multiple of the layer's.
        chunk: tokens per matrix product. It sets the speed and, but for rounding, no value.
        short_conv: the convolution sees the last 4 tokens in ``raster`` order (the paper) or, along ``time``, those at
            the same place of the last 4 frames.
    """

    heads: int = 4
    state_dim: int = 64
    expand: int = 2
    chunk: int = 64
    short_conv: Literal["raster", "time"] = "raster"

    def __post_init__(self) -> None:
        if self.short_conv not in ("raster", "time"):
            raise ValueError(f"Mamba.short_conv is {self.short_conv!r}; it must be raster or time.")
        if min(self.state_dim, self.expand, self.chunk) < 1:
            raise ValueError(
                "Mamba.state_dim, expand and chunk must be at least 1, not "
                f"{self.state_dim}, {self.expand} and {self.chunk}."
            )

    def build(self, dim: int) -> MambaLayer:
        return MambaLayer(self, dim)


class MambaState(NamedTuple):
    """``ssm`` [B, H, d, S] in float32 at least, and the convolution's last inputs ``tail``
    [B, up to 3 tokens or frames of tokens, expand * C + 2 S]."""

    ssm: Tensor
    tail: Tensor


class MambaLayer(SequenceLayer):
    """See ``Mamba``. Starting values are those of the authors' public code (mamba_ssm/modules/mamba2.py).

    Raises:
        ValueError: if the inner channels do not divide into heads.
    """

    def __init__(self, config: Mamba, dim: int):
        super().__init__()
        heads, inner = config.heads, config.expand * dim
        if heads < 1 or inner % heads:
            raise ValueError(
                f"Mamba cannot divide {config.expand} x {dim} channels into {heads} heads; change heads or the width."
            )
        self.config = config
        self.sizes = [inner, inner + 2 * config.state_dim, heads]  # z; x, B and C; dt
        self.in_proj = nn.Linear(dim, sum(self.sizes), bias=False)
        self.conv = CausalConv(self.sizes[1])
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        steps = torch.exp(torch.empty(heads).uniform_(math.log(1e-3), math.log(1e-1)))
        self.dt_bias = nn.Parameter(steps + torch.log(-torch.expm1(-steps)))  # the inverse of softplus
        self.D = nn.Parameter(torch.ones(heads))
        self.norm_scale = nn.Parameter(torch.ones(inner))
        exempt_from_decay(self.A_log, self.dt_bias, self.D, self.norm_scale)
        self.out_proj = nn.Linear(inner, dim, bias=False)

    def init_state(self, batch: int) -> MambaState:
        weight, heads = self.out_proj.weight, self.config.heads
        ssm = at_least_float32(weight).new_zeros(batch, heads, self.sizes[0] // heads, self.config.state_dim)
        return MambaState(ssm, self.conv.init_state(batch))

    def read(self, x: Tensor, state: MambaState, layout: Layout) -> tuple[Tensor, MambaState]:
        if not x.shape[1]:
            return x, state
        z, xbc, dt = self.in_proj(x).split(self.sizes, dim=-1)
        step = layout.tokens_per_frame if self.config.short_conv == "time" else 1
        xbc, tail = self.conv(xbc, state.tail, layout.lengths, step)
        kernel_dtype = product_dtype(x)
        with torch.autocast(x.device.type, enabled=False):
            z, xbc, dt = (at_least_float32(t) for t in (z, xbc, dt))
            inner, B, C = F.silu(xbc).split([self.sizes[0], *[self.config.state_dim] * 2], dim=-1)
            inner = split_heads(inner, self.config.heads)
            dt = F.softplus(dt + self.dt_bias)
            valid = valid_tokens(layout.lengths, x.shape[1], x.device)
            if valid is not None:  # a step of 0 neither decays nor adds
                dt = dt.masked_fill(~valid[..., None], 0.0)
            form = fused.mamba(inner, kernel_dtype) or selective_scan
            A, D = -self.A_log.to(dt.dtype).exp(), self.D.to(dt.dtype)
            y, ssm = form(inner, dt.mT, A, B, C, D, state.ssm, self.config.chunk)
            y = merge_heads(y)
            y = F.rms_norm(y * F.silu(z), y.shape[-1:], eps=1e-5) * self.norm_scale
        return self.out_proj(y.to(x.dtype)), MambaState(ssm, tail)


def selective_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T, y_t = h_t C_t + D x_t.

    Args:
        x: [B, H, T, d].
        dt: [B, H, T].
        A: [H], below 0, and D likewise, of any sign.
        B: [B, T, S], and C likewise; shared by the heads.
        state: h before the first token, [B, H, d, S].
        chunk: tokens per chunk, K.

    Returns:
        y [B, H, T, d] and h after the last token.
    """
    y, state = scan(dt[..., None] * x, dt * A[:, None], B, C, state, chunk)
    return y + D[:, None, None] * x, state


def scan(x: Tensor, log_decay: Tensor, B: Tensor, C: Tensor, state: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """h_t = exp(log_decay_t) h_{t-1} + x_t B_t^T, y_t = h_t C_t, in chunks (paper, section 6).

    Args:
        x: [B, H, T, d].
        log_decay: [B, H, T], at most 0.
        B: [B, T, S], and C likewise; shared by the heads.
        state: h before the first token, [B, H, d, S].
        chunk: tokens per chunk, K.

    Returns:
        y [B, H, T, d] and h after the last token.
    """
    length = x.shape[2]
    size = min(chunk, length)
    # what completes the last chunk neither decays nor adds
    x, log_decay, B, C = (in_chunks(t, size) for t in (x, log_decay, B[:, None], C[:, None]))

    decay = segment_sum(log_decay).exp()  # from the token of the column to that of the row
    within = (C @ B.mT * decay) @ x
    added = (x * decay[..., -1, :, None]).mT @ B  # by each chunk to the state at its end
    kept = log_decay.sum(-1).exp()[..., None, None]
    before = []
    # unbind: the backward pass of an index would fill a tensor as large as all chunks for each of them
    for keep, add in zip(kept.unbind(2), added.unbind(2), strict=True):
        before.append(state)
        state = keep * state + add
    past = (C @ torch.stack(before, dim=2).mT) * log_decay.cumsum(-1).exp()[..., None]
    return (within + past).flatten(2, 3)[:, :, :length], state


def segment_sum(x: Tensor) -> Tensor:
    """[..., K] -> [..., K, K]: the sum of x over s < r <= t at row t, column s; -inf where s > t.

    Each sum is made of its own terms. A difference of two cumulative sums would lose in float32 what they have in
    common (paper, listing 1).
    """
    size = x.shape[-1]
    lower = torch.ones(size, size, dtype=torch.bool, device=x.device).tril()
    terms = x[..., None].masked_fill(~lower.tril(-1), 0.0)
    return terms.cumsum(-2).masked_fill(~lower, -torch.inf)
