"""What an evaluation leaves behind: a table on the screen, metrics.json, predictions.csv and two figures."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tttvideo.evaluation.checkpoint import selection_sentence
from tttvideo.evaluation.html import render
from tttvideo.evaluation.plots import plot_accuracy, plot_confusion, plot_strata, way
from tttvideo.evaluation.result_files import OF_AN_EVALUATION, as_json, result_set, write_table
from tttvideo.evaluation.summary import has_ceiling, main_row, same_length
from tttvideo.files import replacing
from tttvideo.printing import printable

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


def write_report(evaluation: Any, out: str | Path) -> None:
    """Write the files of an evaluation, with a page for people and numbers for `compare`."""
    from tttvideo.evaluation.forecast_report import write_forecasts

    (write_accuracies if "results" in evaluation.metrics else write_forecasts)(evaluation, out)


def print_report(evaluation: Any, console: "Console | None" = None) -> None:
    """Print an evaluation's figures, the rules behind them, and every video that failed."""
    from tttvideo.evaluation.forecast_report import print_forecasts

    (print_accuracies if "results" in evaluation.metrics else print_forecasts)(evaluation, console)


def write_accuracies(evaluation: "Evaluation", out: str | Path) -> None:
    """Write metrics.json, predictions.csv, accuracy_vs_frames.png, accuracy_by_<column>.png, (one label per video)
    confusion.png, and report.html with all of it."""
    metrics = evaluation.metrics
    multi_label, rows = metrics["multi_label"], metrics["results"]
    dashed = ", with the ceiling dashed" if has_ceiling(rows) else ""
    figures = {"accuracy_vs_frames.png": f"Accuracy against the length of the video{dashed}"}
    columns = list(rows[0].get("by", {}))
    # The figures come last: whatever a plot may meet, the numbers are kept.
    with result_set(Path(out), ("metrics.json", "predictions.csv"), OF_AN_EVALUATION) as folder:
        with replacing(folder / "metrics.json") as path:
            path.write_text(as_json(metrics), encoding="utf-8")
        with replacing(folder / "predictions.csv") as path:
            write_table(path, [*COLUMNS, *columns], evaluation.predictions)
        with replacing(folder / "accuracy_vs_frames.png") as path:
            plot_accuracy(
                path,
                rows,
                metric="map" if multi_label else "top1",
                chance=metrics["chance"],
                title=f"{metrics['n_videos']} videos, split {metrics['split']}; "
                + ("mean average precision" if multi_label else "bars: one standard error"),
            )
        for column in columns:
            name = f"accuracy_by_{re.sub(r'[^A-Za-z0-9_-]', '_', column)}.png"
            figures[name] = f"Accuracy by {column}"
            with replacing(folder / name) as path:
                title = f"{metrics['n_videos']} videos, split {metrics['split']}; bars: one standard error"
                plot_strata(path, column, same_length(rows), chance=metrics["chance"], title=title)
        main = main_row(rows)
        if not multi_label:
            figures["confusion.png"] = "Confusion matrix: rows are true classes"
            with replacing(folder / "confusion.png") as path:
                plot_confusion(
                    path,
                    main["confusion"],
                    metrics["labels"],
                    f"split {metrics['split']}, {main['frames']} frames, {main['sampling']}\n"
                    f"top-1 {main['top1']:.1%} of {main['n']} videos",
                )
        with replacing(folder / "report.html") as path:
            pictures = {caption: (folder / name).read_bytes() for name, caption in figures.items()}
            path.write_text(render(evaluation, pictures, main), encoding="utf-8")


def print_accuracies(evaluation: "Evaluation", console: "Console | None" = None) -> None:
    """Print the table, the rules behind its figures, and every video that failed or was read in part."""
    from rich.console import Console
    from rich.table import Table

    console = console or Console()
    metrics = evaluation.metrics
    table = Table()
    ceiling, multi_label = has_ceiling(metrics["results"]), metrics["multi_label"]
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
        console.print(printable(text), markup=False, emoji=False, highlight=False, soft_wrap=True)

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
    from rich.text import Text

    def shown(name: str, after: str = "") -> Text:  # names with brackets are no markup
        return Text(printable(name) + after)

    table = Table(title=shown(f"top-1 by {column}"), title_justify="left")
    table.add_column("frames", justify="right")
    table.add_column("sampling", overflow="fold")
    for stratum in results[0]["by"][column]:
        table.add_column(shown(stratum["value"], f"\n(n={stratum['n']})"), justify="right")
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
