"""Sequence layers side by side: time of a training step and of a forward pass, growth with length, state size.

    python -m benchmarks.layer [--lengths 1024,4096] [--json FILE]

Layers take turns within one run, so that a drift of the machine's speed meets all of them; figures are medians. The
last column is the layer's share of the machine's own rate of batched matrix products, measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from tttvideo.mixers import Attention
from tttvideo.ttt import TTT, Conv, FrameCausal, Layout, Linear, SequenceLayer, TokenCausal

DIM, HEADS, GRID = 128, 2, (4, 4)

MIXERS = {
    "ttt_linear": TTT(inner=Linear(), heads=HEADS, chunk=TokenCausal(16)),
    "ttt_mlp": TTT(heads=HEADS, chunk=TokenCausal(16)),
    "ttt_mlp_k64": TTT(heads=HEADS, chunk=TokenCausal(64)),
    "ttt_mlp_frames": TTT(heads=HEADS, chunk=FrameCausal(4)),
    "ttt_conv": TTT(inner=Conv(), heads=HEADS, chunk=FrameCausal(4)),
    "attention": Attention(heads=HEADS, causality="token"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="1024,4096", help="tokens, separated by commas")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    lengths = [int(n) for n in options.lengths.split(",")]

    torch.manual_seed(0)
    layers = {name: mixer.build(DIM) for name, mixer in MIXERS.items()}
    rate = matmul_rate(options.repeats)
    rows = [row for length in lengths for row in measure(layers, length, options.repeats, rate)]
    summary = {
        "matmul_gflops": rate / 1e9,
        "state_bytes": {name: state_bytes(layer, lengths[-1]) for name, layer in layers.items()},
        "time_growth_exponent": growth(rows, lengths),
    }
    print_table(rows, summary)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        versions = {"torch": torch.__version__, "python": platform.python_version()}
        about = {"device": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
        options.json.write_text(
            json.dumps({"rows": rows, "summary": summary, "versions": versions, **about}, indent=1) + "\n"
        )


def matmul_rate(repeats: int) -> float:
    """FLOP/s of the products that TTT-MLP is made of: [B*H, 64, 64] x [B*H, 64, 256]."""
    a, b = torch.randn(32, 64, 64), torch.randn(32, 64, 256)
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        for _ in range(50):
            torch.bmm(a, b)
        times.append(time.perf_counter() - start)
    return 50 * 2 * 32 * 64 * 64 * 256 / statistics.median(times[1:])


def measure(layers: dict[str, SequenceLayer], length: int, repeats: int, rate: float) -> list[dict[str, Any]]:
    """One row per layer; the first round is a warm-up."""
    x = torch.randn(1, length, DIM)
    layout = Layout(GRID)
    forward: dict[str, list[float]] = {name: [] for name in layers}
    step: dict[str, list[float]] = {name: [] for name in layers}
    for _ in range(repeats + 1):
        for name, layer in layers.items():
            start = time.perf_counter()
            with torch.no_grad():
                layer(x, None, layout)
            middle = time.perf_counter()
            layer(x.requires_grad_(), None, layout)[0].sum().backward()
            forward[name].append(middle - start)
            step[name].append(time.perf_counter() - middle)
    rows = []
    for name, layer in layers.items():
        with FlopCounterMode(display=False) as counter:
            layer(x, None, layout)[0].sum().backward()
        seconds = statistics.median(step[name][1:])
        rows.append(
            {
                "mixer": name,
                "tokens": length,
                "forward_tokens_per_second": length / statistics.median(forward[name][1:]),
                "train_tokens_per_second": length / seconds,
                "train_seconds": step[name][1:],
                "train_flops": counter.get_total_flops(),
                "fraction_of_matmul_rate": counter.get_total_flops() / seconds / rate,
            }
        )
    return rows


def state_bytes(layer: SequenceLayer, length: int) -> int:
    """What one sequence is remembered by, after ``length`` tokens."""
    with torch.no_grad():
        _, state = layer(torch.randn(1, length, DIM), None, Layout(GRID))
    return sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(state) if isinstance(leaf, torch.Tensor))


def growth(rows: list[dict[str, Any]], lengths: list[int]) -> dict[str, float]:
    """Exponent p of training time ~ T^p between the shortest and the longest sequence."""
    if len(lengths) < 2:
        return {}
    at = {(row["mixer"], row["tokens"]): row["tokens"] / row["train_tokens_per_second"] for row in rows}
    first, last = lengths[0], lengths[-1]
    return {
        name: math.log(at[name, last] / at[name, first]) / math.log(last / first)
        for name, length in at
        if length == first
    }


def print_table(rows: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    print(f"{'mixer':16}{'tokens':>8}{'forward tok/s':>15}{'train tok/s':>13}{'of bmm rate':>13}")
    for row in rows:
        print(
            f"{row['mixer']:16}{row['tokens']:8}{row['forward_tokens_per_second']:15,.0f}"
            f"{row['train_tokens_per_second']:13,.0f}{row['fraction_of_matmul_rate']:13.2f}"
        )
    print(f"\n{'mixer':16}{'state bytes':>14}{'time ~ T^p':>12}")
    for name, size in summary["state_bytes"].items():
        exponent = summary["time_growth_exponent"].get(name, float("nan"))
        print(f"{name:16}{size:14,}{exponent:12.2f}")
    print(f"\nbatched matrix products: {summary['matmul_gflops']:.0f} GFLOP/s with {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
