"""Figures that put several runs side by side: a protocol of `tttvideo compare`, and loss by position."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tttvideo.evaluation.plots import COLOURS, INK, LINES, MARKERS, new_figure, plain, save, short


def plot_protocol(path: Path, protocol: dict[str, Any]) -> None:
    """Top-1 of every run against what the protocol varies, with 95 % intervals and the ceiling dashed."""
    series: dict[str, Any] = protocol["series"]
    runs = list(dict.fromkeys(line["run"] for line in series.values()))
    figure = new_figure(7.2, 4.4)
    axes = figure.subplots()
    numeric = protocol["x"] if protocol["numeric"] else list(range(len(protocol["x"])))
    entries = []
    for number, (name, line) in enumerate(series.items()):
        turn, place = divmod(runs.index(line["run"]), len(COLOURS))
        colour, marker = COLOURS[place], MARKERS[(place + turn) % len(MARKERS)]  # no pair occurs twice
        shift = 0.5 * (number / max(1, len(series) - 1) - 0.5) if len(series) > 1 else 0.0
        at = [x * 1.03 ** (4 * shift) if protocol["numeric"] else x + 0.6 * shift for x in numeric]
        points = [
            (x, 100 * m, 100 * (m - low), 100 * (high - m))
            for x, m, low, high in zip(at, line["mean"], line["low"], line["high"])
            if m is not None
        ]
        if not points:
            continue
        xs, means, below, above = map(list, zip(*points))
        shown = axes.errorbar(
            xs,
            means,
            yerr=[below, above],
            color=colour,
            marker=marker,
            markerfacecolor="white" if line["control"] else colour,
            linestyle=LINES[line["control"]] if protocol["joined"] else "none",
            linewidth=1.0 if line["control"] else 1.8,
            capsize=3,
            zorder=3,
        )
        entries.append((shown, plain(name)))
    entries += _ceiling(axes, protocol, numeric)
    _name_points(axes, protocol, numeric)
    if protocol["chance"] is not None:
        entries.append(
            (axes.axhline(100 * protocol["chance"], color=INK, linestyle=":", linewidth=1, zorder=1), "chance")
        )
    for length in protocol.get("trained", []):
        entries.append((axes.axvline(length, color="#999999", linewidth=1, zorder=0), "length of training clips"))
    if protocol["numeric"]:
        axes.set_xscale("log", base=2)
        ticks = sorted(set(numeric))
        if len(ticks) <= 12:
            axes.set_xticks(ticks, [f"{x:g}" for x in ticks], rotation=45 if len(ticks) > 6 else 0)
            axes.minorticks_off()
    else:
        long = max(map(len, protocol["x"])) * len(protocol["x"]) > 60
        axes.set_xticks(
            numeric,
            [short(name) for name in protocol["x"]],
            rotation=30 if long else 0,
            ha="right" if long else "center",
        )
        axes.set_xlim(-0.5, len(numeric) - 0.5)
    axes.set_ylim(0, 104)
    axes.set_xlabel(plain(protocol["x_label"]) + (" (logarithmic)" if protocol["numeric"] else ""))
    axes.set_ylabel("top-1 accuracy (%)")
    axes.set_title(plain(protocol["title"]), fontsize=10)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*zip(*entries), loc="outside right center", frameon=False, fontsize=8.5)
    save(figure, path)


def _ceiling(axes, protocol: dict[str, Any], at: Sequence[float]) -> list[tuple[Any, str]]:
    """Dashed: a line where the points of a run are joined, else a bar for each."""
    points = [(x, 100 * c) for x, c in zip(at, protocol["ceiling"]) if c is not None]
    if not points:
        return []
    xs, ys = map(list, zip(*points))
    if protocol["joined"] and len(points) > 1:
        (dashed,) = axes.plot(xs, ys, color=INK, linestyle="--", linewidth=1.2, zorder=2)
    else:
        left = [x / 1.12 if protocol["numeric"] else x - 0.35 for x in xs]
        right = [x * 1.12 if protocol["numeric"] else x + 0.35 for x in xs]
        dashed = axes.hlines(ys, left, right, color=INK, linestyle="--", linewidth=1.2, zorder=2)
    return [(dashed, "ceiling")]


def _name_points(axes, protocol: dict[str, Any], at: Sequence[float]) -> None:
    """What each point is, where its place on the axis does not say; written beside the best run's."""
    for place, name in enumerate(protocol.get("point_names", [])):
        means = [line["mean"][place] for line in protocol["series"].values() if line["mean"][place] is not None]
        axes.annotate(
            plain(name),
            (at[place], 100 * max(means)),
            xytext=(14, 0),
            textcoords="offset points",
            fontsize=8,
            color=INK,
            va="center",
        )


def plot_positions(path: Path, found: dict[str, Any]) -> None:
    """Loss against the frames read before it, a line and a 95 % band for each run; ``found`` as in position.json."""
    figure = new_figure(6.4, 4.2)
    axes = figure.subplots()
    for number, (name, curve) in enumerate(found["series"].items()):
        colour = COLOURS[number % len(COLOURS)]
        many = len(curve["frames"]) > 48
        marker = MARKERS[number % len(MARKERS)]
        axes.plot(
            curve["frames"],
            curve["loss"],
            color=colour,
            marker=None if many else marker,
            markersize=4,
            label=plain(name),
        )
        axes.fill_between(curve["frames"], curve["low"], curve["high"], color=colour, alpha=0.15, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set_xlabel("frames read (logarithmic)")
    axes.set_ylabel(f"loss ({found['unit']})" if found["task"] == "Classification" else found["unit"])
    videos = max(max(curve["videos"]) for curve in found["series"].values())
    axes.set_title(f"{videos} videos; bands: 95 % of the mean over videos", fontsize=10)
    axes.grid(color="#DDDDDD", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    save(figure, path)
