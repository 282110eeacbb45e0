"""The commands that put several runs side by side: `tttvideo compare` and `tttvideo position`."""

from collections.abc import Sequence
from pathlib import Path

from .options import Parser, add_data, add_device, check_folder
from .printing import printable


def compare(argv: Sequence[str]) -> int:
    """put evaluations of several runs side by side: a table and a figure for each protocol, with intervals"""
    parser = Parser(
        prog="tttvideo compare",
        description="Read what `tttvideo evaluate` (and `tttvideo position`) left in the folders, and write "
        "compare.json, tables (compare.md) and a figure for each protocol: accuracy against length, sampling, tokens, "
        "views, strata and controls; of predictions, error by horizon, context and on newly revealed pixels. Intervals "
        "are bootstrapped over videos, and over seeds where a run has several.",
    )
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        help="folder with a metrics.json in it or below it (evaluations on several data sets: in one folder each), or "
        "NAME=FOLDER, or NAME=FOLDER,FOLDER for several seeds of one model",
    )
    parser.add_argument("--out", required=True, help="folder for the results")
    parser.add_argument("--resamples", type=int, default=2000, help="bootstrap samples")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    args = parser.read(argv)

    from .evaluation import CompareConfig, print_comparison, write_comparison
    from .evaluation import compare as run

    config = CompareConfig(**vars(args) | {"runs": tuple(args.runs)})
    check_folder(Path(args.out))
    comparison = run(config)
    print_comparison(comparison)
    files = write_comparison(comparison, Path(args.out))
    print(printable(f"written to {args.out}: {', '.join(files)}"))
    return 0


def position(argv: Sequence[str]) -> int:
    """loss against the number of frames read, for one checkpoint or several"""
    parser = Parser(
        prog="tttvideo position",
        description="Loss after each frame: of the class, had the video ended there, or of the next frame. Writes "
        "position.json and position.png, a line for each model, with an interval over videos and seeds.",
    )
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        help="run folder, checkpoint or export, or NAME=FOLDER, or NAME=FOLDER,FOLDER for several seeds of one model",
    )
    add_data(parser)
    parser.add_argument("--frames", default="all", help="only the first frames of each video: a number, or all")
    parser.add_argument("--batch-size", type=int, default=8, help="videos read side by side")
    parser.add_argument("--segment", type=int, default=None, help="frames held at a time (default: about 64)")
    parser.add_argument("--out", required=True, help="folder for the results")
    add_device(parser)
    args = parser.read(argv)

    from .evaluation import PositionConfig, position_sentence, positions, write_positions

    config = PositionConfig(**vars(args) | {"runs": tuple(args.runs)})
    check_folder(Path(args.out))
    found, arrays = positions(config)
    write_positions(found, arrays, Path(args.out))
    for name, curve in found["series"].items():
        print(printable(f"{name}: {position_sentence(curve)}"))
    for failure in found["failures"]:
        print(printable(f"not read: {failure['path']}: {failure['reason']}"))
    print(printable(f"written to {args.out}: position.json, position.npz and position.png"))
    return 0
