"""The configuration of a TTT layer, and what of it does not go together."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from .chunk import Chunk, FrameCausal, TokenCausal
from .inner.base import InnerModel
from .inner.mlp import MLP
from .interface import Mixer
from .learning import Learning
from .objective import L2, Objective, ResidualL2
from .optimizer import SGD, InnerOptimizer

if TYPE_CHECKING:
    from .layer import TTTLayer


@dataclass(frozen=True)
class TTT(Mixer):
    """A sequence layer whose hidden state is a model, trained by gradient descent on the sequence as it is read.

    Attributes:
        inner: the hidden state: ``Linear``, ``MLP``, ``GLU``, ``Conv``, ``ConvDepthwise``, ``DWConv``,
            ``SelfAttention`` or any class of yours by import path.
        heads: H; the head dimension is channels / heads.
        chunk: the inner mini-batch and its causality: ``TokenCausal`` (the paper), ``FrameCausal`` or ``Whole``.
        objective: the inner loss: ``ResidualL2`` (the paper), ``L2`` or ``DotProduct``.
        optimizer: ``SGD`` (the paper), ``Momentum``, ``Adam`` or ``Muon``; all but plain SGD need chunks that are
            read as a whole: ``FrameCausal(1)`` or ``Whole``.
        base_rate: inner learning rate before the learned per-token factor; null: the inner model's own, but at
            most 0.1 with ``normalize_qk``.
        views: training pairs (k, v) that every token gives, each by projections of its own (paper, section 2.3).
        forget: a learned gate per token that leads the hidden state back towards W_0.
        short_conv: causal depthwise convolutions of length 4 on q and k, along the tokens in ``raster`` order (the
            paper) or along ``time`` at every place of the frame.
        conv_values: ``short_conv`` runs on v, too (DeltaNet).
        share_qk: q and k share a projection and differ by their short convolutions (Mamba style); without
            ``short_conv`` q = k, a control.
        bias: learned biases in the projections to q, k, v and the output (ttt-video).
        gate: multiply the output by gelu(W x) before the last projection (Mamba style).
        tanh_gate: initial value of a learned per-channel gate tanh(alpha) on the output: 0 leaves a pretrained
            block as it was, 0.1 is ttt-video's; null: no gate.
        normalize_qk: scale q and k to unit length.
        silu: apply SiLU to q, k and v, after the convolutions and before the lengths (LaCT, Gated DeltaNet).
        rope: rotary positions within the chunk (token-causal) or the frame; null: on, except for convolutional
            inner models, which see positions by themselves. ``frame_row_column``: a quarter of a head's channels turned
            by the frame's number in the video, the rest half by row, half by column (ttt-video; chunks of frames).
        rope_theta: base of the rotary wavelengths.
        learning: where gradients are taken, of what, and how far a step goes, where that departs from the paper.
        checkpoint_group: chunks per activation checkpoint of the eager scan; 0 stores everything. (Kernels recompute
            by themselves.)
        fused: Triton kernels in place of the eager scan: ``never``, ``auto`` where they were verified and found faster
            on such a GPU and pass a self-check on this one, or ``require``, an error where there are none. ``step``
            obeys, too; with ``never`` it always is the eager scan, which can be exported.
    """

    inner: InnerModel = field(default_factory=MLP)
    heads: int = 4
    chunk: Chunk = field(default_factory=FrameCausal)
    objective: Objective = field(default_factory=ResidualL2)
    optimizer: InnerOptimizer = field(default_factory=SGD)
    base_rate: float | None = None
    views: int = 1
    forget: bool = False
    short_conv: Literal["none", "raster", "time"] = "none"
    conv_values: bool = False
    share_qk: bool = False
    bias: bool = False
    gate: bool = False
    tanh_gate: float | None = None
    normalize_qk: bool = False
    silu: bool = False
    rope: bool | Literal["frame_row_column"] | None = None
    rope_theta: float = 10000.0
    learning: Learning = field(default_factory=Learning)
    checkpoint_group: int = 0
    fused: Literal["auto", "never", "require"] = "never"

    def __post_init__(self) -> None:
        for name, kind in _PARTS.items():
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"TTT.{name} is {getattr(self, name)!r}; it must be a {kind.__name__}.")
        inner, optimizer, chunk = type(self.inner).__name__, type(self.optimizer).__name__, type(self.chunk).__name__
        if self.heads < 1:
            raise ValueError(f"TTT.heads is {self.heads}; there is at least 1.")
        if self.inner.mixes_tokens and isinstance(self.chunk, TokenCausal):
            raise ValueError(
                f"{inner} mixes the tokens of a frame, so a token-causal chunk would leak later tokens into earlier "
                "ones; use chunk: FrameCausal."
            )
        if not (self.optimizer.linear or self.chunk.whole):
            raise ValueError(
                f"{optimizer} with these settings updates from a whole chunk at once, but in {chunk} every token has "
                "weights of its own; use chunk: FrameCausal with frames: 1, or Whole, or the optimizer SGD with "
                "steps: 1, no clip and no weight_norm."
            )
        if self.views < 1 or (self.views > 1 and (self.share_qk or self.inner.past_frames)):
            raise ValueError(
                f"TTT.views is {self.views}; it is at least 1, and 1 with share_qk and with a kernel over time."
            )
        if self.short_conv not in ("none", "raster", "time"):
            raise ValueError(f"TTT.short_conv is {self.short_conv!r}; it must be none, raster or time.")
        if self.rope not in (None, True, False, "frame_row_column"):
            raise ValueError(f"TTT.rope is {self.rope!r}; it must be true, false, frame_row_column or null.")
        if self.rope == "frame_row_column" and isinstance(self.chunk, TokenCausal):
            raise ValueError(
                "TTT.rope is frame_row_column, which counts whole frames, but TokenCausal may stop inside one; use "
                "chunk: FrameCausal, or rope: true."
            )
        if self.tanh_gate is not None and not math.isfinite(self.tanh_gate):
            raise ValueError(f"TTT.tanh_gate is {self.tanh_gate}; it is where alpha starts: 0, or 0.1, or null.")
        if self.fused not in ("auto", "never", "require"):
            raise ValueError(f"TTT.fused is {self.fused!r}; it must be auto, never or require.")
        if self.rope_theta <= 0 or self.checkpoint_group < 0:
            raise ValueError(
                f"TTT.rope_theta must be above 0 and checkpoint_group at least 0, not {self.rope_theta} and "
                f"{self.checkpoint_group}."
            )
        self.learning.check(self)
        if self.learning.rate_scale == "head_dim":
            self._check_rate()

    def _check_rate(self) -> None:
        """Refuses base rates with which the inner loop diverges."""
        rate = self.base_rate
        if rate is None:
            return
        if not 0 <= rate < math.inf:
            raise ValueError(f"TTT.base_rate is {rate}; below 0 the hidden state would unlearn.")
        if not self.optimizer.follows_length:
            return
        of_ttt_video = isinstance(self.objective, ResidualL2) and self.objective.normalize_target and self.inner.linear
        most = 1.0 if of_ttt_video else MAX_RATE_NORMALIZED
        if self.normalize_qk and self.objective.uses_norm and rate > most:
            raise ValueError(
                f"TTT.base_rate is {rate}, but with normalize_qk the inner model's outputs start small and the "
                f"gradient through the LayerNorm is as many times larger: rates above {most} diverge; "
                "use 0.1, or leave base_rate out."
            )
        if isinstance(self.objective, L2) and rate > MAX_RATE_L2:
            raise ValueError(
                f"TTT.base_rate is {rate}, but descent on a quadratic loss diverges once rate * |k|^2 passes 2, and "
                f"|k|^2 is about the head dimension, by which base_rate is divided; with L2 use at most {MAX_RATE_L2}."
            )
        if rate > MAX_RATE:
            raise ValueError(
                f"TTT.base_rate is {rate}; inner steps as long as that overshoot whatever the loss; use at most "
                f"{MAX_RATE} (the paper: 1 for Linear, 0.1 for MLP)."
            )

    def build(self, dim: int) -> TTTLayer:
        from .layer import TTTLayer

        return TTTLayer(self, dim)


_PARTS = {
    "inner": InnerModel,
    "chunk": Chunk,
    "objective": Objective,
    "optimizer": InnerOptimizer,
    "learning": Learning,
}

MAX_RATE = 10.0
"""Base rates above this are refused."""

MAX_RATE_L2 = 2.0
"""... with the loss 1/2 |g(k) - v|^2 (10 gave NaN within 500 frames)."""

MAX_RATE_NORMALIZED = 0.5
"""... with L2-normalised q and k and the LayerNorm in the loss (1.0 diverged at once, 0.1 trains), but for ttt-video's
TTT-Linear, whose target is normalised too and which its authors train at 1.0."""
