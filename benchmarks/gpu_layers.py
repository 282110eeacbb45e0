"""What the GPU benchmark measures: layers of the paper's 1.3B model and of a video model, in the order of their weight,
since the time on a GPU may end before the last of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from benchmarks import contestants, cores
from benchmarks.plain_scan import PlainTTTMLP
from tttvideo.mixers import Attention, LinearAttention, Mamba
from tttvideo.ttt import MLP, SGD, TTT, Conv, DotProduct, DWConv, FrameCausal, Linear, TokenCausal
from tttvideo.ttt.interface import Mixer

LENGTHS = (1024, 4096, 8192, 16384, 65536, 131072, 262144)


class Shape(NamedTuple):
    """One layer's size, how many tokens are read in all and at most in one sequence, and how ours reads them."""

    name: str
    dim: int
    heads: int
    grid: tuple[int, int]
    tokens: int
    lengths: tuple[int, ...]
    chunk: TokenCausal | FrameCausal
    profiled: int


class Part(NamedTuple):
    """A layer at a shape."""

    shape: Shape
    layer: str


VIDEO = tuple(n // 784 * 784 for n in LENGTHS)  # whole frames of 196 tokens, and whole mini-batches of 16
SHAPES = (
    Shape("video", 768, 12, (14, 14), 262144, VIDEO, FrameCausal(), VIDEO[3]),
    Shape("paper", 2048, 32, (1, 1), 262144, LENGTHS, TokenCausal(16), LENGTHS[3]),
)
DRY = (
    Shape("video", 16, 1, (4, 4), 16, (16,), FrameCausal(), 16),
    Shape("paper", 16, 1, (1, 1), 16, (16,), TokenCausal(16), 16),
)

OURS = ("ttt_mlp", "ttt_mlp_bf16", "ttt_linear")
OTHERS = ("attention", "plain_scan", "linear_attention", "mamba", *contestants.CONTESTANTS, "ttt_mlp_eager")
COMPILED = "ttt_mlp_compiled"
ON_A_GPU = ("attention_cudnn", COMPILED)


def parts(dry: bool) -> list[Part]:
    """The kernels alone, their layers and those they are compared with, shape by shape; ``torch.compile``, which takes
    the longest to begin, last. What needs a GPU is left out of a dry run."""
    shapes = DRY if dry else SHAPES
    listed = []
    for shape in shapes:
        frames = ("ttt_conv", "ttt_dwconv") if shape.chunk.whole else ()
        listed += [Part(shape, layer) for layer in (*(cores.DRY if dry else cores.CORES), *OURS, *frames, *OTHERS)]
    return listed if dry else [*listed, *(Part(shape, layer) for layer in ON_A_GPU for shape in shapes)]


def build(part: Part, device: torch.device) -> nn.Module | str:
    """The layer, or why there is none."""
    shape, name = part
    torch.manual_seed(0)
    if name in contestants.CONTESTANTS:
        return contestants.build(name, shape.dim, shape.heads, device)
    if name in cores.CORES:
        return cores.build(name, shape, device)
    layer = _mixer(shape, name).build(shape.dim).to(device)
    if name == "plain_scan":
        return PlainTTTMLP(layer)
    return torch.compile(layer) if name == COMPILED else layer  # type: ignore[return-value]


def _mixer(shape: Shape, name: str) -> Mixer:
    heads, chunk = shape.heads, shape.chunk
    match name:
        case "ttt_mlp" | "ttt_mlp_bf16":  # the same, whose products are to read bfloat16
            return TTT(MLP(), heads, chunk, fused="require")
        case "ttt_linear":
            return TTT(Linear(), heads, chunk, fused="require")
        case "ttt_conv":
            return TTT(Conv(), heads, chunk, fused="require")
        case "ttt_dwconv":
            return TTT(DWConv(), heads, chunk, DotProduct(), SGD(clip=1.0), fused="require")
        case "ttt_mlp_eager" | "ttt_mlp_compiled":
            return TTT(MLP(), heads, chunk, fused="never")
        case "plain_scan":
            return TTT(MLP(), heads, TokenCausal(16))
        case "attention" | "attention_cudnn":
            return Attention(heads, "token")
        case "linear_attention":
            return LinearAttention(heads, "token")
        case "mamba":
            return Mamba(heads)
    raise ValueError(f"no layer is called {name}")
