"""A long short-term memory over tokens: the recurrence whose state is a vector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ..ttt.interface import Layout, Mixer, SequenceLayer
from ..ttt.primitives import at_least_float32


@dataclass(frozen=True)
class LSTM(Mixer):
    """One layer of ``torch.nn.LSTM`` (Hochreiter and Schmidhuber, 1997) with as many units as channels.

    It reads token after token, frames in raster order, so it is causal over tokens, and slow: nothing of it is
    parallel along the sequence.
    """

    def build(self, dim: int) -> LSTMLayer:
        return LSTMLayer(dim)


class LSTMState(NamedTuple):
    """Output and cell of the last token read, [B, C] each, in float32 at least."""

    hidden: Tensor
    cell: Tensor


class LSTMLayer(SequenceLayer):
    """See ``LSTM``."""

    def __init__(self, dim: int):
        super().__init__()
        self.lstm = nn.LSTM(dim, dim, batch_first=True)

    def init_state(self, batch: int) -> LSTMState:
        zeros = at_least_float32(self.lstm.all_weights[0][0]).new_zeros(batch, self.lstm.hidden_size)
        return LSTMState(zeros, zeros)

    def read(self, x: Tensor, state: LSTMState, layout: Layout) -> tuple[Tensor, LSTMState]:
        y, after = read_recurrent(self.lstm, x, state, layout.lengths)
        return y, LSTMState(*after)


def read_recurrent(
    network: nn.LSTM | nn.GRU, x: Tensor, state: tuple[Tensor, ...], lengths: Tensor | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """x [B, T, C] through a one-layer network of PyTorch's, in its own precision.

    Args:
        state: of the network, [B, C] each: output and cell (LSTM), or output (GRU).
        lengths: valid tokens of each row, int64 [B] on the host.

    Returns:
        y [B, T, C], zero in padding, and the state after each row's last token.
    """
    dtype = network.all_weights[0][0].dtype
    if not x.numel():
        return x, state

    def run(x: Any, rows: tuple[Tensor, ...]) -> tuple[Any, tuple[Tensor, ...]]:
        start = tuple(t[None].to(dtype) for t in rows)
        y, after = network(x, start if len(start) > 1 else start[0])
        after = after if len(start) > 1 else (after,)
        return y, tuple(new[0].to(old.dtype) for old, new in zip(state, after, strict=True))

    with torch.autocast(x.device.type, enabled=False):
        if lengths is None:
            y, after = run(x.to(dtype), state)
            return y.to(x.dtype), after
        rows = lengths.nonzero().squeeze(1)  # PyTorch's networks refuse rows without tokens
        if not len(rows):
            return x, state
        at = rows.to(x.device, non_blocking=True)
        packed = pack_padded_sequence(x[at].to(dtype), lengths[rows], batch_first=True, enforce_sorted=False)
        out, after = run(packed, tuple(t[at] for t in state))
    y, _ = pad_packed_sequence(out, batch_first=True, total_length=x.shape[1])
    whole = torch.zeros_like(x).index_copy(0, at, y.to(x.dtype))
    return whole, tuple(old.index_copy(0, at, new) for old, new in zip(state, after, strict=True))
