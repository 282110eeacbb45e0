"""From tokens to the inner task's views: projections, short convolutions, rotary positions, learned rates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .interface import Layout, exempt_from_decay, split_heads
from .scan import Views

if TYPE_CHECKING:
    from .layer import TTT


class Projections(nn.Module):
    """Tokens [B, T, C] -> ``Views``: q, k, v per head, inner learning rates, forget gate.

    Args:
        config: the layer's.
        dim: channels C.
        rope: whether q and k are rotated by position.
        base_rate: inner learning rate before the learned factor.
    """

    def __init__(self, config: TTT, dim: int, rope: bool, base_rate: float):
        super().__init__()
        self.config, self.rope, self.base_rate = config, rope, base_rate
        wide = dim * config.views
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.k_proj = None if config.share_qk else nn.Linear(dim, wide, bias=False)
        self.v_proj = nn.Linear(dim, wide, bias=False)
        convs = {} if config.short_conv == "none" else {"q": CausalConv(dim), "k": CausalConv(wide)}
        self.convs = nn.ModuleDict(convs)
        self.rate = nn.Linear(dim, config.heads * config.views)
        nn.init.normal_(self.rate.weight, std=0.02)
        nn.init.zeros_(self.rate.bias)
        self.forget = nn.Linear(dim, config.heads) if config.forget else None
        if self.forget is not None:
            # Keeps 99% of the old weights per frame (per token where chunks are of tokens) to begin with.
            nn.init.normal_(self.forget.weight, std=0.02)
            nn.init.constant_(self.forget.bias, 4.6)
        exempt_from_decay(self.rate, self.forget)

    def init_state(self, batch: int) -> dict[str, Tensor]:
        """The last inputs of the short convolutions, [B, 0 so far, C]."""
        return {name: conv.init_state(batch) for name, conv in self.convs.items()}  # type: ignore[operator]

    def forward(
        self, x: Tensor, tails: dict[str, Tensor], positions: Tensor, fade_unit: int, layout: Layout
    ) -> tuple[Views, dict[str, Tensor]]:
        """``positions`` [T] or [B, T]; ``fade_unit``: tokens that forget together as much as one."""
        config = self.config
        q, v = self.q_proj(x), self.v_proj(x)
        k = q if self.k_proj is None else self.k_proj(x)
        tails = dict(tails)
        if self.convs:
            step = layout.tokens_per_frame if config.short_conv == "time" else 1
            q, tails["q"] = self.convs["q"](q, tails["q"], layout.lengths, step)
            k, tails["k"] = self.convs["k"](k, tails["k"], layout.lengths, step)
        heads = (config.heads, config.heads * config.views, config.heads * config.views)
        q, k, v = (at_least_float32(split_heads(t, n)) for t, n in zip((q, k, v), heads, strict=True))
        if config.normalize_qk:
            q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        if self.rope:
            q, k = rotate(q, positions, config.rope_theta), rotate(k, positions, config.rope_theta)
        strength = torch.sigmoid(at_least_float32(self.rate(x))).mT[..., None]  # [B, V * H, T, 1]
        rate = strength.to(q.dtype) * (self.base_rate / q.shape[-1])
        fade = None
        if self.forget is not None:
            fade = F.logsigmoid(at_least_float32(self.forget(x))).mT[..., None].to(q.dtype) / fade_unit
        return Views(q, self._by_view(k), self._by_view(v), self._by_view(rate), fade), tails

    def _by_view(self, x: Tensor) -> Tensor:
        """[B, V * H, T, ...] -> [B, H, V, T, ...]."""
        return x.unflatten(1, (self.config.views, self.config.heads)).transpose(1, 2)


def rotate(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """Rotary position embedding in interleaved pairs (paper, appendix; RoFormer, equation 34).

    Args:
        x: [B, H, T, d], d even.
        positions: [T] or [B, T], any dtype.
        theta: base of the geometric progression of wavelengths.
    """
    dim = x.shape[-1]
    precise = torch.float32 if x.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    exponent = torch.arange(0, dim, 2, device=x.device, dtype=precise) / dim
    angle = positions.to(x.device, precise)[..., None] * theta**-exponent
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    if cos.dim() == 3:
        cos, sin = cos[:, None], sin[:, None]
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


class CausalConv(nn.Module):
    """Depthwise causal convolution along the sequence; its tail is part of the streaming state.

    Args:
        dim: channels C.
        kernel: tokens seen, the current one included (4 in the paper's Mamba-style block).
    """

    def __init__(self, dim: int, kernel: int = 4):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim, 1, kernel))
        self.bias = nn.Parameter(torch.zeros(dim))
        nn.init.uniform_(self.weight, -(kernel**-0.5), kernel**-0.5)

    def init_state(self, batch: int) -> Tensor:
        """The tail: the last inputs of each row, [B, up to (kernel - 1) * step, C]; none so far."""
        return self.weight.new_zeros(batch, 0, self.weight.shape[0])

    def forward(self, x: Tensor, tail: Tensor, lengths: Tensor | None, step: int = 1) -> tuple[Tensor, Tensor]:
        """``x`` [B, T, C], ``lengths`` int64 [B] on the host or None -> (y [B, T, C], new tail).

        ``step``: distance between the tokens seen; the tokens per frame make it a convolution over time at every
        place of the frame.
        """
        full = with_past(x, tail, (self.weight.shape[-1] - 1) * step)
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        y = F.conv1d(full.mT, weight, bias, dilation=step, groups=x.shape[-1]).mT
        return y, last_valid(full, full.shape[1] - x.shape[1], lengths)


def with_past(x: Tensor, tail: Tensor, size: int) -> Tensor:
    """``size`` tokens of the past before ``x`` [B, T, ...]: those of ``tail``, zeros where nothing was read yet.

    Raises:
        ValueError: if ``tail`` comes from frames of another size.
    """
    if tail.shape[1] not in (0, size):
        raise ValueError(
            f"The state looks back on {tail.shape[1]} tokens, but frames of this call's grid need {size}; the grid of "
            "a sequence must not change."
        )
    return torch.cat((x.new_zeros(x.shape[0], size - tail.shape[1], *x.shape[2:]), tail.to(x.dtype), x), dim=1)


def last_valid(full: Tensor, count: int, lengths: Tensor | None) -> Tensor:
    """The last ``count`` valid entries along dimension 1 of ``full`` [B, count + T, ...], rows having
    ``lengths`` valid entries after the first ``count``."""
    if lengths is None:
        return full[:, full.shape[1] - count :].clone()  # a view would keep the whole call alive in the state
    index = (lengths[:, None] + torch.arange(count)).to(full.device)
    return full[torch.arange(full.shape[0], device=full.device)[:, None], index]


def at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
