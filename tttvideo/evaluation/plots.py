"""Figures as PNG. Colours are told apart by the colour-blind, and markers differ too."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..printing import printable

# Okabe and Ito (2008), without the yellow that vanishes on white; then wine and olive of Paul Tol's muted ones.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#882255", "#999933")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK, BASELINE_INK = "#333333", "#777777"
LEGEND_LINES = 18
"""Lines of a legend beside the axes; more go into further columns."""
LINES: dict[str, Any] = {"": "-", "inner-rate-0": ":", "reset": "-.", "shuffled": (0, (6, 2))}
"""Controls are drawn in the colour of what they take something away from, with markers of another (``marker_fill``)."""
BASELINES: tuple[Any, ...] = ("--", ":", "-.", (0, (1, 3)))
HANDLE = 3.4
"""Length of a legend's lines: dashes must show."""
CROWDED = 16
"""More x than these are drawn as lines with bands, fewer as points with bars."""
DWARFS = 2.0
"""A baseline that errs more than so many times as much as all else may leave the figure: it would flatten the rest."""


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


def plot_lines(path: Path, protocol: dict[str, Any]) -> None:
    """Every line of a protocol against what it varies, the ceiling dashed.

    Args:
        protocol: as in compare.json: ``x`` with ``x_label`` (``numeric``: on a logarithmic axis, or ``linear``;
            otherwise by name), ``joined`` or not, ``unit`` (absent: shares of 1, shown as top-1 in per cent),
            ``ceiling``, ``chance``, ``bounds``, ``trained`` (lengths to mark), and ``series``: name -> ``run`` (which
            has a colour), ``control``, ``mean`` with ``low`` and ``high`` (absent: no bars), ``n`` videos;
            ``baseline``: drawn grey. A series may have a ``ceiling`` of its own.
    """
    figure = new_figure(7.2, 4.4)
    axes = figure.subplots()
    if "point_names" in protocol and not _apart(protocol["x"]):  # each gets a place of its own, named below
        names = [f"{name}\n{x:g}" for name, x in zip(protocol["point_names"], protocol["x"])]
        label = f"sampling rule, and {protocol['x_label']}"
        protocol = protocol | {"numeric": False, "x": names, "x_label": label, "point_names": []}
    at = protocol["x"] if protocol["numeric"] else list(range(len(protocol["x"])))
    entries = _lines(axes, protocol, at) + _baselines(axes, protocol, at)
    entries += _ceiling(
        axes, protocol, at, protocol["ceiling"], INK, "codec's error" if "unit" in protocol else "ceiling"
    )
    _name_points(axes, protocol, at)
    for number, (name, value) in enumerate(protocol.get("bounds", {}).items()):
        line = axes.axhline(value, color=INK, linestyle=BASELINES[1 + number % 3], linewidth=1, zorder=1)
        entries.append((line, f"{name.replace('_', ' ')} (expected)"))
    if protocol["chance"] is not None:
        chance = axes.axhline(100 * protocol["chance"], color=INK, linestyle=":", linewidth=1, zorder=1)
        entries.append((chance, "chance"))
    for length in protocol.get("trained", []):
        entries.append((axes.axvline(length, color="#999999", linewidth=1, zorder=0), "length of training clips"))
    _x_axis(axes, protocol, at)
    _y_axis(axes, protocol)
    figure.suptitle(plain(protocol["title"]), fontsize=10, wrap=True)  # over the legend, too: some are long
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    columns = -(-len(entries) // LEGEND_LINES)  # what does not fit into the figure's height would be cut
    figure.set_size_inches(7.2 + 2.6 * (columns - 1), 4.4)
    style = {"loc": "outside right center", "frameon": False, "fontsize": 8.5, "handlelength": HANDLE, "ncols": columns}
    figure.legend(*zip(*entries), **style)
    save(figure, path)


def _lines(axes, protocol: dict[str, Any], at: Sequence[float]) -> list[tuple[Any, str]]:
    series = {name: line for name, line in protocol["series"].items() if not line.get("baseline")}
    runs = list(dict.fromkeys(line["run"] for line in series.values()))
    crowded, entries = _crowded(protocol), []
    for number, (name, line) in enumerate(series.items()):
        turn, base = divmod(runs.index(line["run"]), len(COLOURS))
        colour, marker = COLOURS[base], MARKERS[(base + turn) % len(MARKERS)]  # no pair occurs twice
        # Lines are set slightly apart, so that equal figures hide none.
        shift = 0.0 if crowded or len(series) < 2 else 0.5 * (number / (len(series) - 1) - 0.5)
        shifted = _shifted(protocol, at, shift)
        points = [
            (x, *(_scale(protocol) * line.get(key, line["mean"])[i] for key in ("mean", "low", "high")))
            for i, x in enumerate(shifted)
            if line["mean"][i] is not None
        ]
        if not points:
            continue
        xs, means, low, high = map(list, zip(*points))
        style = LINES.get(line["control"], (0, (3, 1, 1, 1))) if protocol["joined"] else "none"
        if crowded:
            axes.fill_between(xs, low, high, color=colour, alpha=0.15, linewidth=0)
            counts = [n for m, n in zip(line["mean"], line.get("n", [])) if m is not None]
            whole = alike(counts) if protocol.get("by_position") else len(xs)
            (drawn,) = axes.plot(xs[:whole], means[:whole], color=colour, linestyle=style, linewidth=1.6, zorder=3)
            _fewer(axes, xs, means, counts, whole, colour)
        else:
            bars = [[m - x for m, x in zip(means, low)], [x - m for m, x in zip(means, high)]]
            drawn = axes.errorbar(
                xs,
                means,
                yerr=bars if "low" in line else None,
                color=colour,
                marker=marker,
                markerfacecolor=marker_fill(line["control"], colour),
                linestyle=style,
                linewidth=1.0 if line["control"] else 1.8,
                capsize=3,
                zorder=3,
            )
        entries.append((drawn, plain(name)))
        entries += _ceiling(axes, protocol, shifted, line.get("ceiling", []), colour, f"ceiling, {plain(name)}")
    return entries


def _shifted(protocol: dict[str, Any], at: Sequence[float], shift: float) -> list[float]:
    if protocol["numeric"] and not protocol.get("linear"):
        return [x * 1.03 ** (4 * shift) for x in at]
    step = (at[-1] - at[0]) / max(1, len(at) - 1) if protocol.get("linear") else 1.0
    return [x + (0.15 * step if protocol.get("linear") else 0.6) * shift for x in at]


def alike(counts: Sequence[int]) -> int:
    """How many points of a line, from its beginning, are of the same videos: those that have the most."""
    return next((i for i, n in enumerate(counts) if n != counts[0]), len(counts))


def _fewer(axes, xs: Sequence[float], values: Sequence[float], counts: Sequence[int], whole: int, colour: str) -> None:
    """The end of a line that fewer videos are long enough for: dotted, with their number."""
    if whole == len(xs):
        return
    begin = max(0, whole - 1)
    axes.plot(xs[begin:], values[begin:], color=colour, linestyle=(0, (1, 2)), linewidth=1.1, zorder=3)
    least, most = min(counts[whole:]), max(counts[whole:])
    number = f"n = {least}" if least == most else f"n = {most} to {least}"
    axes.annotate(
        number, (xs[-1], values[-1]), xytext=(2, 4), textcoords="offset points", fontsize=7, color=colour, ha="right"
    )


def _baselines(axes, protocol: dict[str, Any], at: Sequence[float]) -> list[tuple[Any, str]]:
    """What needs no model: grey lines without markers."""
    entries = []
    series = {name: line for name, line in protocol["series"].items() if line.get("baseline")}
    for number, (name, line) in enumerate(series.items()):
        means = [float("nan") if m is None else _scale(protocol) * m for m in line["mean"]]
        style = BASELINES[number % len(BASELINES)]
        marker = {"marker": "_", "markersize": 12} if len(means) == 1 else {}
        (drawn,) = axes.plot(at, means, color=BASELINE_INK, linestyle=style, linewidth=1.3, zorder=2, **marker)
        entries.append((drawn, plain(name) + (" (leaves the figure)" if name == _dwarfing(protocol) else "")))
    return entries


def _apart(numbers: Sequence[float]) -> bool:
    """Whether numbers can be told apart, and named, on a logarithmic axis."""
    return all(b >= 1.25 * a for a, b in pairwise(sorted(numbers)))


def _crowded(protocol: dict[str, Any]) -> bool:
    many = len(protocol["x"]) > CROWDED or protocol.get("by_position", False)
    return protocol["numeric"] and protocol["joined"] and many


def _scale(protocol: dict[str, Any]) -> float:
    return 1.0 if "unit" in protocol else 100.0


def _x_axis(axes, protocol: dict[str, Any], at: Sequence[float]) -> None:
    if protocol.get("linear"):
        from matplotlib.ticker import MaxNLocator

        axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    elif protocol["numeric"]:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:.0f}")
        ticks = sorted(set(at))
        if len(ticks) <= 12:
            axes.set_xticks(ticks, [f"{x:g}" for x in ticks], rotation=45 if len(ticks) > 6 else 0)
            axes.minorticks_off()
    else:
        widest = max(len(line) for name in protocol["x"] for line in name.split("\n"))
        long = widest * len(protocol["x"]) > 60
        names = ["\n".join(map(short, name.split("\n"))) for name in protocol["x"]]
        axes.set_xticks(at, names, rotation=30 if long else 0, ha="right" if long else "center")
        axes.set_xlim(-0.5, len(at) - 0.5)
    logarithmic = protocol["numeric"] and not protocol.get("linear")
    axes.set_xlabel(plain(protocol["x_label"]) + (" (logarithmic)" if logarithmic else ""))


def _y_axis(axes, protocol: dict[str, Any]) -> None:
    if "unit" not in protocol:
        axes.set_ylim(0, 104)
        axes.set_ylabel(protocol.get("y_label", "top-1 accuracy (%)"))
        return
    axes.set_ylabel(plain(protocol["unit"]))
    visible = [line for name, line in protocol["series"].items() if name != _dwarfing(protocol)]
    values = [value for line in visible for key in ("low", "high") for value in line.get(key, line["mean"])]
    values = [v for v in (*values, *protocol["ceiling"], *protocol.get("bounds", {}).values()) if v is not None]
    top, bottom = max(values, default=1.0), min(values, default=0.0)
    if bottom < top / 2:  # from zero, unless that would flatten everything
        axes.set_ylim(0, 1.05 * top)


def _dwarfing(protocol: dict[str, Any]) -> str | None:
    """The baseline that leaves the figure, if one would flatten all else."""
    tops = {
        name: max((v for v in line.get("high", line["mean"]) if v is not None), default=0.0)
        for name, line in protocol["series"].items()
    }
    worst = max(tops, key=lambda name: tops[name])
    rest = max((top for name, top in tops.items() if name != worst), default=0.0)
    return worst if protocol["series"][worst].get("baseline") and tops[worst] > DWARFS * rest else None


def _ceiling(
    axes, protocol: dict[str, Any], at: Sequence[float], values: Sequence[float | None], colour: str, name: str
) -> list[tuple[Any, str]]:
    """Dashed: a line where the points of a run are joined, else a bar for each."""
    points = [(x, _scale(protocol) * c) for x, c in zip(at, values) if c is not None]
    if not points:
        return []
    xs, ys = map(list, zip(*points))
    if protocol["joined"] and len(points) > 1:
        (dashed,) = axes.plot(xs, ys, color=colour, linestyle="--", linewidth=1.2, zorder=2)
    else:
        left = [x / 1.12 if protocol["numeric"] else x - 0.35 for x in xs]
        right = [x * 1.12 if protocol["numeric"] else x + 0.35 for x in xs]
        dashed = axes.hlines(ys, left, right, color=colour, linestyle="--", linewidth=1.2, zorder=2)
    return [(dashed, name)]


def _name_points(axes, protocol: dict[str, Any], at: Sequence[float]) -> None:
    """What each point is, where its place on the axis does not say; written above it."""
    names: dict[float, list[str]] = {}
    for x, name in zip(at, protocol.get("point_names", [])):
        names.setdefault(x, []).append(plain(name))
    for x, points in names.items():
        axes.text(
            x,
            1.01,
            ", ".join(points),
            transform=axes.get_xaxis_transform(),
            rotation=30,
            rotation_mode="anchor",
            fontsize=8,
            color=INK,
        )


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


def short(label: str, limit: int = 22) -> str:
    label = printable(label)
    return plain(label if len(label) <= limit else label[: limit - 1] + "…")
