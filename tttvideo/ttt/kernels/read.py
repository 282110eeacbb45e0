"""The scan of a layer by the kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from ..objective import Norm
from ..scan import Views
from ..weights import Weights, zeros_like
from .packed import pack, unpack


def read(
    views: Views,
    norm: Norm,
    scale: Tensor,
    weights: Weights,
    pending: Weights,
    position: Tensor,
    lengths: Tensor | None,
    frame: int | None,
    mode: str,
) -> tuple[Tensor, Weights, Weights]:
    """Reads all tokens of a call.

    Args:
        views: of T tokens, one view (k, v) each, no past and no forget gate.
        norm: the inner LayerNorm, [H, 1, d] each.
        scale: of the step at each position of a chunk, [K]; the same at all of a frame's.
        weights: at the start of the open chunk; ``pending``: sum of rate * gradient over what it has read.
        position: tokens that the open chunk has read, int64 [B] on the host.
        lengths: tokens that each row reads now, int64 [B] on the host; None: all.
        frame: tokens of a frame, where every frame is a chunk and read as a whole; None: token-causal.
        mode: see ``choice.mode_of``.

    Returns:
        outputs [B, H, T, d] (zero in padding), weights and pending after the call.
    """
    device = views.q.device
    batch, _, tokens, _ = views.q.shape
    read = (torch.full((batch,), tokens) if lengths is None else lengths).to(device, non_blocking=True)
    packed = pack(weights)
    hidden = weights["1"].weight.shape[-1] if "2" in weights else 0
    q, k, v, rate = views.q, views.k[:, :, 0], views.v[:, :, 0], views.rate[:, :, 0, :, 0]
    norm = Norm(*(x[:, 0] for x in norm))
    given = (q, k, v, rate, scale, *norm, packed, *(x for map in pending.values() for x in map if x is not None))
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in given)
    if frame is not None:
        from .frame_causal import frame_causal

        out, packed, _ = frame_causal(q, k, v, rate, *norm, packed, read, frame, 1.0 / frame, hidden, mode, keep)
        return out, unpack(packed, weights), zeros_like(weights)
    from .token_causal import token_causal

    carried, position = bool(position.any()), position.to(device, non_blocking=True)
    held = pack(pending)
    if carried:  # a row that has read nothing of its chunk has no gradients, whatever stands there
        held = torch.where(position[:, None, None] > 0, held, 0.0)
    out, packed, opened, _ = token_causal(
        *(q, k, v, rate, scale, *norm, packed, held, position, read, hidden, carried, mode, keep)
    )
    return out, unpack(packed, weights), unpack(opened, weights)
