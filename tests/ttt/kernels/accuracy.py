"""How far kernels are from float64 at the shapes that a GPU is tested with: for the tests of `make test-gpu` and for
`benchmarks.first_gpu`, which writes the rows down."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.ttt.kernels.cases import Case, case, eager, fused, gradients, plain_heads, plain_output
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
from tttvideo.ttt.kernels import launch, norm_and_gate, split
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


def rounded(one: Case, dtype: torch.dtype, rest: torch.dtype = torch.float32) -> Case:
    """The same case with q, k and v in ``dtype``, as a layer hands them over, and the rest in ``rest``."""

    def leaf(x: Tensor, dtype: torch.dtype = rest) -> Tensor:
        return x.detach().to(dtype).requires_grad_()

    def weights(fast):
        return {name: type(map)(*(None if x is None else leaf(x) for x in map)) for name, map in fast.items()}

    tokens = {name: leaf(x, dtype if name in "qkv" else rest) for name, x in one.tensors.items()}
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


INPUTS = (
    ("bf16", torch.bfloat16),
    ("tf32", torch.bfloat16),
    ("tf32x3", torch.float32),
    ("tf32", torch.float32),
    ("bf16", torch.float32),
)
"""What products read, and tokens of the layers that choose it (``choice.mode_of``); the most valuable first."""


def measured(
    problem: Problem, device: str, kernels: Any = fused, inputs: tuple[tuple[str, torch.dtype], ...] = INPUTS
) -> Iterator[Row]:
    """A row for every kind of inputs and way to launch. ``error``, which ``BOUNDS`` bounds, is against float64 on the
    same rounded tokens; that of outputs and gradients in half precision includes their own rounding. ``over_eager``, a
    figure: how many times the error of the eager scan in float32 on these tokens. ``same_bits``: of two runs. Where
    something raises, ``why``."""
    model, chunk, frame, lengths, heads, dim = problem
    given = {"dim": dim, "heads": heads, "lengths": lengths, "frame": frame, "device": device}
    one = case(model, chunk, **given, **learning(model))
    exact, plain = {}, {}
    for dtype in dict.fromkeys(dtype for _, dtype in inputs):
        same = rounded(one, dtype)
        exact[dtype] = gradients(eager, rounded(same, torch.float64, torch.float64))
        plain[dtype] = relative(gradients(eager, rounded(same, torch.float32)), exact[dtype])
    programs = len(lengths) * heads
    for mode, dtype in inputs:
        for few in (64, 1) if chunk.whole and programs < 64 and dim > 16 and kind_of(model) != "dwconv" else (64,):
            row = {
                "kernel": kind_of(model),
                "chunk": "frame" if chunk.whole else "token",
                "shape": f"{model} {chunk} frames of {frame}, {heads} heads of {dim}, rows of {list(lengths)[:3]}",
                "mode": mode,
                "dtype": str(dtype).removeprefix("torch."),
                "dim": dim,
                "one_launch": bool(chunk.whole and programs >= few),
                "bound": BOUNDS[mode],
            }
            began, mine = time.time(), rounded(one, dtype)
            try:
                with few_programs(few):
                    first, second = (gradients(lambda c: kernels(c, mode), mine) for _ in range(2))  # noqa: B023
            except Exception as error:
                yield row | {"within": False, "why": f"{type(error).__name__}: {str(error)[:400]}"}
                continue
            errors = relative(first, exact[dtype])
            worst = max(errors, key=lambda name: errors[name])
            yield row | {
                "worst": [worst, errors[worst]],
                "within": errors[worst] <= BOUNDS[mode],
                "same_bits": all(torch.equal(x, second[name]) for name, x in first.items()),
                "over_eager": {name: round(errors[name] / max(plain[dtype][name], 1e-12), 2) for name in errors},
                "error": errors,
                "seconds": round(time.time() - began, 2),
            }


AROUND = {torch.bfloat16: 5e-3, torch.float32: 1e-5}
"""Bounds of the kernels around the scan: they round what comes out once, and nothing else."""


def around(device: str, dry: bool = False) -> Iterator[Row]:
    """A row for each kernel around the scan and dtype of its tokens: errors against float64 on the same, and bits."""
    batch, tokens, heads, dim = (1, 5, 3, 16) if dry else (2, 392, 12, 64)
    positions = torch.arange(tokens, device=device) % 196
    bent = {"silu": True, "unit": True}

    def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=rng).to(device, dtype).requires_grad_()

    for dtype, bound in AROUND.items():
        rng = torch.Generator().manual_seed(0)
        x, weight, bias = leaf(batch, tokens, heads * dim, dtype=dtype), leaf(heads * dim), leaf(heads * dim)
        y, gate = leaf(batch, heads, tokens, dim, dtype=dtype), leaf(batch, tokens, heads * dim, dtype=dtype)
        for name, mine, exact, leaves in (
            (
                "heads",
                lambda x: split(positions, x, heads=heads, theta=1e4, **bent)[0],
                lambda x: plain_heads(x, positions, heads, **bent),
                (x,),
            ),
            ("output", lambda *given: norm_and_gate(*given, dtype), plain_output, (y, weight, bias, gate)),  # noqa: B023
        ):
            about = {"around": name, "dtype": str(dtype).removeprefix("torch."), "bound": bound}
            about["shape"] = f"{heads} heads of {dim}, {batch} rows of {tokens}"
            try:
                first, second = (_derived(mine, leaves) for _ in range(2))
            except Exception as error:
                yield about | {"within": False, "why": f"{type(error).__name__}: {str(error)[:400]}"}
                continue
            errors = relative(first, _derived(exact, tuple(x.detach().double().requires_grad_() for x in leaves)))
            worst = max(errors, key=lambda name: errors[name])
            same = all(torch.equal(x, second[name]) for name, x in first.items())
            yield about | {"worst": [worst, errors[worst]], "within": errors[worst] <= bound, "same_bits": same}


def _derived(run: Any, leaves: tuple[Tensor, ...]) -> dict[str, Tensor]:
    y = run(*leaves)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(y)
    gradients = torch.autograd.grad((y * weight).sum(), leaves)
    return {"out": y.detach()} | {f"gradient at {i}": gradient for i, gradient in enumerate(gradients)}


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
