"""Which sequence layer predicts best? Small models, equal in parameters and training time, on generated clips.

    python -m benchmarks.prediction [--jobs 2] [--suite NAME] [--only MODEL ...] [--seeds N ...]
    python -m benchmarks.prediction --report

A row is one training: a suite, a model, a seed. Each trains for the same processor time, its learning rate following
the share of that time that has passed. Then rollouts are measured by horizon, with both write policies, and, where the
suite reveals what only a memory can know, the errors on that by group (lap). Finished rows are appended to a JSONL file
and skipped when the study is started again; `--report` writes the JSON of one row per horizon, the tables and a figure.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.prediction_report import by_horizon, draw, tables
from benchmarks.small import (
    ROOT,
    VAL_SEED,
    configured,
    count,
    drawn,
    hidden_width,
    matched,
    read_rows,
    read_study,
    run_all,
)
from tttvideo.evaluation.generating import forecasts
from tttvideo.evaluation.suites import means_by_group, revealed_errors
from tttvideo.evaluation.table import METHODS
from tttvideo.model import VideoModel
from tttvideo.tasks.frame_metrics import FrameMetrics
from tttvideo.tasks.prediction import in_unit
from tttvideo.training.config import RunConfig
from tttvideo.training.optimizer import Schedule, build_optimizer
from tttvideo.video.synthetic import PredictionSuite, find_suite
from tttvideo.video.synthetic.prediction import Revealed
from tttvideo.video.transforms import Preprocessing

STUDY = ROOT / "configs" / "study" / "prediction.yaml"
TICKS = 1000  # the schedule's steps, over the whole time of a training
BATCH = 16  # of the measurements
CURVE = 8  # points of the curve of training loss
SEGMENT = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=STUDY, help="YAML file: seeds, base, suites, models")
    parser.add_argument("--rows", type=Path, help="JSONL file of the finished rows (default: as the study says)")
    parser.add_argument("--jobs", type=int, default=2, help="trainings side by side, one thread each")
    parser.add_argument("--suite", help="only this suite of the study")
    parser.add_argument("--only", nargs="+", metavar="MODEL", help="only these models")
    parser.add_argument("--seeds", type=int, nargs="+", help="only these seeds")
    parser.add_argument("--seconds", type=float, help="processor time of a training (default: as the study says)")
    parser.add_argument("--report", action="store_true", help="only write the report of the finished rows")
    options = parser.parse_args()

    study = read_study(options.study)
    rows_file = options.rows or ROOT / study["rows"]
    if options.report:
        rows = [row for row in read_rows(rows_file) if row["suite"] in study["suites"]]
        (ROOT / study["report"]).write_text(json.dumps(by_horizon(rows), indent=0) + "\n", encoding="utf-8")
        print("\n".join(tables(study, rows)))
        draw(study, rows, (ROOT / study["report"]).parent)
        return
    for described in study["suites"].values():
        described["seconds"] = options.seconds or described["seconds"]
    suites = [options.suite] if options.suite else list(study["suites"])
    models = options.only or list(study["models"])
    for name, names_of_study in [*((s, study["suites"]) for s in suites), *((m, study["models"]) for m in models)]:
        if name not in names_of_study:
            parser.error(f"the study has no {name!r}; it has {', '.join(map(repr, names_of_study))}")
    here = {s: [m for m in models if m in study["suites"][s].get("models", models)] for s in suites}
    done = {(row["suite"], row["model"], row["seed"]) for row in read_rows(rows_file)}
    # Seed by seed, so that a study that is stopped early has whole comparisons.
    wanted = [(s, m, seed) for seed in options.seeds or study["seeds"] for s in suites for m in here[s]]
    todo = [row for row in wanted if row not in done]
    print(f"{len(wanted) - len(todo)} rows finished, {len(todo)} to do", flush=True)
    if failed := run_all(train_row, study, todo, rows_file, options.jobs):
        raise SystemExit(f"{len(failed)} rows failed:\n" + "\n".join(failed))


# --- one training ---------------------------------------------------------------------------------


def suite_of(study: dict[str, Any], name: str, seed: int, frames: int | None = None) -> PredictionSuite:
    """The suite with its parameters; ``frames``: with so many frames instead."""
    described = study["suites"][name]
    parameters = described["parameters"]
    suite = find_suite(described.get("suite", name))(**parameters | ({"frames": frames} if frames else {}), seed=seed)
    assert isinstance(suite, PredictionSuite)
    return suite


def build(config: RunConfig, size: int) -> VideoModel:
    return VideoModel(config.model, preprocessing=Preprocessing(size=(size, size)), labels=[])


def plan(study: dict[str, Any], suite: PredictionSuite, model: str) -> RunConfig:
    """What a row trains: the model with as many parameters as the study's first."""
    first = next(iter(study["models"].values()))
    configs = (configured(study["base"], changed) for changed in (study["models"][model], first))
    return matched(*configs, lambda config: build(config, suite.size))


def train_row(study: dict[str, Any], name: str, model_name: str, seed: int) -> dict[str, Any]:
    """Trains and measures one row."""
    suite = suite_of(study, name, seed, study["suites"][name]["train_frames"])
    config = plan(study, suite, model_name)
    torch.manual_seed(seed)
    model = build(config, suite.size)
    optimizer = build_optimizer(model, config.optimizer)
    schedule = Schedule(optimizer, config.schedule, TICKS)
    clip = math.inf if config.optimizer.clip_grad is None else config.optimizer.clip_grad
    batch, budget = config.data.batch_size, study["suites"][name]["seconds"]
    spent, losses = 0.0, []
    while spent < budget:
        numbers = range(len(losses) * batch, (len(losses) + 1) * batch)
        frames = drawn(suite, [suite.plan("train", i) for i in numbers], "train", numbers)
        lengths = torch.full((batch,), frames.shape[1])
        start = time.process_time()
        done = spent / budget
        schedule.set(int(done * TICKS))
        model.set_inner_rate(schedule.inner_scale(int(done * TICKS)))
        model.head.set_progress(done)
        output, _ = model(frames)
        loss = model.loss(output, (frames, lengths))
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        if not math.isfinite(loss.item() + norm.item()):
            break  # the row says that it did not train to the end; the weights stay those before
        optimizer.step()
        losses.append(loss.item())
        spent += time.process_time() - start
    model.set_inner_rate(1.0)
    model.eval()
    part = max(1, len(losses) // CURVE)
    return {
        "suite": name,
        "model": model_name,
        "seed": seed,
        **measure(model, study, name),
        "loss": [round(statistics.mean(losses[i : i + part]), 5) for i in range(0, len(losses), part)],
        "diverged": spent < budget,
        "parameters": count(model),
        "feed_forward": hidden_width(config),
        "steps": len(losses),
        "batch": batch,
        "seconds": round(spent, 1),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


# --- what is measured -----------------------------------------------------------------------------


def measure(model: VideoModel, study: dict[str, Any], name: str) -> dict[str, Any]:
    """Rollouts by horizon with both write policies, and errors on revealed pixels by group."""
    suite, described = suite_of(study, name, VAL_SEED), study["suites"][name]
    context, horizon = described["context"], described["horizon"]
    collected: dict[str, list[Tensor]] = {}
    frame_metrics = FrameMetrics()
    groups = 0 if not suite.grouped else 1 + max(int(told(suite, i).group.max()) for i in range(described["val"]))
    revealed: list[tuple[Tensor, Tensor]] = []
    for first in range(0, described["val"], BATCH):
        numbers = range(first, min(first + BATCH, described["val"]))
        frames = drawn(suite, [suite.plan("val", i) for i in numbers], "val", numbers)
        truth = in_unit(frames[:, context : context + horizon])
        for write, names in ((True, METHODS), (False, METHODS[:1])):
            predicted = forecasts(model, frames[:, :context], horizon, write=write)
            for method in names:
                key = method if write else f"{method}_context_only"
                collected.setdefault(key, []).append(frame_metrics(predicted[method], truth))
        if groups:
            pieces = frames.split(SEGMENT, dim=1)
            segments = ((piece, torch.full((len(numbers),), piece.shape[1])) for piece in pieces)
            revealed.append(revealed_errors(model, segments, [told(suite, i) for i in numbers], groups))
    figures: dict[str, Any] = {"context": context, "horizon": {}}
    for key, parts in collected.items():
        means = torch.cat(parts).mean(0)  # [metrics, horizon]
        wanted = ("mse", "psnr", "ssim") if key.startswith("model") else ("mse", "psnr")
        figures["horizon"][key] = {
            m: [round(x, 4) for x in means[frame_metrics.names.index(m)].tolist()] for m in wanted
        }
    if groups:
        squared, values = (torch.cat(parts) for parts in zip(*revealed))
        figures["revealed"] = {"by": suite.grouped, **means_by_group(squared, values), "bounds": suite.bounds}
    return figures


def told(suite: PredictionSuite, index: int) -> Revealed:
    cause = suite.revealed({key: str(value) for key, value in suite.plan("val", index).cause.items()})
    assert cause is not None
    return cause


if __name__ == "__main__":
    main()
