"""The work of ``benchmarks.first_gpu``, a part of a stage in a process: see there.

python -m benchmarks.first_gpu_stages STAGE PART OUT LIMIT [--dry]
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import importlib.util
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import cores, gpu, measure
from benchmarks.first_gpu import Row, write
from tests.ttt.kernels import accuracy
from tests.ttt.kernels.cases import Case, case, eager, fused
from tttvideo.ttt import MLP, Conv, ConvDepthwise, DWConv, FrameCausal, Linear, TokenCausal
from tttvideo.ttt.kernels.choice import kind_of, not_interpreted
from tttvideo.ttt.kernels.launch import capability_of


class Work(NamedTuple):
    """What a part is to do: on ``device``, within ``limit`` seconds; ``stand_in``: why there are no kernels and the
    eager scan takes their place, in a dry run, or None."""

    part: int
    out: Path
    limit: float
    dry: bool
    device: torch.device
    stand_in: str | None

    @property
    def kernels(self) -> Callable[[Case, str], Any]:
        return fused if self.stand_in is None else _in_float32

    @property
    def require(self) -> str:
        return "require" if self.stand_in is None else "never"


def _in_float32(one: Case, mode: str) -> Any:
    """The eager scan where kernels cannot run: all in float32, and the output as a kernel hands it over."""
    tensors = {name: x.float() for name, x in one.tensors.items()}
    out, *state = eager(one._replace(tensors=tensors))
    return out.to(one.tensors["q"].dtype), *state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("part", type=int)
    parser.add_argument("out", type=Path)
    parser.add_argument("limit", type=float)
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args()
    if not options.dry and not torch.cuda.is_available():
        sys.exit("PyTorch sees no CUDA device here; --dry goes the same way on a CPU.")
    device = torch.device("cpu" if options.dry else "cuda")
    stand_in = not_interpreted() if options.dry else None
    work = Work(options.part, options.out, options.limit, options.dry, device, stand_in)
    about: Row = {"stage": options.stage, "part": options.part} | ({"dry": True} if options.dry else {})
    if stand_in is not None:
        about["stand_in"] = stand_in
    for row in STAGES[options.stage](work):
        write(options.out, about | row)


def versions(work: Work) -> Iterator[Row]:
    """Of everything that the figures may depend on."""
    packages = ("triton", "numpy", "timm", "av", "decord", "jsonargparse", "accelerate", "pytest", "mamba-ssm")
    installed: dict[str, str | None] = {}
    for package in (*packages, "flash-linear-attention"):
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            installed[package] = None
    about = measure.environment(work.device) | {"packages": installed, "cuda": torch.version.cuda}
    if work.device.type == "cuda":
        about |= {"sm": capability_of(work.device), "memory": torch.cuda.get_device_properties(0).total_memory}
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.used,clocks.sm", "--format=csv,noheader"]
        about["nvidia_smi"] = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    about["tools"] = {tool: shutil.which(tool) for tool in ("gcc", "compute-sanitizer", "ncu")}
    command = ["git", "rev-parse", "HEAD"]
    about["commit"] = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
    yield about


def smoke(work: Work) -> Iterator[Row]:
    """One kernel, forward and backward: whether anything runs at all."""
    return _measured(work, accuracy.TINY[0] if work.dry else accuracy.PROBLEMS[2], 0)


USUAL = 3
"""Of ``accuracy.INPUTS`` those of the stage accuracy; the others are of accuracy_float32."""


def errors(work: Work, first: int = 0) -> Iterator[Row]:
    """Errors and same bits of one problem on one kind of inputs, of which each takes up to half a minute of
    compilation; the kinds from ``first`` on. Before the first of all: of the kernels around the scan."""
    part = work.part if first else work.part - 1
    if part < 0:
        return accuracy.around(work.device.type, work.dry) if work.stand_in is None else iter(())
    if work.dry:
        return _measured(work, accuracy.TINY[1 + part], first + 1)
    kind, problem = divmod(part, len(accuracy.PROBLEMS))
    return _measured(work, accuracy.PROBLEMS[problem], first + kind)


def _measured(work: Work, problem: accuracy.Problem, kind: int) -> Iterator[Row]:
    for row in accuracy.measured(problem, work.device.type, work.kernels, (accuracy.INPUTS[kind],)):
        yield row | {"sm": capability_of(work.device)}


REPLAYED = (
    (MLP(), FrameCausal()),
    (MLP(), TokenCausal(16)),
    (Linear(), FrameCausal()),
    (Linear(), TokenCausal(16)),
    (Conv(), FrameCausal()),
)


def replays(work: Work) -> Iterator[Row]:
    """Streaming steps as CUDA graphs are the steps themselves."""
    inner, chunk = REPLAYED[-3 if work.dry else work.part]
    for autocast in (False,) if work.dry else (False, True):
        yield accuracy.replayed(inner, chunk, autocast, work.device.type, work.require)


BESIDE = (
    (MLP(), FrameCausal()),
    (MLP(), TokenCausal(16)),
    (Linear(), FrameCausal()),
    (Linear(), TokenCausal(16)),
    (Conv(), FrameCausal()),
    (ConvDepthwise(), FrameCausal()),
    (DWConv(), FrameCausal()),
)


def beside_eager(work: Work) -> Iterator[Row]:
    """Seconds of kernels and of the eager scan on the same tokens, forward and training step, with few and many rows x
    heads, short and long: from where on kernels are faster. The eager scan at PyTorch's default precision."""
    inner, chunk = BESIDE[2 if work.dry else work.part]
    grid, dim, heads = ((1, 2), 16, 1) if work.dry else ((14, 14), 64, 12)
    for rows, frames in ((1, 2),) if work.dry else ((8, 8), (1, 8), (8, 2), (1, 2)):
        tokens = frames * grid[0] * grid[1]
        given = {"dim": dim, "heads": heads, "lengths": (tokens,) * rows, "frame": grid if chunk.whole else 1}
        one = case(inner, chunk, device=work.device.type, **given, **accuracy.learning(inner))
        plain = timed(eager, accuracy.rounded(one, torch.float32), work.device)
        for mode, dtype in accuracy.INPUTS[1:2] if work.dry else accuracy.INPUTS[:USUAL]:
            row = {"kernel": kind_of(inner), "chunk": "frame" if chunk.whole else "token", "mode": mode}
            row |= {"dtype": str(dtype).removeprefix("torch.")}
            row |= {"sm": capability_of(work.device), "dim": dim, "programs": rows * heads, "tokens": tokens}
            try:
                mine = timed(lambda c, mode=mode: work.kernels(c, mode), accuracy.rounded(one, dtype), work.device)
            except Exception as error:
                yield row | {"why": f"{type(error).__name__}: {str(error)[:300]}"}
                continue
            ratios = {what: plain[what] / mine[what] for what in mine}
            yield row | {"kernels": mine, "eager": plain, "speedup": min(ratios.values())}


def timed(run: Callable[[Case], Any], one: Case, device: torch.device) -> dict[str, float]:
    """Median seconds of a forward pass and of one with all gradients."""
    leaves = list(one.leaves.values())

    def forward() -> None:
        with torch.no_grad():
            run(one)

    def train() -> None:
        torch.autograd.grad(run(one)[0].sum(), leaves, allow_unused=True)

    medians = {}
    for name, call in (("forward", forward), ("train", train)):
        measure.seconds(call, device)  # compiles
        rounds = range(1 if device.type == "cpu" else 3)
        medians[name] = statistics.median(measure.seconds(call, device) for _ in rounds)
    return medians


def operators(work: Work) -> Iterator[Row]:
    """Kernels alone beside FlashAttention and others' operators (benchmarks.cores)."""
    return layers_named(work, cores.DRY if work.dry else cores.CORES, "cores")


def layers(work: Work) -> Iterator[Row]:
    """Whole layers (benchmarks.gpu)."""
    everything = dict.fromkeys(part.layer for part in gpu.parts(work.dry) if part.layer not in cores.CORES)
    return layers_named(work, ("linear_attention",) if work.dry else tuple(everything), "layers")


def layers_named(work: Work, names: tuple[str, ...], stage: str) -> Iterator[Row]:
    """Rows are written by the benchmark itself, as they come."""
    about = {"stage": stage, "part": work.part} | ({"dry": True} if work.dry else {})
    figures = gpu.measure(work.dry, work.limit - 5, work.out / "rows.jsonl", names, about)
    yield {"matmul_flops_per_second": figures["matmul_flops_per_second"], "summary": figures["summary"]}


def training(work: Work) -> Iterator[Row]:
    """200 steps in bfloat16: with kernels, by the eager scan, and on the CPU."""
    from benchmarks.first_training import curve  # here: the stages before it need no encoder, and no timm

    how = ("kernels", "eager", "cpu")[work.part]
    device = torch.device("cpu") if how == "cpu" else work.device
    count, losses = (2, []) if work.dry else (200, [])
    began = time.time()
    for step, loss in enumerate(curve(work.require if how == "kernels" else "never", device, count, work.dry)):
        losses.append(loss)
        if (step + 1) % 20 == 0 or step + 1 == count:
            yield {"how": how, "step": step + 1, "losses": losses, "seconds": round(time.time() - began, 2)}


def steps(work: Work) -> Iterator[Row]:
    """Training steps: plain, with compiled modules, and as one CUDA graph; with kernels, and by the eager scan."""
    from benchmarks.first_steps import TRAINERS, measured

    fused, how = divmod(work.part, len(TRAINERS))
    count = 2 if work.dry else 40
    return measured(list(TRAINERS)[how], "never" if fused else work.require, work.device, count, work.dry)


def files(work: Work) -> Iterator[Row]:
    """``train.py`` on MP4 files that are made here, in bfloat16, with kernels and without."""
    missing = [name for name in ("av", "jsonargparse", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        yield {"why": f"not installed: {', '.join(missing)}"}
        return
    counts = "train=8,val=6" if work.dry else "train=480,val=60"
    with tempfile.TemporaryDirectory() as folder:
        videos = f"{folder}/videos"
        make = [sys.executable, "-m", "tttvideo", "make-data", "flash-order", "--out", videos]
        yield command([*make, "--split", counts], "make-data")
        for how in ("never",) if work.dry else (work.require, "never"):
            mixer = {"inner": "MLP", "heads": "2", "fused": how}
            words = [sys.executable, "train.py", "--config", "configs/demo.yaml", "--data.root", videos]
            words += [
                "--out",
                f"{folder}/{how}",
                "--precision",
                "fp32" if work.dry else "bf16",
                "--schedule.epochs",
                "1",
            ]
            words += [word for name, value in mixer.items() for word in (f"--model.backbone.mixer.{name}", value)]
            yield command(words, f"train.py, fused {how}")


def command(words: list[str], what: str) -> Row:
    began = time.time()
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    last = (ended.stdout + ended.stderr).strip().splitlines()[-8:]
    return {"what": what, "exit_code": ended.returncode, "seconds": round(time.time() - began, 1), "last": last}


STAGES: dict[str, Callable[[Work], Iterator[Row]]] = {
    "versions": versions,
    "smoke": smoke,
    "accuracy": errors,
    "accuracy_float32": functools.partial(errors, first=USUAL),
    "replays": replays,
    "beside_eager": beside_eager,
    "cores": operators,
    "layers": layers,
    "training": training,
    "steps": steps,
    "files": files,
}

if __name__ == "__main__":
    main()
