"""What the hidden state of every TTT layer does while a model reads a video."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..inference.answers import Reading, Span
from ..inference.frames import as_frames
from ..model import WHOLE, VideoModel
from ..ttt import TTTLayer
from ..ttt.inspection import ReadChunk, distance
from ..ttt.interface import Layout, detach
from ..ttt.state import Weights, length
from ..video.index import Video
from ..video.sampling import parse_sampling

SEGMENT = 64
"""Frames that are read at a time, about."""

PROBES = 32
"""Chunks of a video whose read-outs are compared with those at the end, at most."""


class InnerLoss(NamedTuple):
    """The inner loss of one layer's hidden state: does it learn?

    Attributes:
        frames: number of frames read when each chunk ended, int64 [U].
        before, after: loss of the chunk's own pairs at the weights before and after its update, [U, heads].
    """

    frames: Tensor
    before: Tensor
    after: Tensor


class Probes(NamedTuple):
    """Some chunks, and what the last state still has of them, mean over heads.

    Attributes:
        frames: as in ``InnerLoss``, [P].
        start, then, end: loss of the chunk's pairs at W_0, right after it was read, and at the last weights, [P].
        similarity: cosine of what the state adds to the read-out (beyond W_0) at the end and then, [P].
    """

    frames: Tensor
    start: Tensor
    then: Tensor
    end: Tensor
    similarity: Tensor


class LayerRecord:
    """One layer over one video; of the chunks that are complete.

    Attributes:
        name: where the layer is.
        inner_loss: of every update.
        steps, distances: how far each update moved the weights, and how far from W_0 they are then, [U, heads].
        start: length of W_0, [heads].
        rates: learned part of the inner learning rate, 0..1, mean over heads, by time step and place [S, rows,
            columns].
        probes: see there.
    """

    def __init__(self, name: str, layer: TTTLayer, stride: int):
        self.name, self._stride = name, stride
        self._start: Weights = layer.init_state(1).weights
        self.start = length(self._start)[0, :, 0, 0].cpu()
        self._tokens, self._grid = 0, (1, 1)
        self._updates: list[tuple[int, Tensor, Tensor, Tensor, Tensor]] = []
        self._rates: list[Tensor] = []
        self._probes: dict[int, tuple[int, ReadChunk, Tensor, Tensor]] = {}
        self._every, self._last = 1, self._start

    def add(self, chunk: ReadChunk, layout: Layout) -> None:
        self._grid = layout.grid
        self._tokens += chunk.rates.shape[1]
        self._rates.append(chunk.rates[0].float().cpu())
        if not chunk.closed:
            return
        frames, number = self._tokens * self._stride // layout.tokens_per_frame, len(self._updates)
        after = chunk.loss(chunk.after)
        parts = (chunk.loss(chunk.before), after, distance(chunk.after, chunk.before))
        parts = (*parts, distance(chunk.after, self._start))
        self._updates.append((frames, *(part[0].cpu() for part in parts)))  # type: ignore[arg-type]
        self._last = chunk.after
        if number % self._every == 0:  # every n-th chunk, n doubling as the video grows
            added = chunk.read_out(chunk.after) - chunk.read_out(self._start)
            self._probes[number] = (frames, chunk._replace(before={}, after={}), after, added)
            if len(self._probes) > PROBES:
                self._every *= 2
                self._probes = {n: probe for n, probe in self._probes.items() if n % self._every == 0}

    @property
    def inner_loss(self) -> InnerLoss:
        frames = torch.tensor([update[0] for update in self._updates], dtype=torch.int64)
        return InnerLoss(frames, self._stacked(1), self._stacked(2))

    @property
    def steps(self) -> Tensor:
        return self._stacked(3)

    @property
    def distances(self) -> Tensor:
        return self._stacked(4)

    @property
    def rates(self) -> Tensor:
        rows, columns = self._grid
        rates = torch.cat(self._rates) if self._rates else torch.zeros(0)
        return rates[: len(rates) - len(rates) % (rows * columns)].unflatten(0, (-1, rows, columns))

    @property
    def probes(self) -> Probes:
        rows = []
        for frames, chunk, then, added in self._probes.values():
            start = chunk.loss(self._start)
            now = chunk.read_out(self._last) - chunk.read_out(self._start)
            similarity = torch.cosine_similarity(now.flatten(), added.flatten(), dim=0)
            losses = (loss.mean() for loss in (start, then, chunk.loss(self._last)))
            rows.append([float(frames), *map(float, losses), float(similarity)])
        table = torch.tensor(rows).view(-1, 5)
        return Probes(table[:, 0].long(), *table[:, 1:].unbind(1))

    def _stacked(self, part: int) -> Tensor:
        return torch.stack([update[part] for update in self._updates]) if self._updates else self.start[:0].view(0, 0)  # type: ignore[misc]


@contextmanager
def recorded(model: VideoModel) -> Iterator[list[LayerRecord]]:
    """While this is open, what ``model`` reads of one video (a batch of one, in pieces of ``inspection_unit`` frames
    or multiples) is recorded layer by layer. Each chunk is read twice; the answers do not change."""
    records: list[LayerRecord] = []
    open_records: dict[str, LayerRecord] = {}

    def hook(name: str) -> Any:
        def record(layer: TTTLayer, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
            x, state, layout = (*args, *(kwargs.get(key) for key in ("x", "state", "layout")[len(args) :]))
            if state is None or name not in open_records:  # Bidirectional begins anew, from the other end
                again = sum(earlier.name.startswith(name) for earlier in records)
                open_records[name] = LayerRecord(
                    f"{name}, from the end" if again else name, layer, model.encoder.stride
                )
                records.append(open_records[name])
            state = layer.init_state(len(x)) if state is None else state
            for chunk in layer.chunks(x, state, layout or Layout()):
                open_records[name].add(chunk, layout or Layout())

        return record

    handles = [module.register_forward_hook(hook(called), with_kwargs=True) for called, module in layers_of(model)]
    try:
        yield records
    finally:
        for handle in handles:
            handle.remove()


def layers_of(model: VideoModel) -> list[tuple[str, TTTLayer]]:
    """The TTT layers, each with where it is ("block 1")."""
    layers = []
    for path, module in model.backbone.named_modules():
        if isinstance(module, TTTLayer):
            _, number, *rest = path.split(".")
            within = " ".join(part for part in rest if part not in ("mixer", "forwards"))
            layers.append((f"block {int(number) + 1} {within.replace('backwards', 'from the end')}".strip(), module))
    return layers


def inspection_unit(model: VideoModel) -> int:
    """Frames after which no chunk of any layer is open; of a model that reads videos whole, longer than any."""
    if not model.streams:
        return WHOLE
    rows, columns = model.encoder.grid
    tokens, unit = rows * columns, model.backbone.step_unit(rows * columns)
    return model.encoder.stride * (math.lcm(unit, tokens) // tokens)


def segment_of(model: VideoModel) -> int:
    unit = inspection_unit(model)
    return max(1, SEGMENT // unit) * unit


def record(model: VideoModel, pieces: Iterable[Tensor]) -> Iterator[tuple[Tensor, Any, list[LayerRecord]]]:
    """Reads the frames of a video, uint8 [F, 3, H, W] in pieces of ``segment_of`` frames; after each piece gives it,
    the model's output, and the records so far."""
    state, device, training = None, next(model.parameters()).device, model.training
    model.eval()
    try:
        with torch.no_grad(), recorded(model) as records:
            for frames in pieces:
                output, state = model(frames[None].to(device), None, state)
                state = detach(state)
                yield frames, output, records
    finally:
        model.train(training)


def inner_loss(model: VideoModel, frames: Any) -> dict[str, InnerLoss]:
    """The inner loss of every TTT layer before and after each of its updates, by the layer's name ("block 1"): does the
    hidden state learn while the model reads (the paper's figure 4)?

    Args:
        frames: a video: path of a file or folder of frames, or the frames themselves, as ``VideoModel.classify`` takes
            them.

    Raises:
        ValueError: for a model without a TTT layer, and frames that it cannot read.
    """
    if not layers_of(model):
        raise ValueError("This model has no TTT layer, so there is no inner loss; inspect one whose mixer is TTT.")
    records: list[LayerRecord] = []
    for _, _, records in record(model, pieces_of(model, frames)):  # noqa: B007
        pass
    return {layer.name: layer.inner_loss for layer in records}


def pieces_of(model: VideoModel, frames: Any, first: int | None = None) -> Iterator[Tensor]:
    """A video for ``record``: a path, or frames of any kind in memory; only the ``first`` frames, where given."""
    reading = Reading(model.preprocessing, segment_of(model), parse_sampling(model.preprocessing.sampling), first)
    if isinstance(frames, (str, Path)):
        return reading(Span(Video(str(frames), None, None, None, None)))
    return reading(as_frames(frames))
