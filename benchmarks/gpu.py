"""Kernels against everything else on a GPU, in under eight minutes: `make bench-gpu`, or

    python -m benchmarks.kernels --gpu [--json FILE]

Layers of the paper's 1.3B model (2,048 channels, 32 heads, K = 16) and of a video model (768 channels, 12 heads,
frames of 14 x 14 tokens) in bfloat16: a forward pass and a training step on 262,144 tokens (at most 16 sequences)
and one step of decoding, as it is and as a CUDA graph; of our layers also where a training step's time goes, by
kernel. Beside the JSON: a plot, .png. ``measure(dry=True)`` goes the same way on a CPU, interpreted, with figures of no
meaning.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import contestants, isolated
from benchmarks.gpu_layers import Part, build, parts
from benchmarks.gpu_report import summary
from benchmarks.measure import Run, environment, only_forward, products, seconds, step
from tttvideo.ttt import Layout, SequenceLayer, Stream, TTTLayer

Row = dict[str, Any]

SLOW = 5.0  # seconds: what takes longer is not repeated, and not tried on longer sequences
ROUNDS = {"forward": 3, "train": 3, "forward_graph": 3, "train_graph": 3, "decode": 50, "decode_graph": 50}
BACKENDS = {
    "attention": SDPBackend.FLASH_ATTENTION,
    "attention_core": SDPBackend.FLASH_ATTENTION,
    "attention_cudnn": SDPBackend.CUDNN_ATTENTION,
}
GRAPHED = (
    "ttt_linear_core",
    "ttt_mlp_core_bf16",
    "ttt_mlp_core",
    "ttt_mlp",
    "ttt_mlp_bf16",
)  # forward and training step as CUDA graphs, too
SILENCE = 150.0  # seconds without a row, a kernel's compilation included


def measure(
    dry: bool = False,
    budget: float = 450.0,
    keep: Path | None = None,
    only: Sequence[str] = (),
    about: Row | None = None,
) -> Row:
    """Rows of times and what follows from them, within ``budget`` seconds. What failed, or was not begun, is a row
    that says why. Rows are appended to the file ``keep`` as they come, with ``about`` in each: a rented GPU may be gone
    before the last. ``only``: layers, or shape:layer; none: all."""
    if not dry and not torch.cuda.is_available():
        sys.exit("No CUDA device is to be seen; the kernels' speed can only be measured on one.")
    device = torch.device("cpu" if dry else "cuda")
    end = time.time() + budget
    rate = matmul_rate(device)
    todo, rows = chosen(dry, tuple(only)), []
    for index, outcome in isolated.results(partial(rows_of, dry, tuple(only)), len(todo), SILENCE, end):
        row = outcome if isinstance(outcome, dict) else _without(todo[index], outcome)
        rows.append(row)
        print_row(row)
        if keep is not None:
            with keep.open("a", encoding="utf-8") as file:
                file.write(json.dumps((about or {}) | row) + "\n")
    rate = max(rate, matmul_rate(device))
    total = {**summary(rows, rate), "device": device_name(device)}
    versions = environment(device) | contestants.versions()
    return {"environment": versions, "matmul_flops_per_second": rate, "rows": rows, "summary": total}


def chosen(dry: bool, only: tuple[str, ...]) -> list[Part]:
    """The parts that ``only`` names, in its order; all, if it is empty.

    Raises:
        ValueError: where it names none.
    """
    everything = parts(dry)
    wanted = []
    for word in only:
        named = [part for part in everything if word in (part.layer, f"{part.shape.name}:{part.layer}")]
        if not named:
            layers = ", ".join(dict.fromkeys(part.layer for part in everything))
            raise ValueError(f"No layer is called {word}; there are {layers}, each also as paper:... or video:...")
        wanted += [part for part in named if part not in wanted]
    return wanted if only else everything


def rows_of(dry: bool, only: tuple[str, ...], index: int) -> Iterator[Row | str]:
    """Of one layer at one shape, all lengths; before each row, what is begun. Raises what broke the GPU's context,
    after a row that says so."""
    part = chosen(dry, only)[index]
    device = torch.device("cpu" if dry else "cuda")
    yield "building it"
    layer = build(part, device)
    if isinstance(layer, str):
        yield _without(part, layer)
        return
    slow: set[str] = set()
    for length in part.shape.lengths:
        yield from timed(part, layer, length, device, slow)


def timed(part: Part, layer: nn.Module, length: int, device: torch.device, slow: set[str]) -> Iterator[Row | str]:
    """Forward, training step and (of layers with a state) decoding at one length, as ``repeated`` takes their time.
    Names of what took too long or failed are added to ``slow``."""
    shape = part.shape
    batch = min(16, max(1, shape.tokens // length))
    x = torch.randn(batch, length, shape.dim, device=device)
    for what, prepare in _runs(part, layer, x).items():
        if what in slow:
            continue
        yield f"{what}, {length} tokens"
        row: Row = {"shape": shape.name, "layer": part.layer, "what": what, "length": length, "batch": batch}
        try:
            with settings(part.layer, what, device):
                layer.zero_grad()  # whose memory is no part of the call's
                timing = profiled(prepare(), device) if what == "profile" else repeated(prepare(), device, ROUNDS[what])
        except torch.OutOfMemoryError:
            slow.add(what)
            yield row | {"seconds": None, "why": "out of memory"}
            continue
        except Exception as error:  # one layer's failure must not cost the other figures of a rented GPU
            slow.add(what)
            yield row | {"seconds": None, "why": f"{what}: {type(error).__name__}: {str(error)[:300]}"}
            if device.type == "cuda":
                torch.cuda.synchronize()  # fails again where the whole context is lost
            continue
        if timing.get("times") and timing["times"][0] > SLOW:
            slow.add(what)
        yield row | timing


def _runs(part: Part, layer: nn.Module, x: Tensor) -> dict[str, Callable[[], Run]]:
    """What is measured on ``x``: how to get ready for it."""
    shape, length = part.shape, x.shape[1]
    layout = Layout(shape.grid)
    compiled = isinstance(layer, torch._dynamo.OptimizedModule)
    runs: dict[str, Callable[[], Run]] = {
        "forward": lambda: only_forward(layer, x, layout) if not compiled else compiled_forward(layer, x, layout),
        "train": lambda: step(layer, x, layout) if not compiled else compiled_step(layer, x, layout),
    }
    if part.layer in (GRAPHED if x.is_cuda else GRAPHED[:1]):
        runs["forward_graph"] = lambda: graphed(only_forward(layer, x, layout), x.device)
        runs["train_graph"] = lambda: graphed(step(layer, x, layout), x.device)
    if isinstance(layer, TTTLayer) and layer.config.fused == "require" and length == shape.profiled:
        runs["profile"] = lambda: step(layer, x, layout)
    if isinstance(layer, SequenceLayer) and length == shape.lengths[0]:
        runs["decode"] = lambda: decode(layer, x[:1], layout)
        if isinstance(layer, TTTLayer):
            runs["decode_graph"] = lambda: decode_graph(layer, x[:1], layout)
    return runs


def repeated(run: Run, device: torch.device, rounds: int) -> Row:
    """Median of ``rounds`` calls, of one that is slow, after a first one, in which kernels are compiled (on a CPU the
    first one's own time); and on a GPU the most memory that the first one's tensors held beyond those before it."""
    extra: Row = {}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    first = seconds(run, device)
    if device.type == "cuda":
        extra["peak_bytes"] = torch.cuda.max_memory_allocated() - before
    times = [seconds(run, device)] if device.type == "cuda" else []
    if times and times[0] < SLOW:
        times += [seconds(run, device) for _ in range(rounds - 1)]
    return {"seconds": statistics.median(times or [first]), "times": times, "first": first, **extra}


def profiled(run: Run, device: torch.device) -> Row:
    """Seconds of a call by kernel (on a CPU: by operation), the dearest first; together under ``seconds``."""
    cuda = device.type == "cuda"
    rounds = 3 if cuda else 1
    run()
    kinds = [torch.profiler.ProfilerActivity.CUDA if cuda else torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=kinds) as profile:
        for _ in range(rounds):
            run()
        if cuda:
            torch.cuda.synchronize()
    kernels = []
    for event in profile.key_averages():
        if cuda and event.device_type != torch.autograd.DeviceType.CUDA:
            continue
        took = (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e6 / rounds
        kernels.append({"name": event.key[:100], "calls": event.count / rounds, "seconds": took})
    kernels.sort(key=lambda kernel: kernel["seconds"], reverse=True)
    return {"seconds": sum(kernel["seconds"] for kernel in kernels), "kernels": kernels[:20]}


def compiled_forward(layer: nn.Module, x: Tensor, layout: Layout) -> Run:
    def run() -> None:
        with torch.no_grad():
            layer(x, None, layout)

    return run


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


def graphed(run: Run, device: torch.device) -> Run:
    """The same as one CUDA graph: no time for launching. (On a CPU: the same.)"""
    if device.type != "cuda":
        return run
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # kernels are compiled and gradients allocated before anything is recorded
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


@contextlib.contextmanager
def settings(name: str, what: str, device: torch.device) -> Iterator[None]:
    """Layers compute in bfloat16 on a GPU; attention whole sequences by FlashAttention (or not at all), or by cuDNN's,
    and decodes as PyTorch chooses. PyTorch's switch for float32 products, which kernels follow
    (tttvideo/ttt/kernels/README.md), lets them read tf32 in layers of half precision, bfloat16 in those called _bf16.
    """
    with contextlib.ExitStack() as stack:
        if device.type == "cuda":
            stack.enter_context(torch.autocast("cuda", torch.bfloat16))
        if name in BACKENDS and not what.startswith("decode"):
            stack.enter_context(sdpa_kernel(BACKENDS[name]))
        before = torch.get_float32_matmul_precision()
        stack.callback(torch.set_float32_matmul_precision, before)
        torch.set_float32_matmul_precision("medium" if name.endswith("_bf16") else "highest")
        yield


def matmul_rate(device: torch.device) -> float:
    """FLOPs per second of large bfloat16 products, after a second of them (on a CPU: of small float32 ones)."""
    if device.type == "cpu":
        run, flops = products(2, device)
    else:
        a = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)

        def run() -> None:
            a @ a

        flops = 2.0 * 8192**3
    began = time.perf_counter()
    while device.type == "cuda" and time.perf_counter() - began < 1:  # an idle device has a slow clock
        seconds(run, device)
    return flops / min(seconds(run, device) for _ in range(6))


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu, interpreted: no figures"


def _without(part: Part, why: str) -> Row:
    """A row that tells what a layer's other rows lack."""
    about = {"shape": part.shape.name, "layer": part.layer, "what": "rest", "length": 0, "batch": 0}
    return {**about, "seconds": None, "why": why}


def print_row(row: Row) -> None:
    took = row["why"] if row["seconds"] is None else f"{row['seconds'] * 1e3:10.2f} ms"
    print(f"{row['shape']:6} {row['layer']:18} {row['what']:8} {row['batch']:3} x {row['length']:7} {took}", flush=True)
