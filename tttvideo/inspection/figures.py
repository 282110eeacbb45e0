"""Figures of what hidden states do over a video, a row of axes for each layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..evaluation.plots import COLOURS, new_figure, save
from .recording import LayerRecord

COLUMNS = 8
"""Frames beside each other in a heat map."""

POINTS = 400
"""Points of a curve; of more, neighbours are averaged."""


def plot_losses(path: Path, records: Sequence[LayerRecord], seconds: np.ndarray) -> None:
    def draw(axes: Any, own: LayerRecord) -> None:
        frames, before, after = own.inner_loss
        for values, name, colour in ((before, "before its update", COLOURS[1]), (after, "after it", COLOURS[0])):
            axes.plot(*_thinned(_times(frames, seconds), values.mean(1).numpy()), color=colour, label=name, lw=1.3)
        axes.set_ylabel("inner loss of a chunk")

    _by_layer(path, records, draw)


def plot_weights(path: Path, records: Sequence[LayerRecord], seconds: np.ndarray) -> None:
    def draw(axes: Any, own: LayerRecord) -> None:
        start = own.start if bool((own.start > 0).all()) else torch.ones_like(own.start)
        for values, name, colour in ((own.distances, "W - W$_0$", COLOURS[2]), (own.steps, "an update", COLOURS[1])):
            share = (values / start).mean(1).numpy()
            axes.plot(*_thinned(_times(own.inner_loss.frames, seconds), share), color=colour, label=name, lw=1.3)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("length, W$_0$'s being 1" if bool((own.start > 0).all()) else "length")

    _by_layer(path, records, draw)


def plot_rates(path: Path, records: Sequence[LayerRecord], seconds: np.ndarray, stride: int) -> None:
    def draw(axes: Any, own: LayerRecord) -> None:
        rates = own.rates.flatten(1)
        times = _times(torch.arange(1, len(rates) + 1) * stride, seconds)
        for values, name, style in (
            (rates.amax(1), "largest of a frame's places", ":"),
            (rates.mean(1), "mean of them", "-"),
            (rates.amin(1), "smallest", ":"),
        ):
            axes.plot(*_thinned(times, values.numpy()), style, color=COLOURS[0], label=name, lw=1.3)
        axes.set_ylabel("learned rate, of 1")

    _by_layer(path, records, draw)


def plot_memory(path: Path, records: Sequence[LayerRecord], seconds: np.ndarray) -> None:
    def draw(axes: Any, own: LayerRecord) -> None:
        probes = own.probes
        times = _times(probes.frames, seconds)
        axes.plot(times, probes.start.numpy(), ":", color=COLOURS[6], label="loss at W$_0$", lw=1.3)
        axes.plot(times, probes.then.numpy(), color=COLOURS[0], label="right after it was read", lw=1.3)
        axes.plot(times, probes.end.numpy(), color=COLOURS[1], label="at the end of the video", lw=1.3)
        axes.set_ylabel("inner loss of a chunk")
        other = axes.twinx()
        other.plot(times, probes.similarity.numpy(), "o", color=COLOURS[2], ms=3, label="similarity of read-outs")
        other.set_ylim(-1.05, 1.05)
        other.set_ylabel("cosine", color=COLOURS[2])

    _by_layer(path, records, draw)


def plot_heat(
    path: Path, records: Sequence[LayerRecord], shown: Sequence[Sequence[int]], pictures: dict[int, Tensor], stride: int
) -> None:
    """Learned rates over frames: red where a layer learns most of all that it read, blue where least.

    Args:
        shown: for each layer the numbers of the frames (the first ones of time steps).
        pictures: uint8 [3, H, W] by number.
    """
    figure = new_figure(1.3 * COLUMNS + 1.2, 1.75 * len(records))
    grid = figure.subplots(len(records), COLUMNS, squeeze=False)
    for row, own, numbers in zip(grid, records, shown, strict=True):
        rates = own.rates
        lowest, highest = float(rates.min()), float(rates.max())
        image = None
        for axes in row:
            axes.axis("off")
        for axes, number in zip(row, numbers, strict=False):
            picture = pictures[number].permute(1, 2, 0).numpy()
            height, width = picture.shape[:2]
            axes.imshow(picture.mean(-1), cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0))
            image = axes.imshow(
                rates[number // stride].numpy(),
                **{"cmap": "coolwarm", "alpha": 0.45, "vmin": lowest, "vmax": highest},
                extent=(0, width, height, 0),
                interpolation="nearest",
            )
            axes.set_title(f"frame {number + 1}", fontsize=8)
        row[0].text(-0.12, 0.5, own.name, rotation=90, va="center", ha="right", transform=row[0].transAxes, fontsize=9)
        if image is not None:
            figure.colorbar(image, ax=list(row), shrink=0.8, pad=0.01).ax.tick_params(labelsize=7)
    save(figure, path)


def _by_layer(path: Path, records: Sequence[LayerRecord], draw: Any) -> None:
    figure = new_figure(8, 0.6 + 2.1 * len(records))
    rows = figure.subplots(len(records), 1, squeeze=False, sharex=True)[:, 0]
    for axes, own in zip(rows, records, strict=True):
        draw(axes, own)
        axes.set_title(own.name, fontsize=10, loc="left")
        axes.spines[["top"]].set_visible(False)
    rows[-1].set_xlabel("seconds of the video")
    handles = [handle for axes in figure.axes[: len(records)] for handle in axes.get_legend_handles_labels()[0]]
    names = [name for axes in figure.axes[: len(records)] for name in axes.get_legend_handles_labels()[1]]
    entries = dict(zip(names, handles, strict=True))
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    save(figure, path)


def _times(frames: Tensor, seconds: np.ndarray) -> np.ndarray:
    """When the last of so many frames is shown."""
    return seconds[np.minimum(frames.numpy(), len(seconds)) - 1]


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    parts = -(-len(x) // POINTS)
    if parts < 2:
        return x, y
    edges = np.arange(0, len(x), parts)
    counts = np.diff([*edges, len(x)])
    return np.add.reduceat(x, edges) / counts, np.add.reduceat(y, edges) / counts
