"""What an evaluation leaves behind: a table on the screen, metrics.json, predictions.csv and two figures."""

import csv
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tttvideo.evaluation.checkpoint import selection_sentence
from tttvideo.evaluation.html import render
from tttvideo.evaluation.plots import plot_accuracy, plot_confusion, plot_strata, way
from tttvideo.evaluation.summary import main_row, same_length

if TYPE_CHECKING:
    from rich.console import Console

    from tttvideo.evaluation.evaluate import Evaluation

COLUMNS = (
    *(
        "path",
        "start",
        "end",
        "frames",
        "sampling",
        "views",
        "control",
        "label",
        "prediction",
        "correct",
        "probability",
        "label_probability",
        "rank",
    ),
    *("frames_used", "top5", "failure"),
)


def write_report(evaluation: "Evaluation", out: str | Path) -> None:
    """Write metrics.json, predictions.csv, accuracy_vs_frames.png, accuracy_by_<column>.png, (one label per video)
    confusion.png, and report.html with all of it."""
    out = Path(out)
    figures = {"accuracy_vs_frames.png": "Accuracy against the length of the video, with the ceiling dashed"}
    out.mkdir(parents=True, exist_ok=True)
    metrics = evaluation.metrics
    # The figures come last: whatever a plot may meet, the numbers are kept.
    with replacing(out / "metrics.json") as path:
        path.write_text(as_json(metrics), encoding="utf-8")
    with replacing(out / "predictions.csv") as path, path.open("w", newline="", encoding="utf-8") as file:
        more = list(metrics["results"][0].get("by", {}))
        writer = csv.DictWriter(file, fieldnames=[*COLUMNS, *more], lineterminator="\n")
        writer.writeheader()
        writer.writerows(evaluation.predictions)
    multi_label = metrics["multi_label"]
    with replacing(out / "accuracy_vs_frames.png") as path:
        plot_accuracy(
            path,
            metrics["results"],
            metric="map" if multi_label else "top1",
            chance=metrics["chance"],
            title=f"{metrics['n_videos']} videos, split {metrics['split']}; "
            + ("mean average precision" if multi_label else "bars: one standard error"),
        )
    for column in metrics["results"][0].get("by", {}):
        name = f"accuracy_by_{re.sub(r'[^A-Za-z0-9_-]', '_', column)}.png"
        figures[name] = f"Accuracy by {column}"
        with replacing(out / name) as path:
            title = f"{metrics['n_videos']} videos, split {metrics['split']}; bars: one standard error"
            rows = same_length(metrics["results"])
            plot_strata(path, column, rows, chance=metrics["chance"], title=title)
    row = main_row(metrics["results"])
    if not multi_label:
        figures["confusion.png"] = "Confusion matrix: rows are true classes"
        with replacing(out / "confusion.png") as path:
            plot_confusion(
                path,
                row["confusion"],
                metrics["labels"],
                f"split {metrics['split']}, {row['frames']} frames, {row['sampling']}\n"
                f"top-1 {row['top1']:.1%} of {row['n']} videos",
            )

    with replacing(out / "report.html") as path:
        pictures = {caption: (out / name).read_bytes() for name, caption in figures.items()}
        path.write_text(render(evaluation, pictures, row), encoding="utf-8")


def print_report(evaluation: "Evaluation", console: "Console | None" = None) -> None:
    """Print the table, the rules behind its figures, and every video that failed or was read in part."""
    from rich.console import Console
    from rich.table import Table

    console = console or Console()
    metrics = evaluation.metrics
    table = Table()
    ceiling, multi_label = (
        any(row.get("ceiling") is not None for row in metrics["results"]),
        metrics["multi_label"],
    )
    top_k = f"top-{min(5, len(metrics['labels']))}"
    for name in ("frames", "sampling", "top-1", top_k, "mean class"):
        rule = name == "sampling"  # wide enough for uniform=16 where the output is 80 columns wide
        table.add_column(name, justify="left" if rule else "right", overflow="fold", min_width=10 if rule else None)
    for name, shown in (("mAP", multi_label), ("ceiling", ceiling), ("videos", True), ("frames/s", True)):
        if shown:
            table.add_column(name, justify="right")
    for row in metrics["results"]:
        cells = [
            str(row["frames"]),
            way(row),
            *(f"{row[k]:.3f}" for k in ("top1", "top5", "mean_class")),
        ]
        cells += [f"{row['map']:.3f}"] if multi_label else []
        cells += ["" if row["ceiling"] is None else f"{row['ceiling']:.3f}"] if ceiling else []
        table.add_row(*cells, str(row["n"]), f"{row['frames_per_second']:,.0f}")
    console.print(table)

    for column in metrics["results"][0].get("by", {}):
        console.print(_strata_table(column, same_length(metrics["results"])))

    def say(text: str) -> None:
        console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)

    say(f"split: {metrics['split_rule']}")
    say(f"{selection_sentence(metrics['selection'])}; chance {metrics['chance']:.3f}")
    if ceiling and metrics["ceilings_are"] != "exact":
        say(f"ceiling: {metrics['ceilings_are']}")
    say_streaming(metrics.get("streaming"), say)
    for note in metrics["notes"]:
        say(f"note: {note}")
    for warning in metrics["warnings"]:
        say(f"warning: {warning}")
    if metrics["n_failed"]:
        say(f"{metrics['n_failed']} of {metrics['n_videos']} videos failed and count as wrong:")
        for failure in metrics["failures"]:
            say(f"  {failure['path']}{_span(failure)}: {failure['reason']}")


def say_streaming(found: dict[str, Any] | None, say: Callable[[str], None]) -> None:
    """What `--check-streaming` found."""
    if found and found["videos"]:
        say(
            f"streaming: {found['same_class']} of {found['videos']} videos get the class of the whole clip when read "
            f"{found['segment']} frames at a time; probabilities differ by at most "
            f"{found['max_probability_difference']:.1e}; state {found['state_bytes_first']:,} bytes after the first "
            f"segment, {found['state_bytes_last']:,} after the last"
        )


def _strata_table(column: str, results: list[dict[str, Any]]):
    from rich.table import Table

    table = Table(title=f"top-1 by {column}", title_justify="left")
    table.add_column("frames", justify="right")
    table.add_column("sampling", overflow="fold")
    for stratum in results[0]["by"][column]:
        table.add_column(f"{stratum['value']}\n(n={stratum['n']})", justify="right")
    for row in results:
        cells = [
            f"{s['top1']:.3f}" + (f" ({s['ceiling']:.3f})" if s["ceiling"] is not None else "")
            for s in row["by"][column]
        ]
        table.add_row(str(row["frames"]), way(row), *cells)
    known = any(s["ceiling"] is not None for s in results[0]["by"][column])
    table.caption = "in brackets: what the best observer reaches on these videos" if known else None
    return table


def _span(row: dict[str, Any]) -> str:
    start, end = row["start"], row["end"]
    if start is None and end is None:
        return ""
    return f" from {start or 0:g} s" + ("" if end is None else f" to {end:g} s")


def as_json(data: dict[str, Any]) -> str:
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)
    # Rows of numbers (confusion counts) on one line each: a figure file is read by people, too.
    return re.sub(r"\[\s*((?:-?[\d.e+-]+,\s*)*-?[\d.e+-]+)\s*\]", _one_line, text) + "\n"


def _one_line(match: re.Match[str]) -> str:
    return "[" + ", ".join(match[1].replace(",", " ").split()) + "]"


class replacing:
    """The path of an unfinished sibling; it takes the name of `path` when the block ends without an error."""

    def __init__(self, path: Path):
        self.path = path
        self.unfinished = path.with_name(f".unfinished-{path.name}")

    def __enter__(self) -> Path:
        return self.unfinished

    def __exit__(self, kind, value, traceback) -> None:
        if kind is None:
            os.replace(self.unfinished, self.path)
        else:
            self.unfinished.unlink(missing_ok=True)
