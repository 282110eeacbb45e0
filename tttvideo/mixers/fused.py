"""Kernels of mamba-ssm and flash-linear-attention, which serve in place of plain PyTorch where they can.

They do where their package is installed, for tokens on a GPU in float32 or less. Elsewhere, in float64, and in what
``torch.compile`` or ``torch.export`` traces, the plain form serves. Both multiply float32 in TF32 unless Triton is
told otherwise (``TRITON_F32_DEFAULT=ieee``), so the two forms agree to about three digits, not to rounding. Under
autocast, and in a layer of half precision, they multiply that type; states are float32 all the same.

NOT RUN ON A GPU HERE: the calls are written after the packages' documentation, and tests hold them to it with
stand-ins of the same signatures in plain PyTorch.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)


Scan = Callable[..., tuple[Tensor, Tensor]]
"""Takes what the plain form takes, and gives what it gives: outputs and last state."""


def mamba(x: Tensor, dtype: torch.dtype) -> Scan | None:
    """What computes ``mamba.selective_scan`` of x [B, H, T, d] by mamba-ssm's kernel, with products in ``dtype``; None:
    use the plain form."""
    kernel = _find("mamba_ssm.ops.triton.ssd_combined", "mamba_chunk_scan_combined") if _fits(x) else None
    return None if kernel is None else functools.partial(_mamba, kernel, dtype)


def linear_attention(q: Tensor, unit: int, dtype: torch.dtype) -> Scan | None:
    """What computes ``linear_attention.attend`` of q [B, H, T, d] by flash-linear-attention's kernel, with products in
    ``dtype``; None: use the plain form.

    The kernel knows tokens only, not frames whose tokens see each other, and takes inputs of fewer tokens than heads
    for a mistake.
    """
    fits = _fits(q) and unit == 1 and q.shape[2] >= q.shape[1]
    kernel = _find("fla.ops.linear_attn", "chunk_linear_attn") if fits else None
    return None if kernel is None else functools.partial(_linear_attention, kernel, dtype)


def gated_delta_rule(q: Tensor, dtype: torch.dtype) -> Scan | None:
    """What computes ``gated_delta_net.gated_delta_rule`` of q [B, H, T, d] by flash-linear-attention's kernel, with
    products in ``dtype``; None: use the plain form. The kernel has heads of at most 256."""
    kernel = _find("fla.ops.gated_delta_rule", "chunk_gated_delta_rule") if _fits(q) and q.shape[3] <= 256 else None
    return None if kernel is None else functools.partial(_gated_delta_rule, kernel, dtype)


def _mamba(
    kernel: Any,
    dtype: torch.dtype,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    state: Tensor,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """Tokens come before heads in the kernel, B and C have an axis of groups of heads, and it reads x times dt."""
    y, state = kernel(
        x.transpose(1, 2).to(dtype),
        dt.mT,
        A,
        B[:, :, None].to(dtype),
        C[:, :, None].to(dtype),
        max(16, 1 << (chunk - 1).bit_length()),  # its blocks are powers of 2
        D=D,
        initial_states=state,
        return_final_states=True,
    )
    return y.transpose(1, 2).to(x.dtype), state.to(x.dtype)


def _linear_attention(
    kernel: Any, dtype: torch.dtype, q: Tensor, k: Tensor, v: Tensor, sums: Tensor, chunk: int, unit: int
) -> tuple[Tensor, Tensor]:
    """Tokens come before heads in the kernel, which would scale scores by d**-0.5 and normalise them, forgetting the
    initial state; it chooses its own chunks."""
    out, sums = kernel(
        *(t.transpose(1, 2).to(dtype) for t in (q, k, v)),
        scale=1.0,
        initial_state=sums,
        output_final_state=True,
        normalize=False,
    )
    return out.transpose(1, 2).to(q.dtype), sums


def _gated_delta_rule(
    kernel: Any,
    dtype: torch.dtype,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor,
    state: Tensor,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """Tokens come before heads in the kernel, which scales by d**-0.5 itself and chooses its own chunks."""
    y, state = kernel(
        *(t.transpose(1, 2).to(dtype) for t in (q, k, v)),
        log_decay.mT,
        beta.mT,
        initial_state=state,
        output_final_state=True,
    )
    return y.transpose(1, 2).to(q.dtype), state


def _fits(x: Tensor) -> bool:
    return _on_gpu(x) and x.dtype != torch.float64 and x.numel() > 0 and not torch.compiler.is_compiling()


def _on_gpu(x: Tensor) -> bool:
    return x.is_cuda


@functools.cache
def _find(module: str, name: str) -> Any | None:
    """The function ``name`` of ``module``, which is imported here for the first time; None if it cannot be had. The
    log says, once, which form serves."""
    package = module.split(".", 1)[0]
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:  # a build for another PyTorch, Triton or driver fails in ways of its own
        absent = isinstance(error, ModuleNotFoundError) and error.name == package
        level = logging.INFO if absent else logging.WARNING
        log.log(level, "Plain PyTorch serves in place of %s, which cannot be imported (%s).", name, error)
        return None
    head_first = inspect.signature(function).parameters.get("head_first")
    if head_first is not None and head_first.default is True:  # flash-linear-attention of 2024
        log.warning("Plain PyTorch serves in place of %s, which has its axes as older releases do.", name)
        return None
    log.info("%s of %s serves.", name, package)
    return function
