"""The command `tttvideo`: its subcommands are in COMMANDS. User errors: one line, exit 2."""

import argparse
import dataclasses
import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from tttvideo.comparing import compare, position
from tttvideo.indexing import check, index
from tttvideo.options import (
    Parser,
    UsageError,
    add_checkpoint,
    add_data,
    add_fields,
    add_frame_metrics,
    add_prediction,
    add_settings,
    check_folder,
    nearest,
    prediction_settings,
)
from tttvideo.printing import json_text, printable


def evaluate(argv: Sequence[str]) -> int:
    """measure a checkpoint: accuracy at several lengths and samplings, or the error of predictions by horizon"""
    parser = Parser(
        prog="tttvideo evaluate",
        description="Measure a checkpoint on a split. Every combination of --frames, --sampling and --views is a "
        "row: first the video is cut to its first n frames, then divided into views, then the sampling rule is "
        "applied. Videos that cannot be read count as wrong and are listed. Runs on several processes under torchrun. "
        "A checkpoint trained for Prediction reads --context frames of each video and predicts the next --horizon "
        "instead.",
    )
    add_checkpoint(parser)
    add_data(parser)
    classifying = add_settings(parser)
    parser.add_argument("--batch-size", type=int, default=8, help="videos read side by side in each process")
    parser.add_argument(
        "--segment",
        type=int,
        default=None,
        help="frames of a video that are held at a time; the model's state is carried on (default: about 64)",
    )
    parser.add_argument(
        "--workers", type=int, default=None, help="processes that read ahead for a classifier; 0 for none (default: 2)"
    )
    parser.add_argument("--out", default=None, help="folder for the results (default: the run folder)")
    predicting = add_prediction(parser) + add_frame_metrics(parser)
    args = parser.read(argv)
    if args.workers is not None and args.workers < 0:
        raise UsageError(f"--workers must be 0 or more, got {args.workers}")

    from tttvideo.evaluation import evaluate as run
    from tttvideo.evaluation import parse_all_views, parse_frames, parse_samplings, print_report, write_report
    from tttvideo.evaluation.checkpoint import inspect_checkpoint
    from tttvideo.video.reading import damaged_videos_named

    source = inspect_checkpoint(args.checkpoint)
    out = Path(args.out) if args.out else source.run
    if out is not None:
        check_folder(out)  # now: nobody wants to hear of it after hours of measuring
    foreign = (*classifying, "workers") if source.task == "Prediction" else predicting
    if given := [name.replace("_", "-") for name in foreign if getattr(args, name) is not None]:
        raise UsageError(f"--{given[0]} does not go with a checkpoint trained for {source.task}; leave it out")
    if source.task == "Prediction":
        return evaluate_prediction(args, out)
    with damaged_videos_named():
        evaluation = run(
            args.checkpoint,
            args.data,
            split=args.split,
            root=args.root,
            frames=parse_frames(args.frames or "all", source.provenance.get("clip_frames")),
            samplings=parse_samplings(args.sampling or []),
            views=parse_all_views(args.views or ["whole"]),
            controls=args.controls or [],
            by=args.by,
            check_streaming=args.check_streaming or 0,
            samples=6,
            batch_size=args.batch_size,
            segment=args.segment,
            workers=2 if args.workers is None else args.workers,
            device=args.device,
            trust=args.trust,
            progress=sys.stderr.isatty(),
        )
    if evaluation is not None:
        print_report(evaluation)
        if out is None:
            print("not written to files: an export has no run folder, so give --out DIR for that")
        else:
            write_report(evaluation, out)
            print(printable(f"written to {out}: report.html, metrics.json, predictions.csv and figures"))
    return 0


def evaluate_prediction(args: argparse.Namespace, out: Path | None) -> int:
    """`tttvideo evaluate` of a checkpoint that predicts frames."""
    from tttvideo.evaluation.forecast_report import print_forecasts, write_forecasts
    from tttvideo.evaluation.forecasting import evaluate_prediction as run

    found = run(
        args.checkpoint,
        args.data,
        split=args.split,
        root=args.root,
        **prediction_settings(args),
        grey=bool(args.grey),
        lpips=args.lpips,
        fvd=args.fvd,
        samples=4,
        batch_size=args.batch_size,
        segment=args.segment,
        device=args.device,
        trust=args.trust,
        progress=sys.stderr.isatty(),
    )
    print_forecasts(found)
    if out is None:
        print("not written to files: an export has no run folder, so give --out DIR for that")
    else:
        write_forecasts(found, out)
        print(printable(f"written to {out}: report.html, metrics.json, predictions.csv and figures"))
    return 0


def predict(argv: Sequence[str]) -> int:
    """predict the next frames of a video, beside what came: a film and a picture"""
    parser = Parser(
        prog="tttvideo predict",
        description="Read the first frames of a video, generate the next ones, and show them: "
        "OUT/NAME-predicted.mp4 and .png have the truth above, the prediction below, then where they differ.",
    )
    add_checkpoint(parser)
    parser.add_argument("video", metavar="VIDEO", help="video file, or folder of frame images")
    parser.add_argument("--out", required=True, help="folder for the film and the picture")
    add_prediction(parser)
    args = parser.read(argv)

    from tttvideo.evaluation.predicting import predict as run
    from tttvideo.video.reading import damaged_videos_named

    check_folder(Path(args.out))
    with damaged_videos_named():
        found = run(
            args.checkpoint,
            args.video,
            args.out,
            **prediction_settings(args),
            device=args.device,
            trust=args.trust,
        )
    for note in found.notes:
        print(printable(f"note: {note}"), file=sys.stderr)
    for line in found.lines:
        print(printable(line))
    print(printable(f"written to {args.out}: {found.film.name} and {found.strip.name}"))
    return 0


def export(argv: Sequence[str]) -> int:
    """write a checkpoint as a folder that `tttvideo.from_pretrained` and the Hugging Face Hub take"""
    parser = Parser(
        prog="tttvideo export",
        description="Write config.json, model.safetensors, labels.json and a model card with the measured "
        "figures. The export is read back and its outputs compared with the checkpoint's.",
    )
    add_checkpoint(parser, device=False)
    parser.add_argument("--out", required=True, help="new or empty folder, or an earlier export to replace")
    parser.add_argument(
        "--metrics",
        action="append",
        default=[],
        help="metrics.json of an evaluation of these weights, for the card (default: the run folder's)",
    )
    args = parser.read(argv)

    from tttvideo.export import export as run

    out = run(args.checkpoint, args.out, metrics=args.metrics, trust=args.trust)
    trusted = ", trust=True" if args.trust else ""
    print(printable(f'exported to {out}; load it with tttvideo.from_pretrained("{out}"{trusted})'))
    return 0


def classify(argv: Sequence[str]) -> int:
    """name the classes of single videos"""
    parser = Parser(prog="tttvideo classify", description="Classify videos of any length with a checkpoint.")
    add_checkpoint(parser)
    parser.add_argument("videos", metavar="VIDEO", nargs="+", help="video file, or folder of frame images")
    parser.add_argument("--topk", type=int, default=5, help="number of classes that are named")
    parser.add_argument("--json", action="store_true", help="print JSON in place of a table")
    args = parser.read(argv)
    if args.topk < 1:
        raise UsageError(f"--topk must be at least 1, got {args.topk}")

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from tttvideo.evaluation.evaluate import best_device, choose_device
    from tttvideo.model import from_pretrained
    from tttvideo.video.reading import damaged_videos_named

    device = choose_device(args.device) or best_device()
    model = from_pretrained(args.checkpoint, trust=args.trust).to(device).eval()
    answers, failures = [], []
    for video in args.videos:
        try:
            with damaged_videos_named():
                answers.append((video, model.classify(video, topk=args.topk)))
        except (ValueError, OSError) as error:
            failures.append((video, _sentence(error)))
    if args.json:
        found = [
            {"path": video, "classes": [{"label": label, "probability": p} for label, p in classes]}
            for video, classes in answers
        ]
        found += [{"path": video, "error": reason} for video, reason in failures]
        print(json_text(found))
    elif answers:
        table = Table()
        table.add_column("video", overflow="fold")
        table.add_column("class", overflow="fold")
        table.add_column("probability", justify="right")
        for video, classes in answers:
            for place, (label, probability) in enumerate(classes):
                # Text: names with brackets or colons are no markup.
                name, last = Text("" if place else printable(video)), place + 1 == len(classes)
                table.add_row(name, Text(printable(label)), f"{probability:.3f}", end_section=last)
        Console().print(table)
    for _, reason in failures:
        _complain(reason)
    return 2 if failures else 0


def make_data(argv: Sequence[str]) -> int:
    """make a set of videos of which it is known how well a perfect observer does"""
    from tttvideo.video.synthetic import SUITES, find_suite, make

    if not argv or argv[0].startswith("-"):
        chooser = Parser(
            prog="tttvideo make-data",
            description="Make a suite: real H.264 files, beside them meta.csv (what happens in each, with the cause of "
            "its label) and suite.json (parameters, and how well observers can do).",
            epilog="tttvideo make-data NAME --help lists the options of a suite.",
        )
        chooser.add_argument("name", metavar="NAME", help=", ".join(SUITES))
        chooser.read(argv)
    suite_class = find_suite(argv[0])
    description = (suite_class.__doc__ or "").split("\n\n")[0]
    parser = Parser(prog=f"tttvideo make-data {argv[0]}", description=description)
    parser.add_argument("--out", required=True, help="folder for the set; an interrupted one is continued")
    parser.add_argument("--workers", type=int, default=None, help="processes (default: as many as pay)")
    settings = [field.name for field in dataclasses.fields(suite_class)]
    add_fields(parser, suite_class)
    args = parser.read(argv[1:])
    if args.workers is not None and args.workers < 1:
        raise UsageError(f"--workers must be at least 1, got {args.workers}")
    suite = suite_class(**{name: getattr(args, name) for name in settings})

    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(f"{argv[0]}: videos", total=None)
        made = make(
            suite,
            args.out,
            workers=args.workers,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    splits = ", ".join(f"{name} {count}" for name, count in made.suite["splits"].items())
    kept = f" ({made.kept} were there)" if made.kept else ""
    print(printable(f"{made.out}: {made.written} videos written{kept}; {splits}"))
    print(suite_class.sentence(made.suite))
    return 0


def train(argv: Sequence[str]) -> int:
    """train a model: the same as train.py of the repository"""
    from tttvideo.training.run import main as run

    return run(argv)


def cache(argv: Sequence[str]) -> int:
    """encode videos with a frozen encoder ahead of training"""
    from tttvideo.training.features import cache as run

    return run(argv)


def configs(argv: Sequence[str]) -> int:
    """list the packaged recipes, which `train --config NAME` takes"""
    from tttvideo.recipes import show

    return show(argv)


class Command(NamedTuple):
    name: str
    run: Callable[[Sequence[str]], int]


COMMANDS = (
    Command("train", train),
    Command("evaluate", evaluate),
    Command("compare", compare),
    Command("position", position),
    Command("predict", predict),
    Command("export", export),
    Command("classify", classify),
    Command("make-data", make_data),
    Command("configs", configs),
    Command("cache", cache),
    Command("index", index),
    Command("check", check),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Set TTTVIDEO_TRACEBACK=1 to see where an error was raised."""
    if argv is None:  # a process of its own: Python processes that it starts do not search the working directory first
        os.environ.setdefault("PYTHONSAFEPATH", "1")
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except (ValueError, OSError) as error:
        if os.environ.get("TTTVIDEO_TRACEBACK"):
            raise
        _complain(_sentence(error))
        return 2
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130
    finally:
        _leave_process_group()


def _run(argv: list[str]) -> int:
    names = [command.name for command in COMMANDS]
    if argv and not argv[0].startswith("-"):
        if argv[0] not in names:
            raise UsageError(f"there is no command {argv[0]!r}{nearest(argv[0], names)}")
        return COMMANDS[names.index(argv[0])].run(argv[1:])
    from tttvideo import __version__

    width = max(map(len, names)) + 2
    parser = Parser(
        prog="tttvideo",
        usage="tttvideo COMMAND ...",
        description="Train, evaluate, export and use models of long videos.",
        epilog="commands:\n" + "\n".join(f"  {c.name:{width}}{c.run.__doc__}" for c in COMMANDS),
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--version", action="version", version=f"tttvideo {__version__}")
    parser.read(argv)
    parser.print_help(sys.stderr)
    return 2


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            text += "; make room, or write to another disk"
    return text.removesuffix(".")


def _complain(sentence: str) -> None:
    if os.environ.get("RANK", "0") == "0":  # under torchrun every process meets the same error: said once
        print(printable(f"error: {sentence}"), file=sys.stderr)


def _leave_process_group() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
