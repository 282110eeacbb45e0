"""What every sequence layer of this project looks like, and what it is told about its tokens.

Axis letters, here and everywhere: B batch, H heads, T tokens, F frames, N tokens per frame (T = F * N),
K tokens of a chunk (inner mini-batch), d head dimension, C channels (C = H * d).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

State = Any
"""A NamedTuple of tensors that a layer defines beside itself: all it remembers of what it has read."""


class Layout(NamedTuple):
    """What the tokens ``x [B, T, C]`` of one call are.

    Attributes:
        grid: (rows, columns) of one frame's tokens, in raster order; N = rows * columns.
        lengths: valid tokens of each row in this call, int64 [B] on the host (it decides shapes and
            control flow; a device tensor would cost a synchronisation per layer). The rest of a row is
            padding at its end and stays invisible. None: every token of every row is valid.
    """

    grid: tuple[int, int] = (1, 1)
    lengths: Tensor | None = None

    @property
    def tokens_per_frame(self) -> int:
        return self.grid[0] * self.grid[1]


class SequenceLayer(nn.Module, ABC):
    """Maps tokens to tokens, carrying a state: ``forward(x [B, T, C], state) -> (y [B, T, C], state)``.

    A sequence read in several calls, the state handed from each to the next, gives what one call over the
    whole sequence gives. Both values are always returned. Outputs at padded positions are zero.
    """

    @abstractmethod
    def init_state(self, batch: int) -> State:
        """The state of ``batch`` sequences that have read nothing yet."""

    @abstractmethod
    def forward(self, x: Tensor, state: State | None = None, layout: Layout = Layout()) -> tuple[Tensor, State]:
        """Reads ``x`` [B, T, C] after everything already in ``state`` (None: a fresh one).

        Raises:
            ValueError: if the sequence may not be split here (frame-causal layers read whole frames).
        """


@dataclass(frozen=True)
class Mixer(ABC):
    """Configuration of a sequence layer; a subclass is one file, and YAML names it by class."""

    @abstractmethod
    def build(self, dim: int) -> SequenceLayer:
        """The layer for ``dim`` channels.

        Raises:
            ValueError: if the configuration and ``dim`` do not fit together.
        """


def detach(state: State) -> State:
    """The same state, cut from the graph: truncated backpropagation through time."""
    return pytree.tree_map_only(Tensor, Tensor.detach, state)


def valid_tokens(lengths: Tensor | None, tokens: int, device: torch.device) -> Tensor | None:
    """bool [B, T], true where a token is real; None when all are."""
    if lengths is None:
        return None
    return (torch.arange(tokens) < lengths[:, None]).to(device, non_blocking=True)


def check_split(tokens: int, layout: Layout, unit: int, what: str) -> None:
    """Raises ValueError unless the call and each of its rows hold a multiple of ``unit`` tokens."""
    ends = [tokens] if layout.lengths is None else [tokens, *layout.lengths.tolist()]
    if wrong := [end for end in ends if end % unit]:
        raise ValueError(
            f"A frame-causal {what} reads whole frames of {unit} tokens, but this call has {wrong[0]} tokens; split "
            "the sequence at frames."
        )


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, T, C] -> [B, H, T, d]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """[B, H, T, d] -> [B, T, C]."""
    return x.transpose(1, 2).flatten(-2)
