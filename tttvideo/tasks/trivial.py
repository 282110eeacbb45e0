"""Predictions that need no model, shown beside every figure of one."""

from __future__ import annotations

import torch
from torch import Tensor

TRIVIAL = ("copy_last", "mean_frame", "linear")
"""The last frame again; the mean of all frames so far; the last frame plus its change from the one before."""


class History:
    """What trivial predictions need of the frames so far, row by row, in constant memory.

    Args:
        like: floating-point frames [B, F, 3, H, W]; size and device are taken from them.
    """

    def __init__(self, batch: int, like: Tensor):
        self.last = like.new_zeros(batch, *like.shape[2:])
        self.before = self.last
        self.total = self.last.to(torch.float64)
        self.count = torch.zeros(batch, dtype=torch.int64, device=like.device)

    def add(self, frames: Tensor, valid: Tensor) -> None:
        """Frames [B, F, 3, H, W] that come next in the rows that are ``valid``, bool [B]."""
        for frame in frames.unbind(1):
            at = valid[:, None, None, None]
            first = (self.count == 0)[:, None, None, None]
            # A single frame has not moved yet.
            self.before = torch.where(at, torch.where(first, frame, self.last), self.before)
            self.last = torch.where(at, frame, self.last)
            self.total = self.total + torch.where(at, frame, 0.0)
            self.count = self.count + valid

    def guesses(self, frames: int) -> dict[str, Tensor]:
        """The next ``frames`` frames as each of ``TRIVIAL`` has them, [B, F, 3, H, W]; not clamped."""
        mean = self.total / self.count.clamp_min(1)[:, None, None, None]
        ahead = torch.arange(1, frames + 1, device=self.last.device, dtype=self.last.dtype)[:, None, None, None]
        last, before = self.last[:, None], self.before[:, None]
        still = [x.expand(-1, frames, -1, -1, -1) for x in (last, mean.to(last.dtype)[:, None])]
        return dict(zip(TRIVIAL, (*still, last + ahead * (last - before)), strict=True))
