"""The scan of a layer by the kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from ..inner.base import InnerModel
from ..objective import Norm
from ..optimizer import InnerOptimizer
from ..state import Weights, zeros_like
from ..tokens import Tokens
from .choice import CUMULATIVE, kind_of
from .packed import pack, unpack


def read(
    inner: InnerModel,
    optimizer: InnerOptimizer,
    tokens: Tokens,
    norm: Norm,
    scale: Tensor,
    weights: Weights,
    pending: Weights,
    position: Tensor,
    lengths: Tensor | None,
    grid: tuple[int, int] | None,
    mode: str,
) -> tuple[Tensor, Weights, Weights]:
    """Reads all tokens of a call.

    Args:
        inner: the inner model, one that ``choice.not_for`` lets pass; ``optimizer`` likewise.
        tokens: T of them, one training pair (k, v) each, no past and no forget gate.
        norm: the inner LayerNorm, [H, 1, d] each.
        scale: of the step at each position of a chunk, [K]; the same at all of a frame's.
        weights: at the start of the open chunk; ``pending``: sum of rate * gradient over what it has read.
        position: tokens that the open chunk has read, int64 [B] on the host.
        lengths: tokens that each row reads now, int64 [B] on the host; None: all.
        grid: (rows, columns) of a frame, where every frame is a chunk and read as a whole; None: token-causal.
        mode: see ``choice.mode_of``.

    Returns:
        outputs [B, H, T, d] (zero in padding), weights and pending after the call.
    """
    device = tokens.q.device
    batch, _, count, _ = tokens.q.shape
    if lengths is None:  # made on the device: a copy from the host would wait, and could not be part of a CUDA graph
        read = torch.full((batch,), count, device=device)
    else:
        read = lengths.to(device, non_blocking=True)
    # not by indices, whose derivative would write all tokens twice more
    q, k, v, rate = tokens.q, tokens.k.squeeze(2), tokens.v.squeeze(2), tokens.rate.squeeze(-1).squeeze(2)
    kind = kind_of(inner)
    if kind == CUMULATIVE:
        from .cumulative import read_cumulative

        assert grid is not None
        out, weights = read_cumulative(q, k, v, rate, weights, optimizer, read, grid)
        return out, weights, zeros_like(weights)
    packed = pack(weights)
    hidden = weights["2"].weight.shape[-2] if "2" in weights else 0
    norm = Norm(*(x[:, 0] for x in norm))
    given = (q, k, v, rate, scale, *norm, packed, *(x for map in pending.values() for x in map if x is not None))
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in given)
    if grid is not None:
        from .frame_causal import frame_causal

        frame = grid[0] * grid[1]
        sizes = (frame, grid[1], 1.0 / frame, kind, hidden, mode, keep)
        out, packed, _ = frame_causal(q, k, v, rate, *norm, packed, read, *sizes)
        return out, unpack(packed, weights), zeros_like(weights)
    from .token_causal import token_causal

    carried = bool(position.any())
    held = pack(pending)
    if bool((position == position[0]).all()):
        position = torch.full((batch,), int(position[0]), device=device)
    else:
        position = position.to(device, non_blocking=True)
    if carried:  # a row that has read nothing of its chunk has no gradients, whatever stands there
        held = torch.where(position[:, None, None] > 0, held, 0.0)
    out, packed, opened, _ = token_causal(
        *(q, k, v, rate, scale, *norm, packed, held, position, read, hidden, carried, mode, keep)
    )
    return out, unpack(packed, weights), unpack(opened, weights)
