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
        result = {**row, **run(study, row, options.videos)}
        with lock, rows_file.open("a") as file:
            file.write(json.dumps(result) + "\n")
        print(json.dumps(result), flush=True)

    rows_file.parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(finish, todo))
    print(table(study, read_rows(rows_file)))


def key(row: dict[str, Any]) -> tuple[str, str, int]:
    return row["data"], row["variant"], row["seed"]


def run(study: dict[str, Any], row: dict[str, Any], videos: Path) -> dict[str, Any]:
    """Trains and measures one row in a folder of its own, which is removed.

    A variant is the settings of train.py, or a mapping: `settings`, another `folder` or `config` than the
    experiment's, and `first`, a training (the same mapping) whose encoder and backbone it starts from.
    """
    variant = study["variants"][row["variant"]]
    plan = {**study["experiments"][row["data"]], **(variant if isinstance(variant, dict) else {})}
    plan["settings"] = [*(variant if isinstance(variant, list) else variant.get("settings", []))]
    plan["settings"] += study["experiments"][row["data"]].get("settings", [])
    folder = Path(tempfile.mkdtemp(prefix="study-"))
    seconds = 0.0
    if first := plan.pop("first", None):
        seconds += train({**plan, "settings": [], **first}, row["seed"], videos, folder / "first")
        plan["settings"] += ["--init_from", str(last_checkpoint(folder / "first"))]
    seconds += train(plan, row["seed"], videos, folder / "run")
    result = measure(plan, videos, folder)
    shutil.rmtree(folder)
    return {**result, "train_seconds": round(seconds, 1), "torch": torch_version(), "date": time.strftime("%Y-%m-%d")}


def train(plan: dict[str, Any], seed: int, videos: Path, out: Path) -> float:
    """Runs train.py; returns its seconds."""
    start = time.perf_counter()
    command = [sys.executable, "train.py", "--config", plan["config"], "--data.root", str(videos / plan["folder"])]
    command += ["--out", str(out), "--seed", str(seed), "--data.workers", "0", "--trackers", "[]"]
    _check([*command, *plan["settings"]])
    return time.perf_counter() - start


def last_checkpoint(run: Path) -> Path:
    return run / "checkpoints" / json.loads((run / "checkpoints" / "index.json").read_text())["last"]


def measure(plan: dict[str, Any], videos: Path, folder: Path) -> dict[str, Any]:
    """Runs `tttvideo evaluate` on the last checkpoint, of predictions once for each of `contexts`; what a row says of
    it."""
    last = last_checkpoint(folder / "run")
    command = [sys.executable, "-m", "tttvideo", "evaluate", str(last), "--data", str(videos / plan["folder"])]

    def evaluate(*words: str) -> dict[str, Any]:
        _check([*command, "--out", str(folder / "eval"), *words])
        return json.loads((folder / "eval" / "metrics.json").read_text())

    log = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    from safetensors import safe_open

    with safe_open(last / "model.safetensors", "pt") as file:
        parameters = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
    if "contexts" in plan:
        reports = [evaluate("--context", str(n), "--horizon", str(plan["horizons"][-1])) for n in plan["contexts"]]
        return {
            "context": {
                each["context"]: {
                    name: {k: row[k] for k in ("mse", "psnr")} for name, row in each["per_horizon"].items()
                }
                for each in reports
            },
            "n": [each["n_videos"] - each["n_failed"] for each in reports],
            "parameters": parameters,
        }
    metrics = evaluate("--workers", "0")
    index = json.loads((folder / "run" / "checkpoints" / "index.json").read_text())
    return {
        "val_top1": metrics["results"][0]["top1"],
        "val_best_epoch_top1": index["best_value"],
        "train_top1": log[-1]["train_accuracy"],
        "n": metrics["results"][0]["n"],
        "parameters": parameters,
    }


def torch_version() -> str:
    import torch

    return torch.__version__


def _check(command: list[str]) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")


def table(study: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Markdown: a line per variant, mean and range over seeds per data set."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["data"], row["variant"]].append(row)
    return "\n".join(
        line
        for name, experiment in study["experiments"].items()
        for line in _lines(name, experiment, {v: groups[name, v] for v in study["variants"] if groups[name, v]})
    )


def _lines(name: str, experiment: dict[str, Any], groups: dict[str, list[dict[str, Any]]]) -> list[str]:
    shown = [(str(n), h) for n in experiment.get("contexts", []) for h in experiment["horizons"]]
    head = [f"{n} given: mse at horizon {h}" for n, h in shown] or ["val top-1", "train top-1"]
    lines = [f"**{name}**", "", "| model | seeds | " + " | ".join(head) + " | s | parameters |"]
    lines.append("|---|---|" + "---|" * (len(head) + 2))
    for variant, rows in groups.items():
        if shown:
            cells = [_range([row["context"][n]["model"]["mse"][h - 1] for row in rows], 2) for n, h in shown]
        else:
            cells = [_range([row["val_top1"] for row in rows], 3), _range([row["train_top1"] for row in rows], 3)]
        seconds = statistics.median(row["train_seconds"] for row in rows)
        cells += [f"{seconds:.0f}", f"{rows[0]['parameters']:,}"]
        lines.append(f"| {variant} | {len(rows)} | " + " | ".join(cells) + " |")
    if shown and groups:
        measured = next(iter(groups.values()))[0]["context"]
        for method in measured[shown[0][0]]:
            if method != "model":
                cells = [f"{measured[n][method]['mse'][h - 1]:.2f}" for n, h in shown]
                lines.append(f"| {method} | | " + " | ".join(cells) + " | | |")
    return [*lines, ""]


def _range(values: list[float], digits: int) -> str:
    middle = f"{statistics.mean(values):.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.{digits}f}-{max(values):.{digits}f})"


if __name__ == "__main__":
    main()
