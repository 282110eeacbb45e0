"""From tokens to the inner task's views: rotary positions and the short causal convolutions before q and k."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
        """The tail: the last kernel - 1 inputs of each row, [B, kernel - 1, C]."""
        dim, _, kernel = self.weight.shape
        return self.weight.new_zeros(batch, kernel - 1, dim)

    def forward(self, x: Tensor, tail: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """``x`` [B, T, C], ``lengths`` int64 [B] on the host or None -> (y [B, T, C], new tail)."""
        full = torch.cat((tail.to(x.dtype), x), dim=1)
        y = F.conv1d(full.mT, self.weight.to(x.dtype), self.bias.to(x.dtype), groups=x.shape[-1]).mT
        return y, last_valid(full, tail.shape[1], lengths)


def last_valid(full: Tensor, count: int, lengths: Tensor | None) -> Tensor:
    """The last ``count`` valid entries along dimension 1 of ``full`` [B, count + T, ...], rows having
    ``lengths`` valid entries after the first ``count``."""
    if lengths is None:
        return full[:, full.shape[1] - count :]
    index = (lengths[:, None] + torch.arange(count)).to(full.device)
    return full[torch.arange(full.shape[0], device=full.device)[:, None], index]
