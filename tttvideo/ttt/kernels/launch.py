"""How kernels are launched: tile sizes, warps and grids, in one place. The figures behind the rules: README.md."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

FEW_PROGRAMS = 64
"""With fewer rows x heads than this the phases of a frame are launched one by one, with a program for every tile of
tokens or block of the state: otherwise most of a GPU of 108 or 132 multiprocessors would idle."""

FORWARD, RECOMPUTED = (1, 2, 4), (1, 2)
"""Phases of the frame kernels: of a call, and of the recomputation before a backward pass. 1 and 4 are of tiles."""


def operator(name: str) -> Callable[[Callable[..., Any]], torch.library.CustomOpDef]:
    """``torch.library.custom_op`` on the device of the first tensor: Triton launches on the current one, which may be
    another GPU."""

    def register(function: Callable[..., Any]) -> torch.library.CustomOpDef:
        @functools.wraps(function)
        def on_its_device(*arguments: Any) -> Any:
            with torch.cuda.device_of(arguments[0]):  # of a tensor on a CPU: nothing
                return function(*arguments)

        return torch.library.custom_op(name, on_its_device, mutates_args=())

    return register


TAPS = 9
"""Places that a 3 x 3 convolution sees."""


class FrameKind(NamedTuple):
    """What the launches of one inner model's frame kernels need to know.

    Attributes:
        backward: phases of the backward pass; ``tiled``: those of them that are of tiles.
        saved: numbers [N, d] and [N, F] that are kept of a frame for its backward pass, ``between`` those that go from
            one phase of the backward pass to another.
    """

    backward: tuple[int, ...]
    tiled: tuple[int, ...]
    saved: tuple[int, int]
    between: tuple[int, int]


FRAME_KINDS = {
    "linear": FrameKind((1, 2, 4, 8), (1, 4), (1, 0), (2, 0)),
    "mlp": FrameKind((1, 2, 4, 8), (1, 4), (2, 0), (2, 0)),
    "conv": FrameKind((1, 2, 4, 8, 16), (1, 4, 8), (1, 2), (1, 3)),
    "conv_depthwise": FrameKind((1, 2, 4, 8, 16), (1, 4, 8), (1, 2), (1, 3)),
}
"""By inner model; see the kernels' files."""


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
        "ACC": accumulator(dtype),
        "MODE": mode,
        "num_warps": 8,
        "num_stages": 1,  # loads of a block must not overtake the stores of the one before
    }


class Tiles(NamedTuple):
    """How frame kernels cut their products, and warps of a program.

    Attributes:
        tile: tokens at once in phases of tiles; they walk through ``block`` hidden units at a time (Linear: rows of A).
        units: hidden units at once in phases of blocks; they walk through ``span`` tokens at a time. MLP only: the
            others' blocks are ``block`` rows or one tap, and their walks ``tile`` tokens.
    """

    tile: int
    block: int
    units: int
    span: int
    warps: int


WIDE = {
    ("mlp", "bf16"): Tiles(128, 32, 128, 32, 8),
    ("mlp", "tf32"): Tiles(64, 32, 64, 32, 4),
    ("linear", "bf16"): Tiles(64, 64, 64, 64, 4),
    ("linear", "tf32"): Tiles(64, 64, 64, 64, 4),
    # what tests compute in float64
    ("mlp", "ieee"): Tiles(64, 32, 64, 32, 4),
    ("linear", "ieee"): Tiles(64, 64, 64, 64, 4),
}
"""For tensor cores that read 64 rows at once, by inner model and by what they read (README.md: what they cost)."""

WARPGROUPS = range(90, 100)
"""Compute capabilities that have such, and for which these were compiled: Hopper."""


def frame_tiles(kind: str, dim: int, hidden: int, mode: str, programs: int, frame: int, capability: int) -> Tiles:
    """For frames of ``frame`` tokens, ``programs`` rows x heads, and a device (80: sm_80). With few programs every tile
    is one of its own: there should be many, and small."""
    wide = WIDE.get((kind, mode)) if capability in WARPGROUPS and programs >= FEW_PROGRAMS and dim <= 64 else None
    if wide is not None and hidden % wide.units == 0 and 2 * frame > wide.tile:
        return wide
    block = 16 if dim in (16, 128) else 32
    # Products split in three hold three times as much: with 32 tokens the backward kernel of the MLP spilled 1,304
    # bytes, with 16 264; heads of 128 in tf32 likewise.
    large = mode == "tf32x3" or (mode, dim) == ("tf32", 128)
    tile = 16 if large and kind != "linear" else 32
    warps = 8 if kind.startswith("conv") else 4  # with 4 the convolutions spilled four times as much
    return Tiles(tile, block, block, tile, warps)


def frame_constants(kind: str, dim: int, hidden: int, mode: str, dtype: torch.dtype, tiles: Tiles) -> dict[str, Any]:
    """What the frame kernels of an inner model are compiled for."""
    constants: dict[str, Any] = {
        "D": dim,
        "F": hidden,
        "TILE": tiles.tile,
        "ACC": accumulator(dtype),
        "MODE": mode,
        "num_warps": tiles.warps,
        "num_stages": 1,
    }
    if kind.startswith("conv"):
        return constants | {"DEPTHWISE": kind == "conv_depthwise"}  # a block is one of the convolution's taps
    constants["BLOCK"] = min(tiles.block, hidden or dim)
    return constants | ({"UNITS": tiles.units, "SPAN": tiles.span} if kind == "mlp" else {})


def depthwise_constants(dim: int, dtype: torch.dtype) -> dict[str, Any]:
    """What the kernels of ``depthwise`` are compiled for."""
    return {"D": dim, "TILE": 32, "ACC": accumulator(dtype), "num_warps": 4, "num_stages": 1}


def output_constants(heads: int, dim: int, dtype: torch.dtype, gate: bool) -> dict[str, Any]:
    """What the kernels of ``output`` are compiled for: of 1,024 channels four tokens at a time."""
    width = 1 << (heads * dim - 1).bit_length()
    some = {"C": heads * dim, "D": dim, "TILE": max(1, 4096 // width), "WIDTH": width}
    return some | {"ACC": accumulator(dtype), "GATE": gate, "num_warps": 8, "num_stages": 1}


def heads_constants(
    dim: int, dtype: torch.dtype, rotate: bool, back: bool, silu: bool = False, unit: bool = False
) -> dict[str, Any]:
    """What the kernel of ``heads`` is compiled for."""
    some = {"D": dim, "TILE": 32, "ACC": accumulator(dtype), "ROTATE": rotate, "BACK": back, "SILU": silu, "UNIT": unit}
    return some | {"num_warps": 4, "num_stages": 1}


def frame_sizes(kind: str, dim: int, hidden: int, columns: int) -> tuple[int, ...]:
    """Arguments that a kernel's compiler must not know: it would unroll the walks over the state, and spill."""
    if kind.startswith("conv"):
        return TAPS, columns
    return (dim if kind == "linear" else hidden,)


def workspace(numbers: tuple[int, int], frame: int, dim: int, hidden: int) -> int:
    """Numbers of one frame and head; ``numbers`` of a ``FrameKind``."""
    return frame * (numbers[0] * dim + numbers[1] * hidden)


def frame_grid(
    kind: str, programs: int, phases: tuple[int, ...], span: tuple[int, int], frame: int, constants: dict[str, Any]
) -> Iterator[tuple[int, int, int, tuple[int, ...]]]:
    """The launches that frames ``span[0]`` ... ``span[1]`` - 1 take: first frame, last + 1, phases, grid."""
    begin, end = span
    if programs >= FEW_PROGRAMS:
        yield begin, end, sum(phases), (programs, 1)
        return
    tiles = -(-frame // constants["TILE"])
    block = constants.get("UNITS", constants.get("BLOCK"))
    blocks = TAPS + 1 if block is None else (constants["F"] or constants["D"]) // block
    backwards = phases not in (FORWARD, RECOMPUTED)
    tiled = FRAME_KINDS[kind].tiled if backwards else (1, 4)
    for c in reversed(range(begin, end)) if backwards else range(begin, end):
        for phase in phases:
            yield c, c + 1, phase, (programs, tiles if phase in tiled else blocks)


@functools.cache
def capability_of(device: torch.device) -> int:
    """90 for sm_90; the interpreter computes as Hopper would."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def contiguous(*tensors: Tensor) -> list[Tensor]:
    return [x.contiguous() for x in tensors]


def accumulator(dtype: torch.dtype) -> Any:
    """What tokens or states of ``dtype`` are computed in."""
    import triton.language as tl  # here, not above: tttvideo must import where Triton is not

    return tl.float64 if dtype == torch.float64 else tl.float32
