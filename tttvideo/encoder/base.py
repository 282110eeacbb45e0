"""What every encoder does: frames [B, F, 3, H, W] -> tokens [B, S, N, C], S time steps of ``stride`` frames."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..video.transforms import Preprocessing


@dataclass(frozen=True)
class Encoder(ABC):
    """Configuration of an encoder."""

    def portable(self) -> Encoder:
        """The same without what is of this machine alone, for an export."""
        return self

    @property
    def root(self) -> str | None:
        """The folder that a list's paths count from, where the data name none."""
        return None

    @property
    def base_model(self) -> str | None:
        """The Hub's name of the model whose weights it begins with, where that is known for certain."""
        return None

    def resolved(self, paths: Sequence[str]) -> Encoder:
        """With what the data say of it: ``paths`` are those of the training videos."""
        return self

    def check_paths(self, paths: Sequence[str]) -> None:
        """Raises ValueError where what is read of one of these videos is that of another."""
        return

    @property
    def views(self) -> int:
        """Fixed views of each video, where features are read in place of frames; 0 where frames are."""
        return 0

    def reading(self, preprocessing: Preprocessing) -> Preprocessing:
        """How videos are read for this encoder, before there are weights; by default as frames."""
        return preprocessing

    @abstractmethod
    def build(self, size: tuple[int, int], dim: int, *, load: bool = True) -> FrameEncoder:
        """The encoder of frames of ``size`` (height, width) into tokens of ``dim`` channels.

        Args:
            load: False where weights follow from a checkpoint, so that no pre-trained file is looked for.

        Raises:
            ValueError: if the frame size does not fit, or pre-trained weights were asked for and are not there.
        """


class EncoderState(NamedTuple):
    """Last frames that causal convolutions still need, [B, C, t, h, w] by layer; which rows have begun; and which
    have ended in the middle of a time step and can take no more frames (bool [B] each, on the host)."""

    tails: tuple[Tensor, ...]
    begun: Tensor
    ended: Tensor


class FrameEncoder(nn.Module, ABC):
    """Base of the encoders: normalisation of pixels, whole time steps, lengths.

    Attributes:
        grid: (rows, columns) of one time step's tokens.
        statistics: mean and standard deviation of pixels in 0..1, for each colour.
        stride: frames per time step. A video's last, unfinished time step is completed by repeating its last
            frame, so that every frame is used.
        feature_shape: (channels, rows, columns) of the maps that ``features`` gives; None for an encoder that is
            trained, whose features are no target.
    """

    feature_shape: tuple[int, int, int] | None = None
    trained_blocks: Sequence[Sequence[str]] = ()  # of `model`, those parameters that are trained though it is frozen
    reads_pixels = True  # False where videos come as features

    def __init__(
        self,
        grid: tuple[int, int],
        stride: int,
        mean: tuple[float, ...] = (0.45, 0.45, 0.45),
        std: tuple[float, ...] = (0.225, 0.225, 0.225),
    ):
        super().__init__()
        self.grid = grid
        self.stride = stride
        self.statistics = tuple(mean), tuple(std)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    @abstractmethod
    def encode(self, frames: Tensor, lengths: Tensor | None, state: EncoderState) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Normalised ``frames`` [B, S*stride, 3, H, W], valid time steps ``lengths`` [B] -> tokens [B, S, N, C]
        and the new tails."""

    def tails(self, batch: int) -> tuple[Tensor, ...]:
        """Starting tails; none for an encoder that sees one time step at a time."""
        return ()

    def init_state(self, batch: int) -> EncoderState:
        none = torch.zeros(batch, dtype=torch.bool)
        return EncoderState(self.tails(batch), none, none)

    def forward(
        self, frames: Tensor, lengths: Tensor | None, state: EncoderState
    ) -> tuple[Tensor, Tensor | None, EncoderState]:
        """
        Args:
            frames: uint8 [B, F, 3, H, W], or floating point in 0..1.
            lengths: valid frames of each row in this call, int64 [B] on the host, or None for all.

        Returns:
            tokens [B, S, N, C], valid time steps of each row (None for all), and the state.

        Raises:
            ValueError: if a row continues after it ended in the middle of a time step.
        """
        valid, steps, after = self._count(frames, lengths, state)
        if frames.shape[1] % self.stride or bool((valid % self.stride != 0).any()):
            frames = self._complete(frames, valid)
        tokens, tails = self.encode(self._normalised(frames), steps, state)
        return tokens, steps, after._replace(tails=tails)

    def _count(
        self, frames: Tensor, lengths: Tensor | None, state: EncoderState
    ) -> tuple[Tensor, Tensor | None, EncoderState]:
        """Valid frames [B] and valid time steps [B] (None for all) of each row of ``frames`` [B, F, ..], and the state
        after them, whose tails are still those of before.

        Raises:
            ValueError: if a row continues after it ended in the middle of a time step.
        """
        valid = torch.full((len(frames),), frames.shape[1]) if lengths is None else lengths
        if bool((state.ended & (valid > 0)).any()):
            raise ValueError(
                f"A video continues after a segment that was no multiple of {self.stride} frames (one time step "
                "of this encoder); cut streams at multiples of that."
            )
        steps = None if lengths is None else (lengths + self.stride - 1) // self.stride
        ended = state.ended | (valid % self.stride != 0)
        return valid, steps, state._replace(begun=state.begun | (valid > 0), ended=ended)

    def reading(self, preprocessing: Preprocessing) -> Preprocessing:
        """How videos are read for this encoder with its weights: by default as frames, else as their features."""
        return preprocessing

    def step(self, frames: Tensor, state: EncoderState) -> tuple[Tensor, EncoderState]:
        """``forward`` for a stream that comes in whole time steps: nothing depends on the values of tensors, so it can
        be exported.

        Args:
            frames: uint8 [B, F, 3, H, W], F a multiple of ``stride``.

        Returns:
            tokens [B, S, N, C], and the state.
        """
        tokens, tails = self.encode(self._normalised(frames), None, state)
        return tokens, EncoderState(tails, torch.ones_like(state.begun), state.ended)

    def features(self, frames: Tensor, lengths: Tensor | None) -> Tensor:
        """Maps [B, F, *feature_shape] of frames [B, F, 3, H, W]; zeros where a row is padding.

        Raises:
            NotImplementedError: for an encoder without ``feature_shape``, as ``Prediction`` refuses it before.
        """
        raise NotImplementedError(f"{type(self).__name__} has no features of its own.")

    def embed(
        self, features: Tensor, lengths: Tensor | None, state: EncoderState
    ) -> tuple[Tensor, Tensor | None, EncoderState]:
        """As ``forward``, of frames whose ``features`` [B, F, *feature_shape] are at hand; raises as they do."""
        raise NotImplementedError(f"{type(self).__name__} has no features of its own.")

    def _normalised(self, frames: Tensor) -> Tensor:
        unit = 255.0 if frames.dtype == torch.uint8 else 1.0
        if frames.requires_grad:
            return (frames.to(self.mean.dtype) / unit - self.mean) / self.std
        # In place: dense video is mostly pixels, and each pass over them costs as much as a small convolution.
        return frames.to(self.mean.dtype, copy=True).sub_(unit * self.mean).div_(unit * self.std)

    def _complete(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Repeats each row's last frame to the end of its last time step."""
        count = frames.shape[1]
        slots = (count + self.stride - 1) // self.stride * self.stride
        last = (lengths - 1).clamp_min(0)
        index = torch.minimum(torch.arange(slots)[None, :], last[:, None])
        # Beyond a row's last time step the content does not matter: it is padding.
        rows = torch.arange(frames.shape[0], device=frames.device)[:, None]
        return frames[rows, index.to(frames.device, non_blocking=True)]


def check_divides(size: tuple[int, int], patch: int, what: str) -> tuple[int, int]:
    """The grid of ``patch`` x ``patch`` pixels in a frame of ``size``.

    Raises:
        ValueError: if the frame does not divide.
    """
    height, width = size
    if patch < 1 or height % patch or width % patch:
        raise ValueError(
            f"Frames of {height} x {width} pixels do not divide into {what} of {patch} x {patch}; "
            "change data.size or the encoder's patch."
        )
    return height // patch, width // patch


ROUNDING = 1e-3
"""How far a pixel may lie outside 0..1: resizing and half precision round."""


def check_range(frames: Tensor, lengths: Tensor | None) -> None:
    """Raises ValueError for frames [B, F, 3, H, W] that are neither uint8 nor pixels in 0..1; padding may hold
    anything."""
    if not (frames.is_floating_point() or frames.dtype == torch.uint8):
        kind = str(frames.dtype).removeprefix("torch.")
        raise ValueError(f"Expected frames of uint8, or of floating point in 0..1, got {kind}; convert them.")
    if not frames.is_floating_point() or frames.dim() != 5 or not frames.numel() or torch.compiler.is_compiling():
        return
    if frames.dtype.itemsize == 1:  # of 8 bits: they have no arithmetic
        frames = frames.half()
    if lengths is not None:
        valid = torch.arange(frames.shape[1]) < lengths.cpu()[:, None]
        frames = frames[valid.to(frames.device)]
        if not len(frames):
            return
    low, high = (float(value) for value in torch.stack(torch.aminmax(frames.detach())).float().cpu())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("Expected frames in 0..1, got NaN or infinite pixels; give finite ones.")
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise ValueError(
            f"Expected floating-point frames in 0..1, got {low:.4g} to {high:.4g}; give uint8, or divide by 255."
        )
