"""Kernels against everything else on a GPU, in under eight minutes: `make bench-gpu`, or

    python -m benchmarks.kernels --gpu [--json FILE]

Layers of the paper's 1.3B model (2,048 channels, 32 heads, K = 16) and of a video model (768 channels, 12 heads,
frames of 14 x 14 tokens) in bfloat16: a forward pass and a training step on 262,144 tokens (at most 16 sequences)
and one step of decoding, as it is and as a CUDA graph. Beside the JSON: a plot, .png. ``measure(dry=True)`` goes the
same way on a CPU, interpreted, with figures of no meaning.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks import contestants
from benchmarks.gpu_report import summary
from benchmarks.measure import Run, environment, only_forward, products, seconds, step
from benchmarks.plain_scan import PlainTTTMLP
from tttvideo.mixers import Attention, LinearAttention, Mamba
from tttvideo.ttt import (
    MLP,
    SGD,
    TTT,
    Conv,
    DotProduct,
    DWConv,
    FrameCausal,
    Layout,
    Linear,
    SequenceLayer,
    Stream,
    TokenCausal,
    TTTLayer,
)
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
    chunk = FrameCausal()
    return {
        "ttt_mlp": TTT(MLP(), heads, chunk, fused=fused),  # type: ignore[arg-type]
        "ttt_linear": TTT(Linear(), heads, chunk, fused=fused),  # type: ignore[arg-type]
        "ttt_conv": TTT(Conv(), heads, chunk, fused=fused),  # type: ignore[arg-type]
        "ttt_dwconv": TTT(DWConv(), heads, chunk, DotProduct(), SGD(clip=1.0), fused=fused),  # type: ignore[arg-type]
        "ttt_mlp_eager": TTT(MLP(), heads, chunk, fused="never"),
        "attention": Attention(heads, "token"),
    }


def shapes(dry: bool) -> list[Shape]:
    if dry:
        return [
            Shape("paper", 16, 1, (1, 1), 16, (16,), paper(1, "require")),
            Shape("video", 16, 1, (4, 4), 16, (16,), video(1, "require")),
        ]
    frames = tuple(n // 784 * 784 for n in LENGTHS)  # whole frames of 196 tokens, and whole mini-batches of 16
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

    def add(row: Row) -> None:
        rows.append(row)
        if row["seconds"] is not None:
            print_row(row)

    for shape in shapes(dry):
        slow: set[tuple[str, str]] = set()  # what took too long is not tried on longer sequences
        for name, layer in built(shape, device):
            if isinstance(layer, str):
                about = {"shape": shape.name, "layer": name, "what": "train", "length": shape.lengths[0], "batch": 0}
                add({**about, "seconds": None, "why": layer})
                continue
            for length in shape.lengths:
                for row in timed(shape, name, layer, length, device, slow, end, 0 if dry else 3):
                    add(row)
    rate = matmul_rate(device)
    about = {**summary(rows, rate), "device": device_name(device)}
    versions = environment(device) | contestants.versions()
    return {"environment": versions, "matmul_flops_per_second": rate, "rows": rows, "summary": about}


def built(shape: Shape, device: torch.device) -> Iterator[tuple[str, nn.Module | str]]:
    """Every mixer's layer; TTT-MLP again, whose products are to read bfloat16 (``matmul_precision``); what is made of
    the eager one: compiled, and the authors' loop; other packages' layers. Or why there is none."""
    for name, mixer in shape.mixers.items():
        torch.manual_seed(0)
        layer = mixer.build(shape.dim).to(device)
        yield name, layer
        if name == "ttt_mlp":
            yield "ttt_mlp_bf16", layer
        if name == "ttt_mlp_eager" and device.type == "cuda":
            yield "ttt_mlp_compiled", torch.compile(layer)  # type: ignore[misc]
        if name == "ttt_mlp_eager":
            plain = TTT(MLP(), heads=shape.heads, chunk=TokenCausal(16)).build(shape.dim).to(device)
            yield "plain_scan", PlainTTTMLP(plain)
    for name in contestants.CONTESTANTS:
        yield name, contestants.build(name, shape.dim, shape.heads, device)


def timed(
    shape: Shape,
    name: str,
    layer: nn.Module,
    length: int,
    device: torch.device,
    slow: set[tuple[str, str]],
    end: float,
    rounds: int,
) -> Iterator[Row]:
    """Forward, training step and (of layers with a state) decoding at one length: medians of ``rounds`` after a
    warm-up (without rounds, the warm-up's own time)."""
    batch = min(16, max(1, shape.tokens // length))
    layout = Layout(shape.grid)
    x = torch.randn(batch, length, shape.dim, device=device)
    compiled = isinstance(layer, torch._dynamo.OptimizedModule)
    runs: dict[str, Callable[[], Run]] = {
        "forward": lambda: only_forward(layer, x, layout) if not compiled else lambda: layer(x, None, layout),
        "train": lambda: step(layer, x, layout) if not compiled else compiled_step(layer, x, layout),
    }
    if isinstance(layer, SequenceLayer) and length == shape.lengths[0]:
        runs["decode"] = lambda: decode(layer, x[:1], layout)
        if isinstance(layer, TTTLayer):
            runs["decode_graph"] = lambda: decode_graph(layer, x[:1], layout)
    for what, prepare in runs.items():
        if (name, what) in slow or time.perf_counter() > end:
            continue
        row: Row = {"shape": shape.name, "layer": name, "what": what, "length": length, "batch": batch}
        try:
            with precision(device), matmul_precision("medium" if name.endswith("_bf16") else "highest"):
                run = prepare()
                first = seconds(run, device)
                times = [seconds(run, device) for _ in range(rounds if first < 5 else min(1, rounds))]
        except torch.OutOfMemoryError:
            slow.add((name, what))
            yield {**row, "seconds": None, "why": "out of memory"}
            continue
        except Exception as error:  # one layer's failure must not cost the other figures of a rented GPU
            slow.add((name, what))
            yield {**row, "seconds": None, "why": f"{what}: {type(error).__name__}: {str(error)[:300]}"}
            continue
        if first > 10:
            slow.add((name, what))
        yield {**row, "seconds": statistics.median(times or [first]), "times": times, "first": first}


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


def decode_graph(layer: nn.Module, x: Tensor, layout: Layout) -> Run:
    """The same, replayed: as many steps come first as there are places in a chunk."""
    size = layout.tokens_per_frame
    with torch.no_grad():
        _, state = layer(x, None, layout)
    token = x[:, :size].contiguous()
    stream = Stream(lambda x, state: layer(x, state, layout), token, state)
    places = 1 if layer.config.chunk.whole else layer.config.chunk.tokens  # type: ignore[union-attr]
    for _ in range(places + 1 if x.is_cuda else 2):
        stream(token)
    return lambda: stream(token)


def precision(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else contextlib.nullcontext()


@contextlib.contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """PyTorch's switch for float32 products, which kernels follow (tttvideo/ttt/kernels/README.md): in layers of half
    precision they read tf32 by default, with "medium" bfloat16."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


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


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu, interpreted: no figures"


def print_row(row: Row) -> None:
    took = f"{row['seconds'] * 1e3:10.2f} ms"
    print(f"{row['shape']:6} {row['layer']:18} {row['what']:8} {row['batch']:3} x {row['length']:7} {took}", flush=True)
