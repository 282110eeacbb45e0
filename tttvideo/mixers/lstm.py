"""A long short-term memory over tokens: the recurrence whose state is a vector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

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
        dtype = self.lstm.all_weights[0][0].dtype
        if not x.numel():
            return x, state
        with torch.autocast(x.device.type, enabled=False):
            if layout.lengths is None:
                y, after = self.lstm(x.to(dtype), tuple(t[None].to(dtype) for t in state))
                hidden, cell = (new[0].to(old.dtype) for old, new in zip(state, after, strict=True))
                return y.to(x.dtype), LSTMState(hidden, cell)
            rows = layout.lengths.nonzero().squeeze(1)  # nn.LSTM refuses rows without tokens
            if not len(rows):
                return x, state
            at = rows.to(x.device)
            packed = pack_padded_sequence(x[at].to(dtype), layout.lengths[rows], batch_first=True, enforce_sorted=False)
            out, after = self.lstm(packed, tuple(t[at][None].to(dtype) for t in state))
        y, _ = pad_packed_sequence(out, batch_first=True, total_length=x.shape[1])
        whole = torch.zeros_like(x).index_copy(0, at, y.to(x.dtype))
        held = (old.index_copy(0, at, new[0].to(old.dtype)) for old, new in zip(state, after, strict=True))
        return whole, LSTMState(*held)
