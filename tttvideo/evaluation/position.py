"""Loss against position: does a model get better the more of a video it has read? (The paper's figure 2, for video.)"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..devices import one_process
from ..measuring import PositionConfig, parse_runs
from ..model import VideoModel
from ..video.index import Index, label_tensor
from ..video.reading import damaged_videos_named
from ..video.segments import read_segments
from .bootstrap import Bootstrap, Samples
from .scoring import segment_of
from .session import open_checkpoint, open_session
from .settings import check_lengths
from .table import MODEL, Condition, Table, VideoKey, position_table

POINTS = 512
"""Positions of a curve, at most; longer ones are averaged."""


class Losses(NamedTuple):
    """Of one checkpoint, by the number of frames that were read before them."""

    frames: list[float]
    losses: np.ndarray  # float64 [V, points], NaN where a video has none
    failures: dict[int, str]  # of videos, by their place in the index


class Curve(NamedTuple):
    """Mean over videos, and over seeds, of a loss after so many frames were read."""

    frames: list[float]  # read before the loss was taken
    loss: list[float]
    low: list[float]  # of a 95 % interval, bootstrapped over videos and seeds
    high: list[float]
    videos: list[int]  # that are so long: from where they get fewer, the line is of others than before
    seeds: int


@torch.no_grad()
def losses_by_position(
    model: VideoModel,
    index: Index,
    *,
    frames: int | None = None,
    batch_size: int = 8,
    segment: int | None = None,
) -> Losses:
    """Losses of a model over the videos of a split, each cut to its first ``frames``; the task says which loss.

    Raises:
        ValueError: for a model that does not stream, as what it says of a position has seen later ones, and for a
            segment at whose end it cannot be cut.
    """
    if not model.streams:
        raise ValueError("loss by position needs a model that reads forwards; this one has read the end at every frame")
    multiple, stride, segment = model.frame_multiple, model.encoder.stride, segment_of(model, segment)
    labels = label_tensor(index)
    rows: dict[int, Tensor] = {}
    failures: dict[int, str] = {}
    for start in range(0, len(index.videos), batch_size):
        videos = index.videos[start : start + batch_size]

        def pieces(videos=videos, start=start):
            spans = [(video.start, video.end) for video in videos]
            paths = [video.path for video in videos]
            reading = model.reading_of(paths, spans, model.preprocessing.sampling, frames)
            for part in read_segments(paths, reading, segment=segment, max_frames=frames, spans=spans):
                for i, reason in part.failures.items():
                    failures[start + i] = reason.removeprefix(f"{paths[i]}: ")
                if part.lengths.any():
                    yield part.frames, part.lengths

        reads = model.outputs(pieces())
        losses = list(model.head.step_losses(reads, labels[start : start + len(videos)], stride, multiple))
        if losses:
            joined = torch.cat(losses, 1)
            joined[[i for i in range(len(videos)) if start + i in failures]] = torch.nan
            rows |= {start + i: row for i, row in enumerate(joined)}
    longest = max(map(len, rows.values()), default=0)
    table = torch.full((len(index.videos), longest), torch.nan, dtype=torch.float64)
    for i, values in rows.items():
        table[i, : len(values)] = values
    return Losses(*_averaged(table, stride, int(model.head.reads_step)), failures)


def _averaged(table: Tensor, stride: int, offset: int) -> tuple[list[float], np.ndarray]:
    """Losses [V, S] of time steps to frames and losses [V, points], at most POINTS of them, each a mean over steps;
    ``offset`` time steps were read before the first."""
    steps = table.shape[1]
    group = -(-steps // POINTS) or 1
    frames, columns = [], []
    for first in range(0, steps, group):
        column = table[:, first : first + group].nanmean(1)
        if column.isnan().all():
            continue
        last = min(first + group, steps)
        frames.append(stride * ((first + last - 1) / 2 + offset))
        columns.append(column)
    return frames, (torch.stack(columns, 1) if columns else table[:, :0]).numpy()


def position_table_of(index: Index, losses: Losses, about: Mapping[str, Any] = {}) -> Table:
    """The table of one checkpoint."""
    videos = [
        (v.path, "" if v.start is None else str(v.start), "" if v.end is None else str(v.end)) for v in index.videos
    ]
    return position_table(Condition(""), losses.frames, videos, losses.losses, dict(about))


def curve_of(seeds: Sequence[Table], bootstrap: Bootstrap) -> tuple[Curve, np.ndarray, list[VideoKey]]:
    """The curve of the videos and positions that all seeds have, and what it is the mean of: losses [seeds, V, points],
    NaN where a video has none, and the videos."""
    frames = sorted(set.intersection(*(set(seed.x) for seed in seeds)))
    videos = sorted(set.intersection(*(set(seed.measured()) for seed in seeds)))
    losses = np.full((len(seeds), len(videos), len(frames)), np.nan)
    for rows, seed in zip(losses, seeds):
        order = {video: i for i, video in enumerate(seed.videos)}
        chosen = np.ix_([order[video] for video in videos], [seed.x.index(frame) for frame in frames])
        rows[:] = np.where(seed.counts[chosen] > 0, seed.sums[MODEL][chosen], np.nan)
    present = np.logical_not(np.isnan(losses).any(axis=0))  # [V, points]
    kept = np.flatnonzero(present.any(0))
    losses = losses[:, :, kept]
    if not losses.size:
        return Curve([], [], [], [], [], len(seeds)), losses, videos
    interval = bootstrap.interval(Samples.known(np.where(present[:, kept], losses, np.nan)))
    means, low, high = (values.tolist() for values in interval)
    count = present.sum(0)[kept].tolist()
    return Curve([frames[i] for i in kept], means, low, high, count, len(seeds)), losses, videos


def position_sentence(curve: Mapping[str, Any]) -> str:
    """The two ends of a curve, of the same videos; where only longer ones reach its end, they stand by themselves."""
    frames, loss, videos = curve["frames"], curve["loss"], curve["videos"]
    last = next((i for i, n in enumerate(videos) if n != videos[0]), len(videos)) - 1
    text = f"{loss[0]:.4g} after {frames[0]:g} frames, {loss[last]:.4g} after {frames[last]:g} ({videos[0]} videos)"
    if last + 1 == len(frames):
        return text
    return f"{text}; of the {videos[-1]} longest of them, {loss[-1]:.4g} after {frames[-1]:g}"


@damaged_videos_named()
def positions(config: PositionConfig) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The curves of several models on the same videos, each over all of its seeds.

    Returns the content of position.json, and of position.npz: ``losses_0`` [seeds, V, points] of the first model, NaN
    where a video has none, and ``videos_0`` [V, 3], path, start and end of each; ``losses_1`` of the second, ...

    Raises:
        ValueError: for checkpoints of different tasks, conditions that cannot be, or when no video can be read.
    """
    one_process()
    runs = parse_runs(config.runs)
    cut = None if config.frames == "all" else int(config.frames)
    series: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}
    kinds: dict[tuple[str, str], str] = {}  # task and unit -> run
    failed: dict[str, str] = {}
    rule, bootstrap = "", Bootstrap()
    for number, run in enumerate(runs):
        seeds, weights = [], []
        for folder in run.folders:
            opened = open_checkpoint(folder, device=config.device, trust=config.trust)
            kinds.setdefault((opened.source.task, opened.model.head.unit), run.name)
            _check_one_kind(kinds)
            session = open_session(opened, config.data, split=config.split, root=config.root)
            index = session.index
            check_lengths(index, [cut], [], [], session.model.preprocessing.stream)
            losses = losses_by_position(
                session.model, index, frames=cut, batch_size=config.batch_size, segment=config.segment
            )
            seeds.append(position_table_of(index, losses))
            weights.append(session.source.sha256)
            rule = index.rule
            failed |= {index.videos[i].path: reason for i, reason in sorted(losses.failures.items())}
        curve, values, videos = curve_of(seeds, bootstrap)
        if not curve.loss:
            reason = next((f" (first: {path}: {reason})" for path, reason in failed.items()), "")
            raise ValueError(
                f"{run.name} has no finite loss on any video of split {index.split}{reason}; its weights may be "
                "damaged, or the videos too short"
            )
        series[run.name] = curve._asdict() | {"weights_sha256": weights}
        arrays |= {f"losses_{number}": values.astype(np.float32), f"videos_{number}": np.array(videos)}
    ((task, unit),) = kinds
    failures = [{"path": path, "reason": reason} for path, reason in failed.items()]
    about = {"task": task, "unit": unit, "data": config.data, "split_rule": rule}
    return about | {"series": series, "failures": failures}, arrays


def _check_one_kind(kinds: Mapping[tuple[str, str], str]) -> None:
    if len(kinds) > 1:
        ((task, unit), first), ((other, others), run) = kinds.items()
        if task != other:
            raise ValueError(f"{run} was trained for {other} and {first} for {task}; compare equal tasks")
        raise ValueError(f"{run} is measured in {others} and {first} in {unit}, which cannot be compared")


def position_protocols(tables: dict[str, list[Table]], bootstrap: Bootstrap) -> dict[str, Any]:
    """Loss by position of every run, over its seeds, for each data set.

    Raises:
        ValueError: for losses of different kinds on one data set.
    """
    protocols: dict[str, Any] = {}
    sets = list(dict.fromkeys(table.condition.data for seeds in tables.values() for table in seeds))
    for data in sets:
        mine = {run: [table for table in seeds if table.condition.data == data] for run, seeds in tables.items()}
        units = {table.about["unit"] for seeds in mine.values() for table in seeds}
        if len(units) > 1:
            raise ValueError(f"losses by position on {data} are of different kinds ({'; '.join(sorted(units))})")
        curves = {run: curve_of(seeds, bootstrap)[0]._asdict() for run, seeds in mine.items() if seeds}
        name = "position" if len(sets) == 1 else f"position, {data}"
        protocols[name] = position_protocol(f"{data}: loss by position", units.pop(), curves)
    return protocols


def position_protocol(title: str, unit: str, curves: dict[str, Any], *, numbered: bool = False) -> dict[str, Any]:
    """The protocol of curves as position.json has them.

    Args:
        numbered: names of lines say how many videos they are of.
    """
    xs = sorted({frame for curve in curves.values() for frame in curve["frames"]})
    series = {}
    for run, curve in curves.items():
        at = {frame: i for i, frame in enumerate(curve["frames"])}
        columns = {"mean": curve["loss"], "low": curve["low"], "high": curve["high"], "n": curve["videos"]}
        values = {name: [column[at[x]] if x in at else None for x in xs] for name, column in columns.items()}
        line = {"run": run, "control": "", "seeds": curve["seeds"]}
        series[f"{run} (n = {curve['videos'][0]})" if numbered and curve["videos"] else run] = line | values
    return {
        "title": title,
        "x_label": "frames read",
        "x": xs,
        "numeric": True,
        "joined": True,
        "by_position": True,
        "unit": unit if unit.startswith("squared error") else f"loss ({unit})",
        "lower_is_better": True,
        "series": series,
        "ceiling": [None] * len(xs),
        "chance": None,
    }
