"""A small causal space-time CNN: where local motion is seen, before the sequence model remembers it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ttt.interface import exempt_from_decay
from ..ttt.primitives import last_valid
from .base import Encoder, EncoderState, FrameEncoder, check_divides


@dataclass(frozen=True)
class ConvStem(Encoder):
    """A stack of 3-D convolutions, each halving the frame, looking only back in time, then a learned position.

    Every time step (``prod(time_strides)`` frames) gives a grid of tokens; all frames are read. The frames that
    later convolutions still need are part of the streaming state.

    Attributes:
        channels: output channels of each convolution.
        time_kernels: frames (or time steps) each convolution sees; at least its stride.
        time_strides: by how much each convolution shortens time.
        inputs: what the first convolution sees: ``frames``; ``motion``, each frame's change from the one
            ``motion_lag`` frames before, which tells nothing of background and clothes, so that small sets teach
            actions instead of places; or ``both``.
        motion_lag: distance of the two frames in frames. Until a video is that long, changes are from its start.
        norm: ``group`` normalisation of each frame by itself, or ``batch`` normalisation over all valid frames.
        pool: average the last map to this many rows and columns of tokens; none keeps it.
        dropout: of whole channels after the last convolution.
    """

    channels: tuple[int, ...] = (16, 32, 64)
    time_kernels: tuple[int, ...] = (3, 3, 3)
    time_strides: tuple[int, ...] = (2, 1, 1)
    inputs: Literal["frames", "motion", "both"] = "frames"
    motion_lag: int = 4
    norm: Literal["group", "batch"] = "group"
    pool: tuple[int, int] | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not len(self.channels) == len(self.time_kernels) == len(self.time_strides) > 0:
            raise ValueError(
                "ConvStem needs one entry of channels, time_kernels and time_strides for each convolution, but "
                f"got {len(self.channels)}, {len(self.time_kernels)} and {len(self.time_strides)}."
            )
        if any(k < s or s < 1 for k, s in zip(self.time_kernels, self.time_strides, strict=True)):
            raise ValueError(
                f"ConvStem.time_kernels {self.time_kernels} must be at least time_strides {self.time_strides}, "
                "or frames would be skipped."
            )

        if min(self.channels) < 1:
            raise ValueError(f"ConvStem.channels are {self.channels}; each needs at least 1.")
        if self.inputs not in ("frames", "motion", "both") or self.norm not in ("group", "batch"):
            raise ValueError(
                f"ConvStem.inputs must be frames, motion or both and norm group or batch, not {self.inputs!r} and "
                f"{self.norm!r}."
            )
        if self.motion_lag < 1:
            raise ValueError(f"ConvStem.motion_lag is {self.motion_lag}; a change needs at least 1 frame.")

    def build(self, size: tuple[int, int], dim: int, *, load: bool = True) -> StemEncoder:
        grid = check_divides(size, 2 ** len(self.channels), "cells")
        if self.pool is not None and not (1 <= self.pool[0] <= grid[0] and 1 <= self.pool[1] <= grid[1]):
            raise ValueError(f"ConvStem.pool is {self.pool}; it must lie between 1 x 1 and the last map, {grid}.")
        return StemEncoder(self, size, grid if self.pool is None else self.pool, dim)


class StemEncoder(FrameEncoder):
    """See ``ConvStem``."""

    def __init__(self, config: ConvStem, size: tuple[int, int], grid: tuple[int, int], dim: int):
        super().__init__(grid, math.prod(config.time_strides))
        self.config = config
        self.size = size
        inputs = (6 if config.inputs == "both" else 3, *config.channels[:-1])
        self.convs = nn.ModuleList(
            nn.Conv3d(i, o, (kernel, 3, 3), (stride, 2, 2), (0, 1, 1))
            for i, o, kernel, stride in zip(
                inputs, config.channels, config.time_kernels, config.time_strides, strict=True
            )
        )
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(channels) if config.norm == "batch" else nn.GroupNorm(math.gcd(8, channels), channels)
            for channels in config.channels
        )
        self.dropout = nn.Dropout2d(config.dropout)
        self.projection = nn.Linear(config.channels[-1], dim)
        self.position = nn.Parameter(torch.randn(grid[0] * grid[1], dim) * 0.02)
        exempt_from_decay(self.position)

    def tails(self, batch: int) -> tuple[Tensor, ...]:
        """Zeros: before its first frame a video shows the mean colour."""
        height, width = self.size
        tails = []
        if self.config.inputs != "frames":
            tails.append(self.mean.new_zeros(batch, 3, self.config.motion_lag, height, width))
        for i, conv in enumerate(self.convs):
            kernel, stride = self.config.time_kernels[i], self.config.time_strides[i]
            weight: Tensor = conv.weight  # type: ignore[assignment]
            tails.append(weight.new_zeros(batch, weight.shape[1], kernel - stride, height >> i, width >> i))
        return tuple(tails)

    def encode(self, frames: Tensor, lengths: Tensor | None, state: EncoderState) -> tuple[Tensor, tuple[Tensor, ...]]:
        tails = state.tails
        x = frames.transpose(1, 2)
        # Valid entries before each convolution, counted in what it reads.
        valid = None if lengths is None else lengths * self.stride
        after = []
        if self.config.inputs != "frames":
            fresh = (~state.begun).to(x.device, non_blocking=True)[:, None, None, None, None]
            full, tail = _after(torch.where(fresh, x[:, :, :1], tails[0].to(x.dtype)), x, valid)
            after.append(tail)
            tails = tails[1:]
            change = x - full[:, :, : x.shape[2]]
            x = change if self.config.inputs == "motion" else torch.cat((x, change), dim=1)
        for conv, norm, before, stride in zip(self.convs, self.norms, tails, self.config.time_strides, strict=True):
            full, tail = _after(before, x, valid)
            after.append(tail)
            valid = None if valid is None else valid // stride
            x = F.gelu(_per_frame(norm, conv(full), valid))
        flat = self.dropout(x.transpose(1, 2).flatten(0, 1))
        if flat.shape[-2:] != self.grid:
            flat = F.adaptive_avg_pool2d(flat, self.grid)
        tokens = self.projection(flat.flatten(2).mT) + self.position
        return tokens.unflatten(0, (x.shape[0], -1)), tuple(after)


def _after(tail: Tensor, x: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """``x`` [B, C, F, h, w] with its past in front, and the past for the next call."""
    full = torch.cat((tail.to(x.dtype), x), dim=2)
    return full, last_valid(full.transpose(1, 2), tail.shape[2], valid).transpose(1, 2)


def _per_frame(norm: nn.Module, x: Tensor, valid: Tensor | None) -> Tensor:
    """``norm`` of the valid frames of ``x`` [B, C, F, h, w] as images, so that padding enters no statistics."""
    batch, _, count = x.shape[:3]
    flat = x.transpose(1, 2).flatten(0, 1)
    if valid is None:
        flat = norm(flat)
    else:
        real = (torch.arange(count) < valid[:, None]).flatten().nonzero().squeeze(1).to(x.device, non_blocking=True)
        normalised = norm(flat[real])  # float32 under CUDA's autocast, whatever went in
        flat = normalised.new_zeros(flat.shape).index_copy(0, real, normalised)
    return flat.unflatten(0, (batch, count)).transpose(1, 2)
