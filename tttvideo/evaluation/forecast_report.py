"""What an evaluation of predictions leaves behind: a table on the screen, and files for people and for `compare`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tttvideo.evaluation.checkpoint import selection_sentence
from tttvideo.evaluation.forecast_html import render_forecasts
from tttvideo.evaluation.forecaster import shown_horizons
from tttvideo.evaluation.forecasting import Forecasts
from tttvideo.evaluation.plots import plot_by_horizon, plot_revealed
from tttvideo.evaluation.result_files import OF_AN_EVALUATION, as_json, result_set, write_table
from tttvideo.evaluation.revealing import METHODS
from tttvideo.files import replacing
from tttvideo.printing import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def write_forecasts(found: Forecasts, out: str | Path) -> None:
    """Write metrics.json, predictions.csv, per_video.npz (``Forecasts.per_video``, a row for each of predictions.csv),
    error_by_horizon.png, revealed.png where a suite reveals something, and report.html with all of it."""
    metrics = found.metrics
    figures = [f"{method}_{kind}" for method in METHODS for kind in metrics["mean"][method]]
    numbers = ("metrics.json", "predictions.csv", "per_video.npz")
    with result_set(Path(out), numbers, OF_AN_EVALUATION) as folder:
        with replacing(folder / "metrics.json") as path:
            path.write_text(as_json(metrics), encoding="utf-8")
        with replacing(folder / "predictions.csv") as path:
            write_table(path, ["path", "start", "end", *figures, "failure"], found.predictions)
        with replacing(folder / "per_video.npz") as path, path.open("wb") as file:
            np.savez_compressed(file, **found.per_video)  # type: ignore[arg-type]
        pictures = {"error_by_horizon.png": "Error by horizon: of the model, and of predictions that need none"}
        with replacing(folder / "error_by_horizon.png") as path:
            measured = metrics["n_videos"] - metrics["n_failed"]
            title = f"{measured} videos, split {metrics['split']}; {metrics['context']} frames of context"
            plot_by_horizon(
                path,
                {name: row["mse"] for name, row in metrics["per_horizon"].items()},
                space=metrics["space"],
                title=title,
            )
        if metrics["revealed"]:
            with replacing(folder / "revealed.png") as path:
                title = (
                    f"{metrics['suite']['name']}, split {metrics['split']}: every frame predicted from all before it"
                )
                plot_revealed(path, metrics["revealed"], title=title)
            pictures["revealed.png"] = f"Error on newly revealed pixels by {metrics['revealed']['by']}"
        with replacing(folder / "report.html") as path:
            read = {caption: (folder / name).read_bytes() for name, caption in pictures.items()}
            path.write_text(render_forecasts(found, read), encoding="utf-8")


def print_forecasts(found: Forecasts, console: "Console | None" = None) -> None:
    """Print the errors by horizon, the rules behind them, and every video that was not measured."""
    from rich.console import Console
    from rich.table import Table

    console = console or Console()
    metrics = found.metrics
    table = Table()
    table.add_column("horizon", justify="right")
    shown = "psnr" if metrics["space"] == "pixels" else "cosine"
    for method in METHODS:
        table.add_column(f"{method}\nmse   {shown}", justify="right")
    for ahead in shown_horizons(metrics["horizon"]):
        table.add_row(str(ahead), *(_cell(metrics["per_horizon"][m], shown, ahead - 1) for m in METHODS))
    table.add_section()
    table.add_row("mean", *(_cell({k: [v] for k, v in metrics["mean"][m].items()}, shown, 0) for m in METHODS))
    console.print(table)
    if metrics["revealed"]:
        console.print(_revealed(metrics["revealed"]))

    def say(text: str) -> None:
        console.print(printable(text), markup=False, emoji=False, highlight=False, soft_wrap=True)

    say(f"{metrics['convention']}; metrics.json has all of them")
    learned = "all frames, its own predictions too" if metrics["write"] else "the context alone"
    if metrics["fvd"]:
        distances = ", ".join(f"{m} {'-' if x is None else f'{x:.1f}'}" for m, x in metrics["fvd"].items())
        why = "" if any(x is not None for x in metrics["fvd"].values()) else " (a single video has no covariance)"
        say(f"Fréchet video distance, context included: {distances}{why}")
    if metrics["suite"]:
        bounds = ", ".join(f"{name.replace('_', ' ')} {x:.4f}" for name, x in metrics["suite"]["bounds"].items())
        where = "newly revealed pixels" if metrics["revealed"] else "all pixels"
        say(f"{metrics['suite']['name']}, expected mean squared errors of {where}: {bounds}")
    say(f"{metrics['context']} frames of context; the hidden state learns from {learned}")
    say(f"split: {metrics['split_rule']}")
    say(selection_sentence(metrics["selection"]))
    for note in metrics["notes"]:
        say(f"note: {note}")
    if metrics["n_failed"]:
        say(f"{metrics['n_failed']} of {metrics['n_videos']} videos were not measured:")
        for failure in metrics["failures"]:
            say(f"  {failure['path']}: {failure['reason']}")


def _revealed(revealed: dict[str, Any]) -> "Table":
    from rich.table import Table

    table = Table(title="newly revealed pixels, mean squared error")
    table.add_column(revealed["by"], justify="right")
    for method in revealed["mse"]:
        table.add_column(method, justify="right")
    for group in range(len(revealed["values"])):
        values = [row[group] for row in revealed["mse"].values()]
        table.add_row(str(group), *("-" if value is None else f"{value:.4f}" for value in values))
    return table


def _cell(row: dict[str, list], shown: str, at: int) -> str:
    mse = row["mse"][at]
    return f"{mse:.2f}  {row[shown][at]:5.2f}" if mse >= 1 else f"{mse:.3g}  {row[shown][at]:5.2f}"
