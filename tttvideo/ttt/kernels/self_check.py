"""Kernels against the eager scan on two chunks, on the user's own device: what ``fused: auto`` does before it trusts
them."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..interface import Layout
from .launch import FEW_PROGRAMS
from .verified import BOUNDS

if TYPE_CHECKING:
    from ..config import TTT

PRECISION = {"tf32x3": "highest", "tf32": "high", "bf16": "medium"}
"""What ``choice.mode_of`` reads each mode from, in a layer of float32."""

_SMALL_BATCH = 2


@functools.cache
def failure(
    config: TTT, dim: int, grid: tuple[int, int], device: torch.device, mode: str, dtype: torch.dtype, many: bool
) -> str | None:
    """What is wrong with the kernels of a configuration, or None: outputs, state and all gradients of a small layer
    against one in float64 that the eager scan computes, to within ``BOUNDS``. Runs once in a process for its arguments.

    Args:
        dim: of a head; ``grid``: of a frame's tokens.
        dtype: of the layer's products and tokens. One in half precision has rounded its own as "bf16" does.
        many: whether there are enough rows x heads for one program each (``launch.FEW_PROGRAMS``).
    """
    layout = Layout(grid)
    period = config.chunk.size(layout.tokens_per_frame)
    assert period is not None  # there are kernels for chunks of a fixed size only
    devices = [device] if device.type == "cuda" else []
    before, half = torch.get_float32_matmul_precision(), dtype in (torch.bfloat16, torch.float16)
    bound = BOUNDS["bf16" if half else mode]
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        torch.random.fork_rng(devices),
    ):
        torch.manual_seed(0)
        x = torch.randn(FEW_PROGRAMS if many else _SMALL_BATCH, 2 * period, dim, dtype=torch.float64).to(device)
        exact = _layer(config, dim, "never").to(device, torch.float64)
        kernels = _layer(config, dim, "require").to(device, torch.float32)
        kernels.load_state_dict(exact.state_dict())
        try:
            torch.set_float32_matmul_precision(PRECISION[mode])
            with torch.autocast(device.type, dtype, enabled=half):
                mine = _all_of(kernels, x.float(), layout)
            expected = _all_of(exact, x, layout)
        except Exception as error:  # whatever a compiler or a driver says: the eager scan can do without them
            return f"{type(error).__name__}: {str(error)[:300]}"
        finally:
            torch.set_float32_matmul_precision(before)
    errors = {name: _error(mine[name], exact) for name, exact in expected.items()}
    worst = max(errors, key=lambda name: errors[name])
    if errors[worst] <= bound:
        return None
    return f"the relative error of {worst} is {errors[worst]:.1e}, above {bound:.0e}"


def _layer(config: TTT, dim: int, fused: str) -> torch.nn.Module:
    """One head, and of the configuration what kernels compute."""
    parts = {name: getattr(config, name) for name in ("inner", "chunk", "objective", "optimizer")}
    layer = type(config)(**parts, heads=1, fused=fused).build(dim)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in layer.parameters():  # none may be zero, nor a LayerNorm's scale: gradients would vanish
            parameter.add_(0.1 * torch.randn_like(parameter))
    return layer


def _all_of(layer: Any, x: Tensor, layout: Layout) -> dict[str, Tensor]:
    leaf = x.clone().requires_grad_()
    y, state = layer(leaf, None, layout)
    after = {f"state {name}": map.weight for name, map in state.weights.items()}
    total = y.square().sum() + sum(weight.square().sum() for weight in after.values())
    leaves = {"tokens": leaf, **dict(layer.named_parameters())}
    gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    values = {"output": y, **after}
    values |= {f"gradient at {name}": g for name, g in zip(leaves, gradients, strict=True) if g is not None}
    return {name: value.detach() for name, value in values.items()}


def _error(mine: Tensor, exact: Tensor) -> float:
    difference, size = (mine.double() - exact).norm(), exact.norm()
    error = float(difference / size) if size else float(difference)
    return error if error == error else float("inf")
