"""The commands `tttvideo index` and `tttvideo check`."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from .arguments import ConfigError
from .printing import json_text, printable

if TYPE_CHECKING:
    from .video.library import Finding


@dataclass(frozen=True)
class VideosConfig:
    """
    Attributes:
        data: folder of videos at any depth, or list file.
        root: folder against which a list's relative paths are resolved (default: the list's own).
        stream: video stream of files with several, as data.stream.
        jobs: worker processes (default: by the number of CPUs).
        decode: decode every frame once, too: counts the frames that really decode, and makes late windows quick in
            every file.
        limit: seconds for a file before it is given up (default: by its size).
    """

    positional: ClassVar = ("data",)

    data: str
    root: str | None = None
    stream: int | None = None
    jobs: int | None = None
    decode: bool = False
    limit: float | None = None

    def __post_init__(self) -> None:
        if self.jobs is not None and self.jobs < 1:
            raise ConfigError(f"jobs must be at least 1, got {self.jobs}")
        if self.limit is not None and not self.limit > 0:
            raise ConfigError(f"limit must be above 0 seconds, got {self.limit:g}")
        if self.stream is not None and self.stream < 0:
            raise ConfigError(f"stream must be 0 or more, got {self.stream}")


@dataclass(frozen=True)
class IndexConfig(VideosConfig):
    """Read every video of a folder or list through once and keep what is in it in the index: frames, time stamps,
    keyframes, damage. Training and evaluation do the same as they go; with this they start at once. What is indexed
    already is not read again.

    Attributes:
        beside: keep the index beside the data, in a folder .tttvideo-index that travels with them, not in the user's
            cache folder.
    """

    beside: bool = False


@dataclass(frozen=True)
class CheckConfig(VideosConfig):
    """Problems of the videos of a folder or list by kind, how many, and what to do. What is not indexed yet is read
    through first. Exit code 1 if there are videos that cannot be read, or not whole.

    Attributes:
        json: print every finding as JSON.
    """

    json: bool = False


def index(config: IndexConfig) -> int:
    folder = Path(config.data) if os.path.isdir(config.data) else Path(config.root or Path(config.data).parent)
    if config.beside and os.path.exists(config.data):
        (folder / ".tttvideo-index").mkdir(exist_ok=True)
    findings = _findings(config)
    fresh = sum(finding.fresh for finding in findings)
    frames, hours = sum(f.frames for f in findings), sum(f.seconds for f in findings) / 3600
    print(f"{len(findings)} videos, {frames:,} frames, {hours:.1f} h; {fresh} were read now")
    _print_problems(findings, 3)
    return 0


def check(config: CheckConfig) -> int:
    findings = _findings(config)
    from .video.library import KINDS

    if config.json:
        rows = [
            {**f._asdict(), "problems": [{"kind": kind, "what": what} for kind, what in f.problems]} for f in findings
        ]
        for row in rows:
            del row["fresh"]
        print(json_text({"videos": len(findings), "findings": rows}, indent=1))
    else:
        _print_problems(findings, 10)
    return int(any(KINDS[kind][0] for finding in findings for kind, _ in finding.problems))


def _findings(config: VideosConfig) -> list[Finding]:
    from rich.console import Console
    from rich.progress import Progress

    from .video.index import build_index
    from .video.kinds import FEATURES
    from .video.library import build

    index = build_index(config.data, "all", root=config.root, labelled=False)
    paths = list(dict.fromkeys(video.path for video in index.videos))
    if features := [path for path in paths if path.endswith(FEATURES)]:
        raise ConfigError(
            f"{config.data} names {len(features)} files of features (first: {features[0]}), and this command reads "
            "videos; training reads such files as they are, and skips those that it cannot read with the reason"
        )
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("videos", total=len(paths))
        return build(
            paths,
            stream=config.stream,
            jobs=config.jobs or os.cpu_count() or 1,
            decode=config.decode,
            limit=config.limit,
            progress=lambda finding: progress.advance(task),
        )


def _print_problems(findings: list[Finding], most: int) -> None:
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
