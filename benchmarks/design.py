"""Which design for video? Small models that differ from a base in one factor, trained on generated clips in memory.

    python -m benchmarks.design [--study configs/study/design.yaml] [--jobs 2] [--task NAME] [--only VARIANT ...]
    python -m benchmarks.design --table FILE.md

A row is one training: a task, a variant, a seed. Clips are drawn as they are needed, without encoding, so no clip
is seen twice; all variants of a seed see the same clips in the same order. A row is measured after its last step on
clips of another seed: nothing is selected. Parameters are made equal by the width of the feed-forward half, which
every row states. Finished rows are appended to a JSONL file and skipped when the study is started again.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.small import (
    ROOT,
    VAL_SEED,
    Partial,
    configured,
    count,
    drawn,
    hidden_width,
    matched,
    read_rows,
    read_study,
    run_all,
)
from tttvideo.evaluation.controls import Forgetful
from tttvideo.model import VideoModel
from tttvideo.tasks import Output
from tttvideo.training.config import RunConfig
from tttvideo.training.optimizer import Schedule, build_optimizer
from tttvideo.video.synthetic import ClassificationSuite, Suite, find_suite
from tttvideo.video.transforms import Preprocessing

STUDY = ROOT / "configs" / "study" / "design.yaml"
CURVE = 8  # points of the curve of training accuracy

Work = Callable[[dict[str, Any], str, str, int], dict[str, Any]]
Tabulate = Callable[[dict[str, Any], list[dict[str, Any]], Path | None], str]


def main() -> None:
    run_study(__doc__, STUDY, train_row, table)


def run_study(description: str | None, default: Path, work: Work, tabulate: Tabulate) -> None:
    """The command line of a study: ``work`` trains and measures a row, ``tabulate`` makes the table (and figures, into
    the folder that it is given)."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=default, help="YAML file: seeds, base, tasks, variants")
    parser.add_argument("--rows", type=Path, help="JSONL file of the finished rows (default: as the study says)")
    parser.add_argument("--jobs", type=int, default=2, help="trainings side by side, one thread each")
    parser.add_argument("--task", help="only this task of the study")
    parser.add_argument("--only", nargs="+", metavar="VARIANT", help="only these variants")
    parser.add_argument("--seeds", type=int, nargs="+", help="only these seeds")
    parser.add_argument("--list", action="store_true", help="only build every variant and print its parameters")
    parser.add_argument("--table", type=Path, metavar="FILE.md", help="only write the table of the finished rows")
    options = parser.parse_args()

    try:
        study = read_study(options.study)
    except (OSError, yaml.YAMLError) as error:
        parser.error(f"--study {options.study} cannot be read: {error}")
    rows_file = options.rows or ROOT / study["rows"]
    tasks = [options.task] if options.task else list(study["tasks"])
    variants = options.only or list(study["variants"])
    for name, names_of_study in [*((t, study["tasks"]) for t in tasks), *((v, study["variants"]) for v in variants)]:
        if name not in names_of_study:
            parser.error(f"the study has no {name!r}; it has {', '.join(map(repr, names_of_study))}")
    if options.table:
        if not rows_file.exists():
            parser.error(f"there is no {rows_file}, so there are no rows for a table")
        options.table.parent.mkdir(parents=True, exist_ok=True)
        options.table.write_text(tabulate(study, read_rows(rows_file), options.table.parent), encoding="utf-8")
        return
    if options.list:
        list_variants(study, tasks, variants)
        return
    done = {key(row) for row in read_rows(rows_file)}
    # Seed by seed, so that a study that is stopped early has whole comparisons.
    seeds = options.seeds or study["seeds"]
    wanted = [(task, variant, seed) for seed in seeds for task in tasks for variant in variants]
    todo = [row for row in wanted if row not in done]
    print(f"{len(wanted) - len(todo)} rows finished, {len(todo)} to do", flush=True)
    failed = run_all(work, study, todo, rows_file, options.jobs)
    print(tabulate(study, read_rows(rows_file), None))
    if failed:
        raise SystemExit(f"{len(failed)} rows failed:\n" + "\n".join(failed))


def key(row: dict[str, Any]) -> tuple[str, str, int]:
    return row["task"], row["variant"], row["seed"]


# --- what a row trains ----------------------------------------------------------------------------


def settings(study: dict[str, Any], task: str, variant: str) -> RunConfig:
    """Base, then the task's settings, then what the variant changes."""
    task_settings = study["tasks"][task].get("settings", {})
    return configured(study["base"], task_settings | study["variants"][variant].get("settings", {}))


def suite_of(study: dict[str, Any], task: str, seed: int) -> ClassificationSuite:
    suite = any_suite(study["tasks"][task], seed)
    assert isinstance(suite, ClassificationSuite)
    return suite


def any_suite(stage: dict[str, Any], seed: int, **other: Any) -> Suite:
    """Of classification or prediction; ``other``: parameters in place of the stage's."""
    return find_suite(stage["suite"])(**stage.get("parameters", {}) | other, seed=seed)


def stages(task: dict[str, Any]) -> list[dict[str, Any]]:
    """Steps and the parameters of their clips: first the task's ``curriculum``, then its own."""
    own = {name: task[name] for name in ("steps", "parameters") if name in task}
    return [{"suite": task["suite"]} | stage for stage in [*task.get("curriculum", []), own]]


def build(config: RunConfig, suite: Suite) -> VideoModel:
    labels = list(suite.classes) if isinstance(suite, ClassificationSuite) else []
    return VideoModel(config.model, preprocessing=Preprocessing(size=(suite.size, suite.size)), labels=labels)


def plan(study: dict[str, Any], task: str, variant: str) -> RunConfig:
    """What a row trains: the variant with as many parameters as the base."""
    suite, base = any_suite(study["tasks"][task], VAL_SEED), next(iter(study["variants"]))
    return matched(settings(study, task, variant), settings(study, task, base), lambda config: build(config, suite))


def list_variants(study: dict[str, Any], tasks: list[str], variants: list[str]) -> None:
    for task in tasks:
        for variant in variants:
            try:
                config = plan(study, task, variant)
                model = build(config, any_suite(study["tasks"][task], VAL_SEED))
            except (ValueError, TypeError) as error:
                print(f"{task:14} {variant:32} cannot be built: {error}")
                continue
            print(f"{task:14} {variant:32} {count(model):8,} parameters, feed-forward {hidden_width(config)}")


# --- one training ---------------------------------------------------------------------------------


def train_row(study: dict[str, Any], task: str, variant: str, seed: int) -> dict[str, Any]:
    """Trains and measures one row."""
    model, about = fit(study, task, variant, seed)
    val_loss, top1 = measure(model, study, task)
    row: dict[str, Any] = {"task": task, "variant": variant, "seed": seed, "val_top1": top1, "val_loss": val_loss}
    if study["variants"][variant].get("controls"):
        row["controls"] = {name: measure(model, study, task)[1] for name in controls(model)}
    return row | about


def fit(
    study: dict[str, Any], task: str, variant: str, seed: int, partial: Partial | None = None
) -> tuple[VideoModel, dict[str, Any]]:
    """Trains one model; returns it and what its row says of the training: its curve is of accuracy, or, where frames
    are predicted, of the loss.

    Args:
        partial: where the unfinished training is kept, and gone on with
    """
    options = study["variants"][variant]
    config = plan(study, task, variant)
    parts = stages(study["tasks"][task])
    steps, batch = sum(part["steps"] for part in parts), config.data.batch_size
    torch.manual_seed(seed)
    model = build(config, any_suite(study["tasks"][task], seed))
    if "reset_frames" in options:
        model.backbone = Forgetful(model.backbone, options["reset_frames"])  # type: ignore[assignment]
    optimizer = build_optimizer(model, config.optimizer)
    schedule = Schedule(optimizer, config.schedule, steps)
    curve, spent, cpu = partial.load(model, optimizer) if partial else ([], 0.0, 0.0)
    for frames, target in batches(parts, seed, batch, options.get("sampling", "dense"), begin=len(curve)):
        step, start, begin = len(curve), time.perf_counter(), time.process_time()
        schedule.set(step)
        model.set_inner_rate(schedule.inner_scale(step))
        model.head.set_progress(step / steps)
        output, loss, norm = gradients(model, optimizer, frames, target, config.optimizer.clip_grad)
        if not math.isfinite(loss + norm):
            break  # the row says at which step; the weights stay those before it
        optimizer.step()
        spent += time.perf_counter() - start
        is_labels = isinstance(target, Tensor)
        curve.append(float((output.logits.argmax(1) == target).float().mean()) if is_labels else loss)
        cpu += time.process_time() - begin
        if partial:
            partial.save(model, optimizer, curve, spent, cpu)
    model.set_inner_rate(1.0)
    model.eval()
    part, digits = max(1, steps // CURVE), 3 if isinstance(any_suite(parts[-1], seed), ClassificationSuite) else 5
    return model, {
        "curve": [round(statistics.mean(curve[i : i + part]), digits) for i in range(0, len(curve), part)],
        "diverged_at": None if len(curve) == steps else len(curve),
        "parameters": count(model),
        "feed_forward": hidden_width(config),
        "steps": steps,
        "batch": batch,
        "seconds": round(spent, 1),
        "cpu_seconds": round(cpu, 1),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def gradients(
    model: VideoModel, optimizer: Optimizer, frames: Tensor, target: Any, clip: float | None
) -> tuple[Output, float, float]:
    """A training step without the optimizer's, on frames uint8 [B, F, 3, H, W] and what is to be answered (``clips``).

    Returns:
        The model's output, the loss, and the gradients' norm before they were clipped to ``clip`` (None: they are not).
    """
    output, _ = model(frames)
    loss = model.loss(output, target)
    optimizer.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), math.inf if clip is None else clip)
    return output, loss.item(), norm.item()


def batches(
    parts: list[dict[str, Any]], seed: int, size: int, sampling: str, begin: int = 0
) -> Iterator[tuple[Tensor, Any]]:
    """What each step of a training from step ``begin`` on reads: frames that ``sampling`` shows of ``size`` new clips,
    and their labels; or whole clips to be predicted, and again with their lengths."""
    for part in parts:
        suite = any_suite(part, seed)
        sampled = suite.sampled(sampling) if isinstance(suite, ClassificationSuite) else range(suite.frames)
        first, begin = min(begin, part["steps"]), max(0, begin - part["steps"])
        for step in range(first, part["steps"]):
            frames, target = clips(suite, "train", range(step * size, (step + 1) * size))
            yield frames if len(sampled) == suite.frames else frames[:, sampled], target


def clips(suite: Suite, split: str, numbers: range) -> tuple[Tensor, Any]:
    """Clips of a suite as they are drawn, frames uint8 [B, F, 3, H, W], and what a model of them is to answer: labels
    int64 [B], or frames and lengths."""
    plans = [suite.plan(split, i) for i in numbers]
    frames = drawn(suite, plans, split, numbers)
    if not isinstance(suite, ClassificationSuite):
        return frames, (frames, torch.full((len(frames),), frames.shape[1]))
    return frames, torch.tensor([suite.classes.index(str(plan.label)) for plan in plans])


def measure(model: VideoModel, study: dict[str, Any], task: str, batch: int = 64) -> tuple[float, float]:
    """Mean loss and top-1 on the task's validation clips."""
    suite, total = suite_of(study, task, VAL_SEED), study["tasks"][task]["val"]
    losses, right = 0.0, 0
    with torch.no_grad():
        for first in range(0, total, batch):
            frames, labels = clips(suite, "val", range(first, min(first + batch, total)))
            output, _ = model(frames)
            losses += float(model.loss(output, labels)) * len(labels)
            right += int((output.logits.argmax(1) == labels).sum())
    return round(losses / total, 4), round(right / total, 4)


# --- controls -------------------------------------------------------------------------------------


def controls(model: VideoModel) -> Iterator[str]:
    """Takes one thing away from a trained model at a time; it is whole again afterwards."""
    with _swapped(model):
        yield "q and k swapped"
    model.set_inner_rate(0.0)
    yield "inner rate 0"
    model.set_inner_rate(1.0)
    backbone = model.backbone
    model.backbone = Forgetful(backbone, 1)  # type: ignore[assignment]
    yield "state reset each frame"
    model.backbone = backbone


@contextmanager
def _swapped(model: VideoModel) -> Iterator[None]:
    """The projections of queries and keys exchanged in every layer that has both."""
    layers: list[Any] = [m for m in model.modules() if isinstance(getattr(m, "k_proj", None), nn.Linear)]

    def swap() -> None:
        for layer in layers:
            layer.q_proj, layer.k_proj = layer.k_proj, layer.q_proj

    swap()
    yield
    swap()


# --- the table ------------------------------------------------------------------------------------


def table(study: dict[str, Any], rows: list[dict[str, Any]], out: Path | None = None) -> str:
    """Markdown: a line per variant; per task mean and range of validation top-1 over the seeds, mean
    loss, and processor time of a training (wall time depends on what else the machine does)."""
    tasks = list(study["tasks"])
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row["task"] not in tasks:
            continue
        groups.setdefault((row["variant"], row["task"]), []).append(row)
        for name, top1 in row.get("controls", {}).items():
            name = f"{row['variant']}, trained; then {name}"
            groups.setdefault((name, row["task"]), []).append({"val_top1": top1})
    lines = [
        "| variant | parameters (feed-forward width) | "
        + " | ".join(f"{task}: top-1 (min-max) | loss | CPU s" for task in tasks)
        + " |",
        "|---|---|" + "---|---|---|" * len(tasks),
    ]
    ordered = list(study["variants"])
    names = dict.fromkeys(name for name, _ in groups)  # controls beside the variant that they take apart
    for name in sorted(names, key=lambda n: _place(n, ordered)):
        first = next(row for (n, _), rows in groups.items() if n == name for row in rows)
        cells = [f"{first['parameters']:,} ({first['feed_forward']})" if "parameters" in first else "same"]
        cells += [cell for task in tasks for cell in _cells(groups.get((name, task), []))]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join([*(_task_line(study, task) for task in tasks), "", *lines]) + "\n"


def _place(name: str, ordered: list[str]) -> tuple[int, int]:
    """Where a line of the table stands: in the order of the study, rows of variants no longer in it last."""
    variant, _, control = name.partition(", trained; then ")
    return ordered.index(variant) if variant in ordered else len(ordered), int(bool(control))


def _cells(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return ["-", "-", "-"]
    top1 = [row["val_top1"] for row in rows]
    seeds = "" if len(rows) == 3 else f", {len(rows)} seed{'s' * (len(rows) > 1)}"
    diverged = sum(row.get("diverged_at") is not None for row in rows)
    note = f", {diverged} diverged" if diverged else ""
    if "cpu_seconds" not in rows[0]:
        return [f"{statistics.mean(top1):.3f} ({min(top1):.3f}-{max(top1):.3f}{seeds})", "", ""]  # of a control
    return [
        f"{statistics.mean(top1):.3f} ({min(top1):.3f}-{max(top1):.3f}{seeds}{note})",
        f"{statistics.mean(row['val_loss'] for row in rows):.3f}",
        f"{statistics.median(row['cpu_seconds'] for row in rows):.0f}",
    ]


def _task_line(study: dict[str, Any], task: str) -> str:
    """What the figures of a task are to be held against."""
    suite, described = suite_of(study, task, VAL_SEED), study["tasks"][task]
    batch = study["base"]["data"]["batch_size"]
    line = (
        f"- **{task}**: {suite.frames} frames of {suite.size} x {suite.size}, {described['steps']} steps of {batch} "
        f"new clips, {described['val']} validation clips. Ceiling {suite.ceiling(range(suite.frames)):.3f}, chance "
        f"{suite.chance:.3f}"
    )
    return line + (f", {described['without']}." if "without" in described else ".")


if __name__ == "__main__":
    main()
