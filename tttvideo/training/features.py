"""The cache of features before a run, and the command `tttvideo cache` that fills it alone."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

import torch

from ..encoder.filling import Plan, fill, plan, size_of, trial
from ..model import VideoModel
from ..printing import printable
from ..video.features import IN_TIME, CachedFeatures
from ..video.index import Index
from ..video.reading import damaged_videos_named
from .arguments import parse
from .config import ConfigError, RunConfig
from .progress import clock
from .start import brings_encoder, start_from
from .validation import validation_videos


def fill_cache(
    model: VideoModel,
    reading: CachedFeatures,
    config: RunConfig,
    train: Index,
    val: Index | None,
    *,
    leader: bool = True,
) -> Plan:
    """Encodes what the cache lacks of the videos that a run reads; says before what that costs, and shows how far it
    is.

    Args:
        leader: one of the processes that call it together, which speaks.

    Returns:
        What was to be done; its ``bad`` are all videos that cannot be read.

    Raises:
        ConfigError: the cache keeps windows of frames, and others are asked for.
        DataError: the cache cannot be written.
    """
    from rich.console import Console
    from rich.progress import Progress

    _check_windows(reading, config, [index for index in (train, val) if index is not None])
    splits = [(train, None, reading.views)]
    if val is not None:
        splits.append((val, config.validation.max_frames, 1))
    training = model.training
    model.eval()
    lacking = plan(reading, splits)
    if leader:
        for note in lacking.notes:
            _say(f"note: {note}")
    if not lacking.jobs:
        return lacking
    if leader:
        rate, frames = trial(model.encoder, reading, lacking.jobs), lacking.frames
        there = f" ({lacking.kept} are there)" if lacking.kept else ""
        cost = f"{size_of(reading, frames) / 1e6:,.1f} MB"
        cost += f" and about {clock(frames / rate)} of one process, {rate:,.0f} frames/s" if rate else ""
        views = f"views of videos ({reading.views} each in training)" if reading.views > 1 else "videos"
        _say(f"cache  {len(lacking.jobs)} {views}, {frames:,} frames to encode into {reading.folder}{there}: {cost}")
    show = leader and sys.stderr.isatty()
    with Progress(console=Console(stderr=True), transient=True, disable=not show) as progress:
        task = progress.add_task("videos encoded", total=lacking.frames)
        bad = fill(model.encoder, reading, lacking.jobs, progress=lambda job: progress.advance(task, job.frames))
    model.train(training)
    return lacking._replace(bad=[*lacking.bad, *bad])


def _check_windows(reading: CachedFeatures, config: RunConfig, indexes: Sequence[Index]) -> None:
    """Windows of frames are kept from the beginning of each video on: only those can be read."""
    window, data = reading.window, config.data
    if window == 1:
        return
    start = f"the encoder's cache keeps windows of {window} frames"
    moved = [name for name in IN_TIME if name in data.augment.changes]
    if moved:
        raise ConfigError(f"{start}, and data.augment.{moved[0]} changes which frames these are; leave it out")
    reading.check_windows(())
    lengths = {"data.max_frames": data.max_frames, "validation.max_frames": config.validation.max_frames}
    lengths |= {"data.length_schedule": next((n for _, n in data.length_schedule if n % window), None)}
    for name, length in lengths.items():
        if length and length % window:
            raise ConfigError(f"{start}, and {name} is {length}; make it a multiple of {window}")
    for video in (video for index in indexes for video in index.videos):
        if video.start is not None or video.end is not None:
            raise ConfigError(
                f"{start} of whole videos, and {video.path} is listed with a start or an end; cut the file there, or "
                "set encoder.cache: null"
            )


def cache(argv: Sequence[str]) -> int:
    """encode the videos of a configuration ahead of training, into model.encoder.cache"""
    config, _ = parse(
        argv,
        prog="tttvideo cache",
        default_recipe=False,
        description="Encode the training and validation videos of a configuration with its frozen encoder into "
        "model.encoder.cache, as `tttvideo train` with the same settings would do first. Several processes (torchrun) "
        "or commands share the work; what is there stays. Exit code 1 if some videos cannot be read.",
    )
    from accelerate import PartialState

    if config.model.encoder.views == 0:
        raise ConfigError(
            "there is no cache to fill; set model.encoder.cache to a folder, of an encoder with frozen: true"
        )
    state = PartialState()
    data, task = config.data, config.model.task
    train = data.index(data.split_train, labelled=task.labelled)
    val, _ = validation_videos(config, train)
    torch.manual_seed(config.seed)  # the weights of an encoder without pre-trained ones are the run's
    model = VideoModel(
        config.model,
        preprocessing=data.preprocessing,
        labels=train.labels,
        multi_label=train.multi_label,
        load=not brings_encoder(config.init_from),
    ).to(state.device)
    for line in start_from(model, config.init_from).lines():
        if state.is_main_process:
            print(printable(line))
    reading = model.reading
    if not isinstance(reading, CachedFeatures):
        raise ConfigError(f"{type(config.model.encoder).__name__} reads features that are files already: nothing to do")
    with damaged_videos_named():
        done = fill_cache(
            model, replace(reading, augment=data.augment), config, train, val, leader=state.is_main_process
        )
    if state.is_main_process:
        total = len(done.jobs) + done.kept
        print(printable(f"{reading.key}: {total - len(done.bad)} of {total} videos (or views of them) are there"))
        for path, reason in done.bad:
            print(printable(f"  {path}: {reason}"))
    return int(bool(done.bad))


def _say(sentence: str) -> None:
    print(printable(sentence), file=sys.stderr, flush=True)
