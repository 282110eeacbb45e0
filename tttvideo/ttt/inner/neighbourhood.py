"""What a convolution sees: the neighbourhood of every token, in its frame and in the frames just before."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import InnerModel


class Convolution(InnerModel):
    """A kernel over 3 x 3 tokens of the frame's grid and ``time`` frames (a field of the subclass): 1 is the frame
    itself; it only looks back."""

    time: int

    mixes_tokens: ClassVar[bool] = True
    sees_positions: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.time < 1:
            raise ValueError(f"{type(self).__name__}.time is {self.time}; the kernel covers at least 1 frame, its own.")

    @property
    def past_frames(self) -> int:
        return self.time - 1


def neighbourhoods(x: Tensor, grid: tuple[int, int], time: int = 1) -> Tensor:
    """The ``time`` x 3 x 3 neighbourhood of every token, zero beyond the frame's border.

    Args:
        x: [B, H, (P + F) * N, d]: P = ``time`` - 1 earlier frames, then the frames wanted.
        grid: (rows, columns) of a frame.
        time: frames the kernel covers: the token's own and those just before.

    Returns:
        [B, H, F * N, time * 9, d], oldest frame first, then rows, then columns.
    """
    rows, columns = grid
    frames = x.unflatten(2, (-1, rows, columns))
    padded = F.pad(frames, (0, 0, 1, 1, 1, 1))
    count = frames.shape[2] - (time - 1)
    shifted = [
        padded[:, :, t : t + count, i : i + rows, j : j + columns]
        for t in range(time)
        for i in range(3)
        for j in range(3)
    ]
    return torch.stack(shifted, dim=-2).flatten(2, 4)


def depthwise(patches: Tensor) -> Tensor:
    """[B, H, T, taps, d] -> [B, H, d, T, taps]: inputs of a map with a group per channel."""
    return patches.permute(0, 1, 4, 2, 3)
