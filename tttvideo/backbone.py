"""The sequence backbone: blocks around a sequence layer, stacked, with one streaming state for all of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from .mixers import TTT, FrameAttention, Mixer
from .ttt.interface import Layout, SequenceLayer, State
from .ttt.primitives import CausalConv

RMS_EPS = 1e-6
"""Added to the mean square in RMS norms (ttt-lm's)."""


@dataclass(frozen=True)
class Backbone:
    """A stack of pre-norm blocks: x + mixer(norm(x)), then x + mlp(norm(x)), on tokens [B, T, C].

    Transformer style is the plain block. Mamba style (the paper's stronger one) adds a short causal
    convolution before the mixer (``pre_conv``) and, for a TTT mixer, ``share_qk`` and ``gate``.

    Attributes:
        width: channels C of the residual stream.
        depth: blocks.
        mixer: the sequence layer of every block: ``TTT``, ``Attention``, ``LinearAttention``, ``Mamba``,
            ``GatedDeltaNet``, ``RWKV7``, ``LSTM``, ``GRU``, ``ConvLSTM``, ``FrameAttention``, ``Bidirectional``,
            ``NoMixer``, or a class by import path.
        pattern: the sequence layers of successive blocks, repeated down the stack, in place of ``mixer``: three
            ``TTT`` and one ``Attention`` make every fourth block attention. Empty: ``mixer`` everywhere.
        frame_attention: heads of a self-attention among the tokens of each frame, which each block then begins
            with; 0: none.
        mlp_ratio: hidden width of the SwiGLU feed-forward half as a multiple of ``width``.
        norm: before each half of a block and at the end: ``layer`` norm, or ``rms`` norm without a shift (ttt-lm).
        pre_conv: residual causal depthwise convolution of length 4 before the mixer.
        dropout: on the output of each half of a block.
        drop_path: chance to skip a half per sample, growing linearly with depth up to this.
    """

    width: int = 64
    depth: int = 2
    mixer: Mixer = field(default_factory=TTT)
    pattern: list[Mixer] = field(default_factory=list)
    frame_attention: int = 0
    mlp_ratio: float = 2.0
    norm: Literal["layer", "rms"] = "layer"
    pre_conv: bool = False
    dropout: float = 0.0
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        if self.width < 1 or self.depth < 0:
            raise ValueError(f"A backbone of width {self.width} and depth {self.depth} cannot be built.")
        object.__setattr__(self, "pattern", list(self.pattern))  # plain data come back as tuples
        if wrong := [item for item in self.pattern if not isinstance(item, Mixer)]:
            raise ValueError(f"Backbone.pattern holds {wrong[0]!r}; name a sequence layer such as TTT for each block.")
        if self.norm not in ("layer", "rms"):
            raise ValueError(f"Backbone.norm is {self.norm!r}; it must be layer or rms.")
        if self.frame_attention < 0:
            raise ValueError(
                f"Backbone.frame_attention is {self.frame_attention} heads; give at least 1, or 0 for none."
            )
        if not (0 <= self.dropout < 1 and 0 <= self.drop_path < 1):
            raise ValueError(
                f"Backbone.dropout and drop_path lie between 0 and 1, not {self.dropout} and {self.drop_path}."
            )

    def mixers(self) -> list[Mixer]:
        """The mixer of each block."""
        repeated = self.pattern or [self.mixer]
        return [repeated[i % len(repeated)] for i in range(self.depth)]

    def build(self) -> BackboneStack:
        return BackboneStack(self)

    def build_norm(self) -> nn.Module:
        return nn.LayerNorm(self.width) if self.norm == "layer" else nn.RMSNorm(self.width, eps=RMS_EPS)


class BlockState(NamedTuple):
    """State of one block: the mixer's, and the tail of the convolution before it [B, up to 3, C] (None without)."""

    mixer: State
    tail: Tensor | None


class SwiGLU(nn.Module):
    """The feed-forward half of a block: down(silu(gate x) * up x)."""

    def __init__(self, dim: int, hidden: int, dropout: float):
        super().__init__()
        self.gate = nn.Linear(dim, hidden, bias=False)
        self.up = nn.Linear(dim, hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.down(F.silu(self.gate(x)) * self.up(x)))


def _drop_path(rate: float) -> nn.Module:
    if not rate:
        return nn.Identity()
    from timm.layers.drop import DropPath  # timm takes as long to import as everything else here

    return DropPath(rate)


class Block(nn.Module):
    """One block of the stack; ``mixer`` and ``drop_path`` are this block's own."""

    def __init__(self, config: Backbone, mixer: Mixer, drop_path: float):
        super().__init__()
        width, heads = config.width, config.frame_attention
        self.frame_norm = config.build_norm() if heads else None
        self.frame_attention = FrameAttention(heads).build(width) if heads else None
        self.pre_norm = config.build_norm() if config.pre_conv else None
        self.pre_conv = CausalConv(width) if config.pre_conv else None
        self.mixer_norm = config.build_norm()
        self.mixer: SequenceLayer = mixer.build(width)
        self.mlp_norm = config.build_norm()
        self.mlp = SwiGLU(width, max(1, int(config.mlp_ratio * width)), config.dropout)
        self.dropout = nn.Dropout(config.dropout)
        self.drop_path = _drop_path(drop_path)

    def init_state(self, batch: int) -> BlockState:
        return BlockState(
            self.mixer.init_state(batch),
            None if self.pre_conv is None else self.pre_conv.init_state(batch),
        )

    def unit(self, tokens_per_frame: int) -> int:
        """A sequence may be split between calls at multiples of this many tokens."""
        return math.lcm(self.mixer.unit(tokens_per_frame), 1 if self.frame_attention is None else tokens_per_frame)

    def step_unit(self, tokens_per_frame: int) -> int:
        """``SequenceLayer.step`` of this block's mixer reads multiples of this many tokens."""
        return math.lcm(self.mixer.step_unit(tokens_per_frame), self.unit(tokens_per_frame))

    def forward(self, x: Tensor, state: BlockState, layout: Layout, steps: bool = False) -> tuple[Tensor, BlockState]:
        """``steps``: the mixer reads by its ``step``."""
        tail = state.tail
        if self.frame_attention is not None and self.frame_norm is not None:
            local, _ = self.frame_attention(self.frame_norm(x), None, layout)
            x = x + self.drop_path(self.dropout(local))
        if self.pre_conv is not None and self.pre_norm is not None and tail is not None:
            local, tail = self.pre_conv(self.pre_norm(x), tail, layout.lengths)
            x = x + self.drop_path(local)
        normed = self.mixer_norm(x)
        if steps:
            mixed, mixer_state = self.mixer.step(normed, state.mixer, layout.grid)
        else:
            mixed, mixer_state = self.mixer(normed, state.mixer, layout)
        x = x + self.drop_path(self.dropout(mixed))
        x = x + self.drop_path(self.mlp(self.mlp_norm(x)))
        return x, BlockState(mixer_state, tail)


class BackboneStack(SequenceLayer):
    """Tokens [B, T, C] -> normalised tokens [B, T, C], and the state of every block.

    It streams, is causal and may be split as all of its blocks allow.
    """

    def __init__(self, config: Backbone):
        super().__init__()
        rates = [config.drop_path * i / max(1, config.depth - 1) for i in range(config.depth)]
        blocks = [Block(config, mixer, rate) for mixer, rate in zip(config.mixers(), rates, strict=True)]
        self.streams = all(block.mixer.streams for block in blocks)
        self.causal = all(block.mixer.causal for block in blocks)
        self.blocks = nn.ModuleList(blocks)
        self.norm = config.build_norm()

    @property
    def whole_frames(self) -> bool:
        """True if some block reads frames, not tokens one after the other: no token is cut off from later ones of its
        own frame."""
        return any(block.unit(2) % 2 == 0 for block in self.blocks)  # type: ignore[operator]

    def unit(self, tokens_per_frame: int) -> int:
        return math.lcm(*(block.unit(tokens_per_frame) for block in self.blocks))  # type: ignore[operator]

    def init_state(self, batch: int) -> tuple[BlockState, ...]:
        return tuple(block.init_state(batch) for block in self.blocks)  # type: ignore[operator]

    def step_unit(self, tokens_per_frame: int) -> int:
        return math.lcm(*(block.step_unit(tokens_per_frame) for block in self.blocks))  # type: ignore[operator]

    def step(
        self, x: Tensor, state: tuple[BlockState, ...], grid: tuple[int, int] = (1, 1)
    ) -> tuple[Tensor, tuple[BlockState, ...]]:
        self.check_step(x, grid)
        return self._through_blocks(x, state, Layout(grid), steps=True)

    def read(self, x: Tensor, state: tuple[BlockState, ...], layout: Layout) -> tuple[Tensor, tuple[BlockState, ...]]:
        return self._through_blocks(x, state, layout, steps=False)

    def _through_blocks(
        self, x: Tensor, state: tuple[BlockState, ...], layout: Layout, steps: bool
    ) -> tuple[Tensor, tuple[BlockState, ...]]:
        after = []
        for block, before in zip(self.blocks, state, strict=True):
            x, now = block(x, before, layout, steps)
            after.append(now)
        return self.norm(x), tuple(after)
