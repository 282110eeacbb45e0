"""Chunks: which tokens share one set of weights at which gradients are taken, and which of them a token sees."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Chunk(ABC):
    """An inner mini-batch (paper, section 2.4): its size, and its causality as a mask."""

    @abstractmethod
    def size(self, tokens_per_frame: int) -> int:
        """Tokens of one chunk, K."""

    @abstractmethod
    def unit(self, tokens_per_frame: int) -> int:
        """A sequence may be split between calls at multiples of this many tokens."""

    @abstractmethod
    def mask(self, tokens_per_frame: int, device: torch.device) -> Tensor | None:
        """bool [K, K], mask[t, s] true if token t reads the gradient of token s. None: all true, so the update
        may be applied before reading and the K x K products vanish."""


@dataclass(frozen=True)
class TokenCausal(Chunk):
    """The paper's: a token sees the gradients of the tokens up to itself.

    Attributes:
        tokens: chunk size K (16 in the paper).
    """

    tokens: int = 16

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ValueError(f"TokenCausal.tokens is {self.tokens}; a chunk needs at least 1 token.")

    def size(self, tokens_per_frame: int) -> int:
        return self.tokens

    def unit(self, tokens_per_frame: int) -> int:
        return 1

    def mask(self, tokens_per_frame: int, device: torch.device) -> Tensor | None:
        return torch.ones(self.tokens, self.tokens, dtype=torch.bool, device=device).tril()


@dataclass(frozen=True)
class FrameCausal(Chunk):
    """A token sees the gradients of its own whole frame and of the frames before it.

    Attributes:
        frames: frames per chunk. More of them means fewer sequential steps, at older weights.
    """

    frames: int = 1

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise ValueError(f"FrameCausal.frames is {self.frames}; a chunk needs at least 1 frame.")

    def size(self, tokens_per_frame: int) -> int:
        return self.frames * tokens_per_frame

    def unit(self, tokens_per_frame: int) -> int:
        return tokens_per_frame

    def mask(self, tokens_per_frame: int, device: torch.device) -> Tensor | None:
        if self.frames == 1:
            return None
        frame = torch.arange(self.size(tokens_per_frame), device=device) // tokens_per_frame
        return frame[:, None] >= frame[None, :]
