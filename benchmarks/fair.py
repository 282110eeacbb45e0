"""The fair comparison (docs/results/protocol.md): every sequence layer at its own learning rate, at equal state.

    python -m benchmarks.fair [--dry]
    python -m benchmarks.fair --table docs/results/fair.md

One thread, one training after another. Of each task five layers come first, then the others: each at each rate on the
seed of the choice, then, at the best rate there, on the reported seeds; where training was not flat at its end, again
with more steps. Each finished row is appended to a JSONL file at once, and skipped when the study is started again; a
training that was broken off goes on from its last minute, at the same commit.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks import laps, long_clip
from benchmarks.design import CURVE
from benchmarks.small import ROOT, Partial, append_row, commit, read_rows, read_study
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
    parser.add_argument("--table", type=Path, metavar="FILE.md", help="only write the table of the finished rows")
    options = parser.parse_args()
    study = read_study(options.study)
    if options.task is not None and options.task not in study["choice"]:
        parser.error(f"the study has no task {options.task!r}; it has {', '.join(study['choice'])}")
    file = options.rows or ROOT / study["rows"]
    if options.table:
        options.table.write_text(table(study, read_rows(file)), encoding="utf-8")
        return
    if options.dry:
        for job in dict.fromkeys(jobs(study, read_rows(file), options.task)):
            print(f"{job.task:18} {job.variant:20} seed {job.seed:<4} rate {job.rate:g}, {job.steps} x steps")
        return
    torch.set_num_threads(1)
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".unfinished")
    while (job := next(jobs(study, read_rows(file), options.task), None)) is not None:
        of = repr((job, commit(), study["base"], study["tasks"][job.task], study["variants"][job.variant]))
        row = run(study, job, Partial(unfinished, of))
        append_row(file, row)
        unfinished.unlink(missing_ok=True)
        print(job, [m["top1"] for m in row["measured"]], f"{row['cpu_seconds']} s", flush=True)


def jobs(study: dict[str, Any], rows: list[dict[str, Any]], only: str | None = None) -> Iterator[Job]:
    """What is still to be trained, in order: rates of a task first, then seed by seed, so that a study that is stopped
    early has whole comparisons. What rests on a choice that is not made yet is not named yet."""
    done = {job_of(row): row for row in rows}
    for task, trial, variants in comparisons(study):
        if only not in (None, task):
            continue
        for variant in variants:
            for rate in untried(study, rows, task, variant):
                yield Job(trial, variant, study["choice_seed"], rate)
        for seed in study["seeds"]:
            for variant in variants:
                rate = chosen_rate(study, rows, task, variant)
                if rate is None:
                    continue
                for steps in study["tasks"][task]["times"]:
                    job = Job(task, variant, seed, rate, steps)
                    if job not in done:
                        yield job
                        break
                    if is_flat(study, done[job]):
                        break


def comparisons(study: dict[str, Any]) -> Iterator[tuple[str, str, list[str]]]:
    """Task, the task on which its rates are chosen, and variants that are compared: of each task those named ``first``,
    then the others."""
    for task, trial in study["choice"].items():
        variants = [v for v, own in study["variants"].items() if task in own.get("tasks", [task])]
        first = [v for v in study["first"] if v in variants]
        yield task, trial, first
        yield task, trial, [v for v in variants if v not in first]


def job_of(row: dict[str, Any]) -> Job:
    return Job(row["task"], row["variant"], row["seed"], row["rate"], row["times"])


def chosen_rate(study: dict[str, Any], rows: list[dict[str, Any]], task: str, variant: str) -> float | None:
    """The best of the rates that are to be tried; None: not all have been."""
    tried = trials(study, rows, task, variant)
    return None if not tried or untried(study, rows, task, variant) else max(tried, key=_order)["rate"]


def untried(study: dict[str, Any], rows: list[dict[str, Any]], task: str, variant: str) -> list[float]:
    """Rates that are still to be tried for a task: all of the study; or, where it names a task to ``begin`` with and
    this is another, the rate that was chosen there and its neighbours, until the best one's neighbours were tried."""
    rates, tried = study["rates"], trials(study, rows, task, variant)
    done = {row["rate"] for row in tried}
    begin = study.get("begin")
    if begin is not None and begin != study["choice"][task]:
        if (start := chosen_rate(study, rows, begin, variant)) is None:
            return []
        if done.issuperset(_near(rates, start)):
            start = max(tried, key=_order)["rate"]
        rates = _near(rates, start)
    return [rate for rate in rates if rate not in done]


def _near(rates: list[float], rate: float) -> list[float]:
    """A rate and its neighbours."""
    at = rates.index(rate)
    return rates[max(at - 1, 0) : at + 2]


def trials(study: dict[str, Any], rows: list[dict[str, Any]], task: str, variant: str) -> list[dict[str, Any]]:
    """Rows of the choice of a task's rate, at the rates of the study."""
    wanted = [Job(study["choice"][task], variant, study["choice_seed"], rate) for rate in study["rates"]]
    return [row for row in rows if job_of(row) in wanted]


def _order(row: dict[str, Any]) -> tuple[bool, float, float]:
    """Greatest for the best trial: the best accuracy, mean over all lengths (of equals, the smaller loss), or the least
    error of prediction; one that diverged comes last."""
    good = (-mean(row, "error"), 0.0) if predicts(row) else (mean(row, "top1"), -mean(row, "loss"))
    return row["diverged_at"] is None, *good


def mean(row: dict[str, Any], figure: str) -> float:
    """Of a row's figure, over all lengths."""
    return statistics.mean(measured[figure] for measured in row["measured"])


def predicts(row: dict[str, Any]) -> bool:
    """Whether the row was measured by errors, not by accuracy."""
    return "error" in row["measured"][0]


def is_flat(study: dict[str, Any], row: dict[str, Any]) -> bool:
    """Whether accuracy in training left the level of those that remember nothing and rose by less than ``flat`` from
    the second to last part to the last; or the loss of prediction fell by less than the share ``flat_loss``."""
    curve = row["curve"][:CURVE]  # steps that cannot be divided leave a few more
    if predicts(row):
        return len(curve) > 1 and curve[-1] > (1 - study["flat_loss"]) * curve[-2]
    return len(curve) > 1 and curve[-1] > study["plateau"] and curve[-1] - curve[-2] < study["flat"]


def run(study: dict[str, Any], job: Job, partial: Partial | None = None) -> dict[str, Any]:
    """Trains and measures a row."""
    own = copy.deepcopy(study)
    settings = own["variants"][job.variant].setdefault("settings", {})
    settings["optimizer.lr"] = job.rate
    task = own["tasks"][job.task]
    for stage in (task, *task.get("curriculum", [])):
        stage["steps"] *= job.steps
    about = {"rate": job.rate, "times": job.steps, "commit": commit()}
    train_row = laps.train_row if "measured" in task else long_clip.train_row
    return about | train_row(own, job.task, job.variant, job.seed, partial)


# --- the table ------------------------------------------------------------------------------------


HEAD = """# The fair comparison: its rows

Made by `python -m benchmarks.fair --table docs/results/fair.md` from {rows} rows of `{file}` alone,
by the [protocol](protocol.md). What is not here has not been trained yet; layers are to be compared within a table of
reported seeds, and only where each has all of them.
"""


def table(study: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Markdown: rates that were tried, and of each task a line per layer, with accuracy by length, the paired
    difference to the base at the greatest one, and what it cost."""
    text = [HEAD.format(rows=len(rows), file=study["rows"]), *rates(study, rows)]
    for task in study["choice"]:
        best = {variant: reported(study, rows, task, variant) for variant in study["variants"]}
        best = {variant: own for variant, own in best.items() if own}
        if not best:
            continue
        heads, compared = columns(study, task)
        text += [
            f"## {task}: reported seeds\n",
            f"| layer | rate | seeds | {' | '.join(heads)} | minus {BASE}, {compared} | state, bytes | parameters "
            "| CPU s a step |",
            "|---|---|---|" + "---|" * (len(heads) + 4),
        ]
        for variant, own in best.items():
            cells = [statistics.mean(cell) for cell in zip(*(figures(study, row) for row in own), strict=True)]
            long = "" if all(is_flat(study, row) for row in own) else " (not flat)"
            long += " (diverged)" if any(row["diverged_at"] is not None for row in own) else ""
            cost = statistics.median(row["cpu_seconds"] / row["steps"] for row in own)
            text.append(
                f"| {variant} | {own[0]['rate']:g} | {len(own)}{long} "
                f"| {' | '.join(f'{cell:.3f}' for cell in cells)} | {difference(own, best.get(BASE, []))} "
                f"| {own[0]['state_bytes']:,} | {own[0]['parameters']:,} | {cost:.3f} |"
            )
        text.append("")
    return "\n".join(text)


def columns(study: dict[str, Any], task: str) -> tuple[list[str], str]:
    """Heads of the columns of a task's figures, and of which of them layers are compared."""
    if "measured" in study["tasks"][task]:
        return [f"error in lap {lap + 1}" for lap in study["laps"]], "all laps after the first"
    frames = study["tasks"][task]["parameters"]["frames"]
    heads = [f"{factor * frames} frames" for factor in study["lengths"]]
    return heads, heads[-1]


def figures(study: dict[str, Any], row: dict[str, Any]) -> list[float]:
    """One for each column: accuracy by length, or mean squared error by lap."""
    if predicts(row):
        return [row["measured"][0]["by_lap"][lap] for lap in study["laps"]]
    return [measured["top1"] for measured in row["measured"]]


def rates(study: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """Of each task on which rates are chosen a line per layer: accuracy at each rate."""
    text = []
    for trial in dict.fromkeys(study["choice"].values()):
        task = next(task for task, where in study["choice"].items() if where == trial)
        lines = []
        for variant in study["variants"]:
            own = {row["rate"]: row for row in rows if job_of(row)[:3] == (trial, variant, study["choice_seed"])}
            if own:
                best = chosen_rate(study, rows, task, variant)
                cells = [_trial(own[rate]) if rate in own else "-" for rate in study["rates"]]
                lines.append(f"| {variant} | {' | '.join(cells)} | {'-' if best is None else f'{best:g}'} |")
        if lines:
            heads = " | ".join(f"{rate:g}" for rate in study["rates"])
            text += [f"## {trial}: the choice of the rate (seed {study['choice_seed']})\n"]
            steps = study["tasks"][trial]["steps"]
            what = "Accuracy, mean over all lengths (at the length of training)"
            if "measured" in study["tasks"][trial]:
                what = "Mean squared error of all laps after the first"
            text += [f"{what}. {steps} steps.\n"]
            text += [f"| layer | {heads} | chosen |"]
            text += ["|---|" + "---|" * (len(study["rates"]) + 1), *lines, ""]
    return text


def _trial(row: dict[str, Any]) -> str:
    diverged = "" if row["diverged_at"] is None else ", diverged"
    if predicts(row):
        return f"{mean(row, 'error'):.4f}{diverged}"
    return f"{mean(row, 'top1'):.3f} ({row['measured'][0]['top1']:.3f}{diverged})"


def reported(study: dict[str, Any], rows: list[dict[str, Any]], task: str, variant: str) -> list[dict[str, Any]]:
    """Of every reported seed the row with most steps, at the chosen rate."""
    rate = chosen_rate(study, rows, task, variant)
    own = [row for row in rows if row["task"] == task and row["variant"] == variant and row["rate"] == rate]
    last = {row["seed"]: row for row in sorted(own, key=lambda row: row["times"])}
    return [last[seed] for seed in study["seeds"] if seed in last]


def difference(own: list[dict[str, Any]], base: list[dict[str, Any]]) -> str:
    """Paired over clips and over the seeds that both have, with its 95 % interval."""
    both = {row["seed"] for row in own} & {row["seed"] for row in base}
    if not both or own is base:
        return "-"
    own, base = ([row for row in rows if row["seed"] in both] for rows in (own, base))
    samples = [Samples(np.array([by_clip(row) for row in rows])[..., None]) for rows in (own, base)]
    mean, low, high = (float(x[0]) for x in Bootstrap().difference(*samples))
    return f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"


def by_clip(row: dict[str, Any]) -> list[float]:
    """What is compared clip by clip: errors, or right answers to the longest clips."""
    return row["measured"][0]["errors"] if predicts(row) else _hits(row["measured"][-1])


def _hits(measured: dict[str, Any]) -> list[float]:
    """1.0 for each clip that was answered rightly."""
    return [float(bit) for bit in f"{int(measured['hits'], 16):0{measured['n']}b}"]


if __name__ == "__main__":
    main()
