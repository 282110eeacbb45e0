"""Is every frame the right one? Each codec in each container, each kind of request, checked by painted numbers.

    python -m benchmarks.decoding_matrix [--frames 3000] [--only WORD] [--markdown docs/decoding.md] [--json FILE]

Every file holds frames that say their number (painted.py). Wrong frames are counted in five requests; a frame that is
missing or unreadable is wrong. The late window is read by a new reader, of a file that was opened but never read, and
again after a full read, which proves in passing where decoding may begin; its processor time does not include opening.
The table goes between the markers in the Markdown file.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import tempfile
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import environment
from benchmarks.painted import KINDS, Kind, can_write, numbers, write
from tttvideo.video.decode import PartialVideoWarning, VideoError, open_video

BEGIN, END = "<!-- table of benchmarks.decoding_matrix -->", "<!-- end of the table -->"
WINDOW = 64
_COSTS = ("first_late_window_seconds", "late_window_seconds", "open_seconds")


def requests(frames: int) -> dict[str, list[int]]:
    late = frames * 95 // 100
    return {
        "whole": list(range(frames)),
        "every 7th": list(range(0, frames, 7)),
        "late window": list(range(late, min(late + WINDOW, frames))),
        "random": sorted(random.Random(frames).sample(range(frames), min(24, frames))),
        "first and last": [0, frames - 1],
    }


def read(kind: Kind, path: Path, wanted: Sequence[int]) -> tuple[list[int], float]:
    """The numbers of the frames asked for, and the processor seconds of reading them, not of opening."""
    shown: list[int] = []
    seconds = 0.0
    with suppress(VideoError), open_video(path) as video:  # what is missing counts as wrong
        wanted = [number for number in wanted if number < video.info.frames]
        begun = time.process_time()
        for frames in video.stream(wanted):
            seconds += time.process_time() - begun
            shown += numbers(torch.rot90(frames, -kind.turn // 90, (2, 3)))
            begun = time.process_time()
        seconds += time.process_time() - begun
    return shown, seconds


def wrong(shown: Sequence[int], wanted: Sequence[int]) -> int:
    return sum(a != b for a, b in zip(shown, wanted)) + abs(len(wanted) - len(shown))


def measure(kind: Kind, folder: Path, frames: int, rounds: int = 3) -> dict[str, Any]:
    """Wrong frames and wrong times (by over 2 ms), warnings, and what a late window costs, of one kind of file."""
    frames = min(frames, kind.frames or frames)
    path = write(kind, folder, frames)
    asked = requests(frames)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        begun = time.process_time()
        with open_video(path) as video:
            opening = time.process_time() - begun
            info, times = video.info, video.times.tolist()
        shown, first = read(kind, path, asked["late window"])
        mistakes = {name: wrong(read(kind, path, wanted)[0], wanted) for name, wanted in asked.items()}
        mistakes["late window"] += wrong(shown, asked["late window"])
        later = [read(kind, path, asked["late window"])[1] for _ in range(rounds)]
    expected = [kind.time(number) - kind.time(0) for number in range(frames)]
    off = sum(abs(a - times[0] - b) > 2e-3 for a, b in zip(times, expected)) + abs(len(times) - frames)
    path.unlink()
    return {
        "kind": kind.name,
        "container": kind.container,
        "codec": info.codec,
        "frames": frames,
        "wrong": mistakes,
        "wrong_times": off,
        "damage": [str(w.message).rpartition("/")[2] for w in warned if issubclass(w.category, PartialVideoWarning)],
        "reader": info.reader,
        "open_seconds": opening,
        "first_late_window_seconds": first,
        "late_window_seconds": statistics.median(later),
    }


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    names = list(rows[0]["wrong"])
    lines = [
        f"| file | {' | '.join(names)} | times | late window, ms | after a full read | opening | reader |",
        f"|---|{'---:|' * len(names)}---:|---:|---:|---:|---|",
    ]
    for row in rows:
        counts = [str(row["wrong"][name]) for name in names]
        cells = [f"{row['kind']} (.{row['container']})", *counts, str(row["wrong_times"])]
        cells += [f"{1e3 * row[name]:.0f}" for name in _COSTS]
        cells.append(row["reader"] + " (warns)" * bool(row["damage"]))
        lines.append(f"| {' | '.join(cells)} |")
    total = sum(sum(row["wrong"].values()) for row in rows)
    read_frames = sum(sum(map(len, requests(row["frames"]).values())) for row in rows)
    lines += ["", f"{total} wrong of {read_frames:,} frames in {len(rows)} files."]
    return lines


def about() -> dict[str, Any]:
    """Versions, machine and date of the figures."""
    from importlib.metadata import PackageNotFoundError, version

    origin = environment(torch.device("cpu"))
    for name in ("av", "decord", "torchcodec"):
        try:
            origin[name] = version(name)
        except PackageNotFoundError:
            origin[name] = None
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    origin["commit"] = commit.stdout.strip() or None
    return origin


def put_into(file: Path, lines: Sequence[str]) -> None:
    text = file.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{file} lacks the lines {BEGIN} and {END}")
    file.write_text(before + "\n".join([BEGIN, "", *lines, "", END]) + after, encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=3000, help="of each file")
    parser.add_argument("--only", default="", help="kinds whose name or container has this word in it")
    parser.add_argument("--markdown", type=Path, default=None, help="file that the table is put into")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    kinds = [kind for kind in KINDS if args.only.lower() in f"{kind.name} {kind.container}".lower()]
    missing = [kind for kind in kinds if not can_write(kind)]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TTTVIDEO_INDEX"] = str(Path(folder) / "index")  # nothing is known, and nothing is left behind
        measure(KINDS[0], Path(folder), 100)  # what is imported and made once
        for kind in kinds:
            if kind not in missing:
                rows.append(measure(kind, Path(folder), args.frames))
                print(table(rows)[1 + len(rows)], flush=True)
    if not rows:
        parser.error(f"there is no kind with {args.only!r} in its name")
    origin = about()
    lines = table(rows)
    caption = (
        f"{rows[0]['frames']:,} frames of 128 x 96 in each file, groups of 50; processor time of one thread, on "
        f"{origin['name']}; PyAV {origin['av']}, decord {origin['decord']}; {origin['date']}, "
        f"commit {origin['commit']}."
    )
    lines += [f"Not written here, for want of an encoder: {', '.join(k.name for k in missing)}."] * bool(missing)
    print("\n".join(lines[-1:]), caption, sep="\n")
    if args.markdown:
        put_into(args.markdown, [*lines, "", caption])
    if args.json:
        args.json.write_text(json.dumps({"about": origin, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    return int(any(sum(row["wrong"].values()) for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
