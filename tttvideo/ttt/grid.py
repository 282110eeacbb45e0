"""Rows of different ages and lengths on one grid of chunks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .scan import Views


class Grid:
    """Token t of row b stands at slot ``position[b]`` + t; slots without a token hold zeros (rate 0).

    Args:
        position: tokens of the open chunk that each row has read, int64 [B] on the host.
        ends: ``position`` + the tokens each row reads now.
        size: tokens of a chunk.
        device: of the tokens.
    """

    def __init__(self, position: Tensor, ends: Tensor, size: int, device: torch.device):
        self.slots = math.ceil(int(ends.max()) / size) * size
        self.host = position, ends
        self.device = device

    def gather(self, views: Views) -> Views:
        """Tokens at their slots."""
        past = views.past
        return Views(
            self._slots(views.q, past),
            self._slots(views.k, past),
            self._slots(views.v, 0),
            self._slots(views.rate, 0),
            None if views.fade is None else self._slots(views.fade, 0),
        )

    def scatter(self, x: Tensor, length: int) -> Tensor:
        """[B, H, slots, d] -> [B, H, T, d]."""
        index = self.host[0][:, None] + torch.arange(length)
        return _take(x, index.clamp_max(x.shape[2] - 1).to(self.device))

    def _slots(self, x: Tensor, past: int) -> Tensor:
        """[B, ..., past + T, d] -> [B, ..., past + slots, d]: the tokens of the past just before each row's first."""
        position, ends = self.host
        source = torch.arange(past + self.slots) - position[:, None]
        valid = ((source >= 0) & (source < (past + ends - position)[:, None])).to(self.device)
        source = source.clamp(0, x.shape[-2] - 1).to(self.device)
        valid = valid.reshape(valid.shape[0], *(1,) * (x.dim() - 3), -1, 1)
        return torch.where(valid, _take(x, source), 0.0)


def _take(x: Tensor, index: Tensor) -> Tensor:
    """x [B, ..., S, d] at index [B, T] of the last dimension but one."""
    index = index.reshape(index.shape[0], *(1,) * (x.dim() - 3), -1, 1)
    return x.gather(-2, index.expand(*x.shape[:-2], -1, x.shape[-1]))


def chunk_ends(ends: Tensor, size: int, device: torch.device) -> list[bool | Tensor]:
    """For each chunk, whether its last token has been read, by row where rows differ."""
    return [_by_row(ends >= end, device) for end in range(size, int(ends.max()) + size, size)]


def chunks_begun(ends: Tensor, size: int, device: torch.device) -> list[bool | Tensor]:
    """For each chunk, whether it has a token at all, by row where rows differ."""
    return [_by_row(ends > start, device) for start in range(0, int(ends.max()), size)]


def _by_row(rows: Tensor, device: torch.device) -> bool | Tensor:
    if bool(rows.all()):
        return True
    return rows.to(device)[:, None, None, None] if bool(rows.any()) else False
