"""Figures as PNG. Colours are told apart by the colour-blind, and markers differ too."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tttvideo.printing import printable

# Okabe and Ito (2008), without the yellow that vanishes on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK = "#333333"
LEGEND_LINES = 18
"""Lines of a legend beside the axes; more go into further columns."""
LINES: dict[str, Any] = {"": "-", "inner-rate-0": ":", "reset": "-.", "shuffled": (0, (6, 2))}
"""Controls are drawn in the colour of what they take something away from, with markers of another (``marker_fill``)."""
HANDLE = 3.4
"""Length of a legend's lines: dashes must show."""


def marker_fill(control: str, colour: str) -> str:
    """Inside of a marker: a line's own colour, white for what lacks something, grey for ``reset``, whose dashes are
    nearest to those of ``shuffled``."""
    return "#BBBBBB" if control == "reset" else "#FFFFFF" if control else colour


def new_figure(width: float, height: float):
    # Imported where it is used: `import tttvideo` stays cheap. A Figure of its own needs no display and
    # leaves pyplot's global state alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plot_accuracy(
    path: Path, results: Sequence[dict[str, Any]], *, metric: str, chance: float | None, title: str
) -> None:
    """Accuracy against the number of frames, a line for each sampling rule, way to divide the videos, and control.

    `results` are rows of metrics.json; `metric` is "top1" or "map". Bars are one standard error of `metric`
    where the row gives it; a row's "ceiling" is drawn dashed in its rule's colour, chance as a dotted line.
    """
    names: list[Any] = sorted({row["frames"] for row in results if row["frames"] != "all"})
    names += ["all"] if any(row["frames"] == "all" for row in results) else []
    place = {name: position for position, name in enumerate(names)}
    rules = list(dict.fromkeys(way(row) for row in results))
    figure = new_figure(6.4, 4.2)
    axes = figure.subplots()
    legend = []
    bases = list(dict.fromkeys(way(row | {"control": ""}) for row in results))
    for number, rule in enumerate(rules):
        rows = [row for row in results if way(row) == rule]
        control = rows[0].get("control") or ""
        rows.sort(key=lambda row: place[row["frames"]])
        # Lines of several rules are set slightly apart, so that equal figures hide neither.
        shift = min(0.1, 0.7 / len(rules)) * (number - (len(rules) - 1) / 2)
        at = [place[row["frames"]] + shift for row in rows]
        turn, base = divmod(bases.index(way(rows[0] | {"control": ""})), len(COLOURS))
        colour, marker = COLOURS[base], MARKERS[(base + turn) % len(MARKERS)]  # no pair occurs twice
        errors = [100 * (row.get(f"{metric}_se") or 0.0) for row in rows]
        shown = axes.errorbar(
            at,
            [100 * row[metric] for row in rows],
            yerr=errors if any(errors) else None,
            color=colour,
            marker=marker,
            markerfacecolor=marker_fill(control, colour),
            linestyle=LINES[control],
            capsize=3,
            zorder=3,
        )
        legend.append((shown, rule))
        if control:  # its ceiling is that of the whole model
            continue
        limits = [(x, 100 * row["ceiling"]) for x, row in zip(at, rows) if row.get("ceiling") is not None]
        if limits:
            xs, ys = map(list, zip(*limits))
            if len(limits) == 1:  # one setting: a short bar, where a line would have no length
                xs, ys = [xs[0] - 0.3, xs[0] + 0.3], ys * 2
            (dashed,) = axes.plot(xs, ys, color=colour, linestyle="--", linewidth=1.2, zorder=2)
            legend.append((dashed, f"ceiling, {rule}"))
    if chance is not None:
        legend.append((axes.axhline(100 * chance, color=INK, linestyle=":", zorder=1), "chance"))
    axes.set_xticks(range(len(names)), [_length(name, results) for name in names])
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylim(0, 104)
    axes.set_xlabel("length of video: its first n frames (all: the whole video)")
    axes.set_ylabel("mean average precision (%)" if metric == "map" else "top-1 accuracy (%)")
    axes.set_title(plain(title), fontsize=10)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    columns = -(-len(legend) // LEGEND_LINES)  # what does not fit into the figure's height would be cut
    figure.set_size_inches(6.4 + 2.6 * (columns - 1), 4.2)
    figure.legend(
        *zip(*legend),
        loc="outside right center",
        frameon=False,
        title="sampling",
        fontsize=9,
        ncols=columns,
        handlelength=HANDLE,
    )
    save(figure, path)


def way(row: dict[str, Any]) -> str:
    """How a row of metrics.json was measured, its length aside: sampling rule, views, control."""
    views = row.get("views", "whole")
    return ", ".join([row["sampling"]] + [views] * (views != "whole") + [row["control"]] * bool(row.get("control")))


def plot_strata(
    path: Path, column: str, results: Sequence[dict[str, Any]], *, chance: float | None, title: str
) -> None:
    """Top-1 against a column of the data, a line for each row of metrics.json (without controls; the first seven)."""
    figure = new_figure(6.4, 4.2)
    axes = figure.subplots()
    legend = []
    plain_rows = [row for row in results if not row["control"]]
    results = plain_rows[: len(COLOURS)]
    if len(plain_rows) > len(results):
        title += f"\nthe first {len(results)} of {len(plain_rows)} settings; metrics.json has all"
    names = [stratum["value"] for stratum in results[0]["by"][column]]
    for number, row in enumerate(results):
        found = row["by"][column]
        at = [i + 0.06 * (number - (len(results) - 1) / 2) for i in range(len(found))]
        shown = axes.errorbar(
            at,
            [100 * s["top1"] for s in found],
            yerr=[100 * s["top1_se"] for s in found],
            color=COLOURS[number],
            marker=MARKERS[number],
            capsize=3,
            zorder=3,
        )
        legend.append((shown, f"{row['frames']} frames, {way(row)}"))
        if all(s["ceiling"] is not None for s in found):
            (dashed,) = axes.plot(
                at, [100 * s["ceiling"] for s in found], color=COLOURS[number], linestyle="--", linewidth=1.2, zorder=2
            )
            legend.append((dashed, "its ceiling"))
    if chance is not None:
        legend.append((axes.axhline(100 * chance, color=INK, linestyle=":", zorder=1), "chance"))
    counts = [stratum["n"] for stratum in results[0]["by"][column]]
    axes.set_xticks(range(len(names)), [f"{short(name)}\n(n={n})" for name, n in zip(names, counts)])
    axes.set_ylim(0, 104)
    axes.set_xlabel(f"{plain(column)} (column of the data)")
    axes.set_ylabel("top-1 accuracy (%)")
    axes.set_title(plain(title), fontsize=10)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*zip(*legend), loc="outside right center", frameon=False, fontsize=9)
    save(figure, path)


def plot_by_horizon(path: Path, errors: dict[str, Sequence[float]], *, space: str, title: str) -> None:
    """Mean squared error by horizon, a line for each method; the model's comes first."""
    figure = new_figure(6.4, 4.2)
    axes = figure.subplots()
    for number, (name, values) in enumerate(errors.items()):
        axes.plot(
            range(1, len(values) + 1),
            values,
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)] if len(values) <= 32 else None,
            linestyle="-" if number == 0 else "--",
            label=name.replace("_", " "),
        )
    axes.set_xlabel("horizon: frames after the context")
    axes.set_ylabel(f"squared error of a frame (sum over its {'pixels in 0..1' if space == 'pixels' else 'features'})")
    axes.set_ylim(bottom=0)
    axes.set_title(plain(title), fontsize=10)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    save(figure, path)


def plot_revealed(path: Path, revealed: dict[str, Any], *, title: str) -> None:
    """Errors of revealed pixels by group (``revealed`` of metrics.json), bounds as horizontal lines."""
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(6.8, 4.2)
    axes = figure.subplots()
    groups = range(len(revealed["values"]))
    for number, (name, values) in enumerate(revealed["mse"].items()):
        axes.plot(
            groups,
            [float("nan") if value is None else value for value in values],
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            linestyle="-" if number == 0 else "--",
            label=name.replace("_", " "),
        )
    for number, (name, value) in enumerate(revealed["bounds"].items()):
        style = (":", "-.", (0, (1, 3)))[number % 3]
        axes.axhline(value, color=INK, linestyle=style, linewidth=1, label=f"{name.replace('_', ' ')} (expected)")
    axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    axes.set_xlabel(revealed["by"])
    axes.set_ylabel("mean squared error, newly revealed pixels")
    axes.set_ylim(bottom=0)
    axes.set_title(plain(title), fontsize=10)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", frameon=False, fontsize=9)
    save(figure, path)


def plot_confusion(path: Path, counts: Sequence[Sequence[int]], labels: Sequence[str], title: str) -> None:
    """Confusion matrix: rows are true classes in per cent of their videos, the last column failed videos.

    `counts` [n][n + 1]. Numbers are written into the cells up to 15 classes, names beside the axes up to 60.
    """
    from matplotlib.colors import LinearSegmentedColormap

    failed = any(row[-1] for row in counts)
    cells = [list(row) if failed else list(row[:-1]) for row in counts]
    shares = [[100 * cell / max(sum(row), 1) for cell in row] for row in cells]
    columns = [short(label) for label in labels] + (["(failed)"] if failed else [])
    n = len(labels)
    side = max(3.6, 0.62 * n) if n <= 15 else max(9.3, 0.28 * n) if n <= 60 else 9
    figure = new_figure(side + 1.6, side + 0.6)
    axes = figure.subplots()
    blues = LinearSegmentedColormap.from_list("white-blue", ["#FFFFFF", COLOURS[0], "#00304D"])
    image = axes.imshow(shares, vmin=0, vmax=100, cmap=blues, aspect="auto" if n > 60 else "equal")
    if n <= 60:
        size = 9 if n <= 25 else 7
        axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor", fontsize=size)
        axes.set_yticks(range(n), [short(label) for label in labels], fontsize=size)
    if n <= 15:
        for y, row in enumerate(cells):
            for x, count in enumerate(row):
                if count:
                    ink = "white" if shares[y][x] > 45 else INK
                    axes.text(x, y, str(count), ha="center", va="center", color=ink, fontsize=9)
    numbers = " (number in the list of labels)" if n > 60 else ""
    axes.set_xlabel(f"predicted class{numbers}")
    axes.set_ylabel(f"true class{numbers}")
    axes.set_title(plain(title), fontsize=10)
    figure.colorbar(image, ax=axes, label="share of the true class's videos (%)", shrink=0.8)
    save(figure, path)


def save(figure, path: Path) -> None:
    with warnings.catch_warnings():
        # Names in a script that the font lacks are boxes in the figure; metrics.json has them in full.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        figure.savefig(path, dpi=150)


def plain(text: str) -> str:
    """The text, printable line by line, with its dollars as such: matplotlib would read what stands between two of them
    as mathematics."""
    return "\n".join(map(printable, text.split("\n"))).replace("$", r"\$")


def _length(name: int | str, results: Sequence[dict[str, Any]]) -> str:
    """A cut's name; that of whole videos with their mean length, where a row shows every frame."""
    if name != "all":
        return str(name)
    dense = [row for row in results if row["frames"] == "all" and way(row) == "dense"]
    return f"all\n(mean {dense[0]['mean_frames_used']:.0f})" if dense else "all"


def short(label: str, limit: int = 22) -> str:
    label = printable(label)
    return plain(label if len(label) <= limit else label[: limit - 1] + "…")
