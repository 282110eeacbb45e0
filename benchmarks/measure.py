"""Time, memory, FLOPs and the machine's own rate of matrix products."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tttvideo.ttt.interface import Layout, SequenceLayer

Run = Callable[[], Any]


def keep_memory() -> bool:
    """Lets glibc keep freed memory for the next allocation, as PyTorch does by itself on a GPU; true if it could.

    Otherwise large tensors come fresh from the operating system in every step, and on a virtual machine a figure says
    more about page faults (up to 10 microseconds for 4 kB) than about the layer.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    mmap_max, trim_threshold = -4, -1
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(mmap_max, 0) and libc.mallopt(trim_threshold, -1))


def read_lengths(parser: argparse.ArgumentParser, option: str, text: str) -> list[int]:
    """ "64,16" as [16, 64]; the parser's error, which ends the program, where one of them is no positive number."""
    words = text.split(",")
    if not all(word.strip().isdecimal() and int(word) > 0 for word in words):
        parser.error(f"{option} takes positive numbers, separated by commas, not {text!r}")
    return sorted(map(int, words))


def seconds(run: Run, device: torch.device) -> float:
    """Wall time of one call."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        run()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1e3
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def step(layer: nn.Module, x: Tensor, layout: Layout = Layout()) -> Run:
    """Forward and backward, to the input and to all parameters."""
    leaf = x.clone().requires_grad_()

    def run() -> None:
        layer.zero_grad()
        leaf.grad = None
        output(layer, leaf, layout).sum().backward()

    return run


def only_forward(layer: nn.Module, x: Tensor, layout: Layout = Layout()) -> Run:
    def run() -> None:
        with torch.no_grad():
            output(layer, x, layout)

    return run


def output(layer: nn.Module, x: Tensor, layout: Layout) -> Tensor:
    return layer(x, None, layout)[0] if isinstance(layer, SequenceLayer) else layer(x)


def in_turn(
    runs: dict[str, Run], rounds: int, device: torch.device, budget: float = math.inf
) -> dict[str, list[float]]:
    """Seconds of ``rounds`` calls of each, one after the other in every round, so that a drift of the machine's speed
    meets all of them. A round before is a warm-up; none begins after ``budget`` seconds, once one was counted."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    began = time.perf_counter()
    for done in range(rounds + 1):
        if done > 1 and time.perf_counter() - began > budget:
            break
        for name, run in runs.items():
            times[name].append(seconds(run, device))
    return {name: seconds_of[1:] for name, seconds_of in times.items()}


def ratio(slow: list[float], fast: list[float]) -> float:
    """Median of the ratios of times taken in the same round."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def products(heads: int, device: torch.device) -> tuple[Run, float]:
    """The products that TTT-MLP is made of, [heads, 64, 64] x [heads, 64, 256], some of them; and their FLOPs."""
    a, b = torch.randn(heads, 64, 64, device=device), torch.randn(heads, 64, 256, device=device)
    count = 50 if device.type == "cpu" else 1000

    def run() -> None:
        for _ in range(count):
            torch.bmm(a, b)

    return run, count * 2.0 * heads * 64 * 64 * 256


def peak_bytes(run: Run, device: torch.device) -> int:
    """The most memory that tensors held at one time during the call, beyond what was held before.

    On a CPU from PyTorch's own profiler, which records every allocation and release of its allocator, temporary ones
    inside operations included; on a GPU from its allocator.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with _quiet(), torch.profiler.profile(profile_memory=True) as profile:
        run()
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = most = 0
    for _, change in changes:
        held += change
        most = max(most, held)
    return most


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The profiler's C++ log, which complains of a missing GPU, goes nowhere."""
    sys.stderr.flush()
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


def counted_flops(run: Run) -> int:
    """Of matrix products, convolutions and attention, forward and backward, as PyTorch counts them."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def processor_seconds(run: Callable[[], object]) -> float:
    """Processor time of a call, of all threads of this process."""
    began = time.process_time()
    run()
    return time.process_time() - began


def environment(device: torch.device) -> dict[str, Any]:
    name = platform.processor() or platform.machine()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif (info := Path("/proc/cpuinfo")).exists():
        models = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        name = models[0] if models else name
    return {
        "device": device.type,
        "name": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
        "load_before": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
    }
