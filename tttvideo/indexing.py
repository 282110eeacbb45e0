"""The commands `tttvideo index` and `tttvideo check`."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .options import Parser, UsageError
from .printing import json_text, printable

if TYPE_CHECKING:
    from .video.library import Finding


def index(argv: Sequence[str]) -> int:
    """read every video of a folder or list through once, so that training starts at once and seeks everywhere"""
    parser = _parser(
        "index",
        "Read every video of a folder or list through once and keep what is in it (frames, time stamps, keyframes, "
        "damage) in the index. Training and evaluation do the same as they go; with this they start at once. What is "
        "indexed already is not read again.",
    )
    parser.add_argument(
        "--beside",
        action="store_true",
        help="keep the index beside the data, in a folder .tttvideo-index that travels with them, not in the user's "
        "cache folder",
    )
    args = _read(parser, argv)
    folder = Path(args.data) if os.path.isdir(args.data) else Path(args.root or Path(args.data).parent)
    if args.beside and os.path.exists(args.data):
        (folder / ".tttvideo-index").mkdir(exist_ok=True)
    findings = _findings(args)
    fresh = sum(finding.fresh for finding in findings)
    frames, hours = sum(f.frames for f in findings), sum(f.seconds for f in findings) / 3600
    print(f"{len(findings)} videos, {frames:,} frames, {hours:.1f} h; {fresh} were read now")
    _tell(findings, 3)
    return 0


def check(argv: Sequence[str]) -> int:
    """tell what is wrong with the videos of a folder or list; exit code 1 if frames are lost"""
    parser = _parser(
        "check",
        "The index read aloud: problems by kind, how many, and what to do. What is not indexed yet is read through "
        "first. Exit code 1 if there are videos that cannot be read, or not whole.",
    )
    parser.add_argument("--json", action="store_true", help="print every finding as JSON")
    args = _read(parser, argv)
    findings = _findings(args)
    from .video.library import KINDS

    if args.json:
        rows = [
            {**f._asdict(), "problems": [{"kind": kind, "what": what} for kind, what in f.problems]} for f in findings
        ]
        for row in rows:
            del row["fresh"]
        print(json_text({"videos": len(findings), "findings": rows}, indent=1))
    else:
        _tell(findings, 10)
    return int(any(KINDS[kind][0] for finding in findings for kind, _ in finding.problems))


def _parser(name: str, description: str) -> Parser:
    parser = Parser(prog=f"tttvideo {name}", description=description)
    parser.add_argument("data", metavar="ROOT|LIST", help="folder of videos at any depth, or list file")
    parser.add_argument("--root", default=None, help="folder that a list's paths count from (default: the list's own)")
    parser.add_argument("--stream", type=int, default=None, help="video stream of files with several, as data.stream")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="worker processes")
    parser.add_argument(
        "--decode",
        action="store_true",
        help="decode every frame once, too: counts the frames that really decode, and makes late windows quick in "
        "every file",
    )
    parser.add_argument(
        "--limit", type=float, default=None, help="seconds for a file before it is given up (default: by its size)"
    )
    return parser


def _read(parser: Parser, argv: Sequence[str]) -> argparse.Namespace:
    args = parser.read(argv)
    if args.jobs < 1:
        raise UsageError(f"--jobs must be at least 1, got {args.jobs}")
    if args.limit is not None and not args.limit > 0:
        raise UsageError(f"--limit must be above 0 seconds, got {args.limit:g}")
    if args.stream is not None and args.stream < 0:
        raise UsageError(f"--stream must be 0 or more, got {args.stream}")
    return args


def _findings(args: argparse.Namespace) -> "list[Finding]":
    from rich.console import Console
    from rich.progress import Progress

    from .video.index import build_index
    from .video.library import build

    index = build_index(args.data, "all", root=args.root, labelled=False)
    paths = list(dict.fromkeys(video.path for video in index.videos))
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("videos", total=len(paths))
        return build(
            paths,
            stream=args.stream,
            jobs=args.jobs,
            decode=args.decode,
            limit=args.limit,
            progress=lambda finding: progress.advance(task),
        )


def _tell(findings: "list[Finding]", most: int) -> None:
    """Problems by kind, the first few by name."""
    from .video.library import KINDS

    if not any(finding.problems for finding in findings):
        print(f"nothing is wrong with the {len(findings)} videos")
    for kind, (_, advice) in KINDS.items():
        rows = [(f.path, what) for f in findings for name, what in f.problems if name == kind]
        if rows:
            print(f"{kind}: {len(rows)} of {len(findings)} videos ({advice})")
            for path, what in rows[:most]:
                print(f"  {printable(path)}: {what}")
            if len(rows) > most:
                print(f"  and {len(rows) - most} more")
