"""What each part of a model costs: parameters, FLOPs of a frame, bytes of state."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..model import VideoModel
from ..ttt.interface import state_bytes
from .recording import inspection_unit

WARM = 20
"""Units of frames that are read first: tails and windows fill up."""


class Part(NamedTuple):
    """
    Attributes:
        name: "encoder", "block 1", ...
        what: classes.
        parameters: number of them.
        flops: of matrix products, convolutions and attention for a frame, as PyTorch counts them (a multiplication and
            an addition are two), the steps of the inner loop included.
        state_bytes: that a stream remembers here.
    """

    name: str
    what: str
    parameters: int
    flops: int
    state_bytes: int


def costs(model: VideoModel) -> list[Part]:
    """The parts in order. A model that reads videos whole is measured on a clip of 16 time steps."""
    model.eval()
    device, streams = next(model.parameters()).device, model.streams
    unit = inspection_unit(model) if streams else 16 * model.encoder.stride
    shape, kind = model.config.encoder.reading(model.preprocessing).frame
    frames = torch.zeros(1, unit, *shape, dtype=kind, device=device)
    state = None
    with torch.no_grad():
        for _ in range(WARM if streams else 1):
            _, state = model(frames, None, state)
        with FlopCounterMode(display=False) as counter:
            model(frames, None, state if streams else None)
    counts = counter.get_flop_counts()

    def flops(path: str) -> int:
        return sum(counts.get(f"VideoModel.{path}", {}).values()) // unit

    assert state is not None
    parts = [_part("encoder", type(model.config.encoder).__name__, model.encoder, flops("encoder"), state.encoder)]
    for number, (block, mixer) in enumerate(zip(model.backbone.blocks, model.config.backbone.mixers(), strict=True)):
        path, own = f"backbone.blocks.{number}", state.backbone[number]
        inner = getattr(mixer, "inner", None) or getattr(getattr(mixer, "mixer", None), "inner", None)
        of = f" of {type(inner).__name__}" if inner is not None else ""
        layer = _part(f"block {number + 1}", type(mixer).__name__ + of, block.mixer, flops(f"{path}.mixer"), own.mixer)  # type: ignore[arg-type]
        whole = _part("", "the rest of it", block, flops(path), own)
        rest = (whole[i] - layer[i] for i in (2, 3, 4))  # type: ignore[operator]
        parts += [layer, Part(layer.name, whole.what, *rest)]
    parts.append(_part("head", type(model.config.task).__name__, model.head, flops("head"), state.task))
    rest = sum(p.numel() for p in model.parameters()) - sum(part.parameters for part in parts)
    return [*parts, Part("norm", "after the blocks", rest, 0, 0)]


def total(parts: list[Part]) -> Part:
    return Part("all", "", *(sum(part[i] for part in parts) for i in (2, 3, 4)))  # type: ignore[misc]


def _part(name: str, what: str, module: nn.Module, flops: int, state: Any) -> Part:
    return Part(name, what, sum(p.numel() for p in module.parameters()), flops, state_bytes(state))
