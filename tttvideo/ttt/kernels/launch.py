"""How kernels are launched: tile sizes, warps and grids, in one place. The figures behind the rules: README.md."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

FEW_PROGRAMS = 64
"""With fewer rows x heads than this the phases of a frame are launched one by one, with a program for every tile of
tokens or block of hidden units: otherwise most of a GPU of 108 or 132 multiprocessors would idle."""

FORWARD_PHASES, RECOMPUTED_PHASES, BACKWARD_PHASES = (1, 2, 4), (1, 2), (1, 2, 4, 8)
"""Of ``frame_mlp``; those of tiles are 1 and 4."""


def token_constants(dim: int, hidden: int, size: int, mode: str, dtype: torch.dtype) -> dict[str, Any]:
    """What the token-causal kernels are compiled for: ``hidden`` units (0: linear), chunks of ``size`` tokens, a
    state of ``dtype``."""
    return {
        "D": dim,
        "F": hidden,
        # Narrower than dim, so that a block's gradient is wider than high: Triton then puts the warps of all products
        # of the walk side by side. Otherwise it stacks them, and each holds all columns of the chunk's few rows.
        "BLOCK": 16,
        "K": size,
        "ACC": _accumulator(dtype),
        "MODE": mode,
        "num_warps": 8,
        "num_stages": 1,  # loads of a block must not overtake the stores of the one before
    }


def frame_constants(dim: int, hidden: int, mode: str, dtype: torch.dtype) -> dict[str, Any]:
    """What the frame kernels are compiled for."""
    return {
        "D": dim,
        "F": hidden,
        "BLOCK": 32 if dim < 128 else 16,
        "TILE": 32,  # of 64 the backward kernel spilled twenty times as much
        "ACC": _accumulator(dtype),
        "MODE": mode,
        "num_warps": 4,
        "num_stages": 1,
    }


def frame_grid(
    programs: int, phases: tuple[int, ...], span: tuple[int, int], frame: int, constants: dict[str, Any]
) -> Iterator[tuple[int, int, int, tuple[int, ...]]]:
    """The launches that frames ``span[0]`` ... ``span[1]`` - 1 take: first frame, last + 1, phases, grid."""
    begin, end = span
    if programs >= FEW_PROGRAMS:
        yield begin, end, sum(phases), (programs, 1)
        return
    tiles, blocks = -(-frame // constants["TILE"]), constants["F"] // constants["BLOCK"]
    backwards = phases == BACKWARD_PHASES
    for c in reversed(range(begin, end)) if backwards else range(begin, end):
        for phase in phases:
            yield c, c + 1, phase, (programs, tiles if phase in (1, 4) else blocks)


def contiguous(*tensors: Tensor) -> list[Tensor]:
    return [x.contiguous() for x in tensors]


def _accumulator(dtype: torch.dtype) -> Any:
    import triton.language as tl  # here, not above: tttvideo must import where Triton is not

    return tl.float64 if dtype == torch.float64 else tl.float32
