"""The command `tttvideo`: its subcommands are in COMMANDS. User errors: one line, exit 2."""

import argparse
import dataclasses
import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from .comparing import compare, position
from .indexing import check, index
from .inference.commands import classify, predict, stream
from .options import (
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
)
from .printing import printable


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
    add_settings(parser)
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
    add_prediction(parser)
    add_frame_metrics(parser)
    args = parser.read(argv)

    from .evaluation import EvaluateConfig, print_report, write_report
    from .evaluation import evaluate as run
    from .evaluation.checkpoint import inspect_checkpoint

    values = {name: tuple(value) if isinstance(value, list) else value for name, value in vars(args).items()}
    config = EvaluateConfig(**{name: value for name, value in values.items() if value is not None})
    run_folder = inspect_checkpoint(config.checkpoint).run
    out = Path(config.out) if config.out else run_folder
    if out is not None:
        check_folder(out)  # now: nobody wants to hear of it after hours of measuring
    result = run(config, progress=sys.stderr.isatty())
    if result is not None:
        print_report(result)
        if out is None:
            print("not written to files: an export has no run folder, so give --out DIR for that")
        else:
            write_report(result, out)
            print(printable(f"written to {out}: report.html, metrics.json, predictions.csv and figures"))
    return 0


def export(argv: Sequence[str]) -> int:
    """write a checkpoint for others: a folder, or one streaming step as torch.export or ONNX"""
    from .export.config import ExportConfig

    parser = Parser(
        prog="tttvideo export",
        description="Write a checkpoint as a folder (config.json, model.safetensors, labels.json and a model card with "
        "the measured figures; read back, and its outputs compared with the checkpoint's), or its streaming step with "
        "explicit state for other runtimes.",
    )
    add_checkpoint(parser, device=False)
    parser.add_argument("--out", required=True, help="new or empty folder, or an earlier export to replace")
    parser.add_argument(
        "--metrics",
        action="append",
        default=[],
        help="metrics.json of an evaluation of these weights, for the card (default: the run folder's)",
    )
    add_fields(parser, ExportConfig)
    args = vars(parser.read(argv))
    config = ExportConfig(**args | {"metrics": tuple(args["metrics"])})

    from .export.files import export_files

    return export_files(config)


def make_data(argv: Sequence[str]) -> int:
    """make a set of videos of which it is known how well a perfect observer does"""
    from .video.synthetic import SUITES, find_suite, make

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
    from .training.run import main as run

    return run(argv)


def cache(argv: Sequence[str]) -> int:
    """encode videos with a frozen encoder ahead of training"""
    from tttvideo.training.features import cache as run

    return run(argv)


def configs(argv: Sequence[str]) -> int:
    """list the packaged recipes, which `train --config NAME` takes"""
    from .recipes import show

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
    Command("stream", stream),
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
    from . import __version__

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
