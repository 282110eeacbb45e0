"""Figures that put several runs side by side: a protocol of `tttvideo compare`, and loss by position."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from tttvideo.evaluation.plots import COLOURS, HANDLE, INK, LINES, MARKERS, marker_fill, new_figure, plain, save, short

BASELINES: tuple[Any, ...] = ("--", ":", "-.", (0, (1, 3)))
BASELINE_INK = "#777777"
CROWDED = 16
"""More x than these are drawn as lines with bands, fewer as points with bars."""
LOST = 2.0
"""A baseline that errs more than so many times as much as all else may leave the figure: it would flatten the rest."""


def plot_protocol(path: Path, protocol: dict[str, Any]) -> None:
    """Every run against what the protocol varies, with 95 % intervals, its ceiling dashed: top-1 in per cent, or in the
    protocol's ``unit``."""
    series: dict[str, Any] = protocol["series"]
    figure = new_figure(7.2, 4.4)
    axes = figure.subplots()
    if "point_names" in protocol and not _apart(protocol["x"]):  # each its own place, named below
        names = [f"{name}\n{x:g}" for name, x in zip(protocol["point_names"], protocol["x"])]
        label = f"sampling rule, and {protocol['x_label']}"
        protocol = protocol | {"numeric": False, "x": names, "x_label": label, "point_names": []}
    numeric = protocol["x"] if protocol["numeric"] else list(range(len(protocol["x"])))
    runs = {name: line for name, line in series.items() if not line.get("baseline")}
    entries = _lines(axes, protocol, runs, numeric)
    entries += _baselines(axes, protocol, numeric)
    entries += _ceiling(axes, protocol, numeric)
    _name_points(axes, protocol, numeric)
    for number, (name, value) in enumerate(protocol.get("bounds", {}).items()):
        style = (":", "-.", (0, (1, 3)))[number % 3]
        line = axes.axhline(value, color=INK, linestyle=style, linewidth=1, zorder=1)
        entries.append((line, f"{name.replace('_', ' ')} (expected)"))
    if protocol["chance"] is not None:
        entries.append(
            (axes.axhline(100 * protocol["chance"], color=INK, linestyle=":", linewidth=1, zorder=1), "chance")
        )
    for length in protocol.get("trained", []):
        entries.append((axes.axvline(length, color="#999999", linewidth=1, zorder=0), "length of training clips"))
    _x_axis(axes, protocol, numeric)
    _y_axis(axes, protocol)
    figure.suptitle(plain(protocol["title"]), fontsize=10, wrap=True)  # over the legend, too: some are long
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*zip(*entries), loc="outside right center", frameon=False, fontsize=8.5, handlelength=HANDLE)
    save(figure, path)


def _lines(axes, protocol: dict[str, Any], series: dict[str, Any], numeric: Sequence[float]) -> list[tuple[Any, str]]:
    runs = list(dict.fromkeys(line["run"] for line in series.values()))
    logarithmic, crowded = protocol["numeric"] and not protocol.get("linear"), _crowded(protocol)
    step = 0.0 if crowded else (numeric[-1] - numeric[0]) / max(1, len(numeric) - 1) if protocol.get("linear") else 1.0
    scale, entries = _scale(protocol), []
    for number, (name, line) in enumerate(series.items()):
        turn, place = divmod(runs.index(line["run"]), len(COLOURS))
        colour, marker = COLOURS[place], MARKERS[(place + turn) % len(MARKERS)]  # no pair occurs twice
        # Lines are set slightly apart, so that equal figures hide none.
        shift = 0.0 if crowded or len(series) < 2 else 0.5 * (number / (len(series) - 1) - 0.5)
        wide = 0.15 * step if protocol.get("linear") else 0.6
        at = [x * 1.03 ** (4 * shift) if logarithmic else x + wide * shift for x in numeric]
        points = [
            (x, scale * m, scale * low, scale * high)
            for x, m, low, high in zip(at, line["mean"], line["low"], line["high"])
            if m is not None
        ]
        if not points:
            continue
        xs, means, low, high = map(list, zip(*points))
        style = LINES.get(line["control"], (0, (3, 1, 1, 1))) if protocol["joined"] else "none"
        if crowded:
            axes.fill_between(xs, low, high, color=colour, alpha=0.15, linewidth=0)
            counts = [n for m, n in zip(line["mean"], line.get("n", [])) if m is not None]
            whole = alike(counts) if protocol.get("by_position") else len(xs)
            (shown,) = axes.plot(xs[:whole], means[:whole], color=colour, linestyle=style, linewidth=1.6, zorder=3)
            _fewer(axes, xs, means, counts, whole, colour)
        else:
            shown = axes.errorbar(
                xs,
                means,
                yerr=[[m - x for m, x in zip(means, low)], [x - m for m, x in zip(means, high)]],
                color=colour,
                marker=marker,
                markerfacecolor=marker_fill(line["control"], colour),
                linestyle=style,
                linewidth=1.0 if line["control"] else 1.8,
                capsize=3,
                zorder=3,
            )
        entries.append((shown, plain(name)))
    return entries


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
    found = {name: line for name, line in protocol["series"].items() if line.get("baseline")}
    for number, (name, line) in enumerate(found.items()):
        means = [float("nan") if m is None else _scale(protocol) * m for m in line["mean"]]
        style = BASELINES[number % len(BASELINES)]
        marker = {"marker": "_", "markersize": 12} if len(means) == 1 else {}
        (shown,) = axes.plot(at, means, color=BASELINE_INK, linestyle=style, linewidth=1.3, zorder=2, **marker)
        entries.append((shown, plain(name) + (" (leaves the figure)" if name == _lost(protocol) else "")))
    return entries


def _apart(numbers: Sequence[float]) -> bool:
    """Whether numbers can be told apart, and named, on a logarithmic axis."""
    return all(b >= 1.25 * a for a, b in pairwise(sorted(numbers)))


def _crowded(protocol: dict[str, Any]) -> bool:
    return protocol["numeric"] and protocol["joined"] and len(protocol["x"]) > CROWDED


def _scale(protocol: dict[str, Any]) -> float:
    return 1.0 if "unit" in protocol else 100.0


def _x_axis(axes, protocol: dict[str, Any], numeric: Sequence[float]) -> None:
    if protocol.get("linear"):
        from matplotlib.ticker import MaxNLocator

        axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    elif protocol["numeric"]:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:.0f}")
        ticks = sorted(set(numeric))
        if len(ticks) <= 12:
            axes.set_xticks(ticks, [f"{x:g}" for x in ticks], rotation=45 if len(ticks) > 6 else 0)
            axes.minorticks_off()
    else:
        widest = max(len(line) for name in protocol["x"] for line in name.split("\n"))
        long = widest * len(protocol["x"]) > 60
        names = ["\n".join(map(short, name.split("\n"))) for name in protocol["x"]]
        axes.set_xticks(numeric, names, rotation=30 if long else 0, ha="right" if long else "center")
        axes.set_xlim(-0.5, len(numeric) - 0.5)
    logarithmic = protocol["numeric"] and not protocol.get("linear")
    axes.set_xlabel(plain(protocol["x_label"]) + (" (logarithmic)" if logarithmic else ""))


def _y_axis(axes, protocol: dict[str, Any]) -> None:
    if "unit" not in protocol:
        axes.set_ylim(0, 104)
        axes.set_ylabel("top-1 accuracy (%)")
        return
    axes.set_ylabel(plain(protocol["unit"]))
    lost = _lost(protocol)
    shown = [line for name, line in protocol["series"].items() if name != lost]
    values = [value for line in shown for key in ("low", "high") for value in line[key] if value is not None]
    values += [value for value in (*protocol["ceiling"], *protocol.get("bounds", {}).values()) if value is not None]
    top, bottom = max(values, default=1.0), min(values, default=0.0)
    if bottom < top / 2:  # from zero, unless that would flatten everything
        axes.set_ylim(0, 1.05 * top)


def _lost(protocol: dict[str, Any]) -> str | None:
    """The baseline that leaves the figure, if one would flatten all else."""
    tops = {
        name: max((v for v in line["high"] if v is not None), default=0.0) for name, line in protocol["series"].items()
    }
    worst = max(tops, key=lambda name: tops[name])
    rest = max((top for name, top in tops.items() if name != worst), default=0.0)
    return worst if protocol["series"][worst].get("baseline") and tops[worst] > LOST * rest else None


def _ceiling(axes, protocol: dict[str, Any], at: Sequence[float]) -> list[tuple[Any, str]]:
    """Dashed: a line where the points of a run are joined, else a bar for each."""
    points = [(x, _scale(protocol) * c) for x, c in zip(at, protocol["ceiling"]) if c is not None]
    if not points:
        return []
    xs, ys = map(list, zip(*points))
    if protocol["joined"] and len(points) > 1:
        (dashed,) = axes.plot(xs, ys, color=INK, linestyle="--", linewidth=1.2, zorder=2)
    else:
        left = [x / 1.12 if protocol["numeric"] else x - 0.35 for x in xs]
        right = [x * 1.12 if protocol["numeric"] else x + 0.35 for x in xs]
        dashed = axes.hlines(ys, left, right, color=INK, linestyle="--", linewidth=1.2, zorder=2)
    return [(dashed, "codec's error" if "unit" in protocol else "ceiling")]


def _name_points(axes, protocol: dict[str, Any], at: Sequence[float]) -> None:
    """What each point is, where its place on the axis does not say; written above it."""
    names: dict[float, list[str]] = {}
    for x, name in zip(at, protocol.get("point_names", [])):
        names.setdefault(x, []).append(plain(name))
    for x, own in names.items():
        axes.text(
            x,
            1.01,
            ", ".join(own),
            transform=axes.get_xaxis_transform(),
            rotation=30,
            rotation_mode="anchor",
            fontsize=8,
            color=INK,
        )


def plot_positions(path: Path, found: dict[str, Any]) -> None:
    """Loss against the frames read before it, a line and a 95 % band for each model; ``found`` as in position.json."""
    figure = new_figure(6.4, 4.2)
    axes = figure.subplots()
    for number, (name, curve) in enumerate(found["series"].items()):
        colour = COLOURS[number % len(COLOURS)]
        many = len(curve["frames"]) > 48
        marker = MARKERS[number % len(MARKERS)]
        whole = alike(curve["videos"])
        axes.plot(
            curve["frames"][:whole],
            curve["loss"][:whole],
            color=colour,
            marker=None if many else marker,
            markersize=4,
            label=plain(f"{name} (n = {curve['videos'][0]})"),
        )
        _fewer(axes, curve["frames"], curve["loss"], curve["videos"], whole, colour)
        axes.fill_between(curve["frames"], curve["low"], curve["high"], color=colour, alpha=0.15, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set_xlabel("frames read (logarithmic)")
    axes.set_ylabel(f"loss ({found['unit']})" if found["task"] == "Classification" else found["unit"])
    shorter = any(alike(curve["videos"]) < len(curve["videos"]) for curve in found["series"].values())
    axes.set_title(
        "bands: 95 % of the mean of n videos" + ("; dotted: of the longer ones among them" if shorter else ""),
        fontsize=10,
    )
    axes.grid(color="#DDDDDD", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    save(figure, path)
