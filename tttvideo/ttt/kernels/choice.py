"""Which layers the kernels can compute, and where. The eager scan computes the others."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from importlib.metadata import version
from typing import TYPE_CHECKING

import torch

from ..chunk import FrameCausal, TokenCausal
from ..derivatives import EPS
from ..inner.base import InnerModel
from ..inner.conv import Conv
from ..inner.conv_depthwise import ConvDepthwise
from ..inner.dwconv import DWConv
from ..inner.linear import Linear
from ..inner.mlp import MLP
from ..learning import Learning
from ..objective import DotProduct, ResidualL2
from ..optimizer import SGD
from . import self_check, verified
from .launch import FEW_PROGRAMS, capability_of

if TYPE_CHECKING:
    from ..config import TTT

CHUNKS = (16, 32, 64)
"""Tokens of a token-causal chunk."""

LARGEST_CHUNK = {
    "linear": {"bf16": (64, 64, 64), "tf32": (64, 32, 32), "tf32x3": (32, 32, 0), "ieee": (64, 64, 64)},
    "mlp": {"bf16": (64, 64, 32), "tf32": (32, 32, 16), "tf32x3": (32, 16, 0), "ieee": (64, 64, 64)},
}
"""The largest of them with heads of up to 32, of 64, of 128, by what the products read (``mode_of``): larger ones need
more shared memory than there is, or more stack than is allowed (README.md)."""

LARGEST_FRAME = 1024
"""Tokens of a frame, where a frame is a chunk."""

HEAD_DIMS = {"bf16": (16, 32, 64, 128), "tf32": (16, 32, 64, 128), "tf32x3": (16, 32, 64), "ieee": (16, 32, 64, 128)}
"""Head dimensions, likewise."""

KINDS = {Linear: "linear", MLP: "mlp", Conv: "conv", ConvDepthwise: "conv_depthwise", DWConv: "dwconv"}
"""What the inner models are called inside the kernels."""

CUMULATIVE = "dwconv"
"""The one whose weights after every frame are a cumulative sum."""

CONV_DIMS = (16, 32, 64)
"""Head dimensions of ``Conv`` and ``ConvDepthwise``; hidden channels of ``Conv``: one of these, too, or 128. A tap of
the kernel is held whole."""

log = logging.getLogger("tttvideo.ttt")


SWITCH = "TTTVIDEO_FUSED"
"""Environment variable; "never": no kernels in this process, whatever a model's ``fused`` is."""


def use_kernels(
    config: TTT, shape: tuple[int, ...], grid: tuple[int, int], device: torch.device, dtype: torch.dtype
) -> bool:
    """Whether the kernels compute tokens of ``shape`` [B, H, T, d] and ``dtype`` on this device. Says so once in the
    log.

    Raises:
        ValueError: if the configuration requires kernels where there are none.
    """
    if config.fused == "never" or switched_off():
        return False
    mode, required = mode_of(dtype), config.fused == "require"
    elsewhere = not_here(device, mode, required)
    why = elsewhere or not_for(config, shape[-1], grid[0] * grid[1], mode)
    if why is not None and required:
        raise ValueError(f"TTT.fused is require, but {why}; use fused: auto, or set {SWITCH}=never.")
    if why is None and not required:
        if torch.compiler.is_compiling():
            from .. import uncompiled  # noqa: F401  (its answer is a constant of what is compiled)
        why = not_trusted(config, tuple(shape), (grid[0], grid[1]), device, dtype)
    if device.type != "cpu" or elsewhere is None:
        _say(f"TTT {type(config.inner).__name__}: " + ("fused kernels" if why is None else f"the eager scan: {why}"))
    return why is None


def switched_off() -> bool:
    """Whether the environment forbids kernels.

    Raises:
        ValueError: if the variable says anything but never.
    """
    word = os.environ.get(SWITCH, "")
    if word not in ("", "never"):
        raise ValueError(f"The environment variable {SWITCH} is {word!r}; set it to never, or not at all.")
    return word == "never"


def not_trusted(
    config: TTT, shape: tuple[int, ...], grid: tuple[int, int], device: torch.device, dtype: torch.dtype
) -> str | None:
    """Why ``fused: auto`` leaves a configuration that there are kernels for to the eager scan, or None: kernels must
    have been verified and found faster on such a device, and agree with the eager scan on this one."""
    chunk = "frame" if isinstance(config.chunk, FrameCausal) else "token"
    kind = kind_of(config.inner)
    assert kind is not None  # not_for let it pass
    why = verified.why_not(kind, chunk, mode_of(dtype), dtype, capability_of(device), shape)
    if why is not None:
        return why
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return "a CUDA graph is being captured, in which kernels cannot be checked; run the layer once before"
    many = shape[0] * shape[1] >= FEW_PROGRAMS
    failure = self_check.failure(config, shape[-1], grid, device, mode_of(dtype), dtype, many)
    if failure is None:
        return None
    _warn(f"TTT {type(config.inner).__name__}: kernels fail their self-check ({failure}); the eager scan is used.")
    return "the kernels fail their self-check"


def not_here(device: torch.device, mode: str, interpreted: bool) -> str | None:
    """Why no kernel runs on this device, or None; ``interpreted``: Triton's interpreter will do."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if device.type == "cpu" and interpreted and os.environ.get("TRITON_INTERPRET") == "1":
        return not_interpreted()
    if device.type != "cuda":
        return f"kernels run on GPUs, not on {device.type} (Triton's interpreter runs them there: TRITON_INTERPRET=1)"
    return "kernels keep the hidden state in float32, not float64" if mode == "ieee" else None


@functools.cache
def not_interpreted() -> str | None:
    """Why Triton's interpreter cannot run the kernels, or None: it makes numbers of arrays with one element, and NumPy
    has given up (triton-lang/triton issue 9171)."""
    triton, numpy = (tuple(map(int, version(name).split(".")[:2])) for name in ("triton", "numpy"))
    if triton >= (3, 7) or numpy < (2, 4):
        return None
    return f"the interpreter of Triton {version('triton')} needs NumPy below 2.4, and {version('numpy')} is installed"


def not_for(config: TTT, head_dim: int, tokens_per_frame: int, mode: str) -> str | None:
    """Why no kernel computes this configuration, or None."""
    inner, chunk = config.inner, config.chunk
    if not isinstance(chunk, TokenCausal | FrameCausal) or (isinstance(chunk, FrameCausal) and chunk.frames > 1):
        return f"there is no kernel for {chunk}, only for TokenCausal and FrameCausal(1)"
    if isinstance(chunk, FrameCausal) and tokens_per_frame > LARGEST_FRAME:
        return f"frames have {tokens_per_frame} tokens; kernels read frames of up to {LARGEST_FRAME}"
    if kind_of(inner) is None or (isinstance(inner, Linear) and not inner.bias) or inner.past_frames:
        return f"there is no kernel for the inner model {inner}, only for {_MODELS}"
    if isinstance(inner, MLP) and round(inner.expansion * head_dim) % 32:
        return f"the hidden width is {round(inner.expansion * head_dim)}; in kernels it is a multiple of 32"
    if isinstance(inner, Conv | ConvDepthwise) and head_dim not in CONV_DIMS:
        return f"the head dimension is {head_dim}; in kernels of {type(inner).__name__} it is {_either(CONV_DIMS)}"
    if isinstance(inner, Conv) and round(inner.expansion * head_dim) not in (*CONV_DIMS, 128):
        hidden = round(inner.expansion * head_dim)
        return f"{inner} has {hidden} hidden channels; in kernels it has {_either((*CONV_DIMS, 128))}"
    if head_dim not in HEAD_DIMS[mode]:
        return f"the head dimension is {head_dim}; in kernels it is {_either(HEAD_DIMS[mode])} ({mode} products)"
    if isinstance(chunk, TokenCausal) and chunk.tokens not in (allowed := chunks_of(kind_of(inner), head_dim, mode)):
        can = f"kernels of {type(inner).__name__} read chunks of {_either(allowed)}"
        return f"chunks have {chunk.tokens} tokens; {can} (heads of {head_dim}, {mode} products)"
    return _why_not_learned(config) or _why_not_rope_views_forget(config)


def _why_not_learned(config: TTT) -> str | None:
    inner, objective, optimizer = config.inner, type(config.objective), config.optimizer
    wanted = DotProduct if isinstance(inner, DWConv) else ResidualL2
    if objective is not wanted:
        model = f" of {type(inner).__name__}" if wanted is DotProduct else ""
        return f"there is no kernel{model} for the objective {objective.__name__}, only for {wanted.__name__}"
    clipped = isinstance(inner, DWConv) and optimizer.cumulative
    if config.learning != Learning():
        return f"there is no kernel for {config.learning}, only for the defaults"
    if isinstance(config.objective, ResidualL2) and config.objective.eps != EPS:
        return f"the eps of {config.objective} is {config.objective.eps}; in kernels it is {EPS}"
    if isinstance(config.objective, ResidualL2) and config.objective.normalize_target:
        return "there is no kernel for normalize_target"
    if optimizer.clip_by != "head":
        return f"there is no kernel for clip_by: {optimizer.clip_by}, only for head"
    if type(optimizer) is not SGD or not (optimizer.linear or clipped):
        return f"there is no kernel for the optimizer {optimizer}, only for plain SGD"
    return None


def _why_not_rope_views_forget(config: TTT) -> str | None:
    if config.rope == "frame_row_column":
        return "there is no kernel for rope: frame_row_column"
    if config.views > 1 or config.forget:
        return f"there is no kernel for {'several views' if config.views > 1 else 'the forget gate'}"
    return None


_MODELS = "MLP, Linear with a bias, and Conv, ConvDepthwise and DWConv with time: 1"


def chunks_of(kind: str | None, head_dim: int, mode: str) -> tuple[int, ...]:
    """Tokens that a token-causal chunk may have."""
    if kind not in LARGEST_CHUNK:
        return ()
    most = LARGEST_CHUNK[kind][mode][(head_dim > 32) + (head_dim > 64)]
    return tuple(size for size in CHUNKS if size <= most)


def kind_of(inner: InnerModel) -> str | None:
    """The name of an inner model inside the kernels; None: there are none for it."""
    return KINDS.get(type(inner))


def _either(sizes: tuple[int, ...]) -> str:
    return " or ".join(filter(None, [", ".join(map(str, sizes[:-1])), str(sizes[-1])]))


@functools.cache
def _say(message: str) -> None:
    log.info(message)


@functools.cache
def _warn(message: str) -> None:
    log.warning(message)


def mode_of(dtype: torch.dtype) -> str:
    """What the matrix products inside the kernels read where the layer around them computes in ``dtype``.

    The eager scan's are in float32 whatever ``dtype``, and PyTorch's own switch for float32 products decides here, too:
    "highest" splits each into three of TensorFloat-32, nearly as exact as float32, "high" takes TensorFloat-32,
    "medium" bfloat16. A layer in half precision has rounded its tokens to 8 or 11 bits before, so that the 11 bits of
    TensorFloat-32 (whose range is that of float32; gradients of the inner loss leave float16's) add next to nothing.
    """
    if dtype == torch.float64:
        return "ieee"
    allowed = torch.get_float32_matmul_precision()
    if allowed == "medium":
        return "bf16"
    return "tf32" if allowed == "high" or dtype in (torch.bfloat16, torch.float16) else "tf32x3"
