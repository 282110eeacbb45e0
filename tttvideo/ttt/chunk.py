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
    def size(self, tokens_per_frame: int) -> int | None:
        """Tokens of one chunk, K; None: all tokens there are."""

    @abstractmethod
    def unit(self, tokens_per_frame: int) -> int:
        """A sequence may be split between calls at multiples of this many tokens."""

    @property
    def whole(self) -> bool:
        """True if every token of a chunk may use the gradients of all its tokens: then the update is applied before
        reading, the K x K products vanish, and any inner optimizer serves."""
        return False

    @property
    def streams(self) -> bool:
        """False if a sequence cannot be read in several calls."""
        return True

    @property
    def causal(self) -> bool:
        """False if a token sees later frames than its own."""
        return True

    def mask(self, tokens_per_frame: int, tokens: int, device: torch.device) -> Tensor | None:
        """bool [tokens, tokens], mask[t, s] true if token t of a chunk reads the gradient of token s; None if
        ``whole``."""
        return None


@dataclass(frozen=True)
class TokenCausal(Chunk):
    """The paper's: a token sees the gradients of the tokens up to itself.

    Attributes:
        tokens: chunk size K: 1 is online gradient descent, 16 the paper's mini-batch, as many as the sequence
            has is (causal) batch gradient descent.
    """

    tokens: int = 16

    def __post_init__(self) -> None:
        if self.tokens < 1 or self.tokens != int(self.tokens):
            raise ValueError(f"TokenCausal.tokens is {self.tokens}; a chunk needs at least 1 token.")

    def size(self, tokens_per_frame: int) -> int:
        return self.tokens

    def unit(self, tokens_per_frame: int) -> int:
        return 1

    @property
    def whole(self) -> bool:
        return self.tokens == 1

    def mask(self, tokens_per_frame: int, tokens: int, device: torch.device) -> Tensor | None:
        return None if self.tokens == 1 else torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()


@dataclass(frozen=True)
class FrameCausal(Chunk):
    """A token sees the gradients of its own whole frame and of the frames before it.

    Attributes:
        frames: frames per chunk. More of them means fewer sequential steps, at older weights.
    """

    frames: int = 1

    def __post_init__(self) -> None:
        if self.frames < 1 or self.frames != int(self.frames):
            raise ValueError(f"FrameCausal.frames is {self.frames}; a chunk needs at least 1 frame.")

    def size(self, tokens_per_frame: int) -> int:
        return self.frames * tokens_per_frame

    def unit(self, tokens_per_frame: int) -> int:
        return tokens_per_frame

    @property
    def whole(self) -> bool:
        return self.frames == 1

    def mask(self, tokens_per_frame: int, tokens: int, device: torch.device) -> Tensor | None:
        if self.frames == 1:
            return None
        frame = torch.arange(tokens, device=device) // tokens_per_frame
        return frame[:, None] >= frame[None, :]


@dataclass(frozen=True)
class Whole(Chunk):
    """A token sees the gradients of all frames of its chunk, later ones too (LaCT's large chunks).

    Outputs of a frame thus depend on up to ``frames`` - 1 later ones: for classification, not for prediction.
    A sequence may end inside a chunk, but not go on from there.

    Attributes:
        frames: frames per chunk; null: the whole sequence, in one call: full-batch gradient descent, whose step is
            that of the mean over its frames (a chunk of n frames takes the sum of their n steps).
    """

    frames: int | None = 4

    def __post_init__(self) -> None:
        if self.frames is not None and self.frames < 1:
            raise ValueError(f"Whole.frames is {self.frames}; a chunk needs at least 1 frame (null: all of them).")

    def size(self, tokens_per_frame: int) -> int | None:
        return None if self.frames is None else self.frames * tokens_per_frame

    def unit(self, tokens_per_frame: int) -> int:
        return tokens_per_frame * (self.frames or 1)

    @property
    def whole(self) -> bool:
        return True

    @property
    def streams(self) -> bool:
        return self.frames is not None

    @property
    def causal(self) -> bool:
        return self.frames == 1
