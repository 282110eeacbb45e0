"""The options of `tttvideo classify`, `predict` and `stream`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from ..options import Parser, add_checkpoint, add_fields, add_prediction
from .config import ClassifyConfig, StreamConfig


def classify(argv: Sequence[str]) -> int:
    """name the classes of videos: files, folders, lists"""
    parser = Parser(
        prog="tttvideo classify",
        description="Classify videos of any length with a checkpoint. Each answer is printed, or written to --out, as "
        "soon as it is there; the same command with the same --out goes on where an earlier one ended. Under torchrun "
        "or accelerate the processes share the work.",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="run folder (its best), checkpoint in it, or export")
    add_videos(parser)
    add_fields(parser, ClassifyConfig)
    config = ClassifyConfig(**_values(parser.read(argv)))

    from .files import classify_files

    return classify_files(config)


def predict(argv: Sequence[str]) -> int:
    """predict the next frames of videos, beside what came: a film and a picture each"""
    parser = Parser(
        prog="tttvideo predict",
        description="Read the first frames of a video, generate the next ones, and show them: "
        "OUT/NAME-predicted.mp4 and .png have the truth above, the prediction below, then where they differ. Of "
        "several videos the errors stand in OUT/predictions.jsonl, and the same command goes on where an earlier one "
        "ended.",
    )
    add_checkpoint(parser)
    add_videos(parser)
    parser.add_argument("--out", required=True, help="folder for the films and pictures")
    add_prediction(parser)
    args = parser.read(argv)

    from ..evaluation import PredictConfig
    from .predict import predict_files

    return predict_files(PredictConfig(**{name: value for name, value in _values(args).items() if value is not None}))


def stream(argv: Sequence[str]) -> int:
    """answer while a video comes: files, pipes, cameras, addresses"""
    parser = Parser(
        prog="tttvideo stream",
        description="Read a stream frame by frame and print a line of JSON after each unit of frames: time, number of "
        "frames, and the classes (of a model that predicts: the error of what it expected). Memory does not grow.",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="run folder (its best), checkpoint in it, or export")
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="video file of any length; folder of images, or pattern such as frames/%%05d.jpg; - for a video on "
        "standard input (raw where --size is given); camera, 0 or /dev/video0; address (rtsp://, http://, ...)",
    )
    add_fields(parser, StreamConfig)
    config = StreamConfig(**vars(parser.read(argv)))

    from .watch import watch

    return watch(config)


def add_videos(parser: Parser) -> None:
    parser.add_argument(
        "videos",
        metavar="VIDEO",
        nargs="+",
        help="video file; folder, with all videos below it (a folder of frame images is a video); pattern such as "
        "'films/**/*.mp4'; list (.txt, .csv or .tsv) of path[,start,end]; - for paths on standard input",
    )


def _values(args: argparse.Namespace) -> dict[str, Any]:
    return vars(args) | {"videos": tuple(args.videos)}
