"""Fills a cache of features: which videos are missing, what they cost, and one file after the other.

Any number of processes may fill one cache: each takes the next video that nobody has in hand. Whatever ends one of
them costs the file in hand.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..files import replacing
from ..printing import printable
from ..video.features import PATH, CachedFeatures, Part, longest, marks_of
from ..video.index import Index
from ..video.reader import Reader, VideoError
from ..video.reading import catch_damage
from ..video.rows import RowsWriter, writing
from ..video.segments import ahead
from .base import FrameEncoder

ABOUT = "about.json"
PIECE = 64
"""Frames that are decoded and encoded together."""
_TRIAL = 2 * PIECE
_PATIENCE = 0.5  # seconds between two looks at what other processes have in hand


class Job(NamedTuple):
    """A view of a video that is to be encoded."""

    path: str
    view: int
    parts: tuple[Part, ...]  # what of the video will be read
    frames: int  # to encode; 0 for a video that cannot be opened


class Plan(NamedTuple):
    """What a cache lacks."""

    jobs: list[Job]
    kept: int  # views of videos that are there
    bad: list[tuple[str, str]]  # (path, reason) of videos of which it is known that they cannot be read
    notes: list[str]  # sentences on what is there and does not match

    @property
    def frames(self) -> int:
        return sum(job.frames for job in self.jobs)


def plan(reading: CachedFeatures, parts: Sequence[tuple[Index, int | None, int]]) -> Plan:
    """What is missing of some splits.

    Args:
        parts: of each split the index, frames that videos are cut to (None: none are), and how many views are read.
    """
    wanted: dict[tuple[str, int], list[Part]] = {}
    for index, first, views in parts:
        for video in index.videos:
            for view in range(views):
                wanted.setdefault((video.path, view), []).append((video.start, video.end, first))
    jobs, bad, changed, lacking = [], {}, 0, 0
    for (path, view), spans in wanted.items():
        of_view = replace(reading, view=view)
        if of_view.holds(path, spans):
            if reason := _refusal(of_view, path):
                bad[path] = reason
            continue
        if (kept := of_view.kept(path)) is None:
            changed += of_view.file(path).exists()
        else:
            lacking += "refused" not in kept.about
        frames = 0
        with suppress(VideoError, OSError), reading.pixels.open(path) as video:
            frames = len(reading.wanted(video, spans))
        jobs.append(Job(path, view, tuple(spans), frames))
    notes = [said] if jobs and not reading.key.exists() and (said := _other_settings(reading)) else []
    if changed:
        notes.append(f"{changed} files of the cache are damaged, or of videos that have changed: computed anew")
    if lacking:
        notes.append(f"{lacking} files of the cache hold other frames than are asked for now: computed anew")
    return Plan(jobs, len(wanted) - len(jobs), list(bad.items()), notes)


def size_of(reading: CachedFeatures, frames: int) -> int:
    """Bytes that the cache takes for so many frames."""
    channels, rows, columns = reading.shape
    return frames * (2 * channels * rows * columns // reading.window + 16)


def trial(encoder: FrameEncoder, reading: CachedFeatures, jobs: Sequence[Job]) -> float | None:
    """Frames a second that are decoded and encoded here, of the first video that can be read; None: of none."""
    for job in jobs:
        if not job.frames:
            continue
        begun, done = time.perf_counter(), 0
        try:
            with catch_damage(), reading.pixels.open(job.path) as video:
                wanted = reading.wanted(video, job.parts)[: max(_TRIAL, reading.window)]
                for frames in video.stream(wanted, batch=_piece(reading)):
                    _encoded(encoder, reading, reading.pixels.apply(frames), job.path)
                    done += len(frames)
        except (VideoError, OSError):
            continue
        return done / (time.perf_counter() - begun)
    return None


def fill(
    encoder: FrameEncoder,
    reading: CachedFeatures,
    jobs: Sequence[Job],
    *,
    progress: Callable[[Job], Any] = lambda job: None,
) -> list[tuple[str, str]]:
    """Encodes what no other process does, and waits for those.

    Args:
        encoder: on the device that it computes on, in evaluation mode.
        progress: called with each view that is done, by whomever.

    Returns:
        (path, reason) of the videos that cannot be read.

    Raises:
        DataError: the cache cannot be written, or no file holds what is asked for.
    """
    for job in jobs:
        reading.check_windows(job.parts)
    bad: dict[str, str] = {}
    waiting = list(jobs)
    for view in sorted({job.view for job in jobs}):
        _describe(replace(reading, view=view))
    while waiting:
        busy = []
        for job in waiting:
            of_view = replace(reading, view=job.view)
            if not of_view.holds(job.path, job.parts):
                with writing(of_view.file(job.path)) as writer:
                    if writer is None:
                        busy.append(job)
                        continue
                    # Another process may have finished it between the look and the lock.
                    if not of_view.holds(job.path, job.parts) and (reason := _write(writer, encoder, of_view, job)):
                        bad[job.path] = reason
            progress(job)
        if len(busy) == len(waiting):
            time.sleep(_PATIENCE)
        waiting = busy
    for job in jobs:  # what another process found out is in the cache
        if reason := _refusal(replace(reading, view=job.view), job.path):
            bad[job.path] = reason
    return list(bad.items())


def _refusal(reading: CachedFeatures, path: str) -> str | None:
    """Why a video cannot be read, if that is known."""
    try:
        rows = reading.kept(path)
    except VideoError as error:
        return str(error).removeprefix(f"{path}: ")
    return None if rows is None or "refused" not in rows.about else rows.about["refused"].removeprefix(f"{PATH}: ")


def _write(writer: RowsWriter, encoder: FrameEncoder, reading: CachedFeatures, job: Job) -> str | None:
    """Encodes one view of a video into its file; returns why it cannot be read."""
    path, count, times, opened = job.path, 0, torch.empty(0), False
    try:
        about: dict[str, Any] = {"video": marks_of(path)}
        with catch_damage() as notes, reading.pixels.open(path, reading.margin) as video:
            opened = True
            numbers, times = reading.wanted(video, job.parts), video.times
            if reading.window > 1:
                about["first"] = longest(job.parts)
            kept = reading.kept(path)
            if kept is not None and "refused" not in kept.about and reading.window == 1:
                numbers = torch.unique(torch.cat([numbers, kept.numbers]))  # other parts of a long file stay
            before = torch.empty(0)
            for frames in ahead(_changed(video, numbers, reading, path)):
                for windows in _whole_windows(before, frames, reading.window):
                    writer.add(_encoded(encoder, reading, windows, path))
                before, count = frames, count + len(frames)
            about |= {name: getattr(video, name) for name in ("announced", "offset")}
            about["info"] = {
                name: getattr(video.info, name) for name in ("codec", "height", "width", "fps", "duration")
            }
    except VideoError as error:
        if not count and os.path.exists(path):
            _, rows, columns = reading.shape
            writer.add(torch.empty(0, rows * columns, reading.shape[0], dtype=reading.dtype))
            reason = str(error).replace(printable(path), PATH).replace(path, PATH)
            writer.finish(torch.empty(0), torch.empty(0), about | {"refused": reason, "opened": opened})
        return str(error).removeprefix(f"{printable(path)}: ")
    start = f"{printable(path)}: "
    about["warnings"] = [(note.removeprefix(start), notes.damage) for note in notes]
    about["cut"] = count < len(numbers)
    if about["cut"]:
        about["end"] = int(numbers[count - 1])
    writer.finish(numbers[: count : reading.window], times, about)
    return None


def _piece(reading: CachedFeatures) -> int:
    """Frames that are decoded and encoded together: whole windows."""
    return max(1, PIECE // reading.window) * reading.window


def _whole_windows(before: Tensor, frames: Tensor, window: int) -> Iterator[Tensor]:
    """The frames of a piece, and by itself a last window that is not full: moved back, over the end of the piece
    ``before`` where there is one, as the encoder does with the end of a video."""
    rest = len(frames) % window
    if whole := len(frames) - rest:
        yield frames[:whole]
    if rest:
        yield torch.cat([before[len(before) - window :], frames])[-window:] if len(before) else frames[-window:]


def _changed(video: Reader, numbers: Tensor, reading: CachedFeatures, path: str) -> Iterator[Tensor]:
    """The frames as the encoder sees them, in pieces."""
    try:
        for frames in video.stream(numbers, batch=_piece(reading)):
            yield reading.changed(frames, path)
    except OSError as error:  # of the video, not of the cache
        raise VideoError(f"{path}: {error.strerror or error}") from error


@torch.no_grad()
def _encoded(encoder: FrameEncoder, reading: CachedFeatures, frames: Tensor, path: str) -> Tensor:
    """Frames of a video uint8 [n, 3, H, W] -> rows [n, N, C] as they are kept.

    Raises:
        ValueError: numbers that the kept type does not hold.
    """
    device = encoder.mean.device
    half = torch.autocast(device.type, dtype=reading.dtype) if device.type == "cuda" else nullcontext()
    with half:
        maps = encoder.features(frames[None].to(device), None)[0, :: reading.window]
    rows = maps.flatten(-2).mT.to(reading.dtype)
    if not bool(rows.isfinite().all()):
        why = "are too large for fp16; set cache_dtype: bf16"
        if not bool(maps.isfinite().all()):
            why = "are not finite: its weights are damaged, or its mean and standard deviation; give others"
        raise ValueError(f"{path}: the encoder's features {why}")
    return rows


def _describe(reading: CachedFeatures) -> None:
    """Says beside the files what they are."""
    file = reading.key / ABOUT
    with writing(file) as writer:  # makes the folder, and the sentence where it cannot
        if writer is None or file.exists():
            return
    with replacing(file, shared=True) as unfinished:
        unfinished.write_text(json.dumps(reading.description, indent=1))


def _other_settings(reading: CachedFeatures) -> str | None:
    """A sentence on how the features that a cache holds of an encoder of this name differ from those now wanted."""
    mine = _flat(reading.description)
    nearest: list[str] | None = None
    for file in sorted(reading.key.parent.glob(f"*/{ABOUT}")):
        with suppress(OSError, ValueError, AttributeError):
            other = _flat(json.loads(file.read_text()))
            if other.get("encoder.name") != mine["encoder.name"]:
                continue
            differ = [
                f"{name} {_short(other.get(name))}, now {_short(mine.get(name))}"
                for name in sorted(mine | other)
                if mine.get(name) != other.get(name)
            ]
            nearest = differ if nearest is None or len(differ) < len(nearest) else nearest
    if not nearest:
        return None
    return f"the cache {reading.folder} holds features of other settings ({'; '.join(nearest)}): computed anew"


def _flat(said: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in said.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return f"{text[:12]}..." if len(text) > 24 else text
