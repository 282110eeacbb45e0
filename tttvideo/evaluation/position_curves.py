"""Curves of loss against position: of several checkpoints on one command line, and of what earlier commands left."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tttvideo.evaluation.bootstrap import Bootstrap, Samples
from tttvideo.evaluation.checkpoint import inspect_checkpoint
from tttvideo.evaluation.config import PositionConfig
from tttvideo.evaluation.evaluate import best_device, choose_device, default_split, one_process
from tttvideo.evaluation.forecaster import space_of
from tttvideo.evaluation.lengths import check_lengths
from tttvideo.evaluation.measured import Positions, Seed, Video
from tttvideo.evaluation.named import Named, parse_named
from tttvideo.evaluation.position import Losses, losses_by_position
from tttvideo.pretrained import from_pretrained
from tttvideo.video.index import Index, build_index

UNITS = {
    "classes": "nats",
    "pixels": "squared error of a frame (sum over its pixels in 0..1)",
    "features": "squared error of a frame (sum over its features)",
}


class Curve(NamedTuple):
    """Mean over videos, and over seeds, of a loss after so many frames were read."""

    frames: list[float]  # read before the loss was taken
    loss: list[float]
    low: list[float]  # of a 95 % interval, bootstrapped over videos and seeds
    high: list[float]
    videos: list[int]  # that are so long: from where they get fewer, the line is of others than before
    seeds: int


def curve_of(seeds: Sequence[Seed], bootstrap: Bootstrap) -> tuple[Curve, np.ndarray, list[Video]]:
    """The curve of the videos and positions that all seeds have, and what it is the mean of: losses [seeds, V, points],
    NaN where a video has none, and the videos."""
    frames = sorted(set.intersection(*(set(seed.frames) for seed in seeds)))
    videos = sorted(set.intersection(*(set(seed.losses) for seed in seeds)))
    table = np.full((len(seeds), len(videos), len(frames)), np.nan)
    for own, seed in zip(table, seeds):
        chosen = [seed.frames.index(frame) for frame in frames]
        for row, video in zip(own, videos):
            row[:] = seed.losses[video][chosen]
    there = np.logical_not(np.isnan(table).any(axis=0))  # [V, points]
    kept = np.flatnonzero(there.any(0))
    table = table[:, :, kept]
    if not table.size:
        return Curve([], [], [], [], [], len(seeds)), table, videos
    interval = bootstrap.interval(Samples.known(np.where(there[:, kept], table, np.nan)))
    means, low, high = (values.tolist() for values in interval)
    count = there.sum(0)[kept].tolist()
    return Curve([frames[i] for i in kept], means, low, high, count, len(seeds)), table, videos


def position_sentence(curve: Mapping[str, Any]) -> str:
    """The two ends of a curve, of the same videos; where only longer ones reach its end, they stand by themselves."""
    frames, loss, videos = curve["frames"], curve["loss"], curve["videos"]
    last = next((i for i, n in enumerate(videos) if n != videos[0]), len(videos)) - 1
    text = f"{loss[0]:.4g} after {frames[0]:g} frames, {loss[last]:.4g} after {frames[last]:g} ({videos[0]} videos)"
    if last + 1 == len(frames):
        return text
    return f"{text}; of the {videos[-1]} longest of them, {loss[-1]:.4g} after {frames[-1]:g}"


def positions(config: PositionConfig) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """``compare_positions`` of a configuration; ``write_positions`` takes what it returns."""
    return compare_positions(
        parse_named(config.runs),
        config.data,
        split=config.split,
        root=config.root,
        frames=None if config.frames == "all" else int(config.frames),
        batch_size=config.batch_size,
        segment=config.segment,
        device=config.device,
        trust=config.trust,
    )


def compare_positions(
    runs: Sequence[Named],
    data: str | Path,
    *,
    split: str | None = None,
    root: str | Path | None = None,
    frames: int | None = None,
    batch_size: int = 8,
    segment: int | None = None,
    device: str | None = None,
    trust: bool = False,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The curves of several models on the same videos, each over all of its seeds.

    Returns the content of position.json, and of position.npz: ``losses_0`` [seeds, V, points] of the first model, NaN
    where a video has none, and ``videos_0`` [V, 3], path, start and end of each; ``losses_1`` of the second, ...

    Raises:
        ValueError: for checkpoints of different tasks, settings that cannot be, or when no video can be read.
    """
    one_process()
    if batch_size < 1 or (frames is not None and frames < 1):
        raise ValueError(f"--batch-size ({batch_size}) and --frames ({frames}) must be at least 1")
    place = choose_device(device) or best_device()
    series: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}
    kinds: dict[tuple[str, str], str] = {}  # task, and what is predicted -> run
    failed: dict[str, str] = {}
    rule, bootstrap = "", Bootstrap()
    for number, run in enumerate(runs):
        seeds, marks = [], []
        for folder in run.folders:
            source = inspect_checkpoint(folder)
            model = from_pretrained(source.folder, trust=trust).to(place)
            labelled = source.task == "Classification"
            kinds.setdefault((source.task, "classes" if labelled else space_of(model)), run.name)
            _one_kind(kinds)
            chosen: dict[str, Any] = (
                {"labels": model.labels, "multi_label": model.multi_label} if labelled else {"labelled": False}
            )

            def read(part: str, chosen=chosen, source=source) -> Index:
                return build_index(data, part, root=root, **chosen, **source.drawn)

            index = read(split or default_split(data, root, source, read, labelled=labelled))
            check_lengths(index, [frames], [], [], model.preprocessing.stream)
            found = losses_by_position(model, index, frames=frames, batch_size=batch_size, segment=segment)
            seeds.append(_seed(index, found))
            marks.append(source.sha256)
            rule = index.rule
            failed |= {index.videos[i].path: reason for i, reason in sorted(found.failures.items())}
        curve, table, videos = curve_of(seeds, bootstrap)
        if not curve.loss:
            reason = next((f" (first: {path}: {reason})" for path, reason in failed.items()), "")
            raise ValueError(
                f"{run.name} has no finite loss on any video of split {index.split}{reason}; its weights may be "
                "damaged, or the videos too short"
            )
        series[run.name] = curve._asdict() | {"weights_sha256": marks}
        arrays |= {f"losses_{number}": table.astype(np.float32), f"videos_{number}": np.array(videos)}
    ((task, kind),) = kinds
    failures = [{"path": path, "reason": reason} for path, reason in failed.items()]
    about = {"task": task, "unit": UNITS[kind], "data": str(data), "split_rule": rule}
    return about | {"series": series, "failures": failures}, arrays


def _one_kind(kinds: Mapping[tuple[str, str], str]) -> None:
    if len(kinds) > 1:
        ((task, kind), first), ((other, others), run) = kinds.items()
        if task != other:
            raise ValueError(f"{run} was trained for {other} and {first} for {task}; compare equal tasks")
        raise ValueError(f"{run} predicts {others} and {first} {kind}, which cannot be compared")


def _seed(index: Index, found: Losses) -> Seed:
    videos = [
        (v.path, "" if v.start is None else str(v.start), "" if v.end is None else str(v.end)) for v in index.videos
    ]
    read = (i for i, row in enumerate(found.losses) if not np.isnan(row).all())
    return Seed(found.frames, {videos[i]: found.losses[i] for i in read})


def position_protocols(found: dict[str, list[Positions]], bootstrap: Bootstrap) -> dict[str, Any]:
    """Loss by position of every run, over its seeds, for each data set.

    Raises:
        ValueError: for losses of different kinds on one data set.
    """
    protocols: dict[str, Any] = {}
    sets = list(dict.fromkeys(one.data for curves in found.values() for one in curves))
    for data in sets:
        mine = {run: [one for one in curves if one.data == data] for run, curves in found.items()}
        units = {one.unit for curves in mine.values() for one in curves}
        if len(units) > 1:
            raise ValueError(f"losses by position on {data} are of different kinds ({'; '.join(sorted(units))})")
        curves = {
            run: curve_of([seed for one in own for seed in one.seeds], bootstrap)[0] for run, own in mine.items() if own
        }
        xs = sorted({frame for curve in curves.values() for frame in curve.frames})
        protocols["position" if len(sets) == 1 else f"position, {data}"] = {
            "title": f"{data}: loss by position",
            "x_label": "frames read",
            "x": xs,
            "numeric": True,
            "joined": True,
            "by_position": True,
            "unit": f"loss ({next(iter(units))})" if units == {UNITS["classes"]} else next(iter(units)),
            "lower_is_better": True,
            "series": {run: _line(run, curve, xs) for run, curve in curves.items()},
            "ceiling": [None] * len(xs),
            "chance": None,
        }
    return protocols


def _line(run: str, curve: Curve, xs: Sequence[float]) -> dict[str, Any]:
    place = {frame: i for i, frame in enumerate(curve.frames)}
    columns = {"mean": curve.loss, "low": curve.low, "high": curve.high, "n": curve.videos}
    values = {name: [own[place[x]] if x in place else None for x in xs] for name, own in columns.items()}
    return {"run": run, "control": "", "seeds": curve.seeds} | values
