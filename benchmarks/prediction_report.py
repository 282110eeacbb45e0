"""Tables, flat JSON and figure of the study of prediction, from its rows."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from tttvideo.evaluation.plots import plot_lines
from tttvideo.evaluation.table import METHODS


def by_horizon(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A flat row for each horizon of each training."""
    flat = []
    for row in rows:
        errors = row["horizon"]
        flat += [
            {
                "suite": row["suite"],
                "model": row["model"],
                "seed": row["seed"],
                "horizon": i + 1,
                "mse": errors["model"]["mse"][i],
                "mse_context_only": errors["model_context_only"]["mse"][i],
                "psnr": errors["model"]["psnr"][i],
                "copy_last_mse": errors["copy_last"]["mse"][i],
                "mean_frame_mse": errors["mean_frame"]["mse"][i],
                "linear_mse": errors["linear"]["mse"][i],
                "parameters": row["parameters"],
                "seconds": row["seconds"],
            }
            for i in range(len(errors["model"]["mse"]))
        ]
    return flat


def tables(study: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """Markdown: per suite rollout errors by horizon, then errors on revealed pixels by group."""
    lines = []
    for name, described in study["suites"].items():
        here = {m: [row for row in rows if (row["suite"], row["model"]) == (name, m)] for m in study["models"]}
        here = {model: trainings for model, trainings in here.items() if trainings}
        if not here:
            continue
        shown = described["shown"]
        lines += [f"**{name}**: {described['context']} frames given, mean squared error of a frame at horizon", ""]
        lines += ["| model | seeds | steps | " + " | ".join(f"{h}" for h in shown) + " | SSIM at the last |"]
        lines += ["|---|---|---|" + "---|" * (len(shown) + 1)]
        for model, trainings in here.items():
            steps = f"{statistics.median(row['steps'] for row in trainings):.0f}"
            cells = [_range([row["horizon"]["model"]["mse"][h - 1] for row in trainings]) for h in shown]
            cells.append(f"{statistics.mean(row['horizon']['model']['ssim'][shown[-1] - 1] for row in trainings):.3f}")
            lines.append(f"| {model} | {len(trainings)} | {steps} | " + " | ".join(cells) + " |")
            written = [row["horizon"]["model_context_only"]["mse"] for row in trainings]
            cells = [_range([mse[h - 1] for mse in written]) for h in shown]
            lines.append("| ... learning from the context alone | | | " + " | ".join(cells) + " | |")
        for trivial in METHODS[1:]:
            trainings = next(iter(here.values()))[0]["horizon"][trivial]["mse"]
            lines.append(f"| {trivial} | | | " + " | ".join(f"{trainings[h - 1]:.1f}" for h in shown) + " | |")
        revealed = {
            model: [row["revealed"] for row in trainings]
            for model, trainings in here.items()
            if "revealed" in trainings[0]
        }
        if revealed:
            lines += ["", *_by_group(revealed, described["groups"])]
        lines.append("")
    return lines


def _by_group(revealed: dict[str, list[dict[str, Any]]], shown: list[int]) -> list[str]:
    first = next(iter(revealed.values()))[0]
    by = first["by"]
    lines = [
        f"Mean squared error of newly revealed pixels by {by}, every frame predicted from all true ones before",
        "",
    ]
    lines += [f"| model | {' | '.join(f'{by} {g}' for g in shown)} |", "|---|" + "---|" * len(shown)]
    for model, rows in revealed.items():
        cells = [_range([row["mse"]["model"][g] for row in rows], 4) for g in shown]
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    for trivial in METHODS[1:]:
        lines.append(f"| {trivial} | " + " | ".join(f"{first['mse'][trivial][g]:.4f}" for g in shown) + " |")
    for name, value in first["bounds"].items():
        lines.append(f"| {name} (expected) | " + " | ".join(f"{value:.4f}" for _ in shown) + " |")
    return lines


def _range(values: list[float], digits: int = 1) -> str:
    """Mean over the seeds, and half of what lies between the smallest and the largest."""
    middle = f"{statistics.mean(values):.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ±{(max(values) - min(values)) / 2:.{digits}f}"


def draw(study: dict[str, Any], rows: list[dict[str, Any]], out: Path) -> None:
    """Loss against position, prediction-SUITE.png for every suite with a memory to be measured: the errors on revealed
    pixels of the models that the study says are drawn, by group, from the frames before it."""
    for name, described in study["suites"].items():
        here = {
            model: [row["revealed"] for row in rows if (row["suite"], row["model"]) == (name, model)]
            for model in described.get("drawn", [])
        }
        series = {}
        for model, rows in here.items():
            columns = list(zip(*(revealed["mse"]["model"] for revealed in rows), strict=True))
            mean, low, high = ([f(column) for column in columns] for f in (statistics.mean, min, max))
            if rows:
                series[model] = {"run": model, "control": "", "mean": mean, "low": low, "high": high}
        if not series:
            continue
        first = next(rows for rows in here.values() if rows)[0]
        groups = len(first["mse"]["model"])
        protocol = {
            "title": f"{name}: every frame predicted from all before it; bands: range over seeds",
            "x_label": f"{first['by']} (the first is 1)",
            "x": [group + 1 for group in range(groups)],
            "numeric": True,
            "joined": True,
            "unit": "mean squared error of newly revealed pixels",
            "series": series,
            "ceiling": [None] * groups,
            "chance": None,
            "bounds": {bound: value for bound, value in first["bounds"].items() if bound == "no_memory"},
        }
        plot_lines(out / f"prediction-{name}.png", protocol)
