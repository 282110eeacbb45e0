"""The fair comparison (docs/results/protocol.md): every sequence layer at its own learning rate, at equal state.

    python -m benchmarks.fair [--dry]
    python -m benchmarks.fair --table docs/results/fair.md

The second one writes that page from the rows, figures beside it, and the tables of the other pages in its folder. One
thread, one training after another. Of each task five layers come first, then the others: each at several rates on the
seed of the choice, then, at the best rate there, on the reported seeds; where training was not flat at its end, again
with more steps, if its task allows more. Each finished row is appended to a JSONL file at once, and skipped when the
study is started again; a training that was broken off goes on from its last minute, at the same commit.
"""

from __future__ import annotations

import argparse
import copy
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks import laps, long_clip
from benchmarks.design import CURVE
from benchmarks.small import ROOT, VAL_SEED, Partial, append_row, commit, read_rows, read_study
from tttvideo.evaluation.bootstrap import Bootstrap, Samples

STUDY = ROOT / "configs" / "study" / "fair.yaml"
BASE = "TTT-MLP"
"""What the others are subtracted from."""


class Job(NamedTuple):
    """One training: of a task and variant, at a learning rate, with ``steps`` times the task's steps."""

    task: str
    variant: str
    seed: int
    rate: float
    steps: int = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=STUDY, help="YAML file: rates, seeds, base, tasks, variants")
    parser.add_argument("--rows", type=Path, help="JSONL file of the finished rows (default: as the study says)")
    parser.add_argument("--dry", action="store_true", help="only print the trainings that can be named so far")
    parser.add_argument("--task", help="only this reported task")
    parser.add_argument("--table", type=Path, metavar="FILE.md", help="only publish the finished rows, in its folder")
    options = parser.parse_args()
    study = read_study(options.study)
    if options.task is not None and options.task not in study["choice"]:
        parser.error(f"the study has no task {options.task!r}; it has {', '.join(study['choice'])}")
    file = options.rows or ROOT / study["rows"]
    if options.table:
        from benchmarks.fair_report import publish  # which reads rows as this file does

        publish(study, read_rows(file), options.table)
        return
    if options.dry:
        for job in dict.fromkeys(jobs(study, read_rows(file), options.task)):
            print(f"{job.task:18} {job.variant:35} seed {job.seed:<4} rate {job.rate:g}, {job.steps} x steps")
        return
    torch.set_num_threads(1)
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".unfinished")
    while (job := next(jobs(study, read_rows(file), options.task), None)) is not None:
        of = repr((job, commit(), study["base"], study["tasks"][job.task], study["variants"][job.variant]))
        row = run(study, job, Partial(unfinished, of))
        append_row(file, row)
        unfinished.unlink(missing_ok=True)
        figure = "error" if predicts(row) else "top1"
        print(job, [measured[figure] for measured in row["measured"]], f"{row['cpu_seconds']} s", flush=True)


def jobs(study: dict[str, Any], rows: list[dict[str, Any]], only: str | None = None) -> Iterator[Job]:
    """What is still to be trained, in order: rates of a task first, then seed by seed, so that a study that is stopped
    early has whole comparisons. What rests on a choice that is not made yet is not named yet; a variant has no reported
    seeds on tasks that its ``only_rates`` names."""
    done = {job_of(row): row for row in rows}
    for task, variants in comparisons(study):
        if only not in (None, task):
            continue
        for variant in variants:
            yield from untried(study, rows, task, variant)
        compared = with_seeds(study, rows, task, variants)
        for seed in sorted({seed for variant in compared for seed in seeds_of(study, task, variant)}):
            for variant in compared:
                if seed not in seeds_of(study, task, variant):
                    continue
                rate = chosen_rate(study, rows, task, variant)
                if rate is None:
                    continue
                times = study["tasks"][task]["times"]
                for steps in times:
                    job = Job(task, variant, seed, rate, steps)
                    if job not in done:
                        yield job
                        break
                    if steps == times[-1] or is_flat(study, done[job]):
                        break


def comparisons(study: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Task and variants that are compared: of each task those named ``first``, then the others."""
    for task in study["choice"]:
        variants = [v for v, own in study["variants"].items() if task in own.get("tasks", [task])]
        first = [v for v in study["first"] if v in variants]
        yield task, first
        yield task, [v for v in variants if v not in first]


def seeds_of(study: dict[str, Any], task: str, variant: str) -> list[int]:
    """The reported seeds of a variant: the study's, and its own ``more_seeds`` of the task."""
    return study["seeds"] + study["variants"][variant].get("more_seeds", {}).get(task, [])


def with_seeds(study: dict[str, Any], rows: list[dict[str, Any]], task: str, variants: list[str]) -> list[str]:
    """Those of which reported seeds are trained on the task: what is ``of`` a layer only where it is better in the
    choice than that one and than its variants that come before."""

    def better(variant: str) -> bool:
        layer = options[variant]["of"]
        tried = [layer, *(v for v in variants[: variants.index(variant) + 1] if options[v].get("of") == layer)]
        if any(chosen_rate(study, rows, task, v) is None for v in tried):
            return False
        return _best(study, [row for v in tried for row in trials(study, rows, task, v)])["variant"] == variant

    options = {v: study["variants"][v] for v in variants}
    return [v for v, o in options.items() if task not in o.get("only_rates", []) and ("of" not in o or better(v))]


def job_of(row: dict[str, Any]) -> Job:
    return Job(row["task"], row["variant"], row["seed"], row["rate"], row["times"])


def chosen_rate(study: dict[str, Any], rows: list[dict[str, Any]], task: str, variant: str) -> float | None:
    """The best of the rates that are to be tried; None: not all have been."""
    tried = trials(study, rows, task, variant)
    return None if not tried or untried(study, rows, task, variant) else _best(study, tried)["rate"]


def untried(study: dict[str, Any], rows: list[dict[str, Any]], task: str, variant: str) -> list[Job]:
    """Trials that a task's rate still waits for: all ``rates``, then the neighbours of the best so far, ``wider`` rates
    among them, until both were tried."""
    trial = study["choice"][task]
    tried = trials(study, rows, task, variant)
    done, rates = {row["rate"] for row in tried}, study["rates"]
    if done.issuperset(rates):
        rates = _near(study, _best(study, tried)["rate"])
    return [Job(trial, variant, study["choice_seed"], rate) for rate in rates if rate not in done]


def all_rates(study: dict[str, Any]) -> list[float]:
    """Every rate that may be tried, rising."""
    return sorted(study["rates"] + study.get("wider", []))


def _near(study: dict[str, Any], rate: float) -> list[float]:
    """A rate and its neighbours."""
    rates = all_rates(study)
    at = rates.index(rate)
    return rates[max(at - 1, 0) : at + 2]


def trials(study: dict[str, Any], rows: list[dict[str, Any]], task: str, variant: str) -> list[dict[str, Any]]:
    """Rows of the choice of a task's rate, at the rates of the study."""
    wanted = [Job(study["choice"][task], variant, study["choice_seed"], rate) for rate in all_rates(study)]
    return [row for row in rows if job_of(row) in wanted]


def _best(study: dict[str, Any], tried: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the trials of a rate: that with the best accuracy, mean over the lengths that the task is ``chosen_at`` (all;
    of equals the one with the smaller loss), or the least error of prediction; one that diverged comes last."""

    def order(row: dict[str, Any]) -> tuple[bool, float, float]:
        at = study["tasks"][row["task"]].get("chosen_at")
        compared = row | {"measured": [m for m in row["measured"] if at is None or m["length"] in at]}
        error = predicts(compared)
        good = (-mean(compared, "error"), 0.0) if error else (mean(compared, "top1"), -mean(compared, "loss"))
        return row["diverged_at"] is None, *good

    return max(tried, key=order)


def mean(row: dict[str, Any], figure: str) -> float:
    """Of a row's figure, over the lengths that were measured."""
    return statistics.mean(measured[figure] for measured in row["measured"])


def predicts(row: dict[str, Any]) -> bool:
    """Whether the row was measured by errors, not by accuracy."""
    return "error" in row["measured"][0]


def is_flat(study: dict[str, Any], row: dict[str, Any]) -> bool:
    """Whether training left the level of those that remember nothing (accuracy above ``plateau``, the task's own where
    it has one; loss of prediction below ``plateau_loss``) and from the second to last part to the last accuracy rose by
    less than ``flat``, or the loss fell by less than the share ``flat_loss``."""
    curve = row["curve"][:CURVE]  # steps that cannot be divided leave a few more
    if predicts(row):
        return len(curve) > 1 and study["plateau_loss"] > curve[-1] > (1 - study["flat_loss"]) * curve[-2]
    plateau = study["tasks"][row["task"]].get("plateau", study["plateau"])
    return len(curve) > 1 and curve[-1] > plateau and curve[-1] - curve[-2] < study["flat"]


def run(study: dict[str, Any], job: Job, partial: Partial | None = None) -> dict[str, Any]:
    """Trains and measures a row."""
    own = copy.deepcopy(study)
    settings = own["variants"][job.variant].setdefault("settings", {})
    settings["optimizer.lr"] = job.rate
    task = own["tasks"][job.task]
    for stage in (task, *task.get("curriculum", [])):
        stage["steps"] *= job.steps
    if job.seed == study["choice_seed"] and not task.get("chosen_on_reported_clips"):
        own["val_seed"] = VAL_SEED + 1  # rates are not chosen on the clips that are reported
    about = {"rate": job.rate, "times": job.steps, "commit": commit()}
    train_row = laps.train_row if "measured" in task else long_clip.train_row
    return about | train_row(own, job.task, job.variant, job.seed, partial)


def all_reported(study: dict[str, Any], rows: list[dict[str, Any]], task: str) -> dict[str, list[dict[str, Any]]]:
    """``reported`` of every variant that has any."""
    best = {variant: reported(study, rows, task, variant) for variant in study["variants"]}
    return {variant: own for variant, own in best.items() if own}


def at_their_best(study: dict[str, Any], rows: list[dict[str, Any]], task: str) -> dict[str, list[dict[str, Any]]]:
    """``all_reported`` by layer: where several variants are ``of`` one layer, the one that is best in the choice, of
    those that have all the study's seeds, or most of them; a ``control`` stands for no layer."""
    variants: dict[str, list[str]] = {}
    rows_of = all_reported(study, rows, task)
    for variant in rows_of:
        if study["variants"][variant].get("control"):
            continue
        variants.setdefault(study["variants"][variant].get("of", variant), []).append(variant)
    best = {}
    for layer, names in variants.items():
        most = min(len(study["seeds"]), max(len(rows_of[variant]) for variant in names))
        whole = [variant for variant in names if len(rows_of[variant]) >= most]
        trial = _best(study, [row for variant in whole for row in trials(study, rows, task, variant)])
        best[layer] = rows_of[trial["variant"]]
    return best


def reported(study: dict[str, Any], rows: list[dict[str, Any]], task: str, variant: str) -> list[dict[str, Any]]:
    """Of every reported seed the row with most steps, at the chosen rate."""
    rate = chosen_rate(study, rows, task, variant)
    own = [row for row in rows if row["task"] == task and row["variant"] == variant and row["rate"] == rate]
    last = {row["seed"]: row for row in sorted(own, key=lambda row: row["times"])}
    return [last[seed] for seed in seeds_of(study, task, variant) if seed in last]


def difference(own: list[dict[str, Any]], base: list[dict[str, Any]], at: int = -1) -> str:
    """Over the seeds that both have, paired over clips, with its 95 % interval; seeds are drawn for each by itself.
    ``at``: which of the measured lengths is compared, the longest unless told."""
    both = {row["seed"] for row in own} & {row["seed"] for row in base}
    if not both or own is base:
        return "-"
    own, base = ([row for row in rows if row["seed"] in both] for rows in (own, base))
    samples = [Samples(np.array([by_clip(row, at) for row in rows])[..., None]) for rows in (own, base)]
    mean, low, high = (float(x[0]) for x in Bootstrap().difference(*samples))
    digits = 4 if predicts(own[0]) else 3
    return f"{mean:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def signs(own: list[dict[str, Any]], base: list[dict[str, Any]], at: int = -1) -> str:
    """Of the ends of the difference's interval as it is printed: "++" is more, "--" less, anything else level."""
    ends = map(float, re.findall(r"[+-][.\d]+", difference(own, base, at))[1:])
    return "".join("+" if end > 0 else "-" if end < 0 else "0" for end in ends)


def by_clip(row: dict[str, Any], at: int = -1) -> list[float]:
    """What is compared clip by clip: errors, or right answers to clips of one of the measured lengths."""
    return row["measured"][0]["errors"] if predicts(row) else _hits(row["measured"][at])


def _hits(measured: dict[str, Any]) -> list[float]:
    """1.0 for each clip that was answered rightly."""
    return [float(bit) for bit in f"{int(measured['hits'], 16):0{measured['n']}b}"]


if __name__ == "__main__":
    main()
