"""The first minutes on a GPU: verdicts and figures, the most valuable first.

    python -m benchmarks.first_gpu --budget SECONDS --out DIR [--only STAGE,STAGE] [--dry]

``DIR/rows.jsonl`` has every row as soon as there is one, ``DIR/log.txt`` what else was said. Every part of a stage is a
process of its own with a time limit, so that a kernel that hangs or breaks the device costs its own rows. The last line
is the command for the stages that the time did not allow. Needs PyTorch, Triton and timm; the last stage what train.py
needs. ``--dry``: on a CPU, at tiny sizes, through Triton's interpreter (where it runs; elsewhere the eager scan stands
in, and the rows say so), with figures of no meaning. What the rows say: ``python -m benchmarks.verify DIR/rows.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

Row = dict[str, Any]


class Stage(NamedTuple):
    """Parts that are processes, ``workers`` at a time, of ``limit`` seconds at most; ``dry``: parts of a dry run."""

    name: str
    parts: int
    workers: int
    limit: float
    dry: int


STAGES = (
    Stage("versions", 1, 1, 30, 1),
    Stage("smoke", 1, 1, 40, 1),
    Stage("accuracy", 49, 12, 90, 3),
    Stage("replays", 5, 5, 60, 1),
    Stage("beside_eager", 7, 1, 40, 1),  # one at a time: these are timed
    Stage("cores", 1, 1, 110, 1),
    Stage("layers", 1, 1, 300, 1),
    Stage("accuracy_float32", 32, 12, 90, 1),
    Stage("training", 3, 3, 120, 2),
    Stage("steps", 6, 1, 120, 1),  # timed
    Stage("files", 1, 1, 150, 1),
)
"""In the order of their weight; benchmarks/first_gpu_stages.py has the work."""

LEAST = 10.0
"""Seconds under which no stage is begun."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, required=True, help="seconds for everything")
    parser.add_argument("--out", type=Path, required=True, help="folder of rows.jsonl and log.txt, which are added to")
    parser.add_argument("--only", default="", help="stages, by commas: " + ", ".join(s.name for s in STAGES))
    parser.add_argument("--dry", action="store_true", help="on a CPU, at tiny sizes")
    options = parser.parse_args(arguments)
    names = [word for word in options.only.split(",") if word]
    if unknown := set(names) - {stage.name for stage in STAGES}:
        parser.error(f"no stage is called {sorted(unknown)[0]}; there are {', '.join(s.name for s in STAGES)}")
    end = time.time() + options.budget
    options.out.mkdir(parents=True, exist_ok=True)
    stages = [stage for stage in STAGES if stage.name in names or not names]
    unfinished = [stage.name for stage in stages if not run(stage, options.out, end, options.dry)]
    if unfinished:
        again = f"--budget {options.budget:.0f} --out {options.out} --only {','.join(unfinished)}"
        print(f"The time was up; the rest: python -m benchmarks.first_gpu {again}" + " --dry" * options.dry, flush=True)
    return 0


def run(stage: Stage, out: Path, end: float, dry: bool) -> bool:
    """All parts of a stage; whether the time was enough for each of them to run to its own limit."""
    if dry:  # the interpreter and a CPU with other work are slow
        stage = stage._replace(parts=stage.dry, limit=240.0)
    waiting = list(range(stage.parts))
    workers = min(stage.workers, max(1, (os.cpu_count() or 1) - 1))
    running: list[tuple[int, float, float, subprocess.Popen[bytes]]] = []  # part, deadline, whole limit, process
    whole = True
    while waiting or running:
        while waiting and len(running) < workers:
            if end - time.time() < LEAST:
                write(out, {"stage": stage.name, "parts": waiting, "why": "the time was up before it was begun"})
                waiting, whole = [], False
                break
            limit = min(stage.limit, end - time.time())
            part = waiting.pop(0)
            running.append((part, time.time() + limit, limit, start(stage.name, part, out, limit, dry)))
        for one in list(running):
            part, deadline, limit, process = one
            if process.poll() is None and time.time() < deadline:
                continue
            running.remove(one)
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                write(out, {"stage": stage.name, "part": part, "why": f"ended after {limit:.0f} seconds, its limit"})
                whole = whole and limit == stage.limit
            elif process.returncode:
                why = f"its process ended with exit code {process.returncode}; see log.txt"
                write(out, {"stage": stage.name, "part": part, "why": why})
        time.sleep(0.05)
    return whole


def start(name: str, part: int, out: Path, limit: float, dry: bool) -> subprocess.Popen[bytes]:
    """A process group of its own, so that all that it started ends with it. Triton decides when it is imported whether
    it interprets."""
    environment = os.environ | {
        "TRITON_INTERPRET": "1" if dry else "0",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")])),
    }
    environment.setdefault("OMP_NUM_THREADS", "1" if dry else "4")
    command = [sys.executable, "-m", "benchmarks.first_gpu_stages", name, str(part), str(out), f"{limit:.1f}"]
    with (out / "log.txt").open("a", encoding="utf-8") as log:
        log.write(f"--- {name} {part}\n")
        log.flush()
        return subprocess.Popen(command + ["--dry"] * dry, env=environment, stderr=log, start_new_session=True)


def write(out: Path, row: Row) -> None:
    """One line of rows.jsonl, written at once, and a short one for who looks on."""
    line = json.dumps(row)
    descriptor = os.open(out / "rows.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, (line + "\n").encode())  # in one piece: several processes write
    finally:
        os.close(descriptor)
    print(line[:300], flush=True)


if __name__ == "__main__":
    sys.exit(main())
