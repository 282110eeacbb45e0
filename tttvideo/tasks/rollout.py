"""Rollout: a context of any length is read with carried state, then frames are generated, each from the last one; in
evaluation over any horizon, in training over the end of each clip, with gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
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
    return generate(model, output, state, horizon, write=write)


@torch.no_grad()
def generate(model: Any, output: Any, state: Any, horizon: int, *, write: bool = True) -> Tensor:
    """``roll_out`` from the output and state after the last true frames."""
    predicted = [model.head.bounded(output.upcoming)]
    while len(predicted) * predicted[0].shape[1] < horizon:
        output, after = model.read(predicted[-1], None, state)  # its own frames: no look at their values
        state = after if write else after._replace(backbone=state.backbone)
        predicted.append(model.head.bounded(output.upcoming))
    return torch.cat(predicted, dim=1)[:, :horizon]


def roll_out_end(
    read: Callable[[Tensor, Tensor | None, Any], tuple[Any, Any]],
    head: Any,
    frames: Tensor,
    lengths: Tensor | None,
    state: Any,
) -> tuple[Any, Any]:
    """As ``read``, but the last ``head.own_steps`` time steps of each row are predicted one from the other.

    Args:
        read: frames, valid frames and state of a model -> output and state.
        head: a ``PredictionHead``.
        frames: [B, F, 3, H, W], or features.
        lengths: valid frames int64 [B]; None for all.
    """
    stride = head.sizes.stride
    given = torch.full(frames.shape[:1], frames.shape[1]) if lengths is None else lengths
    # At least the context is read; a row that ends before makes predictions that no loss looks at.
    least = math.ceil(head.config.context / stride)
    true_steps = torch.minimum((given // stride - head.own_steps).clamp_min(least), -(-given // stride)).clamp_min(0)
    true_frames = torch.minimum(true_steps * stride, given)
    output, state = read(frames[:, : int(true_frames.max())], true_frames, state)
    timeline, at = [output.timeline], [output.at]
    going = torch.where(true_frames % stride == 0, stride, 0)  # a row that ended within a time step takes no more
    for step in range(1, head.own_steps):
        output, state = read(head.bounded(output.upcoming), going, state)
        timeline.append(output.timeline)
        at.append(true_steps.to(frames.device, non_blocking=True)[:, None] + step)
    return output._replace(timeline=torch.cat(timeline, 1), at=torch.cat(at, 1), seen=frames), state
