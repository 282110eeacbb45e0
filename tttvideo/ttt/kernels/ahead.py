"""Ahead-of-time compilation: what every kernel configuration needs of a device, found without having one."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .choice import CONV_DIMS, HEAD_DIMS, LARGEST_CHUNK, LARGEST_FRAME, chunks_of
from .launch import (
    FEW_PROGRAMS,
    FORWARD,
    FRAME_KINDS,
    RECOMPUTED,
    depthwise_constants,
    frame_constants,
    frame_tiles,
    heads_constants,
    output_constants,
    token_constants,
)

SHARED_MEMORY = {80: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
"""Bytes that one program may take, by compute capability (CUDA C++ Programming Guide, table 'Technical
Specifications per Compute Capability'). sm_80 itself has 163 kB; what is compiled for it also runs on sm_86 and sm_89,
which have 99."""

_INTEGERS = {"tokens", "width", "taps", "columns", "frame", "begin", "end", "origin", "group", "per_row", "rows"}
_INDICES = {"position", "lengths"}
_TOKENS = {
    "q",
    "k",
    "v",
    "out",
    "dout",
    "dq",
    "dk",
    "dv",
    "x",
    "y",
    "dy",
    "gate",
    "dgate",
    "dheads",
    "source",
    "target",
}

HEADS = 12
"""Of the layers whose channels the kernels of ``output`` are compiled for."""


STACK = {"token": 8192, "frame": 1024}
"""Bytes of stack per thread that a kernel may spill. README.md says why these."""


class Needs(NamedTuple):
    """Of one thread (registers, stack bytes: what spills) and of one program (bytes of shared memory)."""

    registers: int
    stack: int
    shared: int


class Configuration(NamedTuple):
    """One kernel as a launcher may choose it."""

    name: str
    kind: str  # token or frame
    kernel: Any
    constants: dict[str, Any]
    tokens: str = "fp32"  # what tokens are: fp32 or bf16 (fp16 takes as much as bf16)

    def halved(self) -> Configuration:
        """The same for a layer in bfloat16."""
        return self._replace(name=f"{self.name}, bf16 tokens", tokens="bf16")


def token_configurations(kind: str, dim: int, size: int, mode: str) -> Iterator[Configuration]:
    """All that ``token_causal`` launches for heads of ``dim``, chunks of ``size`` and an MLP four times as wide."""
    from . import ttt_linear, ttt_mlp

    kernels, hidden = (ttt_mlp, 4 * dim) if kind == "mlp" else (ttt_linear, 0)
    constants = token_constants(dim, hidden, size, mode, torch.float32)
    label = f"{'MLP' if hidden else 'Linear'} K={size} d={dim} {mode}"
    for carried in (False, True):
        some = {**constants, "CARRIED": carried}
        end = ", chunk open before" if carried else ""
        yield Configuration(f"{label} forward{end}", "token", kernels.forward_kernel, {**some, "SAVE": False})
        yield Configuration(f"{label} recompute{end}", "token", kernels.forward_kernel, {**some, "SAVE": True})
        yield Configuration(f"{label} backward{end}", "token", kernels.backward_kernel, some)


def frame_configurations(kind: str, dim: int, mode: str, capability: int) -> Iterator[Configuration]:
    """All that ``frame_causal`` launches for heads of ``dim``: an MLP four times as wide, a ``Conv`` as wide. Phases
    that are launched one by one are of few heads."""
    from .frame_causal import frame_kernels

    hidden = {"linear": 0, "mlp": 4 * dim}.get(kind, dim)
    wider = max(hidden, 128) if kind == "mlp" else hidden  # heads of 16: wide tiles need so many hidden units
    few = frame_tiles(kind, dim, hidden, mode, 1, LARGEST_FRAME, capability)
    small = frame_tiles(kind, dim, hidden, mode, FEW_PROGRAMS, 1, capability)  # many heads, but frames of one token
    large = frame_tiles(kind, dim, wider, mode, FEW_PROGRAMS, LARGEST_FRAME, capability)
    for way, phases, more in (
        ("forward", FORWARD, {"SAVE": False}),
        ("recompute", RECOMPUTED, {"SAVE": True}),
        ("backward", FRAME_KINDS[kind].backward, {}),
    ):
        kernels = frame_kernels(kind)
        kernel = kernels.backward_kernel if way == "backward" else kernels.forward_kernel
        launched = [(f"phase {phase}", phase, few, hidden) for phase in phases]
        launched += [("all phases", sum(phases), small, hidden)]
        launched += [("all phases, wide", sum(phases), large, wider)] if large != small else []
        for name, some, tiles, width in launched:
            constants = frame_constants(kind, dim, width, mode, torch.float32, tiles)
            label = f"{kind} frames d={dim} {mode} {way} {name}"
            yield Configuration(label, "frame", kernel, {**constants, **more, "PHASES": some})


def cumulative_configurations(dim: int) -> Iterator[Configuration]:
    """What ``DWConv`` launches."""
    from . import depthwise_kernels as kernels

    for name, kernel in (("convolve", kernels.convolve_kernel), ("correlate", kernels.correlate_kernel)):
        yield Configuration(f"dwconv {name} d={dim}", "frame", kernel, depthwise_constants(dim, torch.float32))


def heads_configurations(dim: int) -> Iterator[Configuration]:
    """What stands between projections and kernels, either way."""
    from .heads_kernels import heads_kernel

    for rotate, bent, back in itertools.product((True, False), (False, True), (False, True)):
        label = f"heads {'merged' if back else 'split'}{', rotated' * rotate}{', SiLU and length' * bent} d={dim}"
        constants = heads_constants(dim, torch.float32, rotate, back, bent, bent)
        yield Configuration(label, "frame", heads_kernel, constants)


def output_configurations(dim: int) -> Iterator[Configuration]:
    """What stands between kernels and the last projection, either way."""
    from .output_kernels import backward_kernel, forward_kernel

    for gate in (False, True):
        constants = output_constants(HEADS, dim, torch.float32, gate)
        label = f"output{', gate' * gate} d={dim}"
        yield Configuration(f"{label} forward", "frame", forward_kernel, constants)
        yield Configuration(f"{label} backward", "frame", backward_kernel, constants)


def configurations(dims: Sequence[int], capability: int) -> Iterator[Configuration]:
    """All that the launchers choose on a GPU of sm_``capability``: MLPs four times as wide as their heads, ``Conv`` as
    wide; tokens in bfloat16 and in float32 (products split in three: in float32)."""
    for dim in dims:
        for around in (cumulative_configurations, heads_configurations, output_configurations):
            for one in around(dim):
                yield from (one, one.halved())
        for mode in ("bf16", "tf32", "tf32x3"):
            for one in _scans(dim, mode, capability) if dim in HEAD_DIMS[mode] else ():
                yield from (one,) if mode == "tf32x3" else (one.halved(), one)


def _scans(dim: int, mode: str, capability: int) -> Iterator[Configuration]:
    for kind in FRAME_KINDS:
        if dim in CONV_DIMS or not kind.startswith("conv"):
            yield from frame_configurations(kind, dim, mode, capability)
    for kind in LARGEST_CHUNK:
        for size in chunks_of(kind, dim, mode):
            yield from token_configurations(kind, dim, size, mode)


def compiled(configuration: Configuration, capability: int) -> Needs:
    """Compiles for sm_``capability`` and asks the binary what it needs."""
    binary = build(configuration, capability)
    report = disassembled(binary, "-res-usage")
    registers, stack = (int(re.search(rf"{word}:(\d+)", report)[1]) for word in ("REG", "STACK"))  # type: ignore[index]
    return Needs(registers, stack, binary.metadata.shared)


def build(configuration: Configuration, capability: int) -> Any:
    """Triton's compiled kernel for sm_``capability``."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, constants = configuration.kernel, dict(configuration.constants)
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages")}
    types = {name: _type(name, configuration) for name in kernel.arg_names if name not in constants}
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    # tensors begin at multiples of 16 bytes, as the launcher finds at run time
    aligned = {
        (i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if signature[name].startswith("*")
    }
    source = ASTSource(kernel, signature, constants, aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def disassembled(binary: Any, what: str) -> str:
    """What cuobjdump says of a compiled kernel: ``-res-usage``, ``-sass``."""
    import triton

    (tools,) = Path(triton.__file__).parent.glob("backends/nvidia/bin")  # the ones that Triton brings
    search = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}"}  # cuobjdump calls nvdisasm
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        command = [str(tools / "cuobjdump"), what, file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True, env=search).stdout


def _type(name: str, configuration: Configuration) -> str:
    """What the layer hands over: weights, states and sums are float32."""
    if name == "heads":  # of output's kernels: the tokens; else their number
        return f"*{configuration.tokens}" if "WIDTH" in configuration.constants else "i32"
    if name in _TOKENS and not (name == "y" and configuration.name.startswith("dwconv correlate")):
        return f"*{configuration.tokens}"
    return "i32" if name in _INTEGERS else "*i64" if name in _INDICES else "*fp32"
