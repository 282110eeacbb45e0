"""Writes a suite to disk: OUT/<split>/[<class>/]NNNNN.mp4, OUT/meta.csv, OUT/suite.json."""

import csv
import io
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from ...files import read_json, write_text
from ..mp4 import write_mp4
from .suite import Suite, SuiteError

# suite.json is written last, so that its presence says that the set is complete; before, its text lies here.
UNFINISHED = "suite.unfinished.json"
# A worker process costs its start (an import of this package) and pays from about this many pixels; below,
# everything happens in the calling process.
PIXELS_PER_WORKER = 1500 * 32 * 32 * 32

Job = tuple[str, int, Path]  # split, index, file


class Made(NamedTuple):
    """What `make` found and did."""

    out: Path
    written: int  # videos written now
    kept: int  # videos that were already there
    suite: dict[str, Any]  # contents of suite.json


def make(
    suite: Suite,
    out: str | Path,
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Made:
    """Make the videos of a suite in the folder `out`.

    An interrupted set is continued and a complete one is kept as it is when name and parameters are the same;
    nothing else is ever overwritten. `progress(done, total)` is called as videos are written. `workers`:
    number of processes (default: by the number of videos, at most one per core). They are started by "spawn", so a
    script that makes a large set calls this below `if __name__ == "__main__":`.

    Raises SuiteError when `out` is a file or holds anything else; OSError when it cannot be written.
    """
    out = Path(out)
    description = json.loads(json.dumps(suite.describe()))  # as it will be read back
    claim(out, description)
    rows = [meta_row(suite, split, index) for split, size in suite.splits.items() for index in range(size)]
    every = [(row["split"], row["index"], out / row["path"]) for row in rows]
    jobs = [job for job in every if not job[-1].exists()]
    for folder in {path.parent for _, _, path in jobs}:
        folder.mkdir(parents=True, exist_ok=True)
    for done in write_all(suite, jobs, workers):
        if progress:
            progress(done, len(jobs))
    if not (out / "meta.csv").exists():
        write_meta(out / "meta.csv", rows)
    if not (out / "suite.json").exists():
        os.replace(out / UNFINISHED, out / "suite.json")
    return Made(out, len(jobs), len(rows) - len(jobs), description)


def claim(out: Path, description: dict[str, Any]) -> None:
    """Make sure that `out` may be written to: it is new, empty, or holds this very suite."""
    if out.exists() and not out.is_dir():
        raise SuiteError(f"{out} is a file; name a folder for the videos.")
    out.mkdir(parents=True, exist_ok=True)
    notes = [out / name for name in ("suite.json", UNFINISHED) if (out / name).exists()]
    if notes:
        try:
            there = read_json(notes[0])
            differences = [f"{key}={old}" for key, old, new in compared(there, description) if old != new]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise SuiteError(f"{notes[0]} is not a suite of this program; choose another folder.") from None
        if differences:
            raise SuiteError(f"{out} already holds a set made with {', '.join(differences)}; choose another folder.")
        return
    # A dot file of the file system or of an interrupted start is not content.
    content = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
    if content:
        raise SuiteError(
            f"{out} is not empty (it holds {content[0]!r}) and no set was made there; choose an empty folder."
        )
    write_text(out / UNFINISHED, json.dumps(description, indent=2) + "\n")


def compared(there: dict[str, Any], here: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Everything that decides what the videos are: (name, value there, value here)."""
    yield "name", there["name"], here["name"]
    yield "revision", there["revision"], here["revision"]
    old = ",".join(f"{name}={size}" for name, size in there["splits"].items())
    new = ",".join(f"{name}={size}" for name, size in here["splits"].items())
    yield "split", old, new
    for key in sorted((there["parameters"].keys() | here["parameters"].keys()) - {"split", "count"}):
        yield key, there["parameters"].get(key), here["parameters"].get(key)


def meta_row(suite: Suite, split: str, index: int) -> dict[str, Any]:
    """The row of meta.csv of one video; `path` is relative to the root, with forward slashes."""
    label, cause = suite.plan(split, index)
    if label is None:
        return {"path": f"{split}/{index:05d}.mp4", "split": split, "index": index} | cause
    return {"path": f"{split}/{label}/{index:05d}.mp4", "label": label, "split": split, "index": index} | cause


def write_meta(path: Path, rows: list[dict[str, Any]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([rows[0].keys(), *(row.values() for row in rows)])
    write_text(path, text.getvalue())


def write_all(suite: Suite, jobs: list[Job], workers: int | None) -> Iterator[int]:
    """Write every job's file; yields how many are done."""
    if workers is None:
        paying = len(jobs) * suite.frames * suite.size**2 // PIXELS_PER_WORKER
        workers = min(paying, usable_cores())
    batches = [jobs[start : start + 50] for start in range(0, len(jobs), 50)]
    done = 0
    if workers < 2:
        for batch in batches:
            done += write_batch(suite, batch)
            yield done
        return
    # A forked process would inherit the locks of the caller's threads (decoders, torch) and hang on them.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        for written in pool.map(write_batch, [suite] * len(batches), batches):
            done += written
            yield done


def usable_cores() -> int:
    """Cores that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write_batch(suite: Suite, jobs: list[Job]) -> int:
    for split, index, path in jobs:
        write_mp4(path, suite.draw_video(split, index), suite.fps, suite.quantiser)
    return len(jobs)
