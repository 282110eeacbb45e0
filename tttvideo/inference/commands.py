"""`tttvideo classify`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tttvideo.options import Parser, UsageError, add_checkpoint, add_fields, check_folder
from tttvideo.printing import json_text, printable

from .how import How


def classify(argv: Sequence[str]) -> int:
    """name the classes of videos: files, folders, lists"""
    parser = Parser(
        prog="tttvideo classify",
        description="Classify videos of any length with a checkpoint. Each answer is printed, or written to --out, as "
        "soon as it is there; the same command with the same --out goes on where an earlier one ended. Under torchrun "
        "or accelerate the processes share the work.",
    )
    add_checkpoint(parser)
    parser.add_argument(
        "videos",
        metavar="VIDEO",
        nargs="+",
        help="video file; folder, with all videos below it (a folder of frame images is a video); pattern such as "
        "'films/**/*.mp4'; list (.txt, .csv or .tsv) of path[,start,end]; - for paths on standard input",
    )
    parser.add_argument("--out", default=None, help="file of the answers, .jsonl or .csv")
    parser.add_argument(
        "--timeline",
        metavar="DIR",
        default=None,
        help="folder for each video's probabilities over time: NAME.png above a strip of frames, and NAME.npy, a row "
        "(seconds, probabilities) for each time step",
    )
    parser.add_argument("--topk", type=int, default=5, help="number of classes that are named")
    parser.add_argument("--json", action="store_true", help="print JSON in place of text")
    add_fields(parser, How)
    args = parser.read(argv)
    if args.topk < 1:
        raise UsageError(f"--topk must be at least 1, got {args.topk}")
    how = How(args.frames, args.sampling, args.views, args.batch_size, args.workers, args.segment)

    from tttvideo.model import from_pretrained
    from tttvideo.video.reading import damaged_videos_named

    from .classify import resolved
    from .progress import share
    from .results import check_name
    from .sources import find_videos

    own = share()
    if own.processes > 1 and not args.out:
        raise UsageError("several processes share one file of answers; give --out")
    if args.out:
        check_name(Path(args.out))
    if args.timeline:
        check_folder(Path(args.timeline))
    with damaged_videos_named():
        videos = find_videos(args.videos, sys.stdin)
        model = from_pretrained(args.checkpoint, trust=args.trust).to(device(args.device, own.local))
        return _classify(args, model, videos, resolved(how, model))


def device(name: str | None, local: int) -> Any:
    """The device of that name; else this process's accelerator, or the CPU."""
    import torch

    from tttvideo.evaluation.evaluate import best_device, choose_device

    found = choose_device(name)
    if found is None:
        found = best_device()
        if found.type != "cpu":
            found = torch.device(found.type, local % torch.accelerator.device_count())
    return found


def _classify(args: argparse.Namespace, model: Any, videos: list[Any], how: Any) -> int:
    from .answers import in_order
    from .classify import classify_videos
    from .progress import progress, share
    from .timeline import stems

    own = share()
    places = own.of(list(range(len(videos))))
    names = stems(videos) if args.timeline else []
    total, failed = len(places), 0
    with _output(args, model, how, own.rank) as (has, put):
        places = [place for place in places if not has(videos[place])]
        mine = [videos[place] for place in places]
        answers = classify_videos(model, mine, how, timelines=bool(args.timeline))
        if not args.out:
            answers = in_order(answers, lambda answer: answer.video)
        with progress("videos", total, total - len(mine)) as advance:
            for answer in answers:
                _warn(answer.notes)
                video, failure = mine[answer.video], answer.failure
                if answer.timeline is not None and args.timeline:
                    failure = _draw(args.timeline, names[places[answer.video]], video, model, how, answer) or failure
                put(_row(model, video, answer, args.topk))
                if failure:
                    failed += 1
                    print(printable(f"error: {' '.join(failure.split()).removesuffix('.')}"), file=sys.stderr)
                advance(bool(failure))
    if args.out and own.rank == 0:
        before = f", {total - len(mine)} were there" if total > len(mine) else ""
        told = "" if own.processes == 1 else " by this process"
        print(printable(f"{args.out}: {len(mine)} answers{told} ({failed} failed{before})"))
    return 2 if failed else 0


def _row(model: Any, video: Any, answer: Any, topk: int) -> dict[str, Any]:
    from .classify import ranked

    row: dict[str, Any] = {"path": video.path, "start": video.start, "end": video.end}
    if answer.probabilities is None:
        return row | {"error": answer.failure}
    classes = ranked(model, answer.probabilities, topk)
    return row | {"frames": answer.frames, "classes": [{"label": n, "probability": p} for n, p in classes]}


@contextmanager
def _output(
    args: argparse.Namespace, model: Any, how: Any, rank: int
) -> Iterator[tuple[Callable[[Any], bool], Callable[[dict[str, Any]], None]]]:
    """Where rows go: functions that say whether a video is there already, and that take a row."""
    if not args.out:
        with _printed(args.json) as put:
            yield (lambda video: False), put
        return
    from tttvideo.evaluation.checkpoint import inspect_checkpoint

    from .results import Results

    kinds = range(1, min(args.topk, len(model.labels)) + 1)
    ranks = [column for i in kinds for column in (f"label_{i}", f"probability_{i}")]
    same = {"model": inspect_checkpoint(args.checkpoint).sha256[:16], "reading": str(how)}
    results = Results(args.out, ["path", "start", "end", "frames", *ranks, "error", *same], same, rank)

    def put(row: dict[str, Any]) -> None:
        if results.csv:
            for i, named in enumerate(row.pop("classes", ()), 1):
                row |= {f"label_{i}": named["label"], f"probability_{i}": named["probability"]}
        results.add(row)

    try:
        yield results.has, put
    finally:
        results.close()


@contextmanager
def _printed(as_json: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Rows on standard output, each at once; as JSON they are one list, closed also where the command is stopped."""
    first = True

    def put(row: dict[str, Any]) -> None:
        nonlocal first
        if as_json:
            shown = {name: value for name, value in row.items() if value is not None}
            print("[" if first else ",", json_text(shown), flush=True)
            first = False
        elif "classes" in row:
            span = "" if row["start"] is row["end"] is None else f"  {row['start'] or 0:g} s to {row['end'] or 'end'}"
            lines = [f"    {named['probability']:.3f}  {printable(named['label'])}" for named in row["classes"]]
            print("\n".join([printable(row["path"]) + span, *lines]), flush=True)

    try:
        yield put
    finally:
        if as_json:
            print("[]" if first else "]", flush=True)


def _warn(notes: list[str]) -> None:
    import warnings

    from tttvideo.video.reader import VideoWarning

    for note in notes:  # Python's filter shows each once
        warnings.warn(note, VideoWarning, stacklevel=2)


def _draw(folder: str, name: str, video: Any, model: Any, how: Any, answer: Any) -> str:
    """Writes a video's timeline; the reason, where its times cannot be read any more."""
    from .timeline import frame_times, write_timeline

    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    try:
        times = frame_times(video, model.preprocessing, how.sampling, how.frames)[: answer.frames]
    except (ValueError, OSError) as error:
        return str(error)
    shown = answer.timeline
    probabilities = model.probabilities(shown.logits)
    write_timeline(out / name, video.path, model.labels, probabilities, model.encoder.stride, times, shown)
    return ""
