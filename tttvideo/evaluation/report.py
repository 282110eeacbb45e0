"""Results for people and for `compare`: on the screen, in files, as a page, as Markdown."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files import as_json, parse_json, replacing, result_set, write_table, write_text
from ..printing import markdown, printable
from .generating import shown_horizons
from .page import Grid, located, page_of, worst_of
from .plots import plot_lines
from .position import position_protocol
from .table import Result

if TYPE_CHECKING:
    from jinja2 import Environment
    from rich.console import Console
    from rich.table import Table as RichTable

OF_AN_EVALUATION = (
    *("metrics.json", "predictions.csv", "per_video.npz", "report.html", "accuracy_vs_frames.png", "confusion.png"),
    *("accuracy_by_*.png", "error_by_horizon.png", "revealed.png"),
)
"""Every file that an evaluation of either task may leave in a folder."""
MANY = 16
"""Rows of a comparison's table at most; of more x, tables show 1, 2, 4, ... and the last."""


def write_report(result: Result, out: str | Path) -> None:
    """Writes metrics.json, predictions.csv, per_video.npz where there are arrays, the figures, and report.html with all
    of it."""
    figures = page_of(result.metrics).figures
    numbers = ["metrics.json", "predictions.csv", *(["per_video.npz"] if result.arrays else [])]
    # The figures come last: whatever a plot may meet, the numbers are kept.
    with result_set(Path(out), numbers, OF_AN_EVALUATION) as folder:
        write_text(folder / "metrics.json", as_json(result.metrics))
        with replacing(folder / "predictions.csv") as path:
            write_table(path, result.columns, result.predictions)
        if result.arrays:
            with replacing(folder / "per_video.npz") as path, path.open("wb") as file:
                np.savez_compressed(file, **result.arrays)  # type: ignore[arg-type]
        for name, figure in figures.items():
            with replacing(folder / name) as path:
                figure.draw(path)
        pictures = {figure.caption: (folder / name).read_bytes() for name, figure in figures.items()}
        write_text(folder / "report.html", html(result, pictures))


def html(result: Result, figures: dict[str, bytes]) -> str:
    """One file that needs no network; ``figures``: caption -> PNG. What comes from users is no markup."""
    worst_pictures = [] if any(sample.thumbnail for sample in result.worst) else result.worst
    return (
        templates(Path(__file__).parent)
        .get_template("report.html.jinja")
        .render(
            metrics=result.metrics,
            page=page_of(result.metrics),
            figures=figures,
            worst=worst_of(result),
            samples=result.samples,
            worst_pictures=worst_pictures,
            located=located,
        )
    )


def templates(folder: Path) -> Environment:
    """The templates of pages in a folder. What comes from users is no markup; the filter ``uri`` is for PNG bytes."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: printable(value) if type(value) is str else value,  # markup is of another type
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"uri": lambda png: "data:image/png;base64," + base64.b64encode(png).decode("ascii")}
    return environment


def print_report(result: Result, console: Console | None = None) -> None:
    """Prints the tables, the rules behind their figures, and every video that failed or was read in part."""
    from rich.console import Console

    console, metrics, page = console or Console(), result.metrics, page_of(result.metrics)

    def say(text: str) -> None:
        console.print(printable(text), markup=False, emoji=False, highlight=False, soft_wrap=True)

    for grid in page.grids:
        if not grid.details:
            console.print(_on_screen(grid))
    for line in page.lines:
        say(line)
    for note in metrics["notes"]:
        say(f"note: {note}")
    for warning in metrics.get("warnings", []):
        say(f"warning: {warning}")
    if metrics["n_failed"]:
        say(f"{metrics['n_failed']} of {metrics['n_videos']} videos {page.failed}:")
        for failure in metrics["failures"]:
            say(f"  {located(failure)}: {failure['reason']}")


def _on_screen(grid: Grid, folded: bool = False) -> RichTable:
    """``folded``: what stands in brackets goes below, where a row would be wider than 80 columns."""
    from rich.table import Table
    from rich.text import Text  # names with brackets are no markup

    columns = grid.narrow or range(len(grid.header))
    table = Table(title=Text(printable(grid.title)) if grid.title else None, title_justify="left")
    for column in columns:
        right = column != 1 or grid.narrow is None  # of the ways to measure, the widest must fit into 80 columns
        least = None if right else 10
        title = Text(printable(grid.header[column]))
        table.add_column(title, justify="right" if right else "left", overflow="fold", min_width=least)
    for row in grid.rows:
        cells = [printable(row[column]) for column in columns]
        table.add_row(*(Text(cell.replace(" (", "\n(") if folded and i else cell) for i, cell in enumerate(cells)))
    table.caption = Text(grid.note) if grid.note and grid.title else None
    return table


def as_markdown(grid: Grid) -> list[str]:
    """The lines of a table in Markdown, those columns that fit where there is little room."""
    columns = grid.narrow or range(len(grid.header))
    rows = [[row[column] for column in columns] for row in (grid.header, *grid.rows)]
    lines = ["| " + " | ".join(map(markdown, row)) + " |" for row in rows]
    return [lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]


def write_comparison(comparison: dict[str, Any], out: Path) -> list[str]:
    """Writes compare.json, compare.md and a PNG for each protocol into a folder; returns their names. Figures that an
    earlier comparison left there are taken away."""
    old = [f"{file_name(name)}.png" for name in _protocols_in(out / "compare.json")]
    names = ["compare.json", "compare.md"]
    with result_set(out, names, [*names, *map(escape, old)]) as folder:
        write_text(folder / "compare.json", as_json(comparison))
        write_text(folder / "compare.md", _comparison_markdown(comparison))
        for name, protocol in comparison["protocols"].items():
            names.append(f"{file_name(name)}.png")
            with replacing(folder / names[-1]) as path:
                plot_lines(path, protocol)
    return names


def _protocols_in(file: Path) -> list[str]:
    """Those of an earlier comparison; none where the file is no such thing."""
    try:
        return [name for name in parse_json(file.read_bytes())["protocols"] if isinstance(name, str)]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def file_name(protocol: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", protocol)


def print_comparison(comparison: dict[str, Any], console: Console | None = None) -> None:
    """Prints a table for each protocol, and the notes."""
    from rich.console import Console

    console = console or Console()
    for protocol in comparison["protocols"].values():
        grid = _means(protocol)
        table = _on_screen(grid, folded=len(grid.header) > 4)
        table.columns[0].justify = "left"
        console.print(table)
    console.print(f"in brackets: {comparison['interval']}", highlight=False)
    for note in comparison["notes"]:
        console.print(printable(f"note: {note}"), markup=False, emoji=False, highlight=False, soft_wrap=True)


def _rows_shown(protocol: dict[str, Any]) -> Iterable[int]:
    """Places of the x that tables show."""
    count = len(protocol["x"])
    return range(count) if count <= MANY or not protocol["numeric"] else [n - 1 for n in shown_horizons(count)]


def _cells(protocol: dict[str, Any], lines: Sequence[dict[str, Any]], form: str, joint: str) -> list[list[str]]:
    """A row for each x: its name, then mean and interval of each line; of a baseline the mean alone."""
    rows = []
    for point in _rows_shown(protocol):
        x = protocol.get("x_names", protocol["x"])[point]
        cells = [f"{x:g}" if isinstance(x, float | int) else x]
        for line in lines:
            mean, low, high = (line[key][point] for key in ("mean", "low", "high"))
            spread = "" if mean is None or line.get("baseline") else f" ({form.format(low)}{joint}{form.format(high)})"
            fewer = protocol.get("by_position") and mean is not None and line["n"][point] != line["n"][0]
            count = f", {line['n'][point]} of {line['n'][0]} videos" if fewer else ""
            cells.append("" if mean is None else form.format(mean) + spread + count)
        rows.append(cells)
    return rows


def _means(protocol: dict[str, Any]) -> Grid:
    """A row for each x, a column for each series, the ceiling last."""
    form = "{:.4g}" if "unit" in protocol else "{:.3f}"
    header = [protocol["x_label"], *protocol["series"]]
    rows = _cells(protocol, list(protocol["series"].values()), form, "-")
    if any(value is not None for value in protocol["ceiling"]):
        header.append("codec's error" if protocol.get("lower_is_better") else "ceiling")
        for point, row in zip(_rows_shown(protocol), rows):
            row.append("" if protocol["ceiling"][point] is None else form.format(protocol["ceiling"][point]))
    return Grid("; ".join(filter(None, (protocol["title"], protocol.get("unit")))), header, rows)


def _differences(protocol: dict[str, Any]) -> Grid | None:
    """Paired differences to the first run; None where there are none."""
    lines = {name: line["difference"] for name, line in protocol["series"].items() if "difference" in line}
    if not lines:
        return None
    header = [protocol["x_label"], *(f"{name} - {line['to']}" for name, line in lines.items())]
    form = "{:+.4g}" if "unit" in protocol else "{:+.3f}"
    return Grid("", header, _cells(protocol, list(lines.values()), form, " to "))


def _comparison_markdown(comparison: dict[str, Any]) -> str:
    lines = []
    for name, protocol in comparison["protocols"].items():
        lines += [f"## {markdown(protocol['title'])}", ""]
        lines += [f"{protocol['unit'].capitalize()}.", ""] if "unit" in protocol else []
        lines += as_markdown(_means(protocol))
        if differences := _differences(protocol):
            lines += ["", *as_markdown(differences)]
        if protocol.get("chance") is not None:
            lines += ["", f"Chance {protocol['chance']:.3f}."]
        if protocol.get("bounds"):
            bounds = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in protocol["bounds"].items())
            lines += ["", f"Expected: {bounds}."]
        lines += ["", f"![{markdown(protocol['title'])}]({file_name(name)}.png)", ""]
    lines.append(f"In brackets: {comparison['interval']}.")
    lines += [f"Note: {markdown(note)}." for note in comparison["notes"]]
    return "\n".join(lines) + "\n"


def write_positions(positions: dict[str, Any], arrays: dict[str, np.ndarray], out: Path) -> None:
    """Writes position.json, position.npz (the losses of every video, for ``compare``) and position.png."""
    numbers = ("position.json", "position.npz")
    with result_set(out, numbers, [*numbers, "position.png"]) as folder:
        write_text(folder / "position.json", as_json(positions))
        with replacing(folder / "position.npz") as path, path.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        with replacing(folder / "position.png") as path:
            plot_lines(path, positions_figure(positions))


def positions_figure(positions: dict[str, Any]) -> dict[str, Any]:
    """The protocol of position.png, its lines named with their numbers of videos."""
    protocol = position_protocol("", positions["unit"], positions["series"], numbered=True)
    shorter = any(min(curve["videos"]) < max(curve["videos"]) for curve in positions["series"].values())
    title = "bands: 95 % of the mean of n videos" + ("; dotted: of the longer ones among them" if shorter else "")
    return protocol | {"title": title}
