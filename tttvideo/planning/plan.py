"""The command `tttvideo plan`: what a run costs before it is begun, and what to change where it does not fit."""

from __future__ import annotations

import math
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from operator import attrgetter
from typing import Any, NamedTuple, cast

from ..encoder.filling import plan as lacking_of
from ..encoder.filling import size_of
from ..encoder.filling import trial as encoding_rate
from ..inspection.costs import Part, costs, total
from ..printing import json_text, printable
from ..training.arguments import parse
from ..training.config import ConfigError, RunConfig
from ..training.progress import clock
from ..training.run import Run
from ..training.segments import check_segments
from ..video.features import CachedFeatures
from ..video.loader import EpochSampler
from ..video.reading import damaged_videos_named, usual_rate
from ..video.transforms import Preprocessing
from .trial import (
    Pace,
    Point,
    clip_lengths,
    extrapolated,
    fixed_bytes,
    memory_of_steps,
    pace,
    random_batch,
    room,
)

SECONDS = 10.0
"""Of the steps whose memory is measured, and again of the trial."""
MARGIN = 0.8
"""Share of a memory that suggestions fill: the estimate may be wrong by a fifth."""
CHUNKS = 8
"""Chunks that are computed again together, where checkpointing is tried."""


@dataclass(frozen=True)
class PlanConfig(RunConfig):
    """A run's settings, and what it shall fit into.

    Args:
        gpu: memory that the training shall fit into, such as 24GB (10^9 bytes each, which leaves the rest of such a
            card to its driver); null: that of the device here.
        json: print JSON in place of a table.
    """

    gpu: str | None = None
    json: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gpu is not None:
            memory_in_bytes(self.gpu)


def memory_in_bytes(text: str) -> int:
    """Raises ConfigError for what is no size such as 24GB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(GB|GiB|MB|MiB)", text.strip(), re.IGNORECASE)
    if not match or not 0 < float(match[1]) < math.inf:
        raise ConfigError(f"gpu must be a memory such as 24GB (or GiB, MB, MiB), not {text!r}")
    unit = {"gb": 10**9, "gib": 2**30, "mb": 10**6, "mib": 2**20}[match[2].lower()]
    return int(float(match[1]) * unit)


class Memory(NamedTuple):
    """Bytes of a training step.

    Attributes:
        videos, frames: of its batch, the longest that training draws.
        fixed: weights, their average and the optimizer's state.
        points: the steps that were measured.
        limit: what there is.
    """

    videos: int
    frames: int
    fixed: int
    points: list[Point]
    limit: int

    def peak(self, frames: float) -> int:
        """Of a batch of so many frames in all."""
        return self.fixed + extrapolated(self.points, round(frames))

    @property
    def whole(self) -> int:
        return self.peak(self.videos * self.frames)

    def most(self) -> int:
        """Frames of a batch that fill ``MARGIN`` of the limit, which the whole batch does not fit into; 0 if none
        do."""
        work = self.videos * self.frames
        slope, least = (self.peak(2 * work) - self.whole) / work, self.peak(0)
        return int(max(0.0, MARGIN * self.limit - least) / slope) if slope else 0


def plan(argv: Sequence[str]) -> int:
    """what a run costs in memory and time, before it is begun"""
    config, _ = parse(
        argv,
        prog="tttvideo plan",
        cls=PlanConfig,
        description="Say before a run what it costs: parameters, tokens, FLOPs, state, memory of a training step, the "
        "cache of features and the time of an epoch, after ten seconds of real steps; and what to change where it does "
        "not fit. Takes the settings of `tttvideo train`; nothing is written.",
    )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("tttvideo plan looks at one process; start it without torchrun")
    with tempfile.TemporaryDirectory() as folder, damaged_videos_named():
        silent = {"out": os.path.join(folder, "run"), "resume": None, "folds": None, "trackers": (), "processes": None}
        fold = (1, config.folds) if config.folds else config.data.fold
        run = Run(replace(config, data=replace(config.data, cache="none", fold=fold), **silent), "")
        run.index()
        run.build(None)
        report = _report(run, config)
    if config.json:
        print(json_text(report))
    else:
        _print(report)
    return 0


def _report(run: Run, config: PlanConfig) -> dict[str, Any]:
    parts, model, device = costs(run.model), run.model, run.accelerator.device
    lengths = clip_lengths(run)
    if not lengths:
        raise ConfigError("none of the training videos that were looked at can be read; see `tttvideo check`")
    reading = model.reading
    if isinstance(reading, CachedFeatures):
        reading = replace(reading, augment=config.data.augment)
    cache = _cache(run, reading) if isinstance(reading, CachedFeatures) else None
    whole = (min(config.data.batch_size, len(run.train.videos)), max(lengths))
    points = memory_of_steps(run, reading, whole, SECONDS)
    limit = memory_in_bytes(config.gpu) if config.gpu else room(device)
    memory = Memory(*whole, fixed_bytes(run), points, limit)
    run.train_batches = run.training_videos(reading)
    steps = run.steps_per_epoch
    measured = _trial(run, reading, cache, lengths) if memory.whole < room(device) else None
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    paths = [video.path for video in run.train.videos]
    rate = usual_rate(paths, run.config.model.encoder.reading(config.data.preprocessing))
    tokens = math.prod(model.encoder.grid) / model.encoder.stride
    return {
        "parameters": {"trainable": trainable, "frozen": total(parts).parameters - trainable},
        "tokens_per_frame": tokens,
        "tokens_per_hour": None if rate is None else round(tokens * rate * 3600),
        "parts": [part._asdict() for part in [*parts, total(parts)]],
        "memory": {
            "device": config.gpu or device.type,
            "limit": limit,
            "peak": memory.whole,
            "fixed": memory.fixed,
            "videos": memory.videos,
            "frames": memory.frames,
            "measured": [point._asdict() for point in points],
        },
        "cache": cache,
        "steps_per_epoch": steps,
        "epochs": run.config.schedule.epochs,
        "folds": config.folds,
        "trial": None if measured is None else {**measured._asdict(), "epoch_seconds": measured.seconds * steps},
        "change": list(_changes(run, reading, memory, parts)),
    }


def _cache(run: Run, reading: CachedFeatures) -> dict[str, Any]:
    splits = [(run.train, None, reading.views)]
    if run.val is not None:
        splits.append((run.val, run.config.validation.max_frames, 1))
    lacking = lacking_of(reading, splits)
    rate = encoding_rate(run.model.encoder.eval(), reading, lacking.jobs)
    return {
        "folder": reading.folder,
        "kept": lacking.kept,
        "lacking": len(lacking.jobs),
        "frames": lacking.frames,
        "bytes": size_of(reading, lacking.frames),
        "bytes_per_frame": size_of(reading, 1),
        "seconds": lacking.frames / rate if rate else None,
    }


def _trial(run: Run, reading: Preprocessing, cache: dict[str, Any] | None, lengths: list[int]) -> Pace:
    """Of real batches; where features are not encoded yet, of noise in their place."""
    if cache and cache["lacking"]:
        size = min(run.config.data.batch_size, len(run.train.videos))
        clips = cycle(lengths)
        batches: Iterator[Any] = iter(lambda: random_batch(run, reading, [next(clips) for _ in range(size)]), None)
        return pace(run, batches, False, SECONDS)
    order = cast(EpochSampler, run.train_batches.batch_sampler)
    order.start_at(run.config.schedule.epochs - 1)
    return pace(run, run.train_batches, True, SECONDS)


def _changes(run: Run, reading: Preprocessing, memory: Memory, parts: list[Part]) -> Iterator[str]:
    """What to change, a sentence each: where it does not fit, and where a frozen encoder is most of the work."""
    config, encoder = run.config, run.config.model.encoder
    share = parts[0].flops / max(1, total(parts).flops)
    cacheable = getattr(encoder, "frozen", False) and getattr(encoder, "cache", "no such setting") is None
    if cacheable and share > 0.5:
        yield (
            f"--model.encoder.cache FOLDER: the frozen encoder is {share:.0%} of the FLOPs of a frame; it then reads "
            "each video once"
        )
    if memory.whole <= memory.limit:
        if memory.whole > MARGIN * memory.limit:
            yield f"it is tight: the estimate fills {memory.whole / memory.limit:.0%} and may be wrong by a fifth"
        return
    most = memory.most()
    if most >= memory.frames:
        size = most // memory.frames
        groups = math.ceil(memory.videos * config.accumulate / size)
        peak = _size(memory.peak(size * memory.frames))
        yield f"--data.batch_size {size} --accumulate {groups}: the same step in {peak}"
    unit = run.model.frame_multiple
    least = max(unit, run.task.least_frames)
    frames = min(most // memory.videos, memory.frames) // unit * unit
    if frames >= least:
        name = "training.segment_frames" if config.training.segment_frames else "data.max_frames"
        peak = _size(memory.peak(frames * memory.videos))
        yield f"--{name} {frames}: batches of {memory.videos} in {peak}"
        if words := words_of_segments(run, frames):
            yield f"{words}: the same memory, for films of any length"
    if run.model.inner_rates() and not config.activation_checkpointing:
        run.model.set_checkpointing(CHUNKS)
        points = memory_of_steps(run, reading, (memory.videos, memory.frames), SECONDS / 2)
        peak = memory._replace(points=points).whole
        if peak < 0.95 * memory.whole:
            yield f"--activation_checkpointing {CHUNKS}: the same step in {_size(peak)}, more slowly"
    if not most:
        yield (
            f"a smaller model: weights, optimizer and gradients alone take "
            f"{_size(memory.peak(0))}; lower model.backbone.width or depth"
        )


def words_of_segments(run: Run, frames: int) -> str | None:
    """What to add so that films are read in segments: what does not go with them is left out. None where they are, or
    where something else is in the way."""
    config, data = run.config, run.config.data
    off = {"data.augment.speed": "1,1", "data.augment.drop": "0", "data.buckets": "1", "data.balance": "false"}
    off |= {"mix.mixup": "0", "mix.cutmix": "0"}
    if config.training.segment_frames:
        return None
    augment = replace(data.augment, speed=(1.0, 1.0), drop=0.0)
    try:
        segments = replace(
            config,
            data=replace(data, max_frames=None, buckets=1, balance=False, augment=augment),
            mix=replace(config.mix, mixup=0.0, cutmix=0.0),
            training=replace(config.training, segment_frames=frames),
        )
        check_segments(run.model, segments.training)
    except ConfigError:
        return None
    changed = [f"--{key} {value}" for key, value in off.items() if attrgetter(key)(config) != attrgetter(key)(segments)]
    return " ".join(["--data.max_frames null", *changed, f"--training.segment_frames {frames}"])


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False)
    for name, value in _rows(report):
        table.add_row(name, Text(printable(value)))
    Console().print(table)


def _rows(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    weights, memory, cache, trial = (report[name] for name in ("parameters", "memory", "cache", "trial"))
    yield "parameters", f"{weights['trainable']:,} trained, {weights['frozen']:,} frozen"
    hour = report["tokens_per_hour"]
    yield "tokens", f"{report['tokens_per_frame']:g} a frame" + (f", {hour:,} an hour" if hour else "")
    counted = [part for part in report["parts"] if part["flops"]]
    for row, part in enumerate(counted):
        name = " ".join(word for word in (part["name"], part["what"]) if word)
        yield "" if row else "FLOPs a frame", f"{_quantity(part['flops']):>6}  {name}"
    yield "state", _size(report["parts"][-1]["state_bytes"])
    last = memory["measured"][-1]
    whole = (last["videos"], last["frames"]) == (memory["videos"], memory["frames"])
    how = "measured" if whole else f"from steps of up to {last['videos']} x {last['frames']}"
    batch = f"{memory['videos']} videos x {memory['frames']} frames, {how}"
    peak, fixed = _size(memory["peak"]), _size(memory["fixed"])
    yield "memory of a step", f"{peak} ({batch}); {fixed} of it are weights and optimizer"
    fits = "fits into" if memory["peak"] <= memory["limit"] else "DOES NOT FIT into"
    free = memory["device"] in ("cpu", "cuda")
    name = f"what is free on {memory['device']}, {_size(memory['limit'])}" if free else memory["device"]
    yield "", f"{fits} {name}"
    if cache:
        there = f", {cache['kept']} are there" if cache["kept"] else ""
        time = f", about {clock(cache['seconds'])}" if cache["seconds"] else ""
        size, frame = _size(cache["bytes"]), _size(cache["bytes_per_frame"])
        yield "cache", f"{size} for {cache['lacking']} videos to encode{there} ({frame} a frame){time}"
    if trial is None:
        yield "time", "no trial: a step does not fit into the memory that is free here"
    else:
        what = "" if trial["real"] else ", of noise in place of features that are not encoded yet"
        yield "time", f"{trial['seconds']:.3g} s a step of {trial['frames']:,.0f} frames ({trial['steps']} tried{what})"
        epoch, epochs = trial["epoch_seconds"], report["epochs"]
        one = f"{clock(epoch)} an epoch of {report['steps_per_epoch']} steps"
        folds = f", {clock(epoch * epochs * report['folds'])} the {report['folds']} folds" if report["folds"] else ""
        yield "", f"{one}, {clock(epoch * epochs)} the {epochs} epochs{folds}, without validation"
    for sentence in report["change"]:
        yield "change", sentence


def _size(count: float) -> str:
    return f"{_quantity(count)}B"


def _quantity(count: float) -> str:
    """1.23 G, 45.6 M, 789 k."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.4g} {name}" if count >= 999.5 * unit else f"{count / unit:.3g} {name}"
    return f"{count:.0f} "
