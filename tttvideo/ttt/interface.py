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
        cu_seqlens: for S sequences packed one after the other in a single row (B = 1): where each begins and
            the last one ends, int64 [S + 1] on the host. The state then has S rows. Excludes ``lengths``.
    """

    grid: tuple[int, int] = (1, 1)
    lengths: Tensor | None = None
    cu_seqlens: Tensor | None = None

    @property
    def tokens_per_frame(self) -> int:
        return self.grid[0] * self.grid[1]


class SequenceLayer(nn.Module, ABC):
    """Maps tokens to tokens, carrying a state: ``forward(x [B, T, C], state) -> (y [B, T, C], state)``.

    A sequence read in several calls, the state handed from each to the next, gives what one call over the
    whole sequence gives. Both values are always returned. Outputs at padded positions are zero. A subclass
    writes ``init_state`` and ``read``, which never sees packed rows, nor anything but zeros in padding.
    """

    streams: bool = True
    """False if the layer must see the end of a sequence before its beginning can be put out."""

    causal: bool = True
    """False if an output depends on later frames than its own: for classification, not for prediction."""

    @abstractmethod
    def init_state(self, batch: int) -> State:
        """The state of ``batch`` sequences that have read nothing yet."""

    @abstractmethod
    def read(self, x: Tensor, state: State, layout: Layout) -> tuple[Tensor, State]:
        """``forward`` on rows whose padding is zero; what it puts out at padded positions does not matter."""

    def unit(self, tokens_per_frame: int) -> int:
        """A sequence may be split between calls at multiples of this many tokens."""
        return 1

    def forward(self, x: Tensor, state: State | None = None, layout: Layout = Layout()) -> tuple[Tensor, State]:
        """Reads ``x`` [B, T, C] after everything already in ``state`` (None: a fresh one).

        Raises:
            ValueError: if the sequence may not be split here (frame-causal layers read whole frames), or if
                ``x``, ``state`` and ``layout`` do not fit together.
        """
        if layout.cu_seqlens is not None:
            rows, lengths = unpack(x, layout)
            y, state = self(rows, state, Layout(layout.grid, lengths))
            return pack(y, lengths), state
        check(x, state, layout)
        self._check_frames(x.shape[1], layout)
        state = self.init_state(x.shape[0]) if state is None else state
        valid = valid_tokens(layout.lengths, x.shape[1], x.device)
        if valid is None:
            return self.read(x, state, layout)
        # masked_fill, not a product: what stands in padding may be NaN
        y, state = self.read(x.masked_fill(~valid[..., None], 0.0), state, layout)
        return y.masked_fill(~valid[..., None], 0.0), state

    def _check_frames(self, tokens: int, layout: Layout) -> None:
        """Refuses a call or row that ends inside a frame where only whole frames can be read."""
        frame = layout.tokens_per_frame
        if self.unit(frame) % frame:
            return
        ends = [tokens] if layout.lengths is None else [tokens, *layout.lengths.tolist()]
        if wrong := [end for end in ends if end % frame]:
            raise ValueError(
                f"A frame-causal {type(self).__name__} reads whole frames of {frame} tokens, but this call has "
                f"{wrong[0]} tokens; split the sequence at frames."
            )


def check(x: Tensor, state: State | None, layout: Layout) -> None:
    """Raises ValueError, in one sentence, where tokens, state and layout do not fit together."""
    if x.dim() != 3:
        raise ValueError(f"A sequence layer reads tokens [B, T, C], but x is {list(x.shape)}; add what is missing.")
    batch, tokens, _ = x.shape
    if min(layout.grid) < 1:
        raise ValueError(f"Layout.grid is {tuple(layout.grid)}; a frame has at least one row and one column of tokens.")
    lengths = layout.lengths
    if lengths is not None:
        if not isinstance(lengths, Tensor) or lengths.is_floating_point() or lengths.device.type != "cpu":
            raise ValueError("Layout.lengths must be an int64 tensor [B] on the host; use torch.tensor([...]).")
        if lengths.shape != (batch,) or not bool(((lengths >= 0) & (lengths <= tokens)).all()):
            raise ValueError(
                f"Layout.lengths {lengths.tolist()} must say for each of the {batch} rows how many of its {tokens} "
                "tokens are valid."
            )
    if state is not None:
        rows = {t.shape[0] for t in pytree.tree_leaves(state) if isinstance(t, Tensor) and t.dim()}
        if rows - {batch}:
            raise ValueError(f"The state is that of {min(rows - {batch})} sequences, but this call reads {batch}.")


@dataclass(frozen=True)
class Mixer(ABC):
    """Configuration of a sequence layer; a subclass is one file, and YAML names it by class."""

    @abstractmethod
    def build(self, dim: int) -> SequenceLayer:
        """The layer for ``dim`` channels.

        Raises:
            ValueError: if the configuration and ``dim`` do not fit together.
        """


NO_WEIGHT_DECAY = "_no_weight_decay"
"""Attribute of a parameter; mamba_ssm marks its own in the same way."""


def exempt_from_decay(*parts: nn.Module | nn.Parameter | None) -> None:
    """Marks parameters that weight decay would pull from what they mean: positions, inner starts, rates."""
    for part in parts:
        for parameter in part.parameters() if isinstance(part, nn.Module) else [part]:
            if parameter is not None:
                setattr(parameter, NO_WEIGHT_DECAY, True)


def detach(state: State) -> State:
    """The same state, cut from the graph: truncated backpropagation through time. A state that was read in inference
    mode is copied, so that training may go on from it."""
    return pytree.tree_map_only(Tensor, lambda t: t.clone() if t.is_inference() else t.detach(), state)


def state_tensors(state: State) -> dict[str, Tensor]:
    """All tensors of a state by name, on the host, each with memory of its own: what safetensors can write."""
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in _named(state).items()}


def state_from(tensors: dict[str, Tensor], like: State) -> State:
    """The inverse of ``state_tensors``.

    Args:
        like: any state of the same layer or model, such as its ``init_state(1)``; it gives structure, device and
            precision.

    Raises:
        ValueError: if ``tensors`` are not those of such a state.
    """
    places = _named(like)
    if wrong := sorted(set(places) ^ set(tensors)):
        raise ValueError(f"These tensors are the state of another layer: {wrong[0]} is in only one of the two.")
    for name, place in places.items():
        # the first axis is the batch; an axis of none yet (a cache, a tail) may have grown
        sizes = zip(place.shape[1:], tensors[name].shape[1:], strict=False)
        if place.dim() != tensors[name].dim() or any(a != b and a > 0 for a, b in sizes):
            raise ValueError(
                f"These tensors are the state of another layer: {name} is {list(tensors[name].shape)}, not "
                f"{list(place.shape)}."
            )
    found = iter([tensors[name].to(place) for name, place in places.items()])
    return pytree.tree_map_only(Tensor, lambda _: next(found), like)


def _named(state: State) -> dict[str, Tensor]:
    leaves, _ = pytree.tree_flatten_with_path(state)
    return {pytree.keystr(path): leaf for path, leaf in leaves if isinstance(leaf, Tensor)}


def valid_tokens(lengths: Tensor | None, tokens: int, device: torch.device) -> Tensor | None:
    """bool [B, T], true where a token is real; None when all are."""
    if lengths is None:
        return None
    return (torch.arange(tokens) < lengths[:, None]).to(device, non_blocking=True)


def unpack(x: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """A packed row [1, T, C] -> its sequences as rows [S, longest, C], zero-padded, and their lengths [S].

    Raises:
        ValueError: if ``cu_seqlens`` does not run from 0 to T without falling, or comes with ``lengths``.
    """
    ends = layout.cu_seqlens
    assert ends is not None
    ends = ends.to("cpu", torch.int64)
    lengths = ends.diff()
    if layout.lengths is not None or x.shape[0] != 1:
        raise ValueError(
            f"cu_seqlens packs all sequences into one row, without lengths, but x has {x.shape[0]} rows"
            f"{' and lengths are given' if layout.lengths is not None else ''}; give one or the other."
        )
    if (
        ends.dim() != 1
        or len(ends) < 2
        or int(ends[0]) != 0
        or int(ends[-1]) != x.shape[1]
        or bool((lengths < 0).any())
    ):
        raise ValueError(f"cu_seqlens {ends.tolist()} must rise from 0 to the {x.shape[1]} tokens of the row.")
    # split and pad: copies, whose backward pass is again copies
    rows = torch.nn.utils.rnn.pad_sequence(list(x[0].split(lengths.tolist())), batch_first=True)
    return rows, lengths


def pack(y: Tensor, lengths: Tensor) -> Tensor:
    """The inverse of ``unpack``: [S, longest, C] -> [1, T, C]."""
    return torch.cat([row[:n] for row, n in zip(y, lengths.tolist(), strict=True)])[None]


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, T, C] -> [B, H, T, d]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """[B, H, T, d] -> [B, T, C]."""
    return x.transpose(1, 2).flatten(-2)
