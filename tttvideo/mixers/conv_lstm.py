"""A convolutional LSTM over the token grid: the recurrence of video prediction's classics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..ttt.interface import Layout, Mixer, SequenceLayer
from ..ttt.primitives import at_least_float32


@dataclass(frozen=True)
class ConvLSTM(Mixer):
    """A convolutional LSTM (Shi et al., arXiv 1506.04214, without its peephole connections): the gates of a token see
    its neighbours in the frame and in the last frame's output.

    Attributes:
        kernel: tokens a side that a gate sees (odd).
        units: channels of the state, between linear maps from and to the tokens; null: as many as tokens have, without
            such maps. The gates have 8 * kernel**2 * units**2 weights.
    """

    kernel: int = 3
    units: int | None = None

    def __post_init__(self) -> None:
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"ConvLSTM.kernel is {self.kernel}; it must be odd: 1, 3, 5.")
        if self.units is not None and self.units < 1:
            raise ValueError(f"ConvLSTM.units is {self.units}; it needs at least 1.")

    def build(self, dim: int) -> ConvLSTMLayer:
        return ConvLSTMLayer(self, dim)


class ConvLSTMState(NamedTuple):
    """Output and cell of the last frame read, [B, units, rows, columns] each, in float32 at least; no rows and columns
    before the first frame, whose size nobody knows yet."""

    hidden: Tensor
    cell: Tensor


class ConvLSTMLayer(SequenceLayer):
    """See ``ConvLSTM``."""

    def __init__(self, config: ConvLSTM, dim: int):
        super().__init__()
        units, kernel = config.units or dim, config.kernel
        self.in_proj = nn.Identity() if config.units is None else nn.Linear(dim, units)
        self.from_input = nn.Conv2d(units, 4 * units, kernel, padding=kernel // 2)
        self.from_hidden = nn.Conv2d(units, 4 * units, kernel, padding=kernel // 2, bias=False)
        self.out_proj = nn.Identity() if config.units is None else nn.Linear(units, dim)

    def init_state(self, batch: int) -> ConvLSTMState:
        nothing = at_least_float32(self.from_input.weight).new_zeros(batch, self.from_input.in_channels, 0, 0)
        return ConvLSTMState(nothing, nothing)

    def unit(self, tokens_per_frame: int) -> int:
        return tokens_per_frame

    def read(self, x: Tensor, state: ConvLSTMState, layout: Layout) -> tuple[Tensor, ConvLSTMState]:
        batch, tokens, _ = x.shape
        per_frame = layout.tokens_per_frame
        frames = tokens // per_frame
        hidden, cell = state
        if not frames:
            return x, state
        if not hidden.shape[2]:
            hidden = cell = hidden.new_zeros(batch, hidden.shape[1], *layout.grid)
        going = None
        if layout.lengths is not None:
            read = (layout.lengths // per_frame).to(x.device, non_blocking=True)
            going = (torch.arange(frames, device=x.device)[:, None] < read)[..., None, None, None]  # [F, B, 1, 1, 1]
        inner = self.in_proj(x)
        grid = inner.mT.unflatten(2, (frames, *layout.grid)).movedim(2, 1)  # [B, F, units, rows, columns]
        with torch.autocast(x.device.type, enabled=False):
            gates = self.from_input(grid.flatten(0, 1).to(self.from_input.weight.dtype)).unflatten(0, (batch, frames))
            out = []
            for frame, given in enumerate(gates.unbind(1)):
                both = given + self.from_hidden(hidden.to(given.dtype))
                in_, forget, output, new = both.to(cell.dtype).chunk(4, dim=1)
                cell_now = forget.sigmoid() * cell + in_.sigmoid() * new.tanh()
                hidden_now = output.sigmoid() * cell_now.tanh()
                out.append(hidden_now)
                # A row that has ended keeps its state.
                cell = cell_now if going is None else torch.where(going[frame], cell_now, cell)
                hidden = hidden_now if going is None else torch.where(going[frame], hidden_now, hidden)
        y = torch.stack(out, 1).movedim(2, -1).flatten(1, 3)  # raster order again
        # The layout of a state must not depend on where it comes from: convolutions round by it.
        return self.out_proj(y.to(inner.dtype)), ConvLSTMState(hidden.contiguous(), cell.contiguous())
