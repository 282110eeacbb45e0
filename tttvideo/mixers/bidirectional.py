"""A second reading of each video, from its end to its beginning: for classification of whole videos."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ..ttt import TTT
from ..ttt.interface import Layout, Mixer, SequenceLayer


@dataclass(frozen=True)
class Bidirectional(Mixer):
    """Any mixer forwards plus a second one backwards; the outputs are summed.

    The second layer reads each row from its own last token to its first: whole frames in reversed order, tokens
    in raster order inside each, where the mixer reads frames; token by token where it reads tokens. Every output
    then depends on the whole video, so this is for classification only; it cannot stream, and a timeline does not
    tell what the answer would have been had the video ended earlier. Trained on clips, the backward layer begins
    at the end of a clip, which in a whole video lies in its middle: train on whole videos, or expect that difference.

    Attributes:
        mixer: the sequence layer of both directions.
        share: both directions have the same weights. A stack of such layers, with mean pooling, sees a video and
            its reversal as the same: it cannot learn what came first (0.5 on flash-order, docs/results/memory.md).
    """

    mixer: Mixer = field(default_factory=TTT)
    share: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.mixer, Bidirectional):
            raise ValueError("Bidirectional.mixer is Bidirectional itself; name the mixer that reads one direction.")

    def build(self, dim: int) -> BidirectionalLayer:
        return BidirectionalLayer(self, dim)


class BidirectionalState(NamedTuple):
    """``seen`` tokens, int64 [B] on the host: a row that has been read cannot be continued."""

    seen: Tensor


class BidirectionalLayer(SequenceLayer):
    """See ``Bidirectional``.

    Raises:
        ValueError: from ``forward``, if a row is to be read on after the state has read some of it.
    """

    streams = False
    causal = False

    def __init__(self, config: Bidirectional, dim: int):
        super().__init__()
        self.forwards = config.mixer.build(dim)
        self.backwards = None if config.share else config.mixer.build(dim)

    def init_state(self, batch: int) -> BidirectionalState:
        return BidirectionalState(torch.zeros(batch, dtype=torch.int64))

    def unit(self, tokens_per_frame: int) -> int:
        return self.forwards.unit(tokens_per_frame)

    def read(self, x: Tensor, state: BidirectionalState, layout: Layout) -> tuple[Tensor, BidirectionalState]:
        length, frame = x.shape[1], layout.tokens_per_frame
        lengths = torch.full(x.shape[:1], length) if layout.lengths is None else layout.lengths
        if bool(((state.seen > 0) & (lengths > 0)).any()):
            raise ValueError(
                "Bidirectional reads a sequence from both ends, so it cannot read on where an earlier call stopped; "
                "give each video whole, in one call, or use its mixer alone."
            )
        y, _ = self.forwards(x, None, layout)
        block = frame if self.unit(frame) % frame == 0 else 1
        index = reversal(lengths, length, block).to(x.device, non_blocking=True)[..., None].expand_as(x)
        again, _ = (self.backwards or self.forwards)(x.gather(1, index), None, layout)
        return y + again.gather(1, index), BidirectionalState(state.seen + lengths)


def reversal(lengths: Tensor, length: int, block: int) -> Tensor:
    """int64 [B, T]: where to look so that the blocks of each row's first ``lengths`` [B] tokens stand in reversed
    order, tokens inside a block as before. Padding stays; doing it twice changes nothing."""
    token = torch.arange(length)
    turned = (lengths[:, None] // block - 1 - token // block) * block + token % block
    return torch.where(token < lengths[:, None], turned, token)
