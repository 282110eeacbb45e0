"""Controls: what a model still knows with one thing taken away. A figure that survives them was not due to memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model import VideoModel
from ..ttt import TTTLayer
from ..ttt.interface import Layout, SequenceLayer, State

CONTROLS = ("inner-rate-0", "reset", "shuffled")
"""No inner learning; the state thrown away after every chunk; the frames of a video in a random order."""


class Forgetful(nn.Module):
    """A backbone whose state is thrown away after every so many frames; what follows it still pools the whole clip.

    The pieces of a clip lie side by side in the batch, which is the same as reading one after the other, each with
    the state at the start. A new call begins with a new piece.
    """

    def __init__(self, backbone: SequenceLayer, frames: int):
        super().__init__()
        self.backbone = backbone
        self.frames = frames
        self.streams, self.causal = backbone.streams, backbone.causal

    def init_state(self, batch: int) -> State:
        return self.backbone.init_state(batch)

    def unit(self, tokens_per_frame: int) -> int:
        return self.backbone.unit(tokens_per_frame)

    def forward(self, x: Tensor, state: State, layout: Layout) -> tuple[Tensor, State]:
        batch, tokens, _ = x.shape
        piece = self.frames * layout.tokens_per_frame
        count = -(-tokens // piece)
        pieces = F.pad(x, (0, 0, 0, count * piece - tokens)).reshape(batch * count, piece, -1)
        valid = torch.full((batch,), tokens) if layout.lengths is None else layout.lengths
        lengths = (valid[:, None] - torch.arange(count) * piece).clamp(0, piece).flatten()
        whole = bool((lengths == piece).all())
        mixed, _ = self.backbone(pieces, None, Layout(layout.grid, None if whole else lengths))
        return mixed.reshape(batch, count * piece, -1)[:, :tokens], state


def applicable(model: VideoModel) -> list[str]:
    """The controls that mean something for a model."""
    return [name for name in CONTROLS if name != "inner-rate-0" or model.inner_rates()]


def chunk_frames(model: VideoModel) -> int:
    """Frames after which ``reset`` throws the state away: the longest chunk of the TTT layers, else one time step."""
    rows, columns = model.encoder.grid
    per_frame = rows * columns
    sizes = [layer.config.chunk.size(per_frame) for layer in model.modules() if isinstance(layer, TTTLayer)]
    frames = max((-(-size // per_frame) for size in sizes if size), default=1)
    step = model.frame_multiple // model.encoder.stride
    return -(-frames // step) * step


@contextmanager
def without(model: VideoModel, control: str) -> Iterator[None]:
    """The model with what ``control`` names taken away; it is whole again afterwards. ("shuffled" concerns the reading
    of the videos, not the model.)"""
    backbone = model.backbone
    if control == "inner-rate-0":
        if not model.inner_rates():
            raise ValueError("the control inner-rate-0 needs TTT layers, and this model has none; leave it out")
        model.set_inner_rate(0.0)
    elif control == "reset":
        model.backbone = Forgetful(backbone, chunk_frames(model))  # type: ignore[assignment]
    try:
        yield
    finally:
        model.backbone = backbone
        model.set_inner_rate(1.0)
