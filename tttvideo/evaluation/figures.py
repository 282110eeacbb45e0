"""The figures of one evaluation, made of the content of metrics.json as protocols like those of a comparison."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..tasks import Score
from .plots import COLOURS, plot_confusion, plot_lines
from .samples import main_row
from .table import MODEL


class Figure(NamedTuple):
    caption: str
    draw: Callable[[Path], None]


def has_ceiling(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether the best that can be reached is known of some row."""
    return any(row.get("ceiling") is not None for row in rows)


def way(row: dict[str, Any]) -> str:
    """How a row of metrics.json was measured, its length aside: sampling rule, views, control."""
    views = row.get("views", "whole")
    return ", ".join([row["sampling"]] + [views] * (views != "whole") + [row["control"]] * bool(row.get("control")))


def same_length(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows cut as the main one is: what strata are shown of."""
    return [row for row in rows if row["frames"] == main_row(rows)["frames"]]


def words(name: str) -> str:
    return name.replace("_", " ")


def settings_figures(metrics: dict[str, Any], main: dict[str, Any], score: Score) -> dict[str, Figure]:
    rows = metrics["results"]
    several = score.judged and "map" in rows[0]
    dashed = ", with the ceiling dashed" if has_ceiling(rows) else ""
    measured = f"{metrics['n_videos']} videos, split {metrics['split']}; "
    measured += "mean average precision" if several else "bars: one standard error"
    by_length = _against_length(rows, "map" if several else score.figure, score, metrics["chance"], measured)
    subject = score.title.removeprefix("top-1 ").capitalize()
    figures = {
        "accuracy_vs_frames.png": Figure(
            f"{subject} against the length of the video{dashed}", lambda path: plot_lines(path, by_length)
        )
    }
    for column in rows[0].get("by", {}):
        protocol = _against_strata(rows, column, score, metrics)
        name = f"accuracy_by_{re.sub(r'[^A-Za-z0-9_-]', '_', column)}.png"
        figures[name] = Figure(f"{subject} by {column}", lambda path, p=protocol: plot_lines(path, p))
    if "confusion" in main:
        title = f"split {metrics['split']}, {main['frames']} frames, {main['sampling']}\n"
        value = f"{main[score.figure]:.1%}" if score.share else f"{main[score.figure]:.4g}"
        title += f"{score.title.removesuffix(' accuracy')} {value} of {main.get('n', metrics['n_videos'])} videos"
        figures["confusion.png"] = Figure(
            "Confusion matrix: rows are true classes",
            lambda path: plot_confusion(path, main["confusion"], metrics["labels"], title),
        )
    return figures


def _protocol(
    title: str, label: str, x: list[str], series: dict[str, Any], score: Score, chance: Any
) -> dict[str, Any]:
    """As in compare.json, with lines at named x."""
    unit = {"y_label": f"{score.title} (%)"} if score.share else {"unit": score.title, "lower_is_better": score.lower}
    about = {"title": title, "x_label": label, "x": x, "numeric": False, "joined": True}
    return about | unit | {"series": series, "ceiling": [], "chance": chance}


def _with_bars(mean: list[Any], error: list[Any]) -> dict[str, Any]:
    """A line with one standard error."""
    if any(e is None for m, e in zip(mean, error) if m is not None):
        return {"mean": mean}
    low, high = ([None if m is None else m + sign * e for m, e in zip(mean, error)] for sign in (-1, 1))
    return {"mean": mean, "low": low, "high": high}


def _against_length(
    rows: Sequence[dict[str, Any]], figure: str, score: Score, chance: float | None, title: str
) -> dict[str, Any]:
    names: list[Any] = sorted({row["frames"] for row in rows if row["frames"] != "all"})
    names += ["all"] if any(row["frames"] == "all" for row in rows) else []
    series = {}
    for name in dict.fromkeys(map(way, rows)):
        of_way = {row["frames"]: row for row in rows if way(row) == name}
        at = [of_way.get(length, {}) for length in names]
        control = next(iter(of_way.values())).get("control") or ""
        series[name] = {
            "run": way(next(iter(of_way.values())) | {"control": ""}),
            "control": control,
            **_with_bars([row.get(figure) for row in at], [row.get(f"{figure}_se") for row in at]),
            # the ceiling of a control is that of the whole model
            "ceiling": [] if control else [row.get("ceiling") for row in at],
        }
    dense = [row for row in rows if row["frames"] == "all" and way(row) == "dense"]
    x = [f"all\n(mean {dense[0]['mean_frames_used']:.0f})" if n == "all" and dense else str(n) for n in names]
    protocol = _protocol(title, "length of video: its first n frames (all: the whole video)", x, series, score, chance)
    return protocol | ({"y_label": "mean average precision (%)"} if figure == "map" else {})


def _against_strata(
    rows: Sequence[dict[str, Any]], column: str, score: Score, metrics: dict[str, Any]
) -> dict[str, Any]:
    plain_rows = [row for row in same_length(rows) if not row["control"]]
    title = f"{metrics['n_videos']} videos, split {metrics['split']}; bars: one standard error"
    if len(plain_rows) > len(COLOURS):
        title += f"\nthe first {len(COLOURS)} of {len(plain_rows)} settings; metrics.json has all"
    series = {}
    for row in plain_rows[: len(COLOURS)]:
        name, values = f"{row['frames']} frames, {way(row)}", row["by"][column]
        bars = _with_bars([s[score.figure] for s in values], [s.get(f"{score.figure}_se") for s in values])
        series[name] = {"run": name, "control": "", **bars, "ceiling": [s["ceiling"] for s in values]}
    x = [f"{stratum['value']}\n(n={stratum['n']})" for stratum in plain_rows[0]["by"][column]]
    return _protocol(title, f"{column} (column of the data)", x, series, score, metrics["chance"])


def horizon_figures(metrics: dict[str, Any], measured: int) -> dict[str, Figure]:
    pixels = "pixels in 0..1" if metrics["space"] == "pixels" else "features"
    horizon = {
        "title": f"{measured} videos, split {metrics['split']}; {metrics['context']} frames of context",
        "x_label": "horizon: frames after the context",
        "x": list(range(1, metrics["horizon"] + 1)),
        "unit": f"squared error of a frame (sum over its {pixels})",
        "series": _methods({method: row["mse"] for method, row in metrics["per_horizon"].items()}),
    }
    errors = {"numeric": True, "linear": True, "joined": True, "ceiling": [], "chance": None}
    caption = "Error by horizon: of the model, and of predictions that need none"
    figures = {"error_by_horizon.png": Figure(caption, lambda path: plot_lines(path, errors | horizon))}
    if revealed := metrics["revealed"]:
        groups = {
            "title": f"{metrics['suite']['name']}, split {metrics['split']}: every frame predicted from all before it",
            "x_label": revealed["by"],
            "x": list(range(len(revealed["values"]))),
            "unit": "mean squared error, newly revealed pixels",
            "series": _methods(revealed["mse"]),
            "bounds": revealed["bounds"],
        }
        caption = f"Error on newly revealed pixels by {revealed['by']}"
        figures["revealed.png"] = Figure(caption, lambda path: plot_lines(path, errors | groups))
    return figures


def _methods(values: dict[str, list[Any]]) -> dict[str, Any]:
    return {
        words(name): {"run": name, "control": "", "mean": list(points), "baseline": name != MODEL}
        for name, points in values.items()
    }
