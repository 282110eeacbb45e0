"""Outputs of a model for many videos: several side by side, each given as soon as its video has ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..model import VideoModel
from ..video.index import Video
from ..video.sampling import Sampling
from ..video.segments import Piece, SegmentedBatches, video_pieces
from ..video.transforms import Preprocessing
from ..video.workers import WorkerLoader

PICTURES = 16
"""Frames of a video that are kept beside its timeline, at most."""


class Span(NamedTuple):
    """A part of a video file that the model reads by itself; ``crop`` as in ``Preprocessing.apply``."""

    source: Video
    crop: float = 0.5


class Timeline(NamedTuple):
    """``logits`` [S, classes] of everything up to each time step; ``pictures`` uint8 [P, 3, H, W], the frames ``at``
    [P]."""

    logits: Tensor
    pictures: Tensor
    at: list[int]


class Answer(NamedTuple):
    """Of one item; ``logits`` [classes] is None where there is a ``failure``."""

    item: int
    logits: Tensor | None
    frames: int
    failure: str
    timeline: Timeline | None
    notes: list[str]  # of the reader, for all that were read with it


@dataclass(frozen=True)
class Reading:
    """How frames of an item are read: a ``Span`` of a file, or frames uint8 [F, 3, h, w] in memory, of which all are
    used."""

    preprocessing: Preprocessing
    segment: int
    sampling: Sampling
    frames: int | None = None

    def __call__(self, item: Span | Tensor) -> Iterator[Tensor]:
        if isinstance(item, Span):
            path, _, _, start, end = item.source
            how = (self.preprocessing, self.segment, self.frames, self.sampling)
            yield from video_pieces(path, *how, start, end, item.crop)
            return
        clip = item[: self.frames]
        for start in range(0, len(clip), self.segment):
            yield self.preprocessing.apply(clip[start : start + self.segment]).cpu()


def read_answers(
    model: VideoModel,
    items: Sequence[Span | Tensor],
    reading: Reading,
    *,
    batch_size: int,
    workers: int = 0,
    timelines: bool = False,
) -> Iterator[Answer]:
    """Every item's answer, in the order in which they end. Memory does not grow with the videos' length (but by their
    timelines, where those are asked for) nor with their number.

    Args:
        batch_size: items read side by side, ``reading.segment`` frames of each at a time.
        workers: processes that read ahead, each its own batches.
    """
    batches = [range(at, min(at + batch_size, len(items))) for at in range(0, len(items), batch_size)]
    spans = [item for item in items if isinstance(item, Span)]
    if not timelines and len(spans) == len(items) and all(span.crop == 0.5 for span in spans):
        paths, times = [s.source.path for s in spans], [(s.source.start, s.source.end) for s in spans]
        reading = replace(reading, preprocessing=model.reading_of(paths, times, reading.sampling, reading.frames))
    listed = [[items[i] for i in batch] for batch in batches]
    pieces = SegmentedBatches(listed, reading, reading.preprocessing.frame, name)
    loader = WorkerLoader(pieces, batch_size=None, workers=min(workers, len(batches)))
    rows: dict[int, _Rows] = {}
    for piece, output in model.outputs_of_batches(loader):
        own = rows.pop(piece.batch, None) or _Rows(batches[piece.batch], reading.segment, timelines)
        yield from own.add(piece, output, model.encoder.stride)
        if not piece.last:
            rows[piece.batch] = own


def name(item: Span | Tensor) -> str:
    return item.source.path if isinstance(item, Span) else f"{len(item)} frames in memory"


class _Rows:
    """A batch of items as they are read."""

    def __init__(self, items: Sequence[int], segment: int, timelines: bool):
        self.segment = segment
        self.open = dict(enumerate(items))
        self.frames = [0] * len(items)
        self.timelines = {row: Growing() for row in self.open} if timelines else {}
        self.logits: Tensor | None = None

    def add(self, piece: Piece, output: Any, stride: int) -> Iterator[Answer]:
        """The next segment, and what the model put out for it; the answers of the items that end with it."""
        lengths = piece.lengths.tolist()
        if output is not None:
            self.logits = output.logits.float().cpu()
        for row, item in list(self.open.items()):
            self.frames[row] += lengths[row]
            growing = self.timelines.get(row)
            if growing and lengths[row]:
                steps = -(-lengths[row] // stride)
                growing.add(output.timeline[row, :steps].float().cpu(), piece.frames[row, : lengths[row]])
            if lengths[row] == self.segment and not piece.last and row not in piece.failures:
                continue
            del self.open[row]
            failure = piece.failures.get(row, "" if self.frames[row] else "no frame could be read")
            logits = None if failure or self.logits is None else self.logits[row]
            if logits is not None and not bool(logits.isfinite().all()):
                logits, failure = None, "the model's answer is not finite: its weights are damaged"
            timeline = growing.timeline() if growing and not failure else None
            yield Answer(item, logits, self.frames[row], failure, timeline, piece.notes)


class Growing:
    """A timeline while its video is read. Of its frames every n-th is kept, n doubling as the video grows."""

    def __init__(self):
        self.logits: list[Tensor] = []
        self.pictures: dict[int, Tensor] = {}
        self.every, self.frames = 1, 0

    def add(self, logits: Tensor, frames: Tensor) -> None:
        self.logits.append(logits)
        for number, frame in enumerate(frames, self.frames):
            if number % self.every == 0:
                self.pictures[number] = frame.clone()
            if len(self.pictures) > PICTURES:
                self.every *= 2
                self.pictures = {n: p for n, p in self.pictures.items() if n % self.every == 0}
        self.frames += len(frames)

    def timeline(self) -> Timeline:
        return Timeline(torch.cat(self.logits), torch.stack(list(self.pictures.values())), list(self.pictures))


def in_order(answers: Iterator[Any], number: Callable[[Any], int]) -> Iterator[Any]:
    """The same from 0 on, each as soon as those before it are there."""
    waiting: dict[int, Any] = {}
    following = 0
    for answer in answers:
        waiting[number(answer)] = answer
        while following in waiting:
            yield waiting.pop(following)
            following += 1
