"""What a frame costs a multiprocessor at least, read from the compiled kernels: needs no GPU.

    python -m benchmarks.cycles [--tokens 256] [--only mlp] [--json FILE]

Every instruction of a phase counts as often as the loops around it turn (one frame of one head, d = 64, F = 256).
Four bounds follow for one multiprocessor of sm_90, in cycles; the largest of them is the least that the phase can take:

    issue    four warps issue one instruction each a cycle
    tensor   4,096 bf16 operations a cycle (tf32: half); instructions of the older kind (mma.sync) reach 62 % of that
    shared   128 bytes a cycle from and to shared memory or L1, what tensor cores read there themselves included
    special  16 exponentials, reciprocals, square roots a cycle

Beside them stand counts of one frame: barriers (of a program's threads), and kilobytes that loads and stores of global
memory ask for, which L1 and L2 hold in part.

The phases are compiled one by one, also those that are launched as one kernel: that one spills more.

Not counted: waiting, bank conflicts, what L2 and memory give. A bound is no measurement; it says which of two kernels
cannot be fast. Rates: NVIDIA H100 whitepaper (tables of the SM); 62 %: Luo et al., arXiv 2402.13499.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton

from tttvideo.ttt.kernels import ahead, launch

DIM, CAPABILITY = 64, 90
TENSOR_FLOPS, OLDER = 4096, 0.62
"""Dense bf16 operations of a multiprocessor a cycle; the share of them that mma.sync reaches."""
BOUNDS = ("issue", "tensor", "shared", "special")
COUNTS = ("barriers", "global_kB")


class Instruction(NamedTuple):
    """Where it stands, its name with suffixes, its operands."""

    address: int
    name: str
    operands: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=256, help="of a frame")
    parser.add_argument("--only", default="", help="rows whose name has this in it (mlp bf16)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    rows = list(measured(options.tokens, options.only))
    print(table(rows))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        about = {"tokens": options.tokens, "triton": triton.__version__, "date": date.today().isoformat()}
        options.json.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")


def measured(tokens: int, only: str = "") -> Iterator[dict[str, Any]]:
    """A row for every pass of the frame kernels, with narrow and with wide tiles."""
    for kind, mode, wide in itertools.product(("mlp", "linear"), ("bf16", "tf32"), (False, True)):
        for way in ("forward", "recompute", "backward"):
            if only not in f"{kind} {mode} {way}":
                continue
            total = dict.fromkeys(BOUNDS + COUNTS, 0.0)
            for figures in phases(kind, mode, way, tokens, wide):
                total = {name: total[name] + figures[name] for name in total}
            row = {"kernel": f"{kind} {mode} {way}", "tiles": "wide" if wide else "narrow"}
            yield row | {name: round(value) for name, value in total.items()}


def phases(kind: str, mode: str, way: str, tokens: int, wide: bool) -> Iterator[dict[str, float]]:
    """The bounds and counts of each phase."""
    programs = launch.FEW_PROGRAMS if wide else 1
    hidden = 4 * DIM if kind == "mlp" else 0
    tiles = launch.frame_tiles(kind, DIM, hidden, mode, programs, tokens, CAPABILITY)
    if wide and tiles not in launch.WIDE.values():
        sys.exit(f"Frames of {tokens} tokens have no wide tiles; --tokens 65 or more.")
    sizes = launch.frame_constants(kind, DIM, hidden, mode, torch.float32, tiles)
    for one in ahead.frame_configurations(kind, DIM, mode, CAPABILITY):
        if f" {way} phase" not in one.name:
            continue
        phase = one.constants["PHASES"]
        one = one._replace(constants=one.constants | sizes)
        in_tiles = (math.ceil(tokens / tiles.tile), (hidden or DIM) // sizes["BLOCK"])
        units, span = sizes.get("UNITS", sizes["BLOCK"]), sizes.get("SPAN", tiles.tile)
        in_blocks = ((hidden or DIM) // units, math.ceil(tokens / span))
        tiled = launch.FRAME_KINDS[kind].tiled if way == "backward" else (1, 4)
        code = instructions(ahead.disassembled(ahead.build(one, CAPABILITY), "-sass"))
        yield bounds(code, (1, *(in_tiles if phase in tiled else in_blocks)), tiles.warps, tiles.tile // 16)


def instructions(sass: str) -> list[Instruction]:
    line = r"/\*([0-9a-f]{4,5})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.x]*)([^;]*);"
    return [Instruction(int(at, 16), name, rest) for at, name, rest in re.findall(line, sass)]


def bounds(code: list[Instruction], trips: tuple[int, ...], warps: int, rows: int = 1) -> dict[str, float]:
    """Cycles by what bounds them, and counts. ``trips``: turns of the loops, outermost first. Of loops without matrix
    products the innermost turn ``rows`` times (a tile's tokens, 16 at a time); others (the copy of a state to be kept)
    are left out.
    """
    nest = loops(code)
    products = [one.address for one in code if one.name.startswith(("HMMA", "HGMMA"))]
    idle = [(first, last) for first, last in nest if not any(first <= at <= last for at in products)]
    figures = dict.fromkeys(BOUNDS + COUNTS, 0.0)
    for one in code:
        around = [loop for loop in nest if loop[0] <= one.address <= loop[1]]
        if one.name == "NOP" or (around and around[-1] in idle and len(around) < len(trips)):
            continue
        turns = [rows if loop in idle else turn for loop, turn in zip(around, trips, strict=False)]
        times = warps * math.prod(turns)
        figures["issue"] += times / 4
        figures["tensor"] += times * product_cycles(one)
        figures["shared"] += times * bytes_moved(one) / 128
        figures["special"] += times * (2 if one.name.startswith("MUFU") else 0)
        figures["barriers"] += math.prod(turns) if one.name.startswith("BAR.") else 0
        figures["global_kB"] += times * bytes_moved(one) / 1000 if one.name.startswith(("LDG", "STG")) else 0
    return figures


def loops(code: list[Instruction]) -> list[tuple[int, int]]:
    """First and last address of each: where a branch goes back to, and the last that does."""
    ends: dict[int, int] = {}
    for one in code:
        target = re.search(r"0x([0-9a-f]+)", one.operands) if one.name.startswith("BRA") else None
        if target and int(target[1], 16) < one.address:
            ends[int(target[1], 16)] = max(ends.get(int(target[1], 16), 0), one.address)
    return sorted(ends.items())


def product_cycles(one: Instruction) -> float:
    """Of one warp's instruction."""
    slower = 2 if "TF32" in one.name else 1
    if one.name.startswith("HGMMA"):  # of four warps together: 64 rows
        columns, inner = map(int, re.findall(r"64x(\d+)x(\d+)", one.name)[0])
        return slower * 2 * 64 * columns * inner / TENSOR_FLOPS / 4
    if one.name.startswith("HMMA"):
        inner = int(re.findall(r"\.168(\d+)\.", one.name + ".")[0])  # 16 rows, 8 columns
        return slower * 2 * 16 * 8 * inner / TENSOR_FLOPS / OLDER
    return 0


def bytes_moved(one: Instruction) -> int:
    """By one warp, from and to shared memory or L1."""
    if one.name.startswith("HGMMA"):  # of four warps together; the left operand may stand in registers
        columns, inner = map(int, re.findall(r"64x(\d+)x(\d+)", one.name)[0])
        _, left, *_ = one.operands.split(",")
        rows = 64 if "gdesc" in left else 0
        return (rows + columns) * inner * (4 if "TF32" in one.name else 2) // 4
    if one.name.startswith(("LDSM", "STSM")):
        matrices = re.search(r"\.([24])$", one.name)
        return 128 * (int(matrices[1]) if matrices else 1)
    if one.name.startswith(("LDS", "STS", "LDG", "STG", "LDL", "STL")):
        return 32 * (16 if ".128" in one.name else 8 if ".64" in one.name else 4)
    return 0


def table(rows: list[dict[str, Any]]) -> str:
    columns = BOUNDS + COUNTS
    lines = ["| kernel | tiles | " + " | ".join(columns) + " |", "|---|---|" + "---|" * len(columns)]
    lines += [
        f"| {row['kernel']} | {row['tiles']} | " + " | ".join(f"{row[name]:,}" for name in columns) + " |"
        for row in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
