"""Training through films of any length in segments, with carried state: truncated back-propagation through time.

The rows of a batch are films that are read side by side, a segment of each at every step. A film that ends leaves the
rest of its row's segment padding, and the next one begins at the next step, so that there is no end and no beginning
of a row: an epoch is as many steps as the films' frames fill.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import Sampler

from ..mixers import Attention
from ..model import ModelState, VideoModel
from ..tasks.classification import Output
from ..ttt.interface import detach, state_from, state_tensors
from ..video.dataset import FilmPart, longest
from ..video.index import Index
from ..video.loader import Loader, SegmentBatch, segment_loader, train_loader
from ..video.transforms import Preprocessing, sample_generator
from .compiled import CompiledTrainer, GraphTrainer, check_graph
from .config import ConfigError, RunConfig, TrainingConfig
from .loop import Trainer
from .randomness import derive

if TYPE_CHECKING:
    from accelerate import Accelerator

_OFFSET, _ORDER, _RESTART = -3, -4, 3  # purposes of draws


class _Row(NamedTuple):
    """A film that a row is reading: which, how far, and how long it is."""

    film: tuple[int, int]  # pass over all films, place in the index
    at: int
    first: int  # frames of its first segment
    length: int


class SegmentSampler(Sampler[list[FilmPart]]):
    """What each of this process's rows reads at every step of an epoch.

    Args:
        lengths: frames of the films; 0 for one that cannot be read, which is tried once in each pass.
        longest: frames that a film is cut to in a pass, or None.
        rows: of each process.
        segment: frames of a step.
        unit: segments are cut at multiples of so many frames.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        longest: Any,
        *,
        rows: int,
        segment: int,
        unit: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.lengths, self.longest, self.rows, self.segment, self.unit = list(lengths), longest, rows, segment, unit
        self.seed, self.rank, self.world = seed, rank, world
        self.epoch = self.first = 0
        last = longest(2**31)
        frames = sum(min(n, last) if last else n for n in self.lengths)
        self.steps = max(1, -(-frames // (rows * world * segment)))

    def __len__(self) -> int:
        """Steps of an epoch."""
        return self.steps

    def start_at(self, epoch: int, batch: int = 0) -> None:
        self.epoch, self.first = epoch, batch

    def __iter__(self) -> Iterator[list[FilmPart]]:
        begin, end = self.epoch * self.steps + self.first, (self.epoch + 1) * self.steps
        for step, parts in enumerate(self._all()):
            if step >= end:
                return
            if step >= begin:
                yield parts[self.rank * self.rows : (self.rank + 1) * self.rows]

    def padding(self) -> float:
        """The share of padding in the first epoch."""
        whole = self.steps * self.rows * self.world * self.segment
        steps = zip(range(self.steps), self._all())
        return 1 - sum(min(part.stop, self._length(part)) - part.start for _, parts in steps for part in parts) / whole

    def _length(self, part: FilmPart) -> int:
        most = self.longest(part.epoch)
        return min(self.lengths[part.index], most) if most else self.lengths[part.index]

    def _all(self) -> Iterator[list[FilmPart]]:
        """The parts of all rows of all processes, from the first step of the run on, without end."""
        films = self._films()
        rows = [next(films) for _ in range(self.rows * self.world)]
        while True:
            parts = []
            for slot, row in enumerate(rows):
                stop = row.at + (row.first if row.at == 0 else self.segment)
                parts.append(FilmPart(*row.film, row.at, stop))
                rows[slot] = next(films) if stop >= row.length else row._replace(at=stop)
            yield parts

    def _films(self) -> Iterator[_Row]:
        number, units = 0, self.segment // self.unit
        while True:
            order = torch.randperm(len(self.lengths), generator=sample_generator(self.seed, number, _ORDER))
            offsets = torch.randint(
                units, (len(self.lengths),), generator=sample_generator(self.seed, number, _OFFSET)
            ).tolist()
            for index in order.tolist():
                length = self._length(FilmPart(number, index, 0, 0))
                # of a film that one segment holds nothing would be won by a shorter one
                first = self.segment - (offsets[index] * self.unit if length > self.segment else 0)
                yield _Row((number, index), 0, first, length)
            number += 1


class SegmentTrainer(Trainer):
    """A trainer whose batches are the next segments of the films that its rows are reading."""

    def __init__(self, *parts: Any, training: TrainingConfig, rank: int, **settings: Any) -> None:
        super().__init__(*parts, **settings)
        self.training, self.rank = training, rank
        self._carried: ModelState | None = None
        self._films = torch.empty(0, 2, dtype=torch.int64)

    def _forward(self, batch: SegmentBatch, epoch: int, number: int) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        device = self.accelerator.device
        frames, lengths = batch.frames.to(device, non_blocking=True), batch.lengths
        state = self._entered(batch.films, derive(self.seed, _RESTART, epoch, number, self.rank))
        output, after = self.model(frames, lengths, state)
        self._carried, self._films = detach(after), batch.films
        rows = (lengths > 0).nonzero().squeeze(1)
        if not len(rows):
            parts = [part.sum() for part in (*pytree.tree_leaves(output), *self._parameters)]
            return 0.0 * torch.stack(parts).sum(), self._row_of_failures(len(batch.failures))
        output = pytree.tree_map(lambda part: part[rows.to(part.device)], output)
        labels = batch.labels.to(device, non_blocking=True)[rows.to(device)]
        target = self.bare.config.task.target(frames[rows.to(device)], lengths[rows], labels)
        loss = self.bare.summed_loss(output, target)
        return loss.total, self._row(loss, output, target, float(lengths.sum()), len(batch.failures))

    def _entered(self, films: Tensor, seed: int) -> ModelState:
        """The state before a segment: W_0 where a film begins, else what its last segment left, without its graph.

        W_0 is in the graph of every row, so that it has a gradient in every step (several processes would stop for the
        lack of one). The head begins anew: its answer is that of the segment, with the backbone's memory of the film.
        """
        begin = self.bare.init_state(len(films))
        if self._carried is None or len(self._films) != len(films):
            return begin
        starts = (films != self._films).any(1)
        draws = torch.rand(len(films), generator=torch.Generator().manual_seed(seed))
        starts |= draws < self.training.restart
        straight = self.training.start_gradient == "straight"
        carried = self._carried._replace(task=begin.task)
        return begin._replace(
            encoder=pytree.tree_map(lambda a, b: _join(starts, a, b, False), begin.encoder, carried.encoder),
            backbone=pytree.tree_map(lambda a, b: _join(starts, a, b, straight), begin.backbone, carried.backbone),
        )

    def states(self) -> list[dict[str, Tensor]]:
        own: dict[str, Tensor] = {}
        if self._carried is not None:
            own = {"films": self._films, **{f"state.{k}": v for k, v in state_tensors(self._carried).items()}}
        if self.accelerator.num_processes == 1:
            return [own]
        from accelerate.utils import gather_object

        return gather_object([own])

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Raises ValueError for tensors of another model."""
        if not tensors:
            return
        self._films = tensors["films"]
        like = self.bare.init_state(len(self._films))
        named = {name.removeprefix("state."): tensor for name, tensor in tensors.items() if name != "films"}
        self._carried = state_from(named, like)  # type: ignore[assignment]


class FilmTrainer(Trainer):
    """A trainer of whole films that keeps the graph of one segment at a time, and computes the others again: the
    gradient is that of the whole film."""

    def __init__(self, *parts: Any, segment: int, **settings: Any) -> None:
        super().__init__(*parts, **settings)
        self.segment = segment

    def _read(self, frames: Tensor, lengths: Tensor) -> Output:
        state: Any = self.bare.init_state(len(frames))
        timelines, output = [], None
        for start in range(0, frames.shape[1], self.segment):
            part = frames[:, start : start + self.segment]
            valid = (lengths - start).clamp(0, part.shape[1])
            output, state = checkpoint(self.model, part, valid, state, use_reentrant=False)  # type: ignore[misc]
            timelines.append(output.timeline)
        assert output is not None
        return Output(output.logits, torch.cat(timelines, 1))


def _join(starts: Tensor, begin: Any, carried: Any, straight: bool) -> Any:
    """Rows of ``begin`` [B, ...] where ``starts``, of ``carried`` elsewhere."""
    if not isinstance(begin, Tensor):
        return carried
    if begin.shape != carried.shape:  # of a past of no tokens yet, to that of some: nothing was there
        empty = carried.new_full(carried.shape, -1 if carried.dtype == torch.int64 else 0)
        begin = empty if not begin.numel() else _padded(begin, carried.shape)
    if straight and begin.requires_grad:
        carried = begin + (carried - begin).detach()
    rows = starts.view(-1, *[1] * (begin.dim() - 1)).to(begin.device)
    return torch.where(rows, begin, carried.to(begin.dtype))


def _padded(x: Tensor, shape: Sequence[int]) -> Tensor:
    """``x`` with zeros in front, along every axis, up to ``shape``."""
    pads = [(want - have, 0) for have, want in zip(x.shape, shape, strict=True)]
    return nn.functional.pad(x, [n for pad in reversed(pads) for n in pad])


def trainer_of(config: RunConfig, accelerator: Accelerator) -> Callable[..., Trainer]:
    """The trainer for a way of reading long videos, or of compiling steps.

    Raises:
        ConfigError: where steps cannot be compiled in that way.
    """
    training = config.training
    if training.carries:
        return partial(SegmentTrainer, training=training, rank=accelerator.process_index)
    if training.segment_frames:
        return partial(FilmTrainer, segment=training.segment_frames)
    if training.compile == "modules":
        return CompiledTrainer
    if training.compile == "graph":
        check_graph(accelerator, config.activation_checkpointing)
        return GraphTrainer
    return Trainer


def training_loader(
    config: RunConfig, index: Index, lengths: Sequence[int], reading: Preprocessing, part: dict[str, int], unit: int = 1
) -> Loader:
    """The training batches of one process.

    Args:
        lengths: frames of the videos, where they are read in segments.
        part: rank and world.
        unit: segments are cut at multiples of so many frames.
    """
    data, segment = config.data, config.training.segment_frames
    if not config.training.carries or segment is None:
        return train_loader(data, index, seed=config.seed, reading=reading, **part)
    most = partial(longest, data.length_schedule, data.max_frames)
    how = {"rows": data.batch_size, "segment": segment, "unit": unit, "seed": config.seed}
    return segment_loader(data, index, SegmentSampler(lengths, most, **how, **part), seed=config.seed, reading=reading)


def prepare_model(model: VideoModel, training: TrainingConfig) -> None:
    """Takes what states begin with out of weight decay, where it is carried: it would be pulled to zero in all the
    steps in which it has hardly a gradient.

    Raises:
        ConfigError: for a model that cannot be trained in segments.
    """
    if training.segment_frames:
        check_segments(model, training)
    if training.carries:
        model.exempt_from_decay(start_parameters(model))


def check_segments(model: VideoModel, training: TrainingConfig) -> None:
    """Raises ConfigError for a model that cannot be trained by such segments."""
    segment, multiple = training.segment_frames, model.frame_multiple
    assert segment is not None
    if not model.streams:
        raise ConfigError("training.segment_frames needs a model that reads forwards, and this one reads videos whole")
    if segment % multiple:
        raise ConfigError(
            f"training.segment_frames is {segment}; it must be a multiple of {multiple} frames, the model's step"
        )
    if any(isinstance(mixer, Attention) and mixer.window is None for mixer in model.config.backbone.mixers()):
        raise ConfigError(
            "training.segment_frames reads films of any length, and the state of Attention grows with them; set "
            "model.backbone.mixer.window"
        )


def start_parameters(model: VideoModel) -> set[str]:
    """Names of the parameters that states begin with."""
    leaves = [
        leaf for leaf in pytree.tree_leaves(model.init_state(1)) if isinstance(leaf, Tensor) and leaf.requires_grad
    ]
    if not leaves:
        return set()
    names, parameters = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad))
    total = torch.stack([leaf.float().sum() for leaf in leaves]).sum()
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    return {name for name, gradient in zip(names, gradients) if gradient is not None}
