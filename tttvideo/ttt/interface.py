"""The interface of every sequence layer, and the layout of its tokens.

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
        self._check(x, state, layout)
        state = self.init_state(x.shape[0]) if state is None else state
        if layout.lengths is None:
            return self.read(x, state, layout)
        # masked_fill, not a product: what stands in padding may be NaN
        padding = ~valid_tokens(layout.lengths, x.shape[1], x.device)[..., None]  # type: ignore[index]
        y, state = self.read(x.masked_fill(padding, 0.0), state, layout)
        return y.masked_fill(padding, 0.0), state

    def step(self, x: Tensor, state: State, grid: tuple[int, int] = (1, 1)) -> tuple[Tensor, State]:
        """``forward`` for a stream that comes in whole steps, with fewer checks, so that it can be exported.

        In plain PyTorch nothing depends on the values of tensors (a kernel that the configuration asks for may). It is
        taken for granted that every token is valid, and that so far all was read in whole steps.

        Args:
            x: [B, T, C], T a multiple of ``step_unit``.
            state: of ``init_state``, or after whole steps.
            grid: (rows, columns) of one frame's tokens; the same in every call.

        Raises:
            ValueError: if the layer does not stream, or T is not a multiple of ``step_unit``.
        """
        self.check_step(x, grid)
        return self.read(x, state, Layout(grid))

    def step_unit(self, tokens_per_frame: int) -> int:
        """``step`` reads multiples of this many tokens."""
        return self.unit(tokens_per_frame)

    def check_step(self, x: Tensor, grid: tuple[int, int]) -> None:
        """Raises ValueError where ``step`` cannot read ``x``; looks at its shape only."""
        if not self.streams:
            raise ValueError(f"{type(self).__name__} sees the end of a sequence first, so it cannot read it in steps.")
        unit = self.step_unit(grid[0] * grid[1])
        if x.dim() != 3 or not x.shape[1] or x.shape[1] % unit:
            raise ValueError(
                f"Expected x [B, T, C] with T a multiple of {unit}, got {list(x.shape)}; read whole steps."
            )

    def _check(self, x: Tensor, state: State | None, layout: Layout) -> None:
        """Raises ValueError, in one sentence, where tokens, state and layout do not fit together or a call ends inside
        a frame where only whole frames can be read."""
        if x.dim() != 3:
            raise ValueError(f"Expected tokens x [B, T, C], got {list(x.shape)}; add the axis that is missing.")
        batch, tokens, _ = x.shape
        if min(layout.grid) < 1:
            raise ValueError(
                f"Layout.grid is {tuple(layout.grid)}; a frame has at least one row and one column of tokens."
            )
        lengths, ends = layout.lengths, [tokens]
        if lengths is not None:
            if not isinstance(lengths, Tensor) or lengths.is_floating_point() or lengths.device.type != "cpu":
                raise ValueError("Layout.lengths must be an int64 tensor [B] on the host; use torch.tensor([...]).")
            ends += lengths.tolist()
            if lengths.shape != (batch,) or min(ends) < 0 or max(ends) > tokens:
                raise ValueError(
                    f"Layout.lengths {lengths.tolist()} must say for each of the {batch} rows how many of its {tokens} "
                    "tokens are valid."
                )
        if state is not None:
            rows = {t.shape[0] for t in pytree.tree_leaves(state) if isinstance(t, Tensor) and t.dim()}
            if rows - {batch}:
                raise ValueError(f"The state is that of {min(rows - {batch})} sequences, but this call reads {batch}.")
        frame = layout.grid[0] * layout.grid[1]
        for end in ends:
            if end % frame and self.unit(frame) % frame == 0:
                raise ValueError(
                    f"A frame-causal {type(self).__name__} reads whole frames of {frame} tokens, but this call has "
                    f"{end} tokens; split the sequence at frames."
                )


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


def state_bytes(state: Any) -> int:
    """What the tensors of a state hold, in bytes."""
    return sum(x.numel() * x.element_size() for x in pytree.tree_leaves(state) if isinstance(x, Tensor))


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
    expected = _named(like)
    if wrong := sorted(set(expected) ^ set(tensors)):
        raise ValueError(f"These tensors are the state of another layer: {wrong[0]} is in only one of the two.")
    for name, leaf in expected.items():
        # the first axis is the batch; an axis of none yet (a cache, a tail) may have grown
        sizes = zip(leaf.shape[1:], tensors[name].shape[1:], strict=False)
        if leaf.dim() != tensors[name].dim() or any(a != b and a > 0 for a, b in sizes):
            raise ValueError(
                f"These tensors are the state of another layer: {name} is {list(tensors[name].shape)}, not "
                f"{list(leaf.shape)}."
            )
    leaves = iter([tensors[name].to(leaf) for name, leaf in expected.items()])
    return pytree.tree_map_only(Tensor, lambda _: next(leaves), like)


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
