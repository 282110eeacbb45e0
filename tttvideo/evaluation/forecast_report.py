"""What an evaluation of predictions leaves behind: a table, metrics.json, predictions.csv and a figure."""

import csv
from pathlib import Path
from typing import TYPE_CHECKING

from tttvideo.evaluation.checkpoint import selection_sentence
from tttvideo.evaluation.forecasting import METHODS, METRICS, Forecasts, shown_horizons
from tttvideo.evaluation.plots import plot_by_horizon
from tttvideo.evaluation.report import as_json, replacing

if TYPE_CHECKING:
    from rich.console import Console


def write_forecasts(found: Forecasts, out: str | Path) -> None:
    """Write metrics.json, predictions.csv and error_by_horizon.png."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    metrics = found.metrics
    with replacing(out / "metrics.json") as path:
        path.write_text(as_json(metrics), encoding="utf-8")
    columns = ["path", "start", "end", *(f"{method}_{kind}" for method in METHODS for kind in METRICS), "failure"]
    with replacing(out / "predictions.csv") as path, path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(found.predictions)
    with replacing(out / "error_by_horizon.png") as path:
        measured = metrics["n_videos"] - metrics["n_failed"]
        title = f"{measured} videos, split {metrics['split']}; {metrics['context']} frames of context"
        plot_by_horizon(path, {name: row["mse"] for name, row in metrics["per_horizon"].items()}, title=title)


def print_forecasts(found: Forecasts, console: "Console | None" = None) -> None:
    """Print the errors by horizon, the rules behind them, and every video that was not measured."""
    from rich.console import Console
    from rich.table import Table

    console = console or Console()
    metrics = found.metrics
    table = Table()
    table.add_column("horizon", justify="right")
    for method in METHODS:
        table.add_column(f"{method}\nmse   psnr", justify="right")
    for ahead in shown_horizons(metrics["horizon"]):
        table.add_row(str(ahead), *(_cell(metrics["per_horizon"][m], ahead - 1) for m in METHODS))
    table.add_section()
    table.add_row("mean", *(_cell({k: [v] for k, v in metrics["mean"][m].items()}, 0) for m in METHODS))
    console.print(table)

    def say(text: str) -> None:
        console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)

    say(f"{metrics['convention']}; mae and ssim stand in metrics.json")
    learned = "all frames, its own predictions too" if metrics["write"] else "the context alone"
    say(f"{metrics['context']} frames of context; the hidden state learns from {learned}")
    say(f"split: {metrics['split_rule']}")
    say(selection_sentence(metrics["selection"]))
    for note in metrics["notes"]:
        say(f"note: {note}")
    if metrics["n_failed"]:
        say(f"{metrics['n_failed']} of {metrics['n_videos']} videos were not measured:")
        for failure in metrics["failures"]:
            say(f"  {failure['path']}: {failure['reason']}")


def _cell(row: dict[str, list], at: int) -> str:
    return f"{row['mse'][at]:.2f}  {row['psnr'][at]:5.2f}"
