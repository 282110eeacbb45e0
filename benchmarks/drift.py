"""Long runs of the hidden state: does it stay bounded, and how far does it drift from float64?

    python -m benchmarks.drift [--updates 100000] [--only NAME] [--json FILE]

The input is a random walk, normalised at every step, so that neighbouring tokens are alike as in a video. Every token
is one inner update (chunks of one token). The layer reads it three times, with the same weights and inputs: in
float64, in float32 and under bf16 autocast. Reported after 64, 128, ... updates: the error of the outputs against
float64, relative to their size, over the stretch since the last report; and the largest weight of the hidden state.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import torch

from tttvideo.ttt import (
    GLU,
    L2,
    MLP,
    SGD,
    TTT,
    Adam,
    DotProduct,
    FrameCausal,
    Learning,
    Linear,
    Momentum,
    Muon,
    SequenceLayer,
    TokenCausal,
)

DIM, HEADS = 16, 2

LAYERS = {
    "linear": TTT(inner=Linear(), heads=HEADS, chunk=TokenCausal(1)),
    "mlp": TTT(inner=MLP(), heads=HEADS, chunk=TokenCausal(1)),
    "glu": TTT(inner=GLU(), heads=HEADS, chunk=TokenCausal(1)),
    "mlp, l2": TTT(inner=MLP(), heads=HEADS, chunk=TokenCausal(1), objective=L2()),
    "linear, dot product": TTT(inner=Linear(), heads=HEADS, chunk=FrameCausal(1), objective=DotProduct()),
    "linear, dot product, forget": TTT(
        inner=Linear(), heads=HEADS, chunk=FrameCausal(1), objective=DotProduct(), forget=True
    ),
    "linear, dot product, weight norm": TTT(
        inner=Linear(), heads=HEADS, chunk=FrameCausal(1), objective=DotProduct(), optimizer=SGD(weight_norm=True)
    ),
    "linear, delta rule": TTT(  # configs/layer-delta-rule.yaml, one token a frame
        inner=Linear(bias=False),
        heads=HEADS,
        chunk=FrameCausal(1),
        objective=L2(),
        base_rate=1.0,
        normalize_qk=True,
        silu=True,
        learning=Learning(rate_scale=None, start="zero"),
    ),
    "mlp, momentum": TTT(heads=HEADS, optimizer=Momentum()),
    "mlp, adam": TTT(heads=HEADS, optimizer=Adam()),
    "glu, dot product, muon": TTT(inner=GLU(), heads=HEADS, objective=DotProduct(), optimizer=Muon()),
    "mlp, normalized q/k": TTT(heads=HEADS, normalize_qk=True),
    "mlp, normalized q/k, rate 0.5": TTT(heads=HEADS, normalize_qk=True, base_rate=0.5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=100_000)
    parser.add_argument("--only", choices=list(LAYERS))
    parser.add_argument("--json", type=Path, help="also write the figures here; finished layers are not run again")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    if options.json and options.json.exists():
        rows = json.loads(options.json.read_text())["rows"]
    print(f"{'layer':34}{'updates':>9}{'float32':>12}{'bf16':>12}{'largest weight':>16}")
    for name, config in LAYERS.items():
        if options.only in (None, name) and not any(row["layer"] == name for row in rows):
            rows += run(name, config, options.updates)
            if options.json:
                about = {"torch": torch.__version__, "python": platform.python_version(), "dim": DIM, "heads": HEADS}
                options.json.parent.mkdir(parents=True, exist_ok=True)
                options.json.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


def run(name: str, config: TTT, updates: int) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    single = config.build(DIM)
    exact = config.build(DIM).double()
    exact.load_state_dict({key: value.double() for key, value in single.state_dict().items()})
    states: dict[str, Any] = {"float64": None, "float32": None, "bf16": None}
    walk = torch.zeros(1, 1, DIM, dtype=torch.float64)
    rows, done, reports = [], 0, sorted({*(64 * 2**i for i in range(11)), updates})
    for end in (r for r in reports if r <= updates):
        error = dict.fromkeys(("float32", "bf16"), 0.0)
        size = 0.0
        while done < end:
            count = min(1024, end - done)
            walk = walk[:, -1:] + torch.randn(1, count, DIM, dtype=torch.float64).cumsum(1)
            x = torch.nn.functional.layer_norm(walk, (DIM,))
            expected, states["float64"] = step(exact, x, states["float64"])
            size += float(expected.square().sum())
            for dtype in error:
                y, states[dtype] = step(single, x.float(), states[dtype], bf16=dtype == "bf16")
                error[dtype] += float((y.double() - expected).square().sum())
            done += count
        largest = max(float(t.abs().max()) for m in states["float32"].weights.values() for t in m if t is not None)
        relative = {dtype: (e / size) ** 0.5 for dtype, e in error.items()}
        rows.append({"layer": name, "updates": end, **relative, "largest_weight": largest})
        print(f"{name:34}{end:9,}{relative['float32']:12.1e}{relative['bf16']:12.1e}{largest:16.3g}", flush=True)
    return rows


@torch.no_grad()
def step(layer: SequenceLayer, x: torch.Tensor, state: Any, bf16: bool = False) -> tuple[torch.Tensor, Any]:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        return layer(x, state)


if __name__ == "__main__":
    main()
