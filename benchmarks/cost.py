"""Cost against length: what a frame costs each sequence layer after so many frames, read at once and as a stream.

    python -m benchmarks.cost [--frames 16,64,256,1024] [--threads N] [--device cuda] [--json FILE] [--figure FILE.png]

Prefill: one call over the whole video. Streaming step: one more frame after it, with the carried state. README.md
beside this file says how to read the figures; layers take turns and times are medians, as in `benchmarks.layer`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.layer import DIM, GRID, LAYOUT, MIXERS
from benchmarks.measure import (
    Run,
    counted_flops,
    environment,
    in_turn,
    keep_memory,
    only_forward,
    peak_bytes,
    read_lengths,
)
from tttvideo.evaluation.plots import COLOURS, INK, MARKERS, new_figure, save
from tttvideo.mixers.lstm import LSTMLayer
from tttvideo.ttt.interface import SequenceLayer, state_bytes
from tttvideo.ttt.layer import TTTLayer

NAMES = {
    "ttt_linear": "TTT-Linear",
    "ttt_mlp": "TTT-MLP",
    "ttt_conv": "TTT-conv",
    "linear_attention": "linear attention",
    "mamba": "Mamba",
    "lstm": "LSTM",
    "attention": "attention",
    "attention_window": "attention, window",
}
STEPS = 10
"""Streaming steps that are timed together: one is too short for the clock of a busy machine."""
TOKENS = GRID[0] * GRID[1]
PANELS = {
    "prefill_seconds_per_frame": ("prefill: time per frame (ms)", 1e3),
    "step_seconds": ("streaming step: time per frame (ms)", 1e3),
    "prefill_flops_per_frame": ("prefill: FLOPs per frame (millions)", 1e-6),
    "prefill_peak_bytes": ("prefill: peak memory (MB)", 1e-6),
    "step_peak_bytes": ("streaming step: peak memory (MB)", 1e-6),
    "state_bytes": ("state (MB)", 1e-6),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", help="lengths, separated by commas; to 1024 on a CPU, to 16384 on a GPU")
    parser.add_argument("--mixers", nargs="+", choices=list(NAMES), default=list(NAMES), help="default: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="CPU threads of an operation; default: PyTorch's")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--limit", type=float, default=10.0, help="longest prefill that is still run, seconds")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--figure", type=Path, help="also draw them here (PNG)")
    options = parser.parse_args()
    began = time.perf_counter()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device is to be seen")
    if options.threads:
        torch.set_num_threads(options.threads)
    default = "16,64,256,1024" if device.type == "cpu" else "16,64,256,1024,4096,16384"
    lengths = read_lengths(parser, "--frames", options.frames or default)
    if options.rounds < 1:
        parser.error(f"--rounds must be 1 or more, got {options.rounds}")
    about = {**environment(device), "memory_kept": keep_memory()}
    torch.manual_seed(0)
    layers = {name: MIXERS[name].build(DIM).to(device).eval() for name in options.mixers}
    rows: list[dict[str, Any]] = []
    print(HEADER)
    for frames in lengths:
        for row in measure(layers, frames, options.rounds, device, options.limit, rows):
            rows.append(row)
            print_row(row)
    print(f"\n{time.perf_counter() - began:.0f} s in all")
    figures = {"environment": about, "tokens_per_frame": TOKENS, "channels": DIM, "rows": rows}
    for file in filter(None, (options.json, options.figure)):
        file.parent.mkdir(parents=True, exist_ok=True)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if options.figure:
        draw(figures, options.figure)


def measure(
    layers: dict[str, SequenceLayer],
    frames: int,
    rounds: int,
    device: torch.device,
    limit: float,
    before: list[dict[str, Any]],
) -> Iterator[dict[str, Any]]:
    """One row per layer. A layer whose prefill would take longer than ``limit``, growing with the square of the length
    at worst, is skipped, and its row says so."""
    x = torch.randn(1, frames * TOKENS, DIM, device=device)
    more = torch.randn(1, TOKENS, DIM, device=device)
    runs: dict[str, Run] = {}
    states: dict[str, Any] = {}
    for name, layer in layers.items():
        measured = [row for row in before if row["mixer"] == name]
        if measured and ("skipped" in measured[-1] or _worst(measured[-1], frames) > limit):
            yield {"mixer": name, "frames": frames, "skipped": f"a prefill could take longer than {limit:.0f} s"}
            continue
        with torch.no_grad():
            _, states[name] = layer(x, None, LAYOUT)
        runs[f"{name} prefill"] = only_forward(layer, x, LAYOUT)
        runs[f"{name} steps"] = _steps(layer, more, states[name], STEPS)
    times = in_turn(runs, rounds, device, budget=60.0)
    for name in states:
        layer = layers[name]
        step = _steps(layer, more, states[name], 1)
        prefill = statistics.median(times[f"{name} prefill"])
        yield {
            "mixer": name,
            "frames": frames,
            "prefill_seconds_per_frame": prefill / frames,
            "step_seconds": statistics.median(times[f"{name} steps"]) / STEPS,
            "prefill_peak_bytes": peak_bytes(runs[f"{name} prefill"], device),
            "step_peak_bytes": peak_bytes(step, device),
            "prefill_flops_per_frame": _flops(layer, frames, device) / frames,
            "step_flops": 16.0 * DIM * DIM * TOKENS if isinstance(layer, LSTMLayer) else counted_flops(step),
            "state_bytes": state_bytes(states[name]),
        }


def _steps(layer: SequenceLayer, x: torch.Tensor, state: Any, count: int) -> Run:
    """The same step, ``count`` times."""

    def run() -> None:
        with torch.no_grad():
            for _ in range(count):
                layer(x, state, LAYOUT)

    return run


def _worst(row: dict[str, Any], frames: int) -> float:
    return row["prefill_seconds_per_frame"] * row["frames"] * (frames / row["frames"]) ** 2


def _flops(layer: SequenceLayer, frames: int, device: torch.device) -> float:
    """Of a prefill, counted by PyTorch (FlopCounterMode); of a TTT layer, whose operations are many and as many for
    every chunk, at 64 frames and carried on. PyTorch does not know its LSTM: 8 products of C x C a token."""
    if isinstance(layer, LSTMLayer):
        return 2.0 * 8 * DIM * DIM * TOKENS * frames
    counted = min(frames, 64) if isinstance(layer, TTTLayer) else frames
    x = torch.randn(1, counted * TOKENS, DIM, device=device)
    return counted_flops(only_forward(layer, x, LAYOUT)) * frames / counted


HEADER = (
    f"{'layer':20}{'frames':>8}{'prefill':>12}{'step':>10}{'prefill':>12}{'step':>10}{'prefill':>14}{'state':>12}\n"
    f"{'':20}{'':8}{'ms/frame':>12}{'ms':>10}{'peak, MB':>12}{'peak, MB':>10}{'MFLOP/frame':>14}{'bytes':>12}"
)


def print_row(row: dict[str, Any]) -> None:
    name = NAMES[row["mixer"]]
    if "skipped" in row:
        print(f"{name:20}{row['frames']:8}  skipped: {row['skipped']}", flush=True)
        return
    print(
        f"{name:20}{row['frames']:8}{1e3 * row['prefill_seconds_per_frame']:12.3f}{1e3 * row['step_seconds']:10.3f}"
        f"{row['prefill_peak_bytes'] / 1e6:12.1f}{row['step_peak_bytes'] / 1e6:10.2f}"
        f"{row['prefill_flops_per_frame'] / 1e6:14.1f}{row['state_bytes']:12,}",
        flush=True,
    )


def draw(figures: dict[str, Any], file: Path) -> None:
    """Six panels, a line for each layer, both axes logarithmic."""
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = new_figure(11.0, 6.4)
    axes = figure.subplots(2, 3).flatten()
    names = list(dict.fromkeys(row["mixer"] for row in figures["rows"]))
    handles = []
    for panel, (key, (label, scale)) in zip(axes, PANELS.items()):
        for name in names:
            rows = [row for row in figures["rows"] if row["mixer"] == name and "skipped" not in row]
            (line,) = panel.plot(
                [row["frames"] for row in rows],
                [scale * row[key] for row in rows],
                color=COLOURS[list(NAMES).index(name.removesuffix("_window"))],
                marker=MARKERS[list(NAMES).index(name.removesuffix("_window"))],
                linestyle="--" if name.endswith("_window") else "-",
                markersize=4.5,
            )
            if panel is axes[0]:
                handles.append(line)
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.xaxis.set_major_formatter("{x:.0f}")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.set_xlabel("frames read", fontsize=9)
        panel.set_title(label, fontsize=9.5, color=INK)
        panel.tick_params(labelsize=8)
        panel.grid(color="#DDDDDD", linewidth=0.8)
        panel.spines[["top", "right"]].set_visible(False)
    about = figures["environment"]
    figure.suptitle(
        f"One layer, {figures['channels']} channels, {figures['tokens_per_frame']} tokens a frame, batch 1, float32; "
        f"{about['name']}, {about['threads']} thread{'s' * (about['threads'] > 1)}",
        fontsize=10,
    )
    figure.legend(
        handles, [NAMES[name] for name in names], loc="outside lower center", ncols=4, frameon=False, fontsize=9
    )
    save(figure, file)


if __name__ == "__main__":
    main()
