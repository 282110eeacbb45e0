"""Long clips: models trained on short ones, measured on 1, 2, 4 and 8 times longer ones, by number of pairs, and under
other sampling rules.

    python -m benchmarks.long_clip [--study configs/study/long-clip.yaml] [--jobs 2] [--task NAME] [--only VARIANT ...]
    python -m benchmarks.long_clip --table docs/results/long-clip.md      (and a figure for each task beside it)

A row is one training, as in `benchmarks.design`: a task, a variant, a seed. It is measured after its last step on clips
of another seed, the same for all variants. Finished rows are appended to a JSONL file and skipped when the study is
started again.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.design import clips, fit, lessons, run_study, suite_of
from benchmarks.small import ROOT, VAL_SEED
from tttvideo.evaluation.controls import applicable, without
from tttvideo.evaluation.protocol_plots import plot_protocol
from tttvideo.evaluation.streaming import state_bytes
from tttvideo.model import VideoModel
from tttvideo.tasks.classification import Output
from tttvideo.video.synthetic import ClassificationSuite

STUDY = ROOT / "configs" / "study" / "long-clip.yaml"
FRAMES_AT_ONCE = 4096
"""Frames of all clips of a batch that is measured."""
POSITIONS = 32
"""Parts of a clip for which the loss is kept, had the clip ended there."""


def main() -> None:
    run_study(__doc__, STUDY, train_row, table)


def train_row(study: dict[str, Any], task: str, variant: str, seed: int) -> dict[str, Any]:
    """Trains and measures one row."""
    model, about = fit(study, task, variant, seed)
    options, described = study["variants"][variant], study["tasks"][task]
    own = options.get("sampling", "dense")
    suite = suite_of(study, task, VAL_SEED)
    rules = study["samplings"] if own == "dense" else []
    controls = applicable(model) if options.get("controls") else []
    longer = {factor: replace(suite, frames=factor * suite.frames) for factor in study["lengths"]}
    count, by = described["val"], described.get("by")
    measured = [
        *({"length": factor} | measure(model, own_suite, count, own, by=by) for factor, own_suite in longer.items()),
        *({"length": 1} | measure(model, suite, count, rule) for rule in rules),
        *({"length": 1, "control": name} | measure(model, suite, count, own, name) for name in controls),
    ]
    held = state_of_a_clip(model, suite, own)
    return {"task": task, "variant": variant, "seed": seed, "state_bytes": held, "measured": measured} | about


def state_of_a_clip(model: VideoModel, suite: ClassificationSuite, sampling: str) -> int:
    """Bytes that the model carries on from one clip of the training length."""
    frames, _ = clips(suite, "val", range(1))
    with torch.no_grad():
        _, state = model(frames[:, suite.sampled(sampling)])
    return state_bytes(state)


def measure(
    model: VideoModel, suite: ClassificationSuite, count: int, sampling: str, control: str = "", by: str | None = None
) -> dict[str, Any]:
    """Top-1 and mean loss on ``count`` clips of a suite of which ``sampling`` shows some frames; and top-1 for each
    value of the cause ``by``."""
    seen = suite.sampled(sampling)
    batch = max(1, FRAMES_AT_ONCE // suite.frames)
    losses, hits, by_step = [], [], []
    with torch.no_grad(), without(model, control):
        for first in range(0, count, batch):
            numbers = range(first, min(first + batch, count))
            frames, labels = clips(suite, "val", numbers)
            frames = frames[:, seen]
            if control == "shuffled":
                frames = torch.stack([_shuffled(clip, number) for clip, number in zip(frames, numbers, strict=True)])
            output = _read(model, frames)
            logits, timeline = output.logits.float(), output.timeline.float().mT
            losses += cross_entropy(logits, labels, reduction="none").tolist()
            hits += (logits.argmax(1) == labels).tolist()
            ends = labels[:, None].expand(-1, timeline.shape[2])
            by_step.append(cross_entropy(timeline, ends, reduction="none"))
    found: dict[str, Any] = {
        "frames": suite.frames,
        "sampling": sampling,
        "frames_read": len(seen),
        "tokens_read": len(seen) * model.encoder.grid[0] * model.encoder.grid[1] // model.encoder.stride,
        "top1": round(statistics.mean(hits), 4),
        "loss": round(statistics.mean(losses), 4),
        "ceiling": round(suite.ceiling(seen), 4),
        "n": count,
        "positions": _positions(torch.cat(by_step).mean(0), seen),
    }
    if by:
        groups: dict[int | str, list[bool]] = {}
        for number, hit in enumerate(hits):
            groups.setdefault(suite.plan("val", number).cause[by], []).append(hit)
        found["by"] = {str(value): round(statistics.mean(own), 4) for value, own in sorted(groups.items())}
    return found


def _read(model: VideoModel, frames: Tensor) -> Output:
    """Of whole clips, read as a stream: memory does not grow with their length."""
    pieces = frames.split(model.segment_frames(64), dim=1)
    lengths = torch.full((len(frames),), frames.shape[1])
    return model.score_segments((piece, torch.full_like(lengths, piece.shape[1])) for piece in pieces)


def _positions(losses: Tensor, seen: Sequence[int]) -> dict[str, list[float]]:
    """Mean losses of the answers after each step [S], over POSITIONS equal parts of the clip at most, and the frame
    that each part ends with, counted from 1."""
    parts = torch.arange(len(losses)).tensor_split(min(POSITIONS, len(losses)))
    last = [seen[int(part[-1] + 1) * len(seen) // len(losses) - 1] + 1 for part in parts]
    return {"frames": last, "loss": [round(float(losses[part].mean()), 4) for part in parts]}


def _shuffled(clip: Tensor, number: int) -> Tensor:
    """The frames of a clip in an order of its own."""
    return clip[torch.randperm(len(clip), generator=torch.Generator().manual_seed(number))]


def table(study: dict[str, Any], rows: list[dict[str, Any]], out: Path | None = None) -> str:
    """Markdown: for each task accuracy against length, by pairs and under other sampling rules, mean and range over the
    seeds; figures of the first into the folder ``out``."""
    parts = []
    for task, described in study["tasks"].items():
        mine = [row for row in rows if row["task"] == task]
        if not mine:
            continue
        suite = suite_of(study, task, VAL_SEED)
        batch = study["base"]["data"]["batch_size"]
        parts += [
            f"## {task}",
            "",
            f"{_trained(described, batch)}; measured on {described['val']} clips. Chance {suite.chance:.3f}"
            + (f", {described['without']}" if "without" in described else "")
            + ". Mean (range) over seeds.",
            "",
        ]
        plain = {"control": None}
        lengths = [{"length": f, "own": True} | plain for f in study["lengths"]]
        names = [f"{f * suite.frames} frames" for f in study["lengths"]]
        parts += _lines(study, mine, names, lengths)
        if "by" in described:
            values = sorted({v for row in mine for m in row["measured"] for v in m.get("by", {})}, key=int)
            settings = [{"length": f, "own": True, "by": v} | plain for f in (1, study["lengths"][-1]) for v in values]
            names = [
                f"{described['by']} {v}, {f * suite.frames} frames" for f in (1, study["lengths"][-1]) for v in values
            ]
            parts += _lines(study, mine, names, settings)
        rules = [{"length": 1, "sampling": rule} | plain for rule in study["samplings"]]
        parts += _lines(study, mine, study["samplings"], rules)
        names = list(dict.fromkeys(m["control"] for row in mine for m in row["measured"] if "control" in m))
        if names:
            parts += _lines(study, mine, names, [{"length": 1, "control": name} for name in names])
        if out is not None:
            plot_protocol(out / f"long-clip-{task}.png", _protocol(study, task, mine, lengths))
            parts += [f"![{task}: accuracy against length](long-clip-{task}.png)", ""]
    return "\n".join(parts)


def _trained(task: dict[str, Any], batch: int) -> str:
    parts = [f"{part['steps']} steps of {batch} new clips of {part['parameters']}" for part in lessons(task)]
    return "Trained for " + ", then ".join(parts).replace("'", "")


def _found(row: dict[str, Any], own_rule: str, setting: dict[str, Any]) -> dict[str, Any] | None:
    """What a row measured in a setting; with its ``own`` rule, the one that it was trained with."""
    rule = own_rule if setting.get("own") or setting["control"] else setting["sampling"]
    for found in row["measured"]:
        same = found["length"] == setting["length"] and found.get("control") == setting["control"]
        if same and found["sampling"] == rule:
            return found
    return None


def _values(study: dict[str, Any], rows: list[dict[str, Any]], variant: str, setting: dict[str, Any]) -> list[float]:
    """Top-1 of every seed."""
    rule = study["variants"].get(variant, {}).get("sampling", "dense")
    found = [_found(row, rule, setting) for row in rows if row["variant"] == variant]
    if "by" in setting:
        return [f["by"][setting["by"]] for f in found if f and setting["by"] in f.get("by", {})]
    return [f["top1"] for f in found if f]


def _lines(
    study: dict[str, Any], rows: list[dict[str, Any]], names: list[str], settings: list[dict[str, Any]]
) -> list[str]:
    lines = ["| variant | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for variant in study["variants"]:
        values = [_values(study, rows, variant, setting) for setting in settings]
        if not any(values):
            continue
        cells = [f"{statistics.mean(v):.3f} ({min(v):.3f}-{max(v):.3f})" if v else "" for v in values]
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    if not any(setting["control"] or "by" in setting for setting in settings):
        ceilings = [_ceiling(study, rows, setting) for setting in settings]
        lines.append("| ceiling | " + " | ".join("" if c is None else f"{c:.3f}" for c in ceilings) + " |")
    return [*lines, ""]


def _ceiling(study: dict[str, Any], rows: list[dict[str, Any]], setting: dict[str, Any]) -> float | None:
    """Of what dense models see in a setting."""
    for row in rows:
        if study["variants"].get(row["variant"], {}).get("sampling", "dense") == "dense":
            found = _found(row, "dense", setting)
            if found:
                return found["ceiling"]
    return None


def _protocol(
    study: dict[str, Any], task: str, rows: list[dict[str, Any]], lengths: list[dict[str, Any]]
) -> dict[str, Any]:
    """Accuracy against length as `tttvideo compare` draws it, with the range over seeds."""
    suite = suite_of(study, task, VAL_SEED)
    series = {}
    for variant in study["variants"]:
        values = [_values(study, rows, variant, setting) for setting in lengths]
        if any(values):
            mean, low, high = ([f(v) if v else None for v in values] for f in (statistics.mean, min, max))
            series[variant] = {"run": variant, "control": "", "mean": mean, "low": low, "high": high}
    return {
        "title": f"{task}: trained on {suite.frames} frames; bars: range over seeds",
        "x_label": "frames of a video",
        "x": [factor * suite.frames for factor in study["lengths"]],
        "numeric": True,
        "joined": True,
        "series": series,
        "ceiling": [_ceiling(study, rows, setting) for setting in lengths],
        "chance": suite.chance,
        "trained": [suite.frames],
    }


if __name__ == "__main__":
    main()
