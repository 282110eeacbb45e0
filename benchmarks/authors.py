"""Our TTT layer beside the authors' own PyTorch code, in one process: training step, forward pass, decoding.

    python -m benchmarks.authors TTT.PY [--rounds 5] [--json FILE]

TTT.PY is ``ttt.py`` of test-time-training/ttt-lm-pytorch, which needs ``transformers``; none of it is here. Both layers
have the same weights and give the same outputs (checked). They take turns; times are processor time, one thread,
float32, heads of 64, mini-batches of 16; a figure is the median over rounds of theirs / ours: above 1 ours is faster.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.measure import environment, keep_memory, processor_seconds
from tttvideo.ttt.convert import from_ttt_lm


class Case(NamedTuple):
    """Shapes of one comparison; ``step``: what is timed, ``train``, ``forward`` or ``decode`` (a token a call)."""

    step: str
    kind: str
    batch: int
    tokens: int
    heads: int


CASES = [
    *(Case("train", "linear", *shape) for shape in ((1, 256, 2), (2, 512, 4), (1, 2048, 12))),
    *(Case("train", "mlp", *shape) for shape in ((1, 256, 2), (2, 512, 4), (1, 1024, 12))),
    *(Case("forward", "linear", *shape) for shape in ((1, 256, 2), (2, 512, 4), (1, 2048, 12))),
    *(Case("forward", "mlp", *shape) for shape in ((1, 256, 2), (2, 512, 4), (1, 1024, 12))),
    *(Case("decode", kind, 1, 64, heads) for kind in ("linear", "mlp") for heads in (4, 12)),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="TTT.PY", help="ttt.py of ttt-lm-pytorch")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each layer (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, too")
    options = parser.parse_args()
    if not options.file.is_file():
        parser.error(f"{options.file} is not there; give ttt.py of a checkout of ttt-lm-pytorch")
    if options.rounds < 1:
        parser.error(f"--rounds is {options.rounds}; there is at least 1")
    try:
        module = load(options.file)
    except ImportError as error:
        parser.error(
            f"{options.file} needs a package that is not installed ({error}); pip install transformers==4.57.1"
        )
    torch.set_num_threads(1)
    keep_memory()
    rows = []
    print("| step | inner | batch | tokens | heads | theirs, ms | ours, ms | theirs / ours |")
    print("|---|---|---|---|---|---|---|---|")
    for case in CASES:
        rows.append(case._asdict() | compare(module, case, options.rounds))
        cells = [*case, *(f"{1e3 * rows[-1][name]:.3g}" for name in ("theirs", "ours")), f"{rows[-1]['ratio']:.2f}"]
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
    if options.json:
        about = {"environment": environment(torch.device("cpu")), "rounds": options.rounds, "rows": rows}
        options.json.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def load(file: Path) -> ModuleType:
    """The authors' module."""
    spec = importlib.util.spec_from_file_location("authors_ttt", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def compare(module: Any, case: Case, rounds: int) -> dict[str, float]:
    """Seconds of theirs and of ours (medians), and the median of their ratios."""
    torch.manual_seed(0)
    dim, rate = 64 * case.heads, {"linear": 1.0, "mlp": 0.1}[case.kind]
    about = {"ttt_layer_type": case.kind, "ttt_base_lr": rate, "mini_batch_size": 16, "num_hidden_layers": 1}
    config = module.TTTConfig(hidden_size=dim, num_attention_heads=case.heads, **about)
    theirs = {"linear": module.TTTLinear, "mlp": module.TTTMLP}[case.kind](config, layer_idx=0)
    tensors = dict(theirs.named_parameters())
    ours = from_ttt_lm(tensors, num_heads=case.heads, mini_batch_size=16, base_lr=rate).layer
    x = torch.randn(case.batch, case.tokens, dim)
    if case.step == "decode":
        runs = decode_theirs(module, theirs, config, x), decode_ours(ours, x)
    else:
        positions = torch.arange(case.tokens).expand(case.batch, -1)
        runs = tuple(whole(layer, x, case.step) for layer in (lambda x: theirs(x, position_ids=positions), ours))
    outputs = [run() for run in runs]
    difference = float((outputs[0] - outputs[1]).detach().abs().max())
    assert difference < 1e-4, f"{case}: the two layers differ by {difference}"
    pairs = []
    for number in range(rounds):  # either begins every other time
        times = [processor_seconds(run) for run in (runs[::-1] if number % 2 else runs)]
        pairs.append(times[::-1] if number % 2 else times)
    their_time, our_time = map(statistics.median, zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    calls = case.tokens if case.step == "decode" else 1
    return {"theirs": their_time / calls, "ours": our_time / calls, "ratio": ratio}


def whole(layer: Callable[[Tensor], Any], x: Tensor, step: str) -> Callable[[], Tensor]:
    """The layer over a whole sequence, and back where it is a training step."""
    leaf = x.clone().requires_grad_(step == "train")

    def run() -> Tensor:
        with torch.set_grad_enabled(step == "train"):
            out = layer(leaf)
            y = out[0] if isinstance(out, tuple) else out
        if step == "train":
            y.sum().backward()
        return y

    return run


def decode_theirs(module: Any, layer: nn.Module, config: Any, x: Tensor) -> Callable[[], Tensor]:
    """A token a call, with their cache."""
    block = SimpleNamespace(seq_modeling_block=layer)
    model = SimpleNamespace(config=config, layers=[block], device=x.device)

    @torch.no_grad()
    def run() -> Tensor:
        cache, outputs = module.TTTCache(model, len(x)), []
        for t, token in enumerate(x.split(1, 1)):
            outputs.append(layer(token, position_ids=torch.full((len(x), 1), t), cache_params=cache))
            cache.seqlen_offset += 1
        return torch.cat(outputs, 1)

    return run


def decode_ours(layer: Any, x: Tensor) -> Callable[[], Tensor]:
    """A token a call, with the state."""

    @torch.no_grad()
    def run() -> Tensor:
        state, outputs = None, []
        for token in x.split(1, 1):
            y, state = layer(token, state)
            outputs.append(y)
        return torch.cat(outputs, 1)

    return run


if __name__ == "__main__":
    main()
