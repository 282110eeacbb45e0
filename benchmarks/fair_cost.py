"""Processor time of a training step of every layer of the fair comparison, side by side.

    python -m benchmarks.fair_cost [--rounds 9]

Rows of trainings come from several machines beside other work; these come from one run in which all layers take turns,
one thread. A step is that of the studies: 16 clips of the training length, forward, backward, clipping, optimizer.
Leave the machine alone meanwhile. ``python -m benchmarks.fair --table`` puts the figures into its tables.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from benchmarks.design import any_suite, batches, build, gradients, plan
from benchmarks.fair import BASE, STUDY, comparisons, with_seeds
from benchmarks.measure import environment, processor_seconds, ratio
from benchmarks.small import ROOT, commit, read_rows, read_study
from tttvideo.model import VideoModel
from tttvideo.training.optimizer import build_optimizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=STUDY, help="YAML file: base, tasks, variants")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each layer (default: 9)")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds is {options.rounds}; there is at least 1")
    torch.set_num_threads(1)
    study = read_study(options.study)
    if "costs" not in study:
        parser.error(f"{options.study} does not say where its costs are kept; give it a line `costs: FILE.jsonl`")
    about = {"torch": torch.__version__, "date": time.strftime("%Y-%m-%d"), "commit": commit()}
    about["cpu"] = environment(torch.device("cpu"))["name"]
    rows = []
    for task in study["choice"]:
        for variant, seconds in side_by_side(study, task, options.rounds).items():
            rows.append({"task": task, "variant": variant, "cpu_seconds": seconds} | about)
            print(f"{task:16} {variant:35} {statistics.median(seconds):.3f} s", flush=True)
    (ROOT / study["costs"]).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def side_by_side(study: dict[str, Any], task: str, rounds: int) -> dict[str, list[float]]:
    """Processor seconds of a step of every variant that has reported seeds; each round begins with another one."""
    compared = [variant for t, variants in comparisons(study) if t == task for variant in variants]
    variants = with_seeds(study, read_rows(ROOT / study["rows"]), task, compared)
    steps = {variant: one_step(study, task, variant) for variant in variants}
    for step in steps.values():
        step()
    seconds: dict[str, list[float]] = {variant: [] for variant in variants}
    for number in range(rounds):
        first = number % len(variants)
        for variant in variants[first:] + variants[:first]:
            seconds[variant].append(round(processor_seconds(steps[variant]), 4))
    return seconds


def one_step(study: dict[str, Any], task: str, variant: str) -> Callable[[], None]:
    """A training step of a new model, always on the same clips."""
    described, config = study["tasks"][task], plan(study, task, variant)
    torch.manual_seed(0)
    model = build(config, any_suite(described, 0))
    optimizer = build_optimizer(model, config.optimizer)
    part = {key: described[key] for key in ("suite", "parameters", "steps")}
    frames, target = next(batches([part], 0, config.data.batch_size, "dense"))
    return partial(_train, model, optimizer, frames, target, config.optimizer.clip_grad)


def _train(model: VideoModel, optimizer: Optimizer, frames: Tensor, target: Any, clip: float | None) -> None:
    gradients(model, optimizer, frames, target, clip)
    optimizer.step()


def read_costs(study: dict[str, Any]) -> dict[tuple[str, str], list[float]]:
    """Processor seconds of a step, round by round, of a task and variant."""
    rows = read_rows(ROOT / study["costs"]) if "costs" in study else []
    return {(row["task"], row["variant"]): row["cpu_seconds"] for row in rows}


def against(costs: dict[tuple[str, str], list[float]], task: str, variant: str) -> float | None:
    """The median over rounds of what a variant takes of the base's time; None where one was not measured."""
    seconds, base = costs.get((task, variant)), costs.get((task, BASE))
    return None if seconds is None or base is None else ratio(seconds, base)


if __name__ == "__main__":
    main()
