"""Ahead-of-time compilation: what every kernel configuration needs of a device, found without having one."""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}
"""Bytes that one program may take, by compute capability (CUDA C++ Programming Guide, table 'Technical
Specifications per Compute Capability')."""

_INTEGERS = {"heads", "tokens", "width", "frame", "begin", "end", "origin", "group"}
_INDICES = {"position", "lengths"}
_TOKENS = {"q", "k", "v", "out", "dout", "dq", "dk", "dv"}


class Needs(NamedTuple):
    """Of one thread (registers, stack bytes: what spills) and of one program (bytes of shared memory)."""

    registers: int
    stack: int
    shared: int


class Configuration(NamedTuple):
    """One kernel as a launcher may choose it."""

    name: str
    kernel: Any
    constants: dict[str, Any]
    tokens: torch.dtype


def compiled(configuration: Configuration, capability: int) -> Needs:
    """Compiles for sm_``capability`` and asks the binary what it needs."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, constants = configuration.kernel, dict(configuration.constants)
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages")}
    types = {name: _type(name, configuration.tokens) for name in kernel.arg_names if name not in constants}
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    # tensors begin at multiples of 16 bytes, as the launcher finds at run time
    aligned = {
        (i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if signature[name].startswith("*")
    }
    source = ASTSource(kernel, signature, constants, aligned)
    binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        report = subprocess.run([_cuobjdump(), "-res-usage", file.name], check=True, capture_output=True, text=True)
    registers, stack = (int(re.search(rf"{word}:(\d+)", report.stdout)[1]) for word in ("REG", "STACK"))  # type: ignore[index]
    return Needs(registers, stack, binary.metadata.shared)


def _type(name: str, tokens: torch.dtype) -> str:
    if name in _INTEGERS:
        return "i32"
    if name in _INDICES:
        return "*i64"
    return "*bf16" if name in _TOKENS and tokens == torch.bfloat16 else "*fp32"


@functools.cache
def _cuobjdump() -> str:
    """The one that Triton brings."""
    import triton

    (found,) = Path(triton.__file__).parent.glob("backends/nvidia/bin/cuobjdump")
    return str(found)
