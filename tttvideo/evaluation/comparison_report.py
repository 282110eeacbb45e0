"""What a comparison leaves behind: compare.json, tables in compare.md, and a figure for each protocol."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tttvideo.evaluation.protocol_plots import plot_positions, plot_protocol
from tttvideo.evaluation.report import as_json, replacing

if TYPE_CHECKING:
    from rich.console import Console


def write_comparison(found: dict[str, Any], out: Path) -> list[str]:
    """Writes compare.json, compare.md and a PNG for each protocol into a folder; returns their names."""
    names = ["compare.json", "compare.md"]
    with replacing(out / "compare.json") as path:
        path.write_text(as_json(found), encoding="utf-8")
    with replacing(out / "compare.md") as path:
        path.write_text(_markdown(found), encoding="utf-8")
    for name, protocol in found["protocols"].items():
        names.append(f"{file_name(name)}.png")
        with replacing(out / names[-1]) as path:
            (plot_positions if name == "position" else plot_protocol)(path, protocol)
    return names


def write_positions(found: dict[str, Any], out: Path) -> None:
    """Writes position.json and position.png."""
    with replacing(out / "position.json") as path:
        path.write_text(as_json(found), encoding="utf-8")
    with replacing(out / "position.png") as path:
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
        table = Table(title=Text(protocol["title"]), title_justify="left")
        for place, name in enumerate(header):
            table.add_column(Text(name), justify="right" if place else "left", overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row))
        console.print(table)
    console.print(f"in brackets: {found['interval']}", highlight=False)
    for note in found["notes"]:
        console.print(Text(f"note: {note}"), soft_wrap=True)


def _table(protocol: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: a row for each x, a column for each series, the ceiling last."""
    series = protocol["series"]
    if "unit" in protocol:
        return _position_table(protocol)
    ceiling = protocol["ceiling"] if any(c is not None for c in protocol["ceiling"]) else None
    header = [protocol["x_label"], *series, *(["ceiling"] if ceiling else [])]
    rows = []
    for place, x in enumerate(protocol.get("x_names", protocol["x"])):
        cells = [f"{x:g}" if isinstance(x, float | int) else x]
        for line in series.values():
            mean, low, high = (line[key][place] for key in ("mean", "low", "high"))
            cells.append("" if mean is None else f"{mean:.3f} ({low:.3f}-{high:.3f})")
        if ceiling:
            cells.append("" if ceiling[place] is None else f"{ceiling[place]:.3f}")
        rows.append(cells)
    return header, rows


def _position_table(protocol: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Losses after 1, 2, 4, ... frames, and after the last."""
    series = protocol["series"]
    longest = max((curve["frames"] for curve in series.values()), key=len)
    wanted = sorted({2**i for i in range(len(longest).bit_length()) if 2**i <= len(longest)} | {len(longest)})
    rows = []
    for place in (number - 1 for number in wanted):
        cells = [curve["loss"][place] if place < len(curve["loss"]) else None for curve in series.values()]
        rows.append([f"{longest[place]:g}", *("" if loss is None else f"{loss:.4g}" for loss in cells)])
    return [f"frames read; {protocol['unit']}", *series], rows


def _markdown(found: dict[str, Any]) -> str:
    lines = []
    for name, protocol in found["protocols"].items():
        header, rows = _table(protocol)
        lines += [
            f"## {protocol['title']}",
            "",
            "| " + " | ".join(map(_cell, header)) + " |",
            "|---" * len(header) + "|",
        ]
        lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
        lines += _differences(protocol)
        if protocol.get("chance") is not None:
            lines += ["", f"Chance {protocol['chance']:.3f}."]
        lines += ["", f"![{_cell(protocol['title'])}]({file_name(name)}.png)", ""]
    lines.append(f"In brackets: {found['interval']}.")
    lines += [f"Note: {note}." for note in found["notes"]]
    return "\n".join(lines) + "\n"


def _differences(protocol: dict[str, Any]) -> list[str]:
    """A table of the paired differences to the first run; nothing where there are none."""
    found = {name: line["difference"] for name, line in protocol["series"].items() if "difference" in line}
    if not found:
        return []
    header = [protocol["x_label"], *(f"{name} - {line['to']}" for name, line in found.items())]
    lines = ["", "| " + " | ".join(map(_cell, header)) + " |", "|---" * len(header) + "|"]
    for place, x in enumerate(protocol["x"]):
        cells = [f"{x:g}" if isinstance(x, float | int) else x]
        for line in found.values():
            mean, low, high = (line[key][place] for key in ("mean", "low", "high"))
            cells.append("" if mean is None else f"{mean:+.3f} ({low:+.3f} to {high:+.3f})")
        lines.append("| " + " | ".join(map(_cell, cells)) + " |")
    return lines


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
