"""Light embeddings for training from scratch: patches of one frame, and tubelets of several."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..ttt.interface import exempt_from_decay
from .base import Encoder, EncoderState, FrameEncoder, check_divides


@dataclass(frozen=True)
class Tubelets(Encoder):
    """A linear map of non-overlapping blocks of frames x patch x patch pixels, plus a learned position.

    Attributes:
        patch: side of a patch in pixels.
        frames: frames of a tubelet; 1 gives the patches of single frames.
    """

    patch: int = 16
    frames: int = 2

    def build(self, size: tuple[int, int], dim: int, *, load: bool = True) -> TubeletEncoder:
        if self.frames < 1:
            raise ValueError(f"A tubelet of {self.frames} frames cannot be read; it needs at least 1.")
        return TubeletEncoder(check_divides(size, self.patch, "patches"), self.patch, self.frames, dim)


@dataclass(frozen=True)
class Patches(Encoder):
    """Patches of single frames: ``Tubelets`` of one frame.

    Attributes:
        patch: side of a patch in pixels.
    """

    patch: int = 16

    def build(self, size: tuple[int, int], dim: int, *, load: bool = True) -> TubeletEncoder:
        return TubeletEncoder(check_divides(size, self.patch, "patches"), self.patch, 1, dim)


class TubeletEncoder(FrameEncoder):
    """See ``Tubelets``."""

    def __init__(self, grid: tuple[int, int], patch: int, frames: int, dim: int):
        super().__init__(grid, frames)
        self.patch = patch
        self.projection = nn.Linear(frames * 3 * patch * patch, dim)
        self.position = nn.Parameter(torch.randn(grid[0] * grid[1], dim) * 0.02)
        exempt_from_decay(self.position)

    def encode(self, frames: Tensor, lengths: Tensor | None, state: EncoderState) -> tuple[Tensor, tuple[Tensor, ...]]:
        batch, count, channels, _, _ = frames.shape
        (rows, columns), p, t = self.grid, self.patch, self.stride
        x = frames.reshape(batch, count // t, t, channels, rows, p, columns, p)
        x = x.permute(0, 1, 4, 6, 2, 3, 5, 7).reshape(batch, count // t, rows * columns, -1)
        return self.projection(x) + self.position, ()
