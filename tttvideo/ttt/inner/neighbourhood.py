"""What a convolution sees: the neighbourhood of every token, in its frame and in the frames just before."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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


def check_time(owner: object, time: int) -> None:
    """Raises ValueError unless the kernel covers at least the token's own frame."""
    if time < 1:
        raise ValueError(f"{type(owner).__name__}.time is {time}; the kernel covers at least 1 frame, its own.")
