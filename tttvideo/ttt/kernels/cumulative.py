"""``DWConv`` with the loss ``DotProduct`` on chunks of one frame: no gradient depends on the weights, so that all
frames are read side by side and the weights after each of them are one cumulative sum.

Two kernels (``depthwise``), one before and one after the sum over frames, which is PyTorch's own: it has 9 d numbers a
frame and head, next to the N d of a token tensor. The eager scan stores nine copies of k and of q.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..optimizer import InnerOptimizer
from ..state import Map, Weights
from .depthwise import convolve, correlate


def read_cumulative(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rate: Tensor,
    weights: Weights,
    optimizer: InnerOptimizer,
    lengths: Tensor,
    grid: tuple[int, int],
) -> tuple[Tensor, Weights]:
    """Reads T tokens, all frames at once: W_f = W + sum over frames up to f of clip(1/N correlate(k, rate v)).

    Args:
        q: [B, H, T, d]; k and v likewise.
        rate: inner learning rates [B, H, T].
        weights: of ``DWConv``, [B, H, d, 9, 1].
        optimizer: plain gradient descent, clipped or not.
        lengths: tokens that each row reads, integers [B]; the rest is padding.
        grid: (rows, columns) of a frame.

    Returns:
        outputs [B, H, T, d] (zero in padding) and the weights after the call.
    """
    batch, heads, tokens, dim = q.shape
    size = grid[0] * grid[1]
    valid = (torch.arange(tokens, device=q.device) < lengths[:, None])[:, None, :, None]

    def frames(x: Tensor) -> Tensor:
        return x.reshape(-1, size, dim)

    learned = torch.where(valid, rate[..., None] * v, 0.0)
    moves = correlate(frames(k), frames(learned), grid[1], rate.dtype) / size
    moves = moves.unflatten(0, (batch * heads, -1))
    moves = optimizer.clipped({"1": Map(moves, None)})["1"].weight
    start = weights["1"].weight.squeeze(-1).mT.flatten(0, 1)[:, None]  # [B * H, 1, 9, d]
    # W first, so that the sum is taken in the order of a loop
    after = torch.cat((start, moves), 1).cumsum(1)[:, 1:]
    out = convolve(frames(q), after.flatten(0, 1), grid[1], q.dtype).reshape(q.shape)
    last = after[:, -1].unflatten(0, (batch, heads)).mT[..., None]
    return torch.where(valid, out, 0.0), {"1": Map(last.contiguous(), None)}
