"""Films of 10,000 frames whose question comes 9,000 frames after its answer, learned in segments of shorter films.

    python -m benchmarks.long_recall [--study configs/study/long-recall.yaml]
    python -m benchmarks.long_recall --table docs/results/long-recall.md

A row is one training, in this process and one thread, by the trainer of `training.segment_frames`; films are drawn as
they are read. It is measured after its last step. Each layer's learning rate is chosen first, as in `benchmarks.fair`.
Finished rows are appended to a JSONL file, and skipped when the study is started again. docs/results/long-recall.md has
the protocol.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.nn.functional import cross_entropy

from benchmarks.design import any_suite, build, clips, plan
from benchmarks.fair import Job, difference, job_of, jobs, mean, reported, trials
from benchmarks.small import (
    ROOT,
    VAL_SEED,
    append_row,
    commit,
    count,
    fill_page,
    hexadecimal,
    read_rows,
    read_study,
)
from tttvideo.model import VideoModel
from tttvideo.training.config import MixConfig, TrainingConfig
from tttvideo.training.loop import NonFinite
from tttvideo.training.mix import ClipMix
from tttvideo.training.optimizer import Schedule, build_optimizer
from tttvideo.training.position import Progress
from tttvideo.training.segments import SegmentTrainer, prepare_model
from tttvideo.ttt.interface import state_bytes
from tttvideo.video.loader import SegmentBatch
from tttvideo.video.synthetic import Suite
from tttvideo.video.synthetic.flash_recall import FlashRecall

STUDY = ROOT / "configs" / "study" / "long-recall.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=STUDY, help="YAML file: seeds, base, tasks, variants")
    parser.add_argument("--rows", type=Path, help="JSONL file of the finished rows (default: as the study says)")
    parser.add_argument("--table", type=Path, metavar="FILE.md", help="only write the finished rows into this page")
    options = parser.parse_args()
    study = read_study(options.study)
    file = options.rows or ROOT / study["rows"]
    if options.table:
        fill_page(options.table, {file.name: f"{table(study, finished(file))}\n"})
        return
    torch.set_num_threads(1)
    while (job := next(unfinished(study, finished(file)), None)) is not None:
        row = train_row(study, job)
        append_row(file, row)
        print(job, [m["top1"] for m in row["measured"]], f"{row['cpu_seconds']} s", flush=True)


def finished(file: Path) -> list[dict[str, Any]]:
    """The rows of a file; the oldest ones were written before rates were chosen, and lack ``times``."""
    return [{"times": 1} | row for row in read_rows(file)]


def unfinished(study: dict[str, Any], rows: list[dict[str, Any]]) -> Iterator[Job]:
    """What is still to be trained: as `benchmarks.fair` has it, then variants whose rate is given."""
    fixed = {variant: options["rate"] for variant, options in study["variants"].items() if "rate" in options}
    searched = {variant: options for variant, options in study["variants"].items() if variant not in fixed}
    yield from jobs(study | {"variants": searched}, rows)
    done = {job_of(row) for row in rows}
    for task in study["tasks"]:
        wanted = [Job(task, variant, seed, rate) for seed in study["seeds"] for variant, rate in fixed.items()]
        yield from (job for job in wanted if job not in done)


def train_row(study: dict[str, Any], job: Job) -> dict[str, Any]:
    """Trains and measures one row; rates are chosen on films that no reported row is measured on."""
    begin, described = time.process_time(), study["tasks"][job.task]
    model, about = fit(study, job)
    spent = time.process_time() - begin
    val_seed = VAL_SEED + (job.seed == study["choice_seed"])
    suites = [any_suite(described, val_seed, **parameters) for parameters in described["measured"]]
    measured = [measure(model, suite, described["val"], study["segment"]) for suite in suites]
    frames, _ = clips(suites[0], "val", range(1))
    with torch.no_grad():
        held = state_bytes(model(frames)[1])
    about |= {"state_bytes": held, "parameters": count(model), "cpu_seconds": round(spent, 1), "commit": commit()}
    about |= {"torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}
    return {**job._asdict(), "times": job.steps, "measured": measured} | about


def fit(study: dict[str, Any], job: Job) -> tuple[VideoModel, dict[str, Any]]:
    """Trains through a task's stages; returns the model, and the share of right answers in each quarter of a stage."""
    config, described, seed = plan(study, job.task, job.variant), study["tasks"][job.task], job.seed
    config = replace(config, optimizer=replace(config.optimizer, lr=job.rate))
    steps = sum(stage["steps"] for stage in described["stages"])
    torch.manual_seed(seed)
    model = build(config, any_suite(described, seed))
    training = TrainingConfig(segment_frames=study["segment"], **study["variants"][job.variant].get("training", {}))
    prepare_model(model, training)
    accelerator = Accelerator(cpu=True)
    wrapped, optimizer = accelerator.prepare(model, build_optimizer(model, config.optimizer))
    trainer = SegmentTrainer(
        accelerator,
        wrapped,
        optimizer,
        Schedule(optimizer, config.schedule, steps),
        ClipMix(MixConfig(), len(model.labels)),
        clip_grad=config.optimizer.clip_grad,
        seed=seed,
        training=training,
        rank=0,
    )
    progress, curves, diverged = Progress(), [], None
    for number, stage in enumerate(described["stages"]):
        suite = any_suite(described, seed, **stage["parameters"])
        batches = segments(suite, number, stage["rows"], study["segment"])
        right: list[float] = []
        progress = Progress(epoch=number, step=progress.step)
        try:
            for result in trainer.epoch(batches, stage["steps"], progress):
                right.append(result.figures["accuracy"])
                progress = result.progress
        except NonFinite:
            diverged = progress.step  # the weights stay those before it
        quarters = pairwise(i * len(right) // 4 for i in range(5))
        curves.append([round(statistics.mean(right[a:b]), 3) for a, b in quarters if a < b])
        if diverged is not None:
            break
    model.set_inner_rate(1.0)
    model.eval()
    return model, {"steps": steps, "curves": curves, "diverged_at": diverged}


def segments(suite: Suite, stage: int, rows: int, length: int) -> Iterator[SegmentBatch]:
    """New films without end, so many side by side from their beginning to their end."""
    number = 0
    while True:
        frames, labels = clips(suite, "train", range(number, number + rows))
        films = torch.stack([torch.full((rows,), stage), torch.arange(number, number + rows)], 1)
        for piece in frames.split(length, 1):
            yield SegmentBatch(piece, torch.full((rows,), piece.shape[1]), labels, films, [], [], [])
        number += rows


@torch.no_grad()
def measure(model: VideoModel, suite: Suite, total: int, segment: int, rows: int = 24) -> dict[str, Any]:
    """Answers at the end of whole films, read in segments whose states are carried."""
    assert isinstance(suite, FlashRecall)
    hits: list[bool] = []
    losses: list[float] = []
    cpu = 0.0
    for first in range(0, total, rows):
        frames, labels = clips(suite, "val", range(first, min(first + rows, total)))
        begin, logits = time.process_time(), None
        for _, _, output in model.outputs((p, torch.full_like(labels, p.shape[1])) for p in frames.split(segment, 1)):
            logits = output.logits.float()
        assert logits is not None
        cpu += time.process_time() - begin
        losses += cross_entropy(logits, labels, reduction="none").tolist()
        hits += (logits.argmax(1) == labels).tolist()
    return {
        "frames": suite.frames,
        "gap": suite.gap,
        "top1": round(statistics.mean(hits), 4),
        "loss": round(statistics.mean(losses), 4),
        "ceiling": suite.ceiling(range(suite.frames)),
        "n": total,
        "hits": hexadecimal(hits),
        "frames_per_cpu_second": round(total * suite.frames / cpu),
    }


def table(study: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Markdown: of each task a line per variant: accuracy by length, and its paired difference to the first variant on
    the longest films."""
    text, base = [], next(iter(study["variants"]))
    for task, described in study["tasks"].items():
        by_variant = {variant: rows_of(study, rows, task, variant) for variant in study["variants"]}
        by_variant = {variant: own for variant, own in by_variant.items() if own}
        lengths = [f"{parameters['frames']:,} frames" for parameters in described["measured"]]
        text += [
            f"**{task}**\n",
            f"| layer | rate | seeds | {' | '.join(lengths)} | minus {base}, {lengths[-1]} | end of each stage "
            "| state, bytes | parameters | training, CPU s | frames/s | rates tried: mean of all lengths |",
            "|---|---|---|" + "---|" * (len(lengths) + 7),
        ]
        for variant, own in by_variant.items():
            cells = [f"{statistics.mean(row['measured'][i]['top1'] for row in own):.3f}" for i in range(len(lengths))]
            by_stage = zip(*(row["curves"] for row in own), strict=False)  # one that diverged lacks the last ones
            ends = ", ".join(f"{statistics.mean(curve[-1] for curve in stage):.2f}" for stage in by_stage)
            diverged = " (diverged)" if any(row["diverged_at"] is not None for row in own) else ""
            tried = sorted(trials(study, rows, task, variant), key=lambda row: row["rate"])
            by_rate = ", ".join(f"{row['rate']:g}: {mean(row, 'top1'):.3f}" for row in tried)
            text.append(
                f"| {variant} | {own[0]['rate']:g} | {len(own)}{diverged} | {' | '.join(cells)} "
                f"| {difference(own, by_variant.get(base, []))} | {ends} | {own[0]['state_bytes']:,} "
                f"| {own[0]['parameters']:,} | {statistics.median(row['cpu_seconds'] for row in own):.0f} "
                f"| {statistics.median(row['measured'][-1]['frames_per_cpu_second'] for row in own):,} "
                f"| {by_rate or 'not chosen'} |"
            )
        text.append("")
    return "\n".join(text)


def rows_of(study: dict[str, Any], rows: list[dict[str, Any]], task: str, variant: str) -> list[dict[str, Any]]:
    """Those that are reported."""
    if (rate := study["variants"][variant].get("rate")) is None:
        return reported(study, rows, task, variant)
    return [row for row in rows if job_of(row) in [Job(task, variant, seed, rate) for seed in study["seeds"]]]


if __name__ == "__main__":
    main()
