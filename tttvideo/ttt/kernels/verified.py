"""What was found right and faster than the eager scan on a device: ``verified.json``, which ``fused: auto`` keeps to.

``python -m benchmarks.verify`` writes the table from a run of ``benchmarks.first_gpu``; nobody edits it by hand.
"""

from __future__ import annotations

import functools
import json
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch

BOUNDS = {"tf32x3": 1e-4, "tf32": 1e-2, "bf16": 5e-2}
"""By what the products read (``choice.mode_of``): how large a kernel's error may be, of every output, state and
gradient: |x - exact| / |exact|, exact in float64 on the same tokens."""

TABLE = Path(__file__).with_name("verified.json")


class Verified(NamedTuple):
    """A kernel that kept to ``BOUNDS``, gave the same bits twice and was faster than the eager scan, forward and in a
    training step.

    Attributes:
        kernel: inner model (``choice.KINDS``); ``chunk``: "token" or "frame"; ``mode``: what its products read.
        dtype: of the tokens, "bfloat16": what the layer computes in.
        sm: compute capability (90: sm_90); ``triton``: its version, "3.6".
        dim: head dimension.
        programs: rows x heads, ``tokens``: of a row; from which on it was faster.
        error: the largest of all tensors; ``speedup``: the smallest from there on.
    """

    kernel: str
    chunk: str
    mode: str
    dtype: str
    sm: int
    triton: str
    dim: int
    programs: int
    tokens: int
    error: float
    speedup: float


@functools.cache
def table() -> tuple[Verified, ...]:
    return tuple(Verified(**row) for row in json.loads(TABLE.read_text(encoding="utf-8"))["rows"])


def why_not(kernel: str, chunk: str, mode: str, dtype: torch.dtype, sm: int, shape: tuple[int, ...]) -> str | None:
    """Why ``fused: auto`` leaves tokens of ``shape`` [B, H, T, d] and ``dtype`` to the eager scan, or None."""
    batch, heads, tokens, dim = shape
    release = ".".join(version("triton").split(".")[:2])
    tokens_in = str(dtype).removeprefix("torch.")
    rows = [row for row in table() if row[:6] == (kernel, chunk, mode, tokens_in, sm, release)]
    what = f"the {kernel} kernel for {chunk}-causal chunks, {mode} products and tokens in {tokens_in}"
    if not rows:
        return f"{what}, was not verified on sm_{sm} with Triton {release}"
    if dim not in (dims := sorted({row.dim for row in rows})):
        return f"{what}, was verified for heads of {', '.join(map(str, dims))}, not {dim}"
    if not any(batch * heads >= row.programs and tokens >= row.tokens for row in rows if row.dim == dim):
        return f"{what}, was not found faster for {batch} x {heads} rows x heads of {tokens} tokens"
    return None
