"""Tables and figures of the study of long clips, from its rows."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.design import stages, suite_of
from benchmarks.small import VAL_SEED
from tttvideo.evaluation.plots import plot_lines

ENDING = 16
"""Steps at the end of a clip whose tokens are also pooled alone, without those of the steps before."""
Rows = list[dict[str, Any]]
NO_RANKING = (
    "All variants were trained at one learning rate, the one that suits TTT-MLP. Mamba, linear attention and others "
    "learn better at rates of their own, so that the tables do not rank them against TTT (docs/results/memory.md)."
)


def table(study: dict[str, Any], rows: Rows, out: Path | None = None) -> str:
    """Markdown: for each task accuracy against length, by pairs and under other sampling rules, mean and range over the
    seeds; figures of the variants that the study says are drawn, into the folder ``out``."""
    parts = [NO_RANKING, "", *_summary(study, rows)]
    for task in study["tasks"]:
        mine = [row for row in rows if row["task"] == task]
        if mine:
            parts += _task(study, task, mine)
            if out is not None and _main(study, task):
                for name, protocol in _protocols(study, task, mine).items():
                    file = f"long-clip-{task}-{name}.png"
                    plot_lines(out / file, protocol)
                    parts += [f"![{protocol['title']}]({file})", ""]
    return "\n".join(parts)


def _main(study: dict[str, Any], task: str) -> bool:
    """Whether the summary and the figures are of this task: not of one that asks about another."""
    return study["tasks"][task].get("summary", True)


def _summary(study: dict[str, Any], rows: Rows) -> list[str]:
    """One table of the main tasks: clips of the training length, the longest, and how many of what (pairs)."""
    tasks = [task for task in study["tasks"] if _main(study, task) and any(row["task"] == task for row in rows)]
    names, longest = ["variant"], study["lengths"][-1]
    figures: list[tuple[str, Any]] = []
    for task in tasks:
        suite, by = suite_of(study, task, VAL_SEED), study["tasks"][task].get("by")
        values = _values_of([row for row in rows if row["task"] == task]) if by else []
        names += [f"{task}: seeds", f"{suite.frames} frames", *(f"{by} {value}" for value in values)]
        names += [f"{longest * suite.frames} frames", f"..., last {ENDING} steps"]
        figures += [(task, None), (task, lambda row: _own(row, 1)["top1"])]
        figures += [(task, lambda row, value=value: _own(row, 1)["by"].get(value)) for value in values]
        figures += [(task, lambda row: _own(row, longest)["top1"])]
        figures += [(task, lambda row: _own(row, longest).get("top1_of_the_end"))]
    lines = ["## Summary", "", "| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for variant in _variants(study, rows):
        cells = []
        for task, figure in figures:
            own = [row for row in rows if (row["task"], row["variant"]) == (task, variant)]
            values = [value for row in own if figure and (value := figure(row)) is not None]
            cells.append(_cell(values, len(own), 2) if figure else str(len(own) or ""))
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _task(study: dict[str, Any], task: str, rows: Rows) -> list[str]:
    """The tables of one task."""
    described, suite = study["tasks"][task], suite_of(study, task, VAL_SEED)
    without = f", {described['without']}" if "without" in described else ""
    lines = [
        f"## {task}",
        "",
        f"{_trained(described, study['base']['data']['batch_size'])}; measured on {described['val']} clips. "
        f"Chance {suite.chance:.3f}{without}. Mean (range) over seeds "
        "[how many of them, where not all measured it].",
        "",
        "| variant | seeds | tokens read | carried on (kB) | "
        + " | ".join(f"{factor * suite.frames} frames" for factor in study["lengths"])
        + " |",
        "|---" * (4 + len(study["lengths"])) + "|",
    ]
    for variant in _variants(study, rows):
        own = [row for row in rows if row["variant"] == variant]
        tokens, state = own[0]["measured"][0]["tokens_read"], own[0]["state_bytes"]
        cells = [_cell([_own(row, factor)["top1"] for row in own], len(own)) for factor in study["lengths"]]
        lines.append(f"| {variant} | {len(own)} | {tokens} | {state / 1000:.1f} | " + " | ".join(cells) + " |")
    for rule, ceilings in _ceilings(study, rows).items():
        cells = [f"{ceiling:.3f}" for ceiling in ceilings]
        lines.append(f"| ceiling{'' if rule == 'dense' else f', {rule}'} | | | | " + " | ".join(cells) + " |")
    lines.append("")
    if any("top1_of_the_end" in m for row in rows for m in row["measured"]):
        names = [f"{factor * suite.frames} frames, last {ENDING} steps" for factor in study["lengths"]]
        ends = [lambda row, f=factor: _own(row, f).get("top1_of_the_end") for factor in study["lengths"]]
        lines += ["The same models, of whose outputs only those of the last steps are pooled:", ""]
        lines += _lines(study, [row for row in rows if row["measured"][0]["sampling"] == "dense"], names, ends)
    if "by" in described:
        longest = study["lengths"][-1]
        settings = [(factor, value) for factor in (1, longest) for value in _values_of(rows)]
        names = [f"{described['by']} {value}, {factor * suite.frames} frames" for factor, value in settings]
        lines += _lines(study, rows, names, [lambda row, s=s: _own(row, s[0])["by"].get(s[1]) for s in settings])
    lines += _lines(
        study,
        rows,
        [f"{rule} (ceiling {_rule_ceiling(rows, rule)})" for rule in study["samplings"]],
        [lambda row, rule=rule: _found(row, sampling=rule) for rule in study["samplings"]],
    )
    controls = list(dict.fromkeys(m["control"] for row in rows for m in row["measured"] if "control" in m))
    if controls:
        lines += _lines(study, rows, controls, [lambda row, c=c: _found(row, control=c) for c in controls])
    return lines


def _trained(task: dict[str, Any], batch: int) -> str:
    parts = [f"{part['steps']} steps of {batch} new clips of {part['parameters']}" for part in stages(task)]
    return "Trained for " + ", then ".join(parts).replace("'", "")


def _lines(study: dict[str, Any], rows: Rows, names: Sequence[str], figures: Sequence[Any]) -> list[str]:
    """A line for each variant, a column for each function from a row to a figure (None: not measured)."""
    lines = ["| variant | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for variant in _variants(study, rows):
        own = [row for row in rows if row["variant"] == variant]
        cells = [_cell([v for row in own if (v := figure(row)) is not None], len(own)) for figure in figures]
        if any(cells):
            lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _cell(values: Sequence[float], seeds: int, digits: int = 3) -> str:
    """Mean and range; and of how many seeds, where that is not all of the variant's."""
    if not values:
        return ""
    spread = f" ({min(values):.{digits}f}-{max(values):.{digits}f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}" + (f" [{len(values)} of {seeds}]" if len(values) < seeds else "")


# --- what rows hold -------------------------------------------------------------------------------


def _variants(study: dict[str, Any], rows: Rows) -> list[str]:
    there = {row["variant"] for row in rows}
    return [variant for variant in study["variants"] if variant in there]


def _own(row: dict[str, Any], factor: int) -> dict[str, Any]:
    """What a row measured on clips ``factor`` times as long as those of training, sampled as in training."""
    return next(m for m in row["measured"] if m["length"] == factor and "control" not in m)


def _found(row: dict[str, Any], *, sampling: str | None = None, control: str | None = None) -> float | None:
    """Top-1 under another sampling rule or a control, if the row has it."""
    for entry in row["measured"][1:]:
        if entry["length"] == 1 and entry.get("control") == control and sampling in (None, entry["sampling"]):
            return entry["top1"]
    return None


def _values_of(rows: Rows) -> list[str]:
    """Values of the cause by which accuracy is divided."""
    return sorted({value for row in rows for m in row["measured"] for value in m.get("by", {})}, key=int)


def _ceilings(study: dict[str, Any], rows: Rows) -> dict[str, list[float]]:
    """By the sampling rule of training: the ceiling at every length."""
    rules = {row["measured"][0]["sampling"]: row for row in reversed(rows)}
    order = sorted(rules, key=lambda rule: rule != "dense")
    return {rule: [_own(rules[rule], factor)["ceiling"] for factor in study["lengths"]] for rule in order}


def _rule_ceiling(rows: Rows, rule: str) -> str:
    entries = (m for row in rows for m in row["measured"] if m["length"] == 1 and m["sampling"] == rule)
    return next((f"{m['ceiling']:.3f}" for m in entries), "not measured")


# --- figures --------------------------------------------------------------------------------------


def _protocols(study: dict[str, Any], task: str, rows: Rows) -> dict[str, dict[str, Any]]:
    """What is drawn, as `tttvideo compare` draws it, with the range over seeds."""
    suite, longest = suite_of(study, task, VAL_SEED), study["lengths"][-1]
    lengths = study["lengths"]
    shared = {"numeric": True, "joined": True, "chance": suite.chance}
    figures = {
        "length": shared
        | {
            "title": f"{task}: trained on up to {suite.frames} frames; bars: range over seeds",
            "x_label": "frames of a video",
            "x": [factor * suite.frames for factor in lengths],
            "series": _series(study, rows, lambda row: [_own(row, factor)["top1"] for factor in lengths]),
            "ceiling": _ceilings(study, rows).get("dense", [None] * len(lengths)),
            "trained": [suite.frames],
        }
    }
    if values := _values_of(rows):
        by = study["tasks"][task]["by"]
        figures[by] = shared | {
            "title": f"{task}: {suite.frames} frames; bars: range over seeds",
            "x_label": by,
            "x": [int(value) for value in values],
            "series": _series(study, rows, lambda row: [_own(row, 1)["by"].get(value) for value in values]),
            "ceiling": [None] * len(values),
        }
    dense = [row for row in rows if row["measured"][0]["sampling"] == "dense" and "positions" in _own(row, longest)]
    if dense:
        frames = _own(dense[0], longest)["positions"]["frames"]
        spread = (
            "bands: range over seeds"
            if len({row["seed"] for row in dense if row["variant"] in study["drawn"]}) > 1
            else "one seed"
        )
        figures["position"] = shared | {
            "title": f"{task}, {longest * suite.frames} frames: loss had the video ended here; {spread}",
            "x_label": f"frames read (means over the {frames[0]} that end there)",
            "x": frames,
            "linear": True,
            "unit": "loss (nats)",
            "series": _series(study, dense, lambda row: _own(row, longest)["positions"]["loss"]),
            "ceiling": [None] * len(frames),
            "chance": None,
        }
    return figures


def _series(study: dict[str, Any], rows: Rows, figures: Any) -> dict[str, Any]:
    series = {}
    seeds = {variant: sum(row["variant"] == variant for row in rows) for variant in study["drawn"]}
    for variant in (v for v in _variants(study, rows) if v in study["drawn"]):
        columns = list(zip(*(figures(row) for row in rows if row["variant"] == variant), strict=True))
        columns = [[value for value in column if value is not None] for column in columns]
        mean, low, high = ([f(c) if c else None for c in columns] for f in (statistics.mean, min, max))
        name = variant
        if seeds[variant] < max(seeds.values()):  # no band, or a narrower one, is not a smaller spread
            name += f" ({seeds[variant]} seed{'s' * (seeds[variant] > 1)})"
        series[name] = {"run": variant, "control": "", "mean": mean, "low": low, "high": high}
        if "sampling" in study["variants"][variant]:  # grey: it sees other frames than the rest
            series[name]["baseline"] = True
    return series
