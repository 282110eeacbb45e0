"""Tables and figures of the fair comparison, from its rows alone: ``python -m benchmarks.fair --table FILE.md``."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from benchmarks.design import suite_of
from benchmarks.fair import (
    BASE,
    all_rates,
    all_reported,
    at_their_best,
    chosen_rate,
    difference,
    is_flat,
    job_of,
    mean,
    predicts,
    signs,
)
from benchmarks.fair_cost import against, read_costs
from benchmarks.small import VAL_SEED, fill_page
from tttvideo.evaluation.plots import plot_lines


def publish(study: dict[str, Any], rows: list[dict[str, Any]], page: Path) -> None:
    """Writes ``page`` with all tables, a figure of every task beside it, and into other pages of its folder
    (``fill_page``) the table and figure of a task by its name, what the layers cost as ``cost``, how they differ
    from the layer that the study recommends as ``recommended``, and where convolutions run as ``convolutions``."""
    tables = {"cost": costs, "recommended": beside_recommended, "convolutions": by_convolution}
    parts = {name: "\n".join(lines_of(study, rows)) for name, lines_of in tables.items()}
    for task in study["choice"]:
        lines = reported_table(study, rows, task) or ["Not trained yet.", ""]
        lines += in_words(study, rows, task)
        if (chart := drawn(study, rows, task)) is not None:
            plot_lines(page.parent / f"fair-{task}.png", chart)
            lines += [f"![{chart['title']}](fair-{task}.png)", ""]
        parts[task] = "\n".join(lines)
    page.write_text(table(study, rows), encoding="utf-8")
    for other in page.parent.glob("*.md"):
        fill_page(other, parts)


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
        if lines := reported_table(study, rows, task):
            text += [f"## {task}: reported seeds\n", *lines]
    return "\n".join(text)


def reported_table(study: dict[str, Any], rows: list[dict[str, Any]], task: str) -> list[str]:
    """Lines of the table of a task's reported seeds; none where there are no rows."""
    best = all_reported(study, rows, task)
    if not best:
        return []
    heads, compared = columns(study, task)
    minus = [f"minus {BASE}, {name}" for name in compared]
    text = [
        f"| layer | rate | seeds | {' | '.join(heads + minus)} | state, bytes | parameters | CPU s a step |",
        "|---|---|---|" + "---|" * (len(heads + minus) + 3),
    ]
    digits = 4 if "measured" in study["tasks"][task] else 3
    tried, steps = all_rates(study), read_costs(study)
    for variant, own in best.items():
        means = [statistics.mean(cell) for cell in zip(*(figures(study, row) for row in own), strict=True)]
        cells = [f"{value:.{digits}f}" for value in means]
        cells += [difference(own, best.get(BASE, []), at) for at in compared.values()]
        long = "" if all(is_flat(study, row) for row in own) else " (not flat)"
        long += " (diverged)" if any(row["diverged_at"] is not None for row in own) else ""
        edge = {tried[0]: " (smallest tried)", tried[-1]: " (largest tried)"}.get(own[0]["rate"], "")
        text.append(
            f"| {variant} | {own[0]['rate']:g}{edge} | {len(own)}{long} | {' | '.join(cells)} "
            f"| {own[0]['state_bytes']:,} | {own[0]['parameters']:,} | {_step(steps, task, variant)} |"
        )
    return [*text, ""]


def in_words(study: dict[str, Any], rows: list[dict[str, Any]], task: str) -> list[str]:
    """Lines that say of each length that is compared who has which figure, best first, and who is better or worse than
    the base and than the recommended layer, by intervals without 0; then, of each layer at its best
    (``at_their_best``), the figures again where some have several variants, and those of the largest group; and of
    which layers there are not all seeds."""
    best, described, text = all_reported(study, rows, task), study["tasks"][task], []
    layers = at_their_best(study, rows, task)
    fewer = [variant for variant, own in best.items() if len(own) < len(study["seeds"])]
    recommended = [row["variant"] for row in layers.get(study.get("recommended"), [])]
    bases = [base for base in dict.fromkeys([BASE, *recommended]) if base in best and base not in fewer]
    for head, at in columns(study, task)[1].items() if best else ():
        error = "measured" in described
        means = {variant: _mean_at(own, at) for variant, own in best.items()}
        text.append(f"- {'Mean error of' if error else 'Right at'} {head}: {_ranked(means, least=error)}.")
        for base in bases:
            against = {v: signs(own, best[base], at) for v, own in best.items() if v != base and v not in fewer}
            ahead, behind = (
                ", ".join(v for v, ends in against.items() if ends == sign) or "none"
                for sign in (("--", "++") if error else ("++", "--"))
            )
            text[-1] += f" Ahead of {base}, by intervals without 0: {ahead}; behind it: {behind}."
        if len(layers) < len(best):
            means = {own[0]["variant"]: _mean_at(own, at) for own in layers.values()}
            text.append(f"- Each as chosen, {head}: {_ranked(means, least=error)}.")
    if best and (of := groups(described)):
        means = {
            own[0]["variant"]: statistics.mean(row["measured"][0]["by"][of[-1]] for row in own)
            for own in layers.values()
        }
        text.append(f"- Of {of[-1]} {described['by']}: {_ranked(means)}.")
    if fewer:
        text.append(f"- Not all seeds so far, so not said to be ahead or behind: {', '.join(fewer)}.")
    return [*text, ""] if text else []


def _mean_at(own: list[dict[str, Any]], at: int) -> float:
    """Over seeds: the accuracy, or error, at one of the measured lengths."""
    return statistics.mean(row["measured"][at]["error" if predicts(row) else "top1"] for row in own)


def _ranked(values: dict[str, float], least: bool = False) -> str:
    order = sorted(values, key=values.__getitem__, reverse=not least)
    return ", ".join(f"{variant} {values[variant]:.{4 if least else 2}f}" for variant in order)


def costs(study: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """Lines of a table of what the layers cost: state after a clip of the training length, and a training step."""
    steps = read_costs(study)
    tasks = {task: best for task in study["choice"] if (best := all_reported(study, rows, task))}
    heads = [f"{task}: {head}" for task in tasks for head in ("state, bytes", "CPU s a step", f"of {BASE}'s")]
    text = [f"| layer | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
    for variant in dict.fromkeys(variant for best in tasks.values() for variant in best):
        cells = []
        for task, best in tasks.items():
            own, ratio = best.get(variant), against(steps, task, variant)
            cells.append(f"{own[0]['state_bytes']:,}" if own else "")
            cells.append(_step(steps, task, variant) if own else "")
            cells.append(f"{ratio:.2f}" if own and ratio is not None else "")
        text.append(f"| {variant} | {' | '.join(cells)} |")
    return [*text, ""]


def beside_recommended(study: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """Lines of a table of the differences to the recommended layer, on the tasks and lengths that it has rows of, each
    layer at its best (``at_their_best``)."""
    name, cells = study.get("recommended"), {}
    heads = []
    for task in study["choice"]:
        best = at_their_best(study, rows, task)
        for head, at in columns(study, task)[1].items() if name in best else ():
            heads.append(f"{task}, {head}{_place(study, best[name])}")
            for layer in best.keys() - {name}:
                cells[layer, heads[-1]] = difference(best[layer], best[name], at) + _place(study, best[layer])
    text = [f"| minus {name} | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
    for layer in study["variants"]:
        line = [cells.get((layer, head), "") for head in heads]
        text += [f"| {layer} | {' | '.join(line)} |"] if any(line) else []
    if whole := behind_the_best(study, rows):
        level = [layer for layer, behind in whole.items() if not behind]
        text += ["", f"Trained on every task and nowhere behind the best of equal state: {', '.join(level) or 'none'}."]
        if not level:
            fewest = [f"{layer} ({'; '.join(whole[layer])})" for layer in least_behind(whole)]
            text[-1] += f" Behind it in the fewest comparisons: {', '.join(fewest)}."
        text[-1] += (
            f" At lengths that are not compared, ahead of {name}, by intervals without 0: {_elsewhere(study, rows)}."
        )
    return [*text, ""] if heads else []


def _elsewhere(study: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Who is ahead of the recommended layer, by intervals without 0, at measured lengths that are not compared."""
    places = []
    for task in study["choice"]:
        best, (heads, compared) = at_their_best(study, rows, task), columns(study, task)
        recommended = best.get(study["recommended"])
        for at, head in enumerate(heads[: len(study["lengths"])]):
            if recommended is None or "measured" in study["tasks"][task] or head in compared:
                continue
            against = {layer + _place(study, own): signs(own, recommended, at) for layer, own in best.items()}
            ahead = [layer for layer, ends in against.items() if ends == "++"]
            places += [f"{task}, {head}: {', '.join(ahead)}"] if ahead else []
    return "; ".join(places) or "none"


def _place(study: dict[str, Any], own: list[dict[str, Any]]) -> str:
    """Where the convolutions run, if not along time: what the name of a variant adds to that of its layer."""
    variant = own[0]["variant"]
    return variant.removeprefix(study["variants"][variant].get("of", variant))


def behind_the_best(study: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Of each layer that has all seeds of every task and nowhere more than twice the recommended layer's state: where
    it is behind the best of these, by intervals without 0. Nothing while the recommended layer itself is not whole."""
    name, tasks = study["recommended"], {}
    for task in study["choice"]:
        best = {v: own for v, own in at_their_best(study, rows, task).items() if len(own) >= len(study["seeds"])}
        if name not in best:
            return {}
        size = 2 * best[name][0]["state_bytes"]
        tasks[task] = {layer: own for layer, own in best.items() if own[0]["state_bytes"] <= size}
    behind = {layer: [] for layer in study["variants"] if all(layer in equal for equal in tasks.values())}
    for task, equal in tasks.items():
        worse, first = ("++", min) if "measured" in study["tasks"][task] else ("--", max)
        for head, at in columns(study, task)[1].items():
            means = {layer: _mean_at(own, at) for layer, own in equal.items()}
            leader = first(means, key=means.__getitem__)
            for layer in behind.keys() - {leader}:
                if signs(equal[layer], equal[leader], at) == worse:
                    behind[layer].append(f"{task}, {head}")
    return behind


def least_behind(behind: dict[str, list[str]]) -> list[str]:
    """Of the layers of ``behind_the_best`` those that are behind in the fewest comparisons."""
    return [layer for layer, where in behind.items() if len(where) == min(map(len, behind.values()))]


def by_convolution(study: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """Lines of a table of the layers that are also tried with their short convolutions along the raster or without any,
    on the tasks of the controls: accuracy at the length of training, at the best rate of each."""
    places = {"along time": "", "along the raster": " raster", "none": " without convolution"}
    by_job, text = {job_of(row)[:4]: row for row in rows}, []
    controls = [own for own in study["variants"].values() if own.get("control")]
    for task in dict.fromkeys(task for own in controls for task in own["tasks"]):
        for layer in study["variants"]:
            cells = []
            for variant in (layer + suffix for suffix in places.values()):
                rate = chosen_rate(study, rows, task, variant)
                row = by_job.get((study["choice"][task], variant, study["choice_seed"], rate))
                cells.append("" if row is None else f"{row['measured'][0]['top1']:.2f} ({row['rate']:g})")
            if any(cells[1:]):
                text.append(f"| {layer} | {' | '.join(cells)} |")
    return [f"| layer | {' | '.join(places)} |", "|---|---|---|---|", *text, ""] if text else []


def _step(steps: dict[tuple[str, str], list[float]], task: str, variant: str) -> str:
    """Processor seconds of a training step: the median over rounds; "-" where it was not measured."""
    seconds = steps.get((task, variant))
    return "-" if seconds is None else f"{statistics.median(seconds):.3f}"


def drawn(study: dict[str, Any], rows: list[dict[str, Any]], task: str) -> dict[str, Any] | None:
    """The figure of a task for ``plot_lines``: accuracy against length, or against what the task is measured ``by``, or
    error by lap, each layer at its best (``at_their_best``), mean and range over seeds; None without rows."""
    layers, described = at_their_best(study, rows, task), study["tasks"][task]
    best = {own[0]["variant"]: own for own in layers.values()}
    if not best:
        return None
    first, unit = 0, {}
    frames = described["parameters"]["frames"]
    if "measured" in described:
        xs, label = [lap + 1 for lap in study["laps"]], "lap"
        bounds = {"no memory": next(iter(best.values()))[0]["measured"][0]["no_memory"]}
        unit = {"unit": "squared error on newly revealed pixels", "bounds": bounds}
    elif "by" in described:
        xs, label, first = [int(value) for value in groups(described)], described["by"], len(study["lengths"])
    else:
        xs, label = [factor * frames for factor in study["lengths"]], "frames of the clip"
        unit = {"trained": [frames]}
    series = {}
    for variant, own in best.items():
        points = list(zip(*(figures(study, row)[first:] for row in own), strict=True))
        about = {"run": variant, "control": "", "mean": list(map(statistics.mean, points))}
        series[variant] = about | {"low": list(map(min, points)), "high": list(map(max, points))}
    chance = None if "measured" in described else suite_of(study, task, VAL_SEED).chance
    title = f"{task}: trained on {frames} frames, mean and range over seeds"
    axis = {"x": xs, "x_label": label, "numeric": True, "joined": True, "ceiling": [], "chance": chance}
    return {"title": title, "series": series, **axis, **unit}


def columns(study: dict[str, Any], task: str) -> tuple[list[str], dict[str, int]]:
    """Heads of the columns of a task's figures, and which of the measured lengths layers are compared at, by head: the
    longest, and the training length too where a task is also measured ``by`` something."""
    described = study["tasks"][task]
    if "measured" in described:
        return [f"error in lap {lap + 1}" for lap in study["laps"]], {"all laps after the first": 0}
    frames = described["parameters"]["frames"]
    heads = [f"{factor * frames} frames" for factor in study["lengths"]]
    by_group = [f"{described['by']}: {value} ({frames} frames)" for value in groups(described)]
    return heads + by_group, {heads[0]: 0, heads[-1]: -1} if by_group else {heads[-1]: -1}


def groups(described: dict[str, Any]) -> list[str]:
    """The values of what a task is measured ``by``, in clips of the training length."""
    return str(described["parameters"][described["by"]]).split(",") if "by" in described else []


def figures(study: dict[str, Any], row: dict[str, Any]) -> list[float]:
    """One for each column: accuracy by length and by group, or mean squared error by lap."""
    if predicts(row):
        return [row["measured"][0]["by_lap"][lap] for lap in study["laps"]]
    by_group = [row["measured"][0]["by"][group] for group in groups(study["tasks"][row["task"]])]
    return [measured["top1"] for measured in row["measured"]] + by_group


def rates(study: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """Of each task on which rates are chosen a line per layer: accuracy at each rate."""
    text = []
    for trial in dict.fromkeys(study["choice"].values()):
        task = next(task for task, where in study["choice"].items() if where == trial)
        lines = []
        for variant in study["variants"]:
            tried = {row["rate"]: row for row in rows if job_of(row)[:3] == (trial, variant, study["choice_seed"])}
            if tried:
                best = chosen_rate(study, rows, task, variant)
                cells = [_trial(tried[rate]) if rate in tried else "-" for rate in all_rates(study)]
                lines.append(f"| {variant} | {' | '.join(cells)} | {'-' if best is None else f'{best:g}'} |")
        if lines:
            heads = " | ".join(f"{rate:g}" for rate in all_rates(study))
            text += [f"## {trial}: the choice of the rate (seed {study['choice_seed']})\n"]
            steps = study["tasks"][trial]["steps"]
            what = "Accuracy, mean over all lengths (at the length of training)"
            if "measured" in study["tasks"][trial]:
                what = "Mean squared error of all laps after the first"
            if at := study["tasks"][trial].get("chosen_at"):
                what += f"; the rate is chosen at {', '.join(map(str, at))} times that length"
            text += [f"{what}. {steps} steps.\n"]
            text += [f"| layer | {heads} | chosen |"]
            text += ["|---|" + "---|" * (len(all_rates(study)) + 1), *lines, ""]
    return text


def _trial(row: dict[str, Any]) -> str:
    diverged = "" if row["diverged_at"] is None else ", diverged"
    if predicts(row):
        return f"{mean(row, 'error'):.4f}{diverged}"
    return f"{mean(row, 'top1'):.3f} ({row['measured'][0]['top1']:.3f}{diverged})"
