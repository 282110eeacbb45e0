"""`tttvideo classify`: answers for many files, on the screen or in a file of rows."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..devices import best_device, choose_device
from ..files import check_folder
from ..model import VideoModel
from ..origin import inspect_checkpoint
from ..pretrained import from_pretrained
from ..printing import json_text, printable
from ..video.index import Video
from ..video.reader import VideoWarning
from ..video.reading import damaged_videos_named
from .answers import in_order
from .classify import Classified, classify_videos, ranked, resolved
from .config import ClassifyConfig
from .progress import progress, share
from .results import Results, check_name, rows_kept
from .sources import find_videos
from .timeline import frame_times, stems, write_timeline

Put = Callable[[dict[str, Any]], None]


def classify_files(config: ClassifyConfig) -> int:
    """Prints or writes a row for each video, as soon as it is there.

    Returns:
        the exit code: 2 where one of the videos that were asked for could not be read, in an earlier call too.

    Raises:
        ValueError: for sources, settings or a file of results that cannot be used.
    """
    own = share()
    if own.processes > 1 and not config.out:
        raise ValueError("several processes share one file of answers; give --out")
    if config.out:
        check_name(Path(config.out))
    if config.timeline:
        check_folder(Path(config.timeline))
    with damaged_videos_named():
        videos = find_videos(config.videos, sys.stdin)
        model = from_pretrained(config.checkpoint, trust=config.trust).to(device(config.device, own.local))
        return _classify(config, model, videos)


def device(name: str | None, local: int) -> torch.device:
    """The device of that name; else the accelerator of this process (the ``local``-th of its machine), or the CPU."""
    chosen = choose_device(name)
    if chosen is None:
        chosen = best_device()
        if chosen.type != "cpu":
            chosen = torch.device(chosen.type, local % torch.accelerator.device_count())
    return chosen


def complain(failure: str) -> None:
    print(printable(f"error: {' '.join(failure.split()).removesuffix('.')}"), file=sys.stderr)


def _classify(config: ClassifyConfig, model: VideoModel, videos: list[Video]) -> int:
    own, how = share(), resolved(config, model)
    places = own.of(list(range(len(videos))))
    names = stems(videos) if config.timeline else []
    total, failed = len(places), 0
    with _output(config, model, str(how), own.rank) as (error_of, put):
        failed_before = sum(bool(error_of(videos[number])) for number in places)
        places = [number for number in places if error_of(videos[number]) is None]
        mine = [videos[number] for number in places]
        answers = classify_videos(model, mine, how, timelines=bool(config.timeline))
        if not config.out:
            answers = in_order(answers, lambda answer: answer.video)
        with progress("videos", total, total - len(mine)) as advance:
            for answer in answers:
                for note in answer.notes:  # Python shows each once
                    warnings.warn(note, VideoWarning, stacklevel=1)
                video, failure = mine[answer.video], answer.failure
                if config.timeline and not failure:
                    failure = _draw(Path(config.timeline) / names[places[answer.video]], video, model, how, answer)
                put(_row(model, video, answer, config.topk))
                if failure:
                    failed += 1
                    complain(failure)
                advance(bool(failure))
    if config.out and own.rank == 0:
        kept = rows_kept(total - len(mine), failed_before)
        kept += ", of which no timelines are drawn" * bool(kept and config.timeline)
        by = "" if own.processes == 1 else " by this process"
        print(printable(f"{config.out}: {len(mine)} answers{by} ({failed} failed{kept})"))
    return 2 if failed or failed_before else 0


def _row(model: VideoModel, video: Video, answer: Classified, topk: int) -> dict[str, Any]:
    row: dict[str, Any] = {"path": video.path, "start": video.start, "end": video.end}
    if answer.probabilities is None:
        return row | {"error": answer.failure}
    classes = ranked(model, answer.probabilities, topk)
    return row | {"frames": answer.frames, "classes": [{"label": n, "probability": p} for n, p in classes]}


@contextmanager
def _output(
    config: ClassifyConfig, model: VideoModel, reading: str, rank: int
) -> Iterator[tuple[Callable[[Video], str | None], Put]]:
    """Where rows go: functions that give the error of a video's row (``Results.error_of``), and that take a row."""
    if not config.out:
        with _printed(config.json) as put:
            yield (lambda video: None), put
        return
    kinds = range(1, min(config.topk, len(model.labels)) + 1)
    ranks = [column for i in kinds for column in (f"label_{i}", f"probability_{i}")]
    same = {"model": inspect_checkpoint(config.checkpoint).sha256[:16], "reading": reading}
    results = Results(config.out, ["path", "start", "end", "frames", *ranks, "error", *same], same, rank)

    def put(row: dict[str, Any]) -> None:
        if results.csv:
            for i, named in enumerate(row.pop("classes", ()), 1):
                row |= {f"label_{i}": named["label"], f"probability_{i}": named["probability"]}
        results.add(row)

    try:
        yield results.error_of, put
    finally:
        results.close()


@contextmanager
def _printed(as_json: bool) -> Iterator[Put]:
    """Rows on standard output, each at once; as JSON they are one list, closed also where the command is stopped."""
    first = True

    def put(row: dict[str, Any]) -> None:
        nonlocal first
        if as_json:
            shown = {name: value for name, value in row.items() if value is not None}
            print("[" if first else ",", json_text(shown), flush=True)
            first = False
        elif "classes" in row:
            end = "its end" if row["end"] is None else f"{row['end']:g} s"
            span = "" if row["start"] is row["end"] is None else f"  {row['start'] or 0:g} s to {end}"
            lines = [f"    {named['probability']:.3f}  {printable(named['label'])}" for named in row["classes"]]
            print("\n".join([printable(row["path"]) + span, *lines]), flush=True)

    try:
        yield put
    finally:
        if as_json:
            print("[]" if first else "]", flush=True)


def _draw(stem: Path, video: Video, model: VideoModel, how: Any, answer: Classified) -> str:
    """Writes a video's timeline; the reason, where its times cannot be read any more."""
    shown = answer.timeline
    assert shown is not None
    stem.parent.mkdir(parents=True, exist_ok=True)
    try:
        times = frame_times(video, model.preprocessing, how.sampling, how.frames)[: answer.frames]
    except (ValueError, OSError) as error:
        return str(error)
    write_timeline(
        stem, video.path, model.labels, model.probabilities(shown.logits), model.encoder.stride, times, shown
    )
    return ""
