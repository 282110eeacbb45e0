"""A study: trainings that differ in one factor, several seeds each, one finished row per line of a JSONL file.

    python -m benchmarks.study configs/study/real-videos.yaml --videos DIR [--jobs 2] [--table FILE.md]

Rows that the file already has are skipped, so a study that was stopped goes on where it was. A row is measured by
`tttvideo evaluate` on the last checkpoint: nothing is selected on the split that is reported.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

from benchmarks.small import ROOT, read_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="YAML file: rows, seeds, experiments, variants")
    parser.add_argument("--videos", type=Path, required=True, help="folder that holds the data sets by name")
    parser.add_argument("--jobs", type=int, default=2, help="trainings side by side, one thread each")
    parser.add_argument("--only", help="only this experiment of the study")
    parser.add_argument("--table", type=Path, help="only write the table of the finished rows to this file")
    options = parser.parse_args()

    import yaml

    study = yaml.safe_load(options.study.read_text())
    rows_file = ROOT / study["rows"]
    if options.table:
        options.table.write_text(table(study, read_rows(rows_file)))
        return
    done = {key(row) for row in read_rows(rows_file)}
    # Seed by seed, so that a study stopped early has whole comparisons.
    todo = [
        {"data": data, "variant": variant, "seed": seed}
        for seed in study["seeds"]
        for data in study["experiments"]
        for variant in study["variants"]
    ]
    todo = [row for row in todo if key(row) not in done and options.only in (None, row["data"])]
    print(f"{len(done)} rows finished, {len(todo)} to do", flush=True)
    lock = Lock()

    def finish(row: dict[str, Any]) -> None:
        found = {**row, **run(study, row, options.videos)}
        with lock, rows_file.open("a") as file:
            file.write(json.dumps(found) + "\n")
        print(json.dumps(found), flush=True)

    rows_file.parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(finish, todo))
    print(table(study, read_rows(rows_file)))


def key(row: dict[str, Any]) -> tuple[str, str, int]:
    return row["data"], row["variant"], row["seed"]


def run(study: dict[str, Any], row: dict[str, Any], videos: Path) -> dict[str, Any]:
    """Trains and measures one row in a folder of its own, which is removed."""
    import torch

    experiment = study["experiments"][row["data"]]
    folder = Path(tempfile.mkdtemp(prefix="study-"))
    data = str(videos / experiment["folder"])
    settings = [*study["variants"][row["variant"]], *experiment.get("settings", [])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    start = time.perf_counter()
    command = [sys.executable, "train.py", "--config", experiment["config"], "--data.root", data]
    command += ["--out", str(folder / "run"), "--seed", str(row["seed"]), "--data.workers", "0"]
    _check([*command, "--trackers", "[]", *settings], environment)
    seconds = time.perf_counter() - start
    index = json.loads((folder / "run" / "checkpoints" / "index.json").read_text())
    last = folder / "run" / "checkpoints" / index["last"]
    command = [sys.executable, "-m", "tttvideo", "evaluate", str(last), "--data", data]
    _check([*command, "--out", str(folder / "eval"), "--workers", "0"], environment)
    metrics = json.loads((folder / "eval" / "metrics.json").read_text())
    log = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    from safetensors import safe_open

    with safe_open(last / "model.safetensors", "pt") as file:
        parameters = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
    shutil.rmtree(folder)
    result = metrics["results"][0]
    return {
        "val_top1": result["top1"],
        "val_best_epoch_top1": index["best_value"],
        "train_top1": log[-1]["train_accuracy"],
        "n": result["n"],
        "parameters": parameters,
        "train_seconds": round(seconds, 1),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def _check(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")


def table(study: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Markdown: a line per variant, mean and range over seeds per data set."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["data"], row["variant"]].append(row)
    names = list(study["experiments"])
    lines = [
        "| model | " + " | ".join(f"{n}: val top-1 (min-max) | train | s | parameters" for n in names) + " |",
        "|---|" + "---|" * (4 * len(names)),
    ]
    for variant in study["variants"]:
        cells = []
        for name in names:
            found = groups.get((name, variant), [])
            if not found:
                cells.append("- | - | - | -")
                continue
            top1 = [row["val_top1"] for row in found]
            train = statistics.mean(row["train_top1"] for row in found)
            seconds = statistics.median(row["train_seconds"] for row in found)
            cells.append(
                f"{statistics.mean(top1):.3f} ({min(top1):.3f}-{max(top1):.3f}, {len(top1)} seeds) | {train:.3f} | "
                f"{seconds:.0f} | {found[0]['parameters']:,}"
            )
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
