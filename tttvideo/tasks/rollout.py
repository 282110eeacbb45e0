"""Rollout: a context of any length is read with carried state, then frames are generated, each from the last one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def roll_out(
    model: Any, context: Iterable[tuple[Tensor, Tensor | None]], horizon: int, *, write: bool = True
) -> Tensor:
    """The frames that follow a context, as a model trained for ``Prediction`` has them.

    Args:
        model: a ``VideoModel``, in evaluation mode.
        context: the true frames in segments (frames [B, F, 3, H, W], valid frames [B] or None), in order; memory does
            not grow with their number. Each row's end must be the end of a time step.
        horizon: frames to generate.
        write: the hidden state learns from generated frames as from true ones. False: after each generated frame the
            backbone's state is put back to what the true frames left, so that it never learns from the model's own
            mistakes, and each further frame is predicted from that memory and the last generated frame alone.

    Returns:
        float [B, horizon, 3, H, W] in 0..1, or [B, horizon, E, rows, columns] of features.

    Raises:
        ValueError: if there is no context, nothing to generate, or a context that ends within a time step.
    """
    if horizon < 1:
        raise ValueError(f"A horizon of {horizon} frames leaves nothing to predict; give at least 1.")
    device = next(model.parameters()).device
    output, state = None, None
    for frames, lengths in context:
        output, state = model(frames.to(device), lengths, state)
    if output is None or state is None:
        raise ValueError("There are no frames to predict from.")
    made = [model.head.bounded(output.upcoming)]
    while len(made) * made[0].shape[1] < horizon:
        output, after = model.read(made[-1], None, state)  # its own frames: no look at their values
        state = after if write else after._replace(backbone=state.backbone)
        made.append(model.head.bounded(output.upcoming))
    return torch.cat(made, dim=1)[:, :horizon]
