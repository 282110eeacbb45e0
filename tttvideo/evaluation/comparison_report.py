"""What a comparison leaves behind: compare.json, tables in compare.md, and a figure for each protocol."""

import json
import re
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tttvideo.evaluation.forecaster import shown_horizons
from tttvideo.evaluation.protocol_plots import plot_positions, plot_protocol
from tttvideo.evaluation.result_files import as_json, result_set
from tttvideo.files import replacing
from tttvideo.printing import markdown, printable

if TYPE_CHECKING:
    from rich.console import Console


def write_comparison(found: dict[str, Any], out: Path) -> list[str]:
    """Writes compare.json, compare.md and a PNG for each protocol into a folder; returns their names. Figures that an
    earlier comparison left there are taken away."""
    old = [f"{file_name(name)}.png" for name in _protocols_in(out / "compare.json")]
    names = ["compare.json", "compare.md"]
    with result_set(out, names, [*names, *map(escape, old)]) as folder:
        with replacing(folder / "compare.json") as path:
            path.write_text(as_json(found), encoding="utf-8")
        with replacing(folder / "compare.md") as path:
            path.write_text(_markdown(found), encoding="utf-8")
        for name, protocol in found["protocols"].items():
            names.append(f"{file_name(name)}.png")
            with replacing(folder / names[-1]) as path:
                plot_protocol(path, protocol)
    return names


def _protocols_in(file: Path) -> list[str]:
    """Those of an earlier comparison; none where the file is no such thing."""
    try:
        return [name for name in json.loads(file.read_text(encoding="utf-8"))["protocols"] if isinstance(name, str)]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def write_positions(found: dict[str, Any], arrays: dict[str, np.ndarray], out: Path) -> None:
    """Writes position.json, position.npz (the losses of every video, for ``compare``) and position.png."""
    numbers = ("position.json", "position.npz")
    with result_set(out, numbers, [*numbers, "position.png"]) as folder:
        with replacing(folder / "position.json") as path:
            path.write_text(as_json(found), encoding="utf-8")
        with replacing(folder / "position.npz") as path, path.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        with replacing(folder / "position.png") as path:
            plot_positions(path, found)


def file_name(protocol: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", protocol)


def print_comparison(found: dict[str, Any], console: "Console | None" = None) -> None:
    """Prints a table for each protocol, and the notes."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console()
    for protocol in found["protocols"].values():
        header, rows = _table(protocol)
        table = Table(
            title=Text(printable("; ".join(filter(None, (protocol["title"], protocol.get("unit")))))),
            title_justify="left",
        )
        for place, name in enumerate(header):
            table.add_column(Text(printable(name)), justify="right" if place else "left", overflow="fold")
        for row in rows:
            # Of many columns intervals go below their means: they would be cut in 80 columns.
            wrapped = [printable(cell) for cell in row]
            table.add_row(*(Text(cell.replace(" (", "\n(") if len(row) > 4 else cell) for cell in wrapped))
        console.print(table)
    console.print(f"in brackets: {found['interval']}", highlight=False)
    for note in found["notes"]:
        console.print(Text(printable(f"note: {note}")), soft_wrap=True)


MANY = 16
"""Rows of a table at most; of more x, tables show 1, 2, 4, ... and the last."""


def _table(protocol: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: a row for each x, a column for each series, the ceiling last."""
    series = protocol["series"]
    ceiling = protocol["ceiling"] if any(c is not None for c in protocol["ceiling"]) else None
    # of a baseline the mean alone: compare.json has its interval
    form = "{:.4g}" if "unit" in protocol else "{:.3f}"
    best = "codec's error" if protocol.get("lower_is_better") else "ceiling"
    header = [protocol["x_label"], *series, *([best] if ceiling else [])]
    rows = []
    for place in _shown(protocol):
        cells = [_x_name(protocol, place)]
        for line in series.values():
            mean, low, high = (line[key][place] for key in ("mean", "low", "high"))
            spread = "" if mean is None or line.get("baseline") else f" ({form.format(low)}-{form.format(high)})"
            fewer = protocol.get("by_position") and mean is not None and line["n"][place] != line["n"][0]
            count = f", {line['n'][place]} of {line['n'][0]} videos" if fewer else ""
            cells.append("" if mean is None else form.format(mean) + spread + count)
        if ceiling:
            cells.append("" if ceiling[place] is None else form.format(ceiling[place]))
        rows.append(cells)
    return header, rows


def _shown(protocol: dict[str, Any]) -> list[int]:
    """Places of the x that tables show."""
    count = len(protocol["x"])
    if count <= MANY or not protocol["numeric"]:
        return list(range(count))
    return [number - 1 for number in shown_horizons(count)]


def _x_name(protocol: dict[str, Any], place: int) -> str:
    x = protocol.get("x_names", protocol["x"])[place]
    return f"{x:g}" if isinstance(x, float | int) else x


def _markdown(found: dict[str, Any]) -> str:
    lines = []
    for name, protocol in found["protocols"].items():
        header, rows = _table(protocol)
        lines += [
            f"## {markdown(protocol['title'])}",
            "",
            *([f"{protocol['unit'].capitalize()}.", ""] if "unit" in protocol else []),
            "| " + " | ".join(map(markdown, header)) + " |",
            "|---" * len(header) + "|",
        ]
        lines += ["| " + " | ".join(map(markdown, row)) + " |" for row in rows]
        lines += _differences(protocol)
        if protocol.get("chance") is not None:
            lines += ["", f"Chance {protocol['chance']:.3f}."]
        if protocol.get("bounds"):
            known = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in protocol["bounds"].items())
            lines += ["", f"Expected: {known}."]
        lines += ["", f"![{markdown(protocol['title'])}]({file_name(name)}.png)", ""]
    lines.append(f"In brackets: {found['interval']}.")
    lines += [f"Note: {markdown(note)}." for note in found["notes"]]
    return "\n".join(lines) + "\n"


def _differences(protocol: dict[str, Any]) -> list[str]:
    """A table of the paired differences to the first run; nothing where there are none."""
    found = {name: line["difference"] for name, line in protocol["series"].items() if "difference" in line}
    if not found:
        return []
    header = [protocol["x_label"], *(f"{name} - {line['to']}" for name, line in found.items())]
    lines = ["", "| " + " | ".join(map(markdown, header)) + " |", "|---" * len(header) + "|"]
    form = "{:+.4g}" if "unit" in protocol else "{:+.3f}"
    for place in _shown(protocol):
        cells = [_x_name(protocol, place)]
        for line in found.values():
            mean, low, high = (line[key][place] for key in ("mean", "low", "high"))
            spread = "" if mean is None else f" ({form.format(low)} to {form.format(high)})"
            fewer = protocol.get("by_position") and mean is not None and line["n"][place] != line["n"][0]
            count = f", {line['n'][place]} of {line['n'][0]} videos" if fewer else ""
            cells.append("" if mean is None else form.format(mean) + spread + count)
        lines.append("| " + " | ".join(map(markdown, cells)) + " |")
    return lines
