"""Bytes that a layer moves around its scan, counted without a GPU and without values:

    python -m benchmarks.around [--json FILE]

Every operation of a call, and of a training step, counts what it reads and writes: matrix products, the kernels'
operators and PyTorch's own. The scan's operators are left out, views and new memory cost nothing. A layer of 768
channels and 12 heads, frames of 14 x 14 tokens, float32 in and bfloat16 inside as under autocast (``benchmarks.gpu``'s
video shape); the figures are the difference between 8 and 4 frames, kB a token. L2 is taken to hold nothing, so that
this is an upper bound of what memory gives.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton decides when it is imported; nothing is run

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tttvideo.ttt import MLP, TTT, FrameCausal, Layout

GRID, CHANNELS, ROWS = (14, 14), 768, 4


class Traffic(TorchDispatchMode):
    """kB that operations read and write, by name."""

    def __init__(self):
        super().__init__()
        self.kilobytes: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        name = function._schema.name
        space, operation = name.split("::")
        moves = not (function.is_view or operation.startswith(("empty", "new_", "detach", "_unsafe_view")))
        if space in ("aten", "tttvideo") and moves:
            tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)]
            self.kilobytes[operation] += sum(x.numel() * x.element_size() for x in tensors) / 1000
        return out


def moved(config: TTT, frames: int, train: bool, dtype: torch.dtype) -> Counter[str]:
    """By a call, or a training step, of rows of ``frames`` frames in ``dtype``."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        layer = config.build(CHANNELS)
        layer._ages = lambda *_: [0] * ROWS  # the state's, which has no values here
        x = torch.empty(ROWS, frames * GRID[0] * GRID[1], CHANNELS, dtype=dtype, requires_grad=train)
        state = layer.init_state(ROWS)
        with Traffic() as traffic:
            with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(train):
                y, _ = layer(x, state, Layout(GRID))
            if train:
                y.backward(torch.empty_like(y))
    return traffic.kilobytes


def per_token(config: TTT, train: bool, dtype: torch.dtype = torch.float32) -> dict[str, float]:
    """kB a token, by operation, the scan's left out; those of more than 0.05 kB."""
    few, many = (moved(config, frames, train, dtype) for frames in (4, 8))
    tokens = 4 * GRID[0] * GRID[1] * ROWS
    each = {name: (many[name] - few[name]) / tokens for name in many if not name.startswith("frame_causal")}
    return {name: round(value, 2) for name, value in sorted(each.items(), key=lambda i: -i[1]) if value > 0.05}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for gate in (False, True):
        config = TTT(MLP(), 12, FrameCausal(), gate=gate, fused="require")
        for train in (False, True):
            by = per_token(config, train)
            row = {"gate": gate, "train": train, "kB_per_token": round(sum(by.values()), 1), "by_operation": by}
            row["of_products"] = round(by["mm"] + by["addmm"], 1)
            rows.append(row)
            print(json.dumps(row))
    if options.json:
        about = {"date": date.today().isoformat(), "torch": torch.__version__}
        options.json.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
