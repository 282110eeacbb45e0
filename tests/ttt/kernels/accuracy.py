"""How far kernels are from float64 at the shapes that a GPU is tested with: for the tests of `make test-gpu` and for
`benchmarks.first_gpu`, which writes the rows down."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.ttt.kernels.cases import Case, case, eager, fused, gradients
from tttvideo.ttt import (
    MLP,
    SGD,
    TTT,
    Conv,
    ConvDepthwise,
    DotProduct,
    DWConv,
    FrameCausal,
    Layout,
    Linear,
    Stream,
    TokenCausal,
)
from tttvideo.ttt.kernels import launch
from tttvideo.ttt.kernels.choice import kind_of
from tttvideo.ttt.kernels.verified import BOUNDS

Row = dict[str, Any]


class Problem(NamedTuple):
    """What one accuracy test computes."""

    model: Any
    chunk: TokenCausal | FrameCausal
    frame: int | tuple[int, int]
    lengths: tuple[int, ...]
    heads: int = 2
    dim: int = 64

    @property
    def long(self) -> bool:
        return max(self.lengths) >= 65536


PROBLEMS = (
    Problem(MLP(), FrameCausal(), 196, (5 * 196, 196)),
    Problem(MLP(), TokenCausal(16), 1, (1000, 37)),
    Problem(Linear(), FrameCausal(), 196, (5 * 196, 196)),
    Problem(Linear(), TokenCausal(16), 1, (1000, 37)),
    Problem(Conv(), FrameCausal(), (14, 14), (5 * 196, 196)),
    Problem(ConvDepthwise(), FrameCausal(), (14, 14), (5 * 196, 196)),
    Problem(DWConv(), FrameCausal(), (14, 14), (5 * 196, 196)),
    Problem(MLP(), TokenCausal(32), 1, (1000, 37)),
    Problem(MLP(), FrameCausal(), 1024, (2 * 1024,)),
    Problem(Linear(), FrameCausal(), 1024, (2 * 1024,)),
    # more programs than a device has multiprocessors
    Problem(MLP(), FrameCausal(), (14, 14), (784,) * 12, 12),
    Problem(Linear(), FrameCausal(), (14, 14), (784,) * 12, 12),
    Problem(Conv(), FrameCausal(), (14, 14), (784,) * 12, 12),
    Problem(MLP(), FrameCausal(), 256, (65536,)),
    Problem(Linear(), FrameCausal(), 256, (65536,)),
    Problem(MLP(), TokenCausal(16), 1, (65536,)),
)
"""The most valuable first."""

TINY = (
    Problem(Linear(), FrameCausal(), (1, 2), (4, 2), 1, 16),
    Problem(Linear(), TokenCausal(16), 1, (6, 2), 1, 16),
    Problem(DWConv(), FrameCausal(), (1, 2), (4,), 1, 16),
)
"""The same way on a CPU, through the interpreter, frames in one way only."""


def learning(model: Any) -> dict[str, Any]:
    """Loss and optimizer that there are kernels for."""
    return {"objective": DotProduct(), "optimizer": SGD(clip=1.0)} if isinstance(model, DWConv) else {}


def rounded(one: Case, dtype: torch.dtype) -> Case:
    """The same case in float32, its tokens rounded to ``dtype``."""

    def leaf(x: Tensor) -> Tensor:
        return x.detach().float().requires_grad_()

    def weights(fast):
        return {name: type(map)(*(None if x is None else leaf(x) for x in map)) for name, map in fast.items()}

    tokens = {name: leaf(x.detach().to(dtype) if name in "qkv" else x) for name, x in one.tensors.items()}
    return one._replace(tensors=tokens, weights=weights(one.weights), pending=weights(one.pending))


def relative(computed: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    """|x - exact| / |exact| by tensor (of one that is zero: |x|); infinite where there is a NaN."""
    assert computed.keys() == exact.keys()
    errors = {}
    for name, expected in exact.items():
        difference, size = (computed[name].double() - expected).norm(), expected.norm()
        error = float(difference / size) if size else float(difference)
        errors[name] = error if error == error else float("inf")
    return errors


@contextmanager
def few_programs(few: int) -> Iterator[None]:
    """Frames: from how many rows x heads on one launch takes all phases, with wide tiles where there are some."""
    before, launch.FEW_PROGRAMS = launch.FEW_PROGRAMS, few
    try:
        yield
    finally:
        launch.FEW_PROGRAMS = before


def measured(
    problem: Problem, device: str, kernels: Any = fused, modes: tuple[str, ...] = tuple(BOUNDS)
) -> Iterator[Row]:
    """A row for every mode and way to launch. ``error``, which ``BOUNDS`` bounds: on tokens in float32. ``over_eager``,
    a figure: how many times the error of the eager scan in float32, both on tokens of ``tokens``, which a layer in half
    precision rounds. ``same_bits``: of two runs. Where something raises, ``why``."""
    model, chunk, frame, lengths, heads, dim = problem
    given = {"dim": dim, "heads": heads, "lengths": lengths, "frame": frame, "device": device}
    one = case(model, chunk, **given, **learning(model))
    exact = gradients(eager, one)
    one32 = rounded(one, torch.float32)
    half = {} if problem.long else {torch.bfloat16: rounded(one, torch.bfloat16)}
    of = {torch.float32: one32, **half}
    plain = {dtype: relative(gradients(eager, some), exact) for dtype, some in of.items()}
    programs = len(lengths) * heads
    for mode in modes:
        tokens = torch.float32 if mode == "tf32x3" or problem.long else torch.bfloat16
        for few in (64, 1) if chunk.whole and programs < 64 and dim > 16 and kind_of(model) != "dwconv" else (64,):
            row = {
                "kernel": kind_of(model),
                "chunk": "frame" if chunk.whole else "token",
                "shape": f"{model} {chunk} frames of {frame}, {heads} heads of {dim}, rows of {list(lengths)[:3]}",
                "mode": mode,
                "dim": dim,
                "one_launch": bool(chunk.whole and programs >= few),
                "tokens": str(tokens).removeprefix("torch."),
                "bound": BOUNDS[mode],
            }
            began = time.time()
            try:
                with few_programs(few):
                    first, second = (gradients(lambda c: kernels(c, mode), one32) for _ in range(2))  # noqa: B023
                    total = first if tokens == torch.float32 else gradients(lambda c: kernels(c, mode), of[tokens])  # noqa: B023
            except Exception as error:
                yield row | {"within": False, "why": f"{type(error).__name__}: {str(error)[:400]}"}
                continue
            errors, mine = relative(first, exact), relative(total, exact)
            worst = max(errors, key=lambda name: errors[name])
            yield row | {
                "worst": [worst, errors[worst]],
                "within": errors[worst] <= BOUNDS[mode],
                "same_bits": all(torch.equal(x, second[name]) for name, x in first.items()),
                "over_eager": {name: round(mine[name] / max(plain[tokens][name], 1e-12), 2) for name in mine},
                "error": errors,
                "seconds": round(time.time() - began, 2),
            }


@torch.no_grad()
def replayed(inner: Any, chunk: TokenCausal | FrameCausal, autocast: bool, device: str, how: str = "require") -> Row:
    """A CUDA graph of one frame or token, against calls of the layer; more steps than a chunk has places (on a CPU,
    where nothing is captured, a few)."""
    torch.manual_seed(0)
    dim, steps, kind = (128, 40, torch.device(device).type) if device != "cpu" else (32, 2, "cpu")
    layer = TTT(inner, heads=2, chunk=chunk, short_conv="raster", share_qk=True, fused=how).build(dim).to(device)  # type: ignore[arg-type]
    layout = Layout((4, 4) if chunk.whole else (1, 1))
    pieces = torch.randn(1, steps * layout.tokens_per_frame, dim, device=device).split(layout.tokens_per_frame, 1)
    same = True
    with torch.autocast(kind, torch.bfloat16, enabled=autocast):
        stream = Stream(lambda x, state: layer(x, state, layout), pieces[0], layer.init_state(1))
        state = None
        for piece in pieces:
            expected, state = layer(piece, state, layout)
            same = same and torch.equal(stream(piece), expected)
    same = same and all(torch.equal(stream.state.weights[n].weight, map.weight) for n, map in state.weights.items())
    about = {"kernel": kind_of(inner), "chunk": "frame" if chunk.whole else "token", "autocast": autocast}
    return about | {"same": same, "graphs": stream.graphs}
