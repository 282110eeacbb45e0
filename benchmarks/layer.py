"""Sequence layers side by side: time, memory and FLOPs of a training step and of a forward pass, growth with length.

    python -m benchmarks.layer [--lengths 1024,4096,16384] [--threads N] [--device cuda] [--json FILE]

README.md beside this file says how to read the figures. Layers take turns, so that a drift of the machine's speed
meets all of them; times are medians, comparisons are medians of the ratios within a round.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from benchmarks.compare import comparisons
from benchmarks.measure import (
    Run,
    counted_flops,
    environment,
    in_turn,
    keep_memory,
    only_forward,
    peak_bytes,
    products,
    ratio,
    read_lengths,
    step,
)
from tttvideo.mixers import GRU, LSTM, RWKV7, Attention, GatedDeltaNet, LinearAttention, Mamba
from tttvideo.mixers.lstm import LSTMLayer
from tttvideo.ttt import (
    GLU,
    MLP,
    SGD,
    TTT,
    Conv,
    ConvDepthwise,
    DotProduct,
    DWConv,
    FrameCausal,
    Layout,
    Linear,
    SelfAttention,
    TokenCausal,
)
from tttvideo.ttt.interface import Mixer, SequenceLayer
from tttvideo.ttt.layer import TTTLayer

DIM, HEADS, GRID = 128, 2, (4, 4)
LAYOUT = Layout(GRID)
FRAMES = FrameCausal(4)  # 64 tokens

MIXERS: dict[str, Mixer] = {
    "ttt_linear": TTT(Linear(), HEADS, TokenCausal(16)),
    "ttt_mlp": TTT(MLP(), HEADS, TokenCausal(16)),
    "ttt_mlp_k64": TTT(MLP(), HEADS, TokenCausal(64)),
    "ttt_mlp_frames": TTT(MLP(), HEADS, FRAMES),
    "ttt_mlp_checkpointed": TTT(MLP(), HEADS, TokenCausal(16), checkpoint_group=8),
    "ttt_glu": TTT(GLU(), HEADS, TokenCausal(16)),
    "ttt_conv": TTT(Conv(), HEADS, FRAMES),
    "ttt_conv_depthwise": TTT(ConvDepthwise(), HEADS, FRAMES),
    "ttt_dwconv": TTT(DWConv(), HEADS, FrameCausal(), DotProduct(), SGD(clip=1.0)),
    "ttt_attention": TTT(SelfAttention(), HEADS, FRAMES),
    "attention": Attention(HEADS, "token"),
    "attention_window": Attention(HEADS, "token", window=256),
    "linear_attention": LinearAttention(HEADS, "token"),
    "mamba": Mamba(HEADS),
    "gated_delta_net": GatedDeltaNet(HEADS),
    "delta_net": GatedDeltaNet(HEADS, expand=1, decay=False, gate=False),
    "rwkv7": RWKV7(HEADS),
    "lstm": LSTM(),
    "gru": GRU(),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", help="tokens, separated by commas; to 16384 on a CPU, to 262144 on a GPU")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="CPU threads of an operation; default: PyTorch's")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--limit", type=float, default=10.0, help="longest training step that is still run, seconds")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    began = time.perf_counter()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device is to be seen")
    if options.threads:
        torch.set_num_threads(options.threads)
    default = "1024,4096,16384" if device.type == "cpu" else "1024,4096,16384,65536,262144"
    lengths = read_lengths(parser, "--lengths", options.lengths or default)
    if options.rounds < 1:
        parser.error(f"--rounds must be 1 or more, got {options.rounds}")
    about = {**environment(device), "memory_kept": keep_memory()}
    torch.manual_seed(0)

    summary, tables = comparisons(options.rounds + 2, device)
    print_comparisons(summary, tables)
    layers = {name: mixer.build(DIM).to(device) for name, mixer in MIXERS.items()}
    rows: list[dict[str, Any]] = []
    print(HEADER)
    for length in lengths:
        for row in measure(layers, length, options.rounds, device, options.limit, rows):
            rows.append(row)
            print_row(row)
    sizes = {name: [row["state_bytes"] for row in mine] for name, mine in by_mixer(rows).items()}
    summary |= {
        "time_growth_exponent": growth(rows),
        "state_bytes": {name: size[-1] for name, size in sizes.items()},
        "state_is_constant": {name: size[0] == size[-1] for name, size in sizes.items()},
        "peak_bytes_per_token": peaks(rows),
        "seconds": time.perf_counter() - began,
    }
    print_summary(summary)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        figures = {"environment": about, "summary": summary, **tables, "rows": rows}
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


def measure(
    layers: dict[str, SequenceLayer],
    length: int,
    rounds: int,
    device: torch.device,
    limit: float,
    before: list[dict[str, Any]],
) -> Iterator[dict[str, Any]]:
    """One row per layer at ``length`` tokens. A layer whose step would take longer than ``limit``, as it grew until
    now, is skipped, and its row says so."""
    x = torch.randn(1, length, DIM, device=device)
    expected = {name: forecast(name, length, before) for name in layers}
    bmm, bmm_flops = products(32, device)
    runs: dict[str, Run] = {}
    for name, layer in layers.items():
        if expected[name] <= limit:
            runs |= {f"{name} forward": only_forward(layer, x, LAYOUT), f"{name} train": step(layer, x, LAYOUT)}
            runs[f"{name} bmm"] = bmm
    times = in_turn(runs, rounds, device, budget=60.0)
    for name, layer in layers.items():
        if expected[name] > limit:
            why = f"a training step would take {expected[name]:.0f} s, longer than the limit of {limit:.0f} s"
            yield {"mixer": name, "tokens": length, "skipped": why}
            continue
        run = runs[f"{name} train"]
        train, forward, product = (statistics.median(times[f"{name} {what}"]) for what in ("train", "forward", "bmm"))
        flops, peak = train_flops(layer, length, device), peak_bytes(run, device)
        peak_forward = peak_bytes(runs[f"{name} forward"], device)
        layer.zero_grad()
        yield {
            "mixer": name,
            "tokens": length,
            "train_seconds": train,
            "forward_seconds": forward,
            "train_tokens_per_second": length / train,
            "forward_tokens_per_second": length / forward,
            "train_peak_bytes": peak,
            "train_peak_bytes_per_token": peak / length,
            "forward_peak_bytes": peak_forward,
            "train_flops": flops,
            "fraction_of_matmul_rate": flops / bmm_flops * ratio(times[f"{name} bmm"], times[f"{name} train"]),
            "matmul_gflops": bmm_flops / product / 1e9,
            "state_bytes": state_bytes(layer, x),
            "train_seconds_all": times[f"{name} train"],
            "forward_seconds_all": times[f"{name} forward"],
        }


def train_flops(layer: SequenceLayer, length: int, device: torch.device) -> float:
    """Counted by PyTorch; of a TTT layer, whose operations are many, at 1,024 tokens and carried on: they are as many
    for every chunk. PyTorch does not know the LSTM of its CPU library: 8 products of C x C a token, and backward."""
    if isinstance(layer, LSTMLayer):
        return 3.0 * 2.0 * 8 * DIM * DIM * length
    counted = min(length, 1024) if isinstance(layer, TTTLayer) else length
    return counted_flops(step(layer, torch.randn(1, counted, DIM, device=device), LAYOUT)) * length / counted


def forecast(name: str, length: int, rows: list[dict[str, Any]]) -> float:
    """Seconds of a training step, if it grows on from the last two lengths as it grew between them."""
    measured = [(r["tokens"], r.get("train_seconds", math.inf)) for r in rows if r["mixer"] == name]
    if not measured:
        return 0.0
    power = 1.0
    if len(measured) > 1 and measured[-1][1] < math.inf:
        (a, s), (b, t) = measured[-2:]
        power = max(1.0, math.log(t / s) / math.log(b / a))
    return measured[-1][1] * (length / measured[-1][0]) ** power


def state_bytes(layer: SequenceLayer, x: Tensor) -> int:
    """What one sequence is remembered by."""
    with torch.no_grad():
        _, state = layer(x, None, LAYOUT)
    return sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(state) if isinstance(leaf, Tensor))


def growth(rows: list[dict[str, Any]]) -> dict[str, float]:
    """p of training time ~ T^p: least squares over all lengths, both logarithmic."""
    slopes = {}
    for name, mine in by_mixer(rows).items():
        x = [math.log(row["tokens"]) for row in mine]
        y = [math.log(row["train_seconds"]) for row in mine]
        if len(x) > 1:
            slopes[name] = statistics.linear_regression(x, y).slope
    return slopes


def peaks(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Of a training step, per token, at the greatest length that all layers were run at."""
    common = min(mine[-1]["tokens"] for mine in by_mixer(rows).values())
    return {row["mixer"]: row["train_peak_bytes_per_token"] for row in rows if row["tokens"] == common}


def by_mixer(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    rows_of: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if "skipped" not in row:
            rows_of.setdefault(row["mixer"], []).append(row)
    return rows_of


HEADER = (
    f"\n{'layer':22}{'tokens':>8}{'forward':>12}{'training':>12}{'peak memory of':>17}{'FLOPs of':>12}{'share of':>10}"
    f"\n{'':22}{'':8}{'tokens/s':>12}{'tokens/s':>12}{'a step, MB':>17}{'a step, G':>12}{'bmm rate':>10}"
)


def print_row(row: dict[str, Any]) -> None:
    if "skipped" in row:
        print(f"{row['mixer']:22}{row['tokens']:8}  skipped: {row['skipped']}", flush=True)
        return
    print(
        f"{row['mixer']:22}{row['tokens']:8}{row['forward_tokens_per_second']:12,.0f}"
        f"{row['train_tokens_per_second']:12,.0f}{row['train_peak_bytes'] / 1e6:17,.1f}"
        f"{row['train_flops'] / 1e9:12,.2f}{row['fraction_of_matmul_rate']:10.2f}",
        flush=True,
    )


def print_comparisons(summary: dict[str, Any], tables: dict[str, Any]) -> None:
    print("primal / dual form, TTT-MLP, 1 x 1,024 tokens, 2 heads:")
    for row in tables["dual_over_primal"]:
        times = f"training {row['train']:5.1f}x  forward {row['forward']:5.1f}x"
        print(f"  K={row['chunk']:<3} d={row['head_dim']:<3} {times}")
    print("the authors' eager scan restated / ours, TTT-MLP, K=16, d=64, 1,024 tokens:")
    for row in tables["over_plain_scan"]:
        print(
            f"  B={row['batch']} H={row['heads']}  training {row['train']:.2f}x  its scan alone "
            f"{row['train_scan_alone']:.2f}x  forward {row['forward']:.2f}x"
        )
    for row in tables["delta_over_loop"]:
        print(f"delta rule, loop over solved for many chunks, K={row['chunk']}, d=64: training {row['train']:.2f}")
    print(f"share of the rate of batched matrix products ({summary['matmul_gflops']:.0f} GFLOP/s), TTT-MLP, d=64:")
    for row in tables["floor"]:
        print(
            f"  K={row['chunk']:<3} B={row['batch']:<3} H={row['heads']}  {row['fraction_of_matmul_rate']:.2f} of the "
            f"FLOPs done, {row['fraction_of_matmul_rate_minimal']:.2f} of the least that the formulas ask for"
        )


def print_summary(summary: dict[str, Any]) -> None:
    print(f"\n{'layer':22}{'time ~ T^p':>12}{'state, bytes':>15}{'constant':>10}{'peak bytes per token':>22}")
    for name, size in summary["state_bytes"].items():
        exponent = summary["time_growth_exponent"].get(name, math.nan)
        constant = "yes" if summary["state_is_constant"][name] else "no"
        print(f"{name:22}{exponent:12.2f}{size:15,}{constant:>10}{summary['peak_bytes_per_token'][name]:22,.0f}")
    print(f"\n{summary['seconds']:.0f} s in all")


if __name__ == "__main__":
    main()
