"""Kernels against everything else on a GPU, in under eight minutes: `make bench-gpu`, or

    python -m benchmarks.gpu [--json FILE]

Layers of the paper's 1.3B model (2,048 channels, 32 heads, K = 16) and of a video model (768 channels, 12 heads,
frames of 14 x 14 tokens) in bfloat16: a forward pass and a training step on 262,144 tokens (at most 16 sequences)
and one step of decoding. ``measure(dry=True)`` goes the same way on a CPU, interpreted, with figures of no meaning.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.measure import Run, environment, only_forward, products, seconds, step
from benchmarks.plain_scan import PlainTTTMLP
from tttvideo.mixers import Attention, LinearAttention, Mamba
from tttvideo.ttt import MLP, TTT, FrameCausal, Layout, Linear, TokenCausal
from tttvideo.ttt.interface import Mixer

Row = dict[str, Any]


class Shape(NamedTuple):
    """One layer's size, and how many tokens are read in all and at most in one sequence."""

    name: str
    dim: int
    heads: int
    grid: tuple[int, int]
    tokens: int
    lengths: tuple[int, ...]
    mixers: dict[str, Mixer]


LENGTHS = (1024, 4096, 8192, 16384, 65536, 131072, 262144)


def paper(heads: int, fused: str) -> dict[str, Mixer]:
    chunk = TokenCausal(16)
    return {
        "ttt_mlp": TTT(MLP(), heads, chunk, fused=fused),  # type: ignore[arg-type]
        "ttt_linear": TTT(Linear(), heads, chunk, fused=fused),  # type: ignore[arg-type]
        "ttt_mlp_eager": TTT(MLP(), heads, chunk, fused="never"),
        "attention": Attention(heads, "token"),
        "linear_attention": LinearAttention(heads, "token"),
        "mamba": Mamba(heads),
    }


def video(heads: int, fused: str) -> dict[str, Mixer]:
    return {
        "ttt_mlp": TTT(MLP(), heads, FrameCausal(), fused=fused),  # type: ignore[arg-type]
        "ttt_mlp_eager": TTT(MLP(), heads, FrameCausal(), fused="never"),
        "attention": Attention(heads, "token"),
    }


def shapes(dry: bool) -> list[Shape]:
    if dry:
        return [
            Shape("paper", 32, 2, (1, 1), 32, (16, 32), paper(2, "require")),
            Shape("video", 32, 2, (2, 3), 12, (12,), video(2, "require")),
        ]
    frames = tuple(n // 196 * 196 for n in LENGTHS)
    return [
        Shape("paper", 2048, 32, (1, 1), 262144, LENGTHS, paper(32, "require")),
        Shape("video", 768, 12, (14, 14), 262144, frames, video(12, "require")),
    ]


def measure(dry: bool = False, budget: float = 450.0) -> Row:
    """Rows of times and what follows from them. Stops beginning measurements after ``budget`` seconds."""
    if not dry and not torch.cuda.is_available():
        sys.exit("No CUDA device is to be seen; the kernels' speed can only be measured on one.")
    device = torch.device("cpu" if dry else "cuda")
    end = time.perf_counter() + budget
    rows: list[Row] = []
    for shape in shapes(dry):
        slow: set[tuple[str, str]] = set()  # what took too long is not tried on longer sequences
        for name, layer in built(shape, device):
            for length in shape.lengths:
                for row in timed(shape, name, layer, length, device, slow, end):
                    rows.append(row)
                    print_row(row)
    rate = matmul_rate(device)
    about = {**summary(rows, rate), "device": device_name(device)}
    return {"environment": environment(device), "rows": rows, "summary": about}


def built(shape: Shape, device: torch.device) -> Iterator[tuple[str, nn.Module]]:
    """Every mixer's layer, and what is made of the eager one: compiled, and the authors' loop."""
    for name, mixer in shape.mixers.items():
        torch.manual_seed(0)
        layer = mixer.build(shape.dim).to(device)
        yield name, layer
        if name == "ttt_mlp_eager" and device.type == "cuda":
            yield "ttt_mlp_compiled", torch.compile(layer)  # type: ignore[misc]
        if name == "ttt_mlp_eager" and shape.name == "paper":
            plain = TTT(MLP(), heads=shape.heads, chunk=TokenCausal(16)).build(shape.dim).to(device)
            yield "plain_scan", PlainTTTMLP(plain)


def timed(
    shape: Shape,
    name: str,
    layer: nn.Module,
    length: int,
    device: torch.device,
    slow: set[tuple[str, str]],
    end: float,
) -> Iterator[Row]:
    """Forward, training step and (of layers with a state) decoding at one length: medians of three after a warm-up."""
    batch = min(16, max(1, shape.tokens // length))
    layout = Layout(shape.grid)
    x = torch.randn(batch, length, shape.dim, device=device)
    compiled = isinstance(layer, torch._dynamo.OptimizedModule)
    plain = isinstance(layer, PlainTTTMLP)
    runs: dict[str, Callable[[], Run]] = {
        "forward": lambda: only_forward(layer, x, layout) if not compiled else lambda: layer(x, None, layout),
        "train": lambda: step(layer, x, layout) if not compiled else compiled_step(layer, x, layout),
    }
    if not plain and not compiled and length == shape.lengths[0]:
        runs["decode"] = lambda: decode(layer, x[:1], layout)
    for what, prepare in runs.items():
        if (name, what) in slow or time.perf_counter() > end:
            continue
        row: Row = {"shape": shape.name, "layer": name, "what": what, "length": length, "batch": batch}
        try:
            with precision(device):
                run = prepare()
                first = seconds(run, device)
                times = [seconds(run, device) for _ in range(3 if first < 5 else 1)]
        except torch.OutOfMemoryError:
            slow.add((name, what))
            yield {**row, "seconds": None, "why": "out of memory"}
            continue
        if first > 10:
            slow.add((name, what))
        yield {**row, "seconds": statistics.median(times), "times": times, "first": first}


def compiled_step(layer: nn.Module, x: Tensor, layout: Layout) -> Run:
    leaf = x.clone().requires_grad_()

    def run() -> None:
        layer.zero_grad()
        leaf.grad = None
        layer(leaf, None, layout)[0].sum().backward()

    return run


def decode(layer: nn.Module, x: Tensor, layout: Layout) -> Run:
    """One frame (one token, where frames are tokens) after what was read before."""
    size = layout.tokens_per_frame
    with torch.no_grad():
        _, state = layer(x, None, layout)

    def run() -> None:
        with torch.no_grad():
            layer(x[:, :size], state, layout)

    return run


def precision(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else contextlib.nullcontext()


def matmul_rate(device: torch.device) -> float:
    """FLOPs per second of large bfloat16 products (on a CPU: of small float32 ones)."""
    if device.type == "cpu":
        run, flops = products(2, device)
    else:
        a = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)

        def run() -> None:
            a @ a

        flops = 2.0 * 8192**3
    seconds(run, device)
    return flops / min(seconds(run, device) for _ in range(5))


def summary(rows: list[Row], rate: float) -> Row:
    def of(shape: str, layer: str, what: str) -> dict[int, float]:
        mine = [r for r in rows if (r["shape"], r["layer"], r["what"]) == (shape, layer, what) and r["seconds"]]
        return {r["length"]: r["seconds"] / (r["batch"] * r["length"]) for r in mine}  # seconds per token

    def crossover(what: str) -> int | None:
        mine, flash = of("video", "ttt_mlp", what), of("video", "attention", what)
        faster = [n for n in sorted(mine) if n in flash and mine[n] < flash[n]]
        return faster[0] if faster else None

    mine, plain = of("paper", "ttt_mlp", "train"), of("paper", "plain_scan", "train")
    frames, flash = of("video", "ttt_mlp", "train"), of("video", "attention", "train")
    at = [n for n in frames if n in flash and n >= 131072 // 196 * 196]
    # per token and head of 64: 8 products of 64 x 256 forwards, twice that backwards
    flops = 3 * 8 * 2 * 64 * 256 * 12
    return {
        "train_over_plain_scan": max((plain[n] / mine[n] for n in mine if n in plain), default=None),
        "forward_crossover_tokens_vs_flash": crossover("forward"),
        "train_crossover_tokens_vs_flash": crossover("train"),
        "train_over_flash_128k": flash[at[0]] / frames[at[0]] if at else None,
        "fraction_of_matmul_rate_frame_chunk": max((flops / t / rate for t in frames.values()), default=None),
    }


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu, interpreted: no figures"


def print_row(row: Row) -> None:
    took = "-" if row["seconds"] is None else f"{row['seconds'] * 1e3:10.2f} ms"
    print(f"{row['shape']:6} {row['layer']:18} {row['what']:8} {row['batch']:3} x {row['length']:7} {took}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    found = measure()
    print(json.dumps(found["summary"], indent=2))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
