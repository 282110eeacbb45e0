"""Steps of a run that is not begun: what they take of memory, and of time."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import psutil
import torch

from ..training.position import Progress
from ..training.run import Run
from ..video.dataset import FilmPart, FilmSegment, Sample, VideoDataset
from ..video.loader import Batch, Collate, SegmentBatch, SegmentCollate
from ..video.transforms import Preprocessing
from .allocated import bytes_of, peak_beyond

VIDEOS, DRAWS = 64, 4
"""Videos whose lengths are looked at, at most, and how often each is drawn."""
SMALLEST = 8
"""The first step whose memory is measured is that of a clip of an eighth of the frames."""


class Point(NamedTuple):
    """A training step: its batch, and the bytes that it has in memory at once beside what is always there."""

    videos: int
    frames: int
    bytes: int

    @property
    def work(self) -> int:
        return self.videos * self.frames


def clip_lengths(run: Run) -> list[int]:
    """Frames of clips as training draws them, in its last epoch (where a schedule's windows are longest); one number,
    that of a segment, where films are read in segments. Empty if none of the videos looked at can be read."""
    if run.config.training.carries:
        return [int(run.config.training.segment_frames or 0)]
    data, last = run.config.data, run.config.schedule.epochs - 1
    how: dict[str, Any] = {"augment": data.augment, "seed": run.config.seed, "max_frames": data.max_frames}
    reading = run.config.model.encoder.reading(data.preprocessing)
    dataset = VideoDataset(run.train, reading, schedule=data.length_schedule, **how)
    chosen = range(0, len(dataset), -(-len(dataset) // VIDEOS))
    lengths = [dataset.drawn_length(max(0, last - draw), i) for i in chosen for draw in range(DRAWS)]
    return [length for length in lengths if length]


def fixed_bytes(run: Run) -> int:
    """Of weights, their moving average and the optimizer's state, after a first step."""
    modules = [run.model, *([run.ema.module] if run.ema is not None else [])]
    tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    return bytes_of([*tensors, *(value for state in run.trainer.optimizer.state.values() for value in state.values())])


def memory_of_steps(run: Run, reading: Preprocessing, whole: tuple[int, int], seconds: float) -> list[Point]:
    """Takes steps that double in size, from a part of a clip to a ``whole`` batch (videos, frames), as long as time and
    memory last; of the last ones ``extrapolated`` tells what the whole one takes."""
    device, points = run.accelerator.device, list[Point]()
    begun, duration = time.perf_counter(), 0.0
    for videos, frames in _sizes(run, whole):
        left = seconds - (time.perf_counter() - begun)
        if len(points) > 1 and (
            2 * duration > left or points[-1].bytes * videos * frames > room(device) * points[-1].work
        ):
            break
        if not points:
            take_step(run, [random_batch(run, reading, [frames] * videos)])  # what an optimizer keeps is there now
        start = time.perf_counter()
        bytes_ = peak_beyond(lambda: take_step(run, [random_batch(run, reading, [frames] * videos)]), device)  # noqa: B023
        duration = time.perf_counter() - start
        points.append(Point(videos, frames, bytes_))
    return points


def _sizes(run: Run, whole: tuple[int, int]) -> Iterator[tuple[int, int]]:
    videos, frames = whole
    unit = run.model.frame_multiple
    encoder = run.config.model.encoder
    # a frozen encoder reads so many frames at a time: up to there memory grows faster than behind
    at_once = getattr(encoder, "frames_at_once", 0) or getattr(encoder, "at_once", 0)
    at_once = 0 if getattr(encoder, "learns", True) or encoder.views else at_once
    least = min(frames, max(unit, run.task.least_frames, at_once))
    shorter = [max(least, frames // part // unit * unit) for part in (SMALLEST, 4, 2)]
    yield from ((1, length) for length in dict.fromkeys([*shorter, frames]))
    count = 2
    while count < 2 * videos:
        yield min(count, videos), frames
        count *= 2


def extrapolated(points: Sequence[Point], work: int) -> int:
    """Bytes of a step of so many frames in all: what grows, grows with them (a longer clip or another one)."""
    *_, last = points
    before = points[-2] if len(points) > 1 else Point(0, 0, 0)
    slope = (last.bytes - before.bytes) / (last.work - before.work)
    return round(last.bytes + max(0.0, slope) * (work - last.work))


def room(device: torch.device) -> int:
    """Bytes that are free for tensors."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def random_batch(run: Run, reading: Preprocessing, lengths: Sequence[int]) -> Batch | SegmentBatch:
    """Clips of noise of these lengths, in place of videos."""
    (shape, kind), classes = reading.frame, len(run.train.labels)
    label = torch.zeros(classes) if run.train.multi_label else torch.tensor(0)
    collate = SegmentCollate if run.config.training.carries else Collate
    items: list[Any] = []
    for i, length in enumerate(lengths):
        frames = torch.randint(256, (length, *shape), dtype=torch.uint8)
        frames = frames if kind == torch.uint8 else frames.to(kind) / 256
        sample = Sample(frames, label, i, "noise")
        items.append(FilmSegment(FilmPart(0, i, 0, length), sample) if run.config.training.carries else sample)
    return collate(reading.frame, label.shape, label.dtype)(items)


def last_epoch(run: Run) -> Progress:
    """Its beginning: windows, and what a model predicts from its own predictions, are longest then."""
    before = run.config.schedule.epochs - 1
    return Progress(epoch=before, step=before * run.steps_per_epoch)


def take_step(run: Run, batches: Iterable[Any]) -> int:
    """One optimizer step of these batches; returns how many frames it read."""
    batches = list(batches)
    return next(iter(run.trainer.epoch(batches, len(batches), last_epoch(run)))).frames


class Pace(NamedTuple):
    """Steps of a trial: how many, their mean seconds and frames; ``real`` if videos were read for them."""

    steps: int
    seconds: float
    frames: float
    real: bool


def pace(run: Run, batches: Iterable[Any], real: bool, seconds: float) -> Pace:
    """Takes steps for so long, one at least. Where there are more, the first, in which workers start, is left out."""
    ends, frames, begun = [time.perf_counter()], [], time.perf_counter()
    for result in run.trainer.epoch(batches, run.n_batches, last_epoch(run)):
        ends.append(time.perf_counter())
        frames.append(result.frames)
        if ends[-1] - begun > seconds and len(frames) > 1:
            break
    if len(frames) > 1:
        ends, frames = ends[1:], frames[1:]
    return Pace(len(frames), (ends[-1] - ends[0]) / len(frames), sum(frames) / len(frames), real)
