"""The fast weights of one inner model as one tensor: what a kernel walks through, and one argument instead of four."""

from __future__ import annotations

import torch
from torch import Tensor

from ..state import Weights, combine


def pack(weights: Weights) -> Tensor:
    """[B, H, size]: of every map its weight [inputs, outputs] and its bias, one after the other."""
    return torch.cat([x.flatten(2) for map in weights.values() for x in map if x is not None], -1)


def unpack(packed: Tensor, like: Weights) -> Weights:
    """The inverse of ``pack``; ``like`` gives names and shapes. The results are views."""
    shapes = [x.shape[2:] for map in like.values() for x in map if x is not None]
    pieces = iter(packed.split([shape.numel() for shape in shapes], -1))
    return combine(lambda x: next(pieces).unflatten(-1, x.shape[2:]), like)
