"""RWKV-7: a matrix as hidden state that forgets by channel and is corrected by a generalised delta rule."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ttt.interface import Layout, Mixer, SequenceLayer, exempt_from_decay, merge_heads, split_heads, valid_tokens
from ..ttt.primitives import at_least_float32, in_chunks, last_valid, states_of_chunks, with_past

STRONGEST_DECAY = math.exp(-0.5)
"""A channel keeps at least exp(-0.607) = 0.545 a token, so that a chunk may divide by what is kept since its start."""


@dataclass(frozen=True)
class RWKV7(Mixer):
    """RWKV-7's time mixing (arXiv 2503.14456); causal over tokens. Per head, each of r, w, k, v, a, g read from a mix
    of this token and the one before, mixed by channel:

        S_t = (diag(w_t) - (kk_t * a_t) kk_t^T) S_{t-1} + k_t v_t^T        y_t = S_t^T r_t

    where kk_t is k_t, scaled by channel, of unit length, a_t in 0..1 how much of what it finds is taken away, and w_t
    in 0.545..1 what each channel keeps. Then normalisation of each head, plus v_t times the weighted product of r_t
    and k_t, times the gate g_t, and the output projection. Formulas and starting values are those of the authors'
    first block (BlinkDL/RWKV-LM, x070). Later blocks of theirs mix in the first block's values, which a layer
    cannot see here, and train the decay's bias at twice the rate.

    Attributes:
        heads: H, of channels / heads = d each, at least 2 (the authors': 64).
        token_shift: the token before is that in ``raster`` order (the paper) or, along ``time``, that at the same place
            of the last frame.
        chunk: tokens per matrix product. It sets the speed and, but for rounding, no value.
    """

    heads: int = 1
    token_shift: Literal["raster", "time"] = "raster"
    chunk: int = 32

    def __post_init__(self) -> None:
        if self.token_shift not in ("raster", "time"):
            raise ValueError(f"RWKV7.token_shift is {self.token_shift!r}; it must be raster or time.")
        if self.heads < 1:
            raise ValueError(f"RWKV7.heads is {self.heads}; it must be at least 1.")
        if not 1 <= self.chunk <= 64:  # what is divided by must stay within float32: exp(64 * 0.607) = 7e16
            raise ValueError(f"RWKV7.chunk is {self.chunk}; it must be 1 to 64.")

    def build(self, dim: int) -> RWKV7Layer:
        return RWKV7Layer(self, dim)


class RWKV7State(NamedTuple):
    """``memory`` S [B, H, d, d] (keys, values) in float32 at least, and the last token or frame, ``tail``
    [B, 0, 1 or N, C]."""

    memory: Tensor
    tail: Tensor


class LowRank(nn.Module):
    """activation(x W_1) W_2 + bias: 0 at first, but for the bias."""

    def __init__(self, dim: int, rank: int, bias: Tensor | None):
        super().__init__()
        self.down = nn.Parameter(torch.zeros(dim, rank))
        self.up = nn.Parameter(nn.init.orthogonal_(torch.empty(rank, dim), gain=0.1 * max(1.0, rank / dim) ** 0.5))
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
        y = at_least_float32(activation(x @ self.down) @ self.up)
        return y if self.bias is None else y + self.bias


class RWKV7Layer(SequenceLayer):
    """See ``RWKV7``.

    Raises:
        ValueError: if ``dim`` does not divide into heads of at least 2 channels.
    """

    def __init__(self, config: RWKV7, dim: int):
        super().__init__()
        heads, d = config.heads, dim // config.heads
        if dim % heads or d < 2:
            raise ValueError(
                f"RWKV7 cannot divide {dim} channels into {heads} heads of at least 2; change heads or the width."
            )
        self.config = config
        channel = torch.arange(dim) / dim
        powers = torch.tensor([0.2, 0.9, 0.7, 0.7, 0.9, 0.2])[:, None]
        self.shift = nn.Parameter(1 - channel**powers)  # of r, w, k, v, a, g towards the token before
        line = torch.arange(dim) / (dim - 1) - 0.5
        zigzag = (2 * torch.arange(dim).remainder(d) - (d - 1)) / (d - 1)
        zigzag = zigzag * zigzag.abs()
        self.decay = LowRank(dim, _rank(2.5, dim), -5.5 + 6 * (line + 0.5) + 2.5 * zigzag)
        self.rate = LowRank(dim, _rank(2.5, dim), -0.19 + 0.3 * zigzag + 0.4 * line)
        self.gate = LowRank(dim, _rank(5, dim), None)
        self.key_scale = nn.Parameter(0.71 - 0.1 * line)  # of the key that is taken away
        self.rate_scale = nn.Parameter(torch.full((dim,), 1.02))  # of a in the key that is written
        self.bonus = nn.Parameter(torch.full((heads, d), -0.04))
        self.norm_scale, self.norm_shift = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))
        exempt_from_decay(*self.parameters())
        self.r_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        for projection, bound in ((self.r_proj, 0.5), (self.k_proj, 0.05), (self.v_proj, 0.5), (self.o_proj, 0.0)):
            nn.init.uniform_(projection.weight, -bound * dim**-0.5, bound * dim**-0.5)

    def init_state(self, batch: int) -> RWKV7State:
        weight, heads = self.o_proj.weight, self.config.heads
        dim = weight.shape[0]
        memory = at_least_float32(weight).new_zeros(batch, heads, dim // heads, dim // heads)
        return RWKV7State(memory, weight.new_zeros(batch, 0, dim))

    def read(self, x: Tensor, state: RWKV7State, layout: Layout) -> tuple[Tensor, RWKV7State]:
        if not x.shape[1]:
            return x, state
        step = layout.tokens_per_frame if self.config.token_shift == "time" else 1
        full = with_past(x, state.tail, step)
        change = full[:, : x.shape[1]] - x
        xr, xw, xk, xv, xa, xg = (x + change * shift.to(x.dtype) for shift in self.shift)
        r, k, v = (at_least_float32(t) for t in (self.r_proj(xr), self.k_proj(xk), self.v_proj(xv)))
        decay, rate = self.decay(xw, torch.tanh), self.rate(xa, lambda t: t)
        gate = self.gate(xg, torch.sigmoid)
        with torch.autocast(x.device.type, enabled=False):
            log_decay = -STRONGEST_DECAY * torch.sigmoid(decay)
            rate = torch.sigmoid(rate)
            kk = F.normalize(split_heads(k * self.key_scale, self.config.heads), dim=-1)
            k = k * (1 + (rate - 1) * self.rate_scale)
            valid = valid_tokens(layout.lengths, x.shape[1], x.device)
            if valid is not None:  # what neither forgets nor learns
                log_decay, rate, k = (t.masked_fill(~valid[..., None], 0.0) for t in (log_decay, rate, k))
            r, k, v, log_decay, rate = (split_heads(t, self.config.heads) for t in (r, k, v, log_decay, rate))
            y, memory = generalized_delta_rule(r, log_decay, k, v, -kk, kk * rate, state.memory, self.config.chunk)
            bonus = (r * k * self.bonus[:, None]).sum(-1, keepdim=True) * v
            y = merge_heads(F.layer_norm(y, y.shape[-1:], eps=64e-5))
            y = y * self.norm_scale + self.norm_shift + merge_heads(bonus)
        tail = last_valid(full, step, layout.lengths)
        return self.o_proj((y * gate).to(x.dtype)), RWKV7State(memory, tail)


def _rank(factor: float, dim: int) -> int:
    """The authors' suggestion for a low-rank map of ``dim`` channels."""
    return max(32, round(factor * dim**0.5 / 32) * 32)


def generalized_delta_rule(
    r: Tensor, log_decay: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """S_t = diag(exp(log_decay_t)) S_{t-1} + b_t (S_{t-1}^T a_t)^T + k_t v_t^T; y_t = S_t^T r_t.

    Within a chunk, with c_t the sum of log_decay up to t, what token t finds, u_t = S_{t-1}^T a_t, obeys

        u = (a e^{c - log_decay}) S_0 + tril_{-1}((a e^{c - log_decay}) (k e^{-c})^T) v + tril_{-1}(... (b e^{-c})^T) u

    a triangular system, solved for all chunks at once as a matrix of S_0 and an addend; then S_t and y_t are sums over
    the chunk's tokens, and the loop over chunks is one product each (as in ``gated_delta_rule``; arXiv 2503.14456,
    appendix).

    Args:
        r: [B, H, T, d], and log_decay (at most 0, at least -0.607), k, a and b likewise.
        v: [B, H, T, e].
        state: S before the first token, [B, H, d, e].
        chunk: tokens per chunk, at most.

    Returns:
        y [B, H, T, e] and S after the last token.
    """
    length, dim = r.shape[2:]
    size = min(chunk, length)
    # what completes the last chunk neither forgets nor learns
    r, log_decay, k, v, a, b = (in_chunks(t, size) for t in (r, log_decay, k, v, a, b))
    total = log_decay.cumsum(-2)
    kept, since = total.exp(), (-total).exp()
    ahead, read = a * (total - log_decay).exp(), r * kept
    early_k, early_b = k * since, b * since
    solved = torch.linalg.solve_triangular(
        -(ahead @ early_b.mT).tril(-1),
        torch.cat(((ahead @ early_k.mT).tril(-1) @ v, ahead), dim=-1),
        upper=False,
        unitriangular=True,
    )
    values, keys = solved.split([v.shape[-1], dim], dim=-1)  # u = values + keys S_0
    last = kept[..., -1:, :]
    late_k, late_b = (early_k * last).mT, (early_b * last).mT
    added = late_k @ v + late_b @ values
    moved = last * torch.eye(dim, dtype=r.dtype, device=r.device) + late_b @ keys
    start, state = states_of_chunks(moved, added, state)
    y = read @ start + (read @ early_k.mT).tril() @ v + (read @ early_b.mT).tril() @ (values + keys @ start)
    return y.flatten(2, 3)[:, :, :length], state
