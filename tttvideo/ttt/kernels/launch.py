"""How kernels are launched: tile sizes and warps, in one place. The figures behind the rules stand in README.md."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def block_of(dim: int, hidden: int, size: int, backward: bool) -> int:
    """Hidden units per block of the walks through the MLP: a power of two that divides ``hidden``."""
    return min(hidden & -hidden, 32)


def warps_of(dim: int, hidden: int, size: int, backward: bool) -> int:
    return 8


def contiguous(*tensors: Tensor) -> list[Tensor]:
    return [x.contiguous() for x in tensors]


def triton_name(dtype: torch.dtype) -> Any:
    import triton.language as tl

    return tl.float64 if dtype == torch.float64 else tl.float32


FEW_PROGRAMS = 64
"""With fewer rows x heads than this the phases of a frame are launched one by one, with a program for every tile of
tokens or block of hidden units: otherwise most of a GPU of 108 or 132 multiprocessors would idle."""


def frame_tiles(dim: int, hidden: int, frame: int, mode: str) -> dict[str, int]:
    """Tokens per tile, hidden units per block and warps of the frame kernels."""
    tile = 16
    while tile < min(frame, 64):
        tile *= 2
    return {"TILE": tile, "BLOCK": block_of(dim, hidden, tile, True), "num_warps": 8}


def frame_grid(
    programs: int,
    phases: tuple[int, ...],
    span: tuple[int, int, int],
    frame: int,
    hidden: int,
    constants: dict[str, Any],
    backwards: bool = False,
) -> Iterator[tuple[int, int, int, tuple[int, ...]]]:
    """The launches that frames ``span[0]`` ... ``span[1]`` - 1 take: first frame, last + 1, phases, grid."""
    begin, end, _ = span
    if programs >= FEW_PROGRAMS:
        yield begin, end, sum(phases), (programs, 1)
        return
    tiles, blocks = -(-frame // constants["TILE"]), hidden // constants["BLOCK"]
    for c in reversed(range(begin, end)) if backwards else range(begin, end):
        for phase in phases:
            yield c, c + 1, phase, (programs, tiles if phase in (1, 4) else blocks)
