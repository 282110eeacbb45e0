"""Rows of different ages and lengths, brought to common chunks before a scan and back after it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .tokens import Tokens


class Slots:
    """Token t of row b stands at slot ``position[b]`` + t; slots without a token hold zeros (rate 0).

    Args:
        position: tokens of the open chunk that each row has read, int64 [B] on the host.
        ends: ``position`` + the tokens that each row reads now.
        size: slots of a chunk.
        device: of the tokens.
    """

    def __init__(self, position: Tensor, ends: Tensor, size: int, device: torch.device):
        self.count = math.ceil(int(ends.max()) / size) * size
        self.position, self.ends, self.device = position, ends, device
        self._sources: dict[int, tuple[Tensor, Tensor]] = {}

    def gather(self, tokens: Tokens) -> Tokens:
        """Tokens at their slots."""
        past = tokens.q.shape[-2] - tokens.v.shape[-2]
        return Tokens(
            self._at_slots(tokens.q, past),
            self._at_slots(tokens.k, past),
            self._at_slots(tokens.v, 0),
            self._at_slots(tokens.rate, 0),
            None if tokens.fade is None else self._at_slots(tokens.fade, 0),
            None if tokens.momentum is None else self._at_slots(tokens.momentum, 0),
        )

    def scatter(self, x: Tensor, length: int) -> Tensor:
        """[B, H, slots, d] -> [B, H, T, d]."""
        index = self.position[:, None] + torch.arange(length)
        return _take(x, index.clamp_max(x.shape[2] - 1).to(self.device, non_blocking=True))

    def _at_slots(self, x: Tensor, past: int) -> Tensor:
        """[B, ..., past + T, d] -> [B, ..., past + slots, d]: the tokens of the past just before each row's first."""
        source, valid = self._source(past, x.shape[-2])
        valid = valid.reshape(valid.shape[0], *(1,) * (x.dim() - 3), -1, 1)
        return torch.where(valid, _take(x, source), 0.0)

    def _source(self, past: int, tokens: int) -> tuple[Tensor, Tensor]:
        """Of every slot which of ``tokens``, ``past`` of them before T, stands there, and whether one does, [B, past +
        slots] each; copied to the device once, without waiting for it."""
        if past not in self._sources:
            source = torch.arange(past + self.count) - self.position[:, None]
            valid = (source >= 0) & (source < (past + self.ends - self.position)[:, None])
            index, how = source.clamp(0, tokens - 1), {"device": self.device, "non_blocking": True}
            self._sources[past] = index.to(**how), valid.to(**how)
        return self._sources[past]


def _take(x: Tensor, index: Tensor) -> Tensor:
    """x [B, ..., S, d] at index [B, T] of the last dimension but one."""
    index = index.reshape(index.shape[0], *(1,) * (x.dim() - 3), -1, 1)
    return x.gather(-2, index.expand(*x.shape[:-2], -1, x.shape[-1]))


def closing(ends: Tensor, size: int, whole: bool, device: torch.device) -> list[bool | Tensor]:
    """For each chunk whether it ends in this call (``whole``: whether it has a token at all): True or False where all
    rows agree, else bool [B, 1, 1, 1] by row.

    Args:
        ends: int64 [B] on the host: where each row's last token ends, counted from the start of the first chunk.
        size: tokens of a chunk.
    """
    closes: list[bool | Tensor] = []
    for start in range(0, int(ends.max()), size):
        rows = ends > start if whole else ends >= start + size
        alike = bool(rows.all()) or not bool(rows.any())
        closes.append(bool(rows[0]) if alike else rows.to(device, non_blocking=True)[:, None, None, None])
    return closes
