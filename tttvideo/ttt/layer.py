"""The TTT layer: views of the tokens, the scan that learns from them, gate and output."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .chunk import Chunk, FrameCausal, TokenCausal
from .dual import Problem
from .grid import Grid, chunk_ends, chunks_begun
from .inner.base import InnerModel
from .inner.mlp import MLP
from .interface import Layout, Mixer, SequenceLayer, exempt_from_decay, merge_heads
from .kernels import mode_of, use_kernels
from .kernels import read as read_fused
from .objective import EPS, L2, Norm, Objective, ResidualL2
from .optimizer import SGD, InnerOptimizer, Moments
from .scan import Fast, Views, is_cumulative, scan
from .views import Projections, at_least_float32, last_valid, with_past
from .weights import Map, Weights, combine, zeros_like


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
        base_rate: inner learning rate before the learned per-token factor; none: the inner model's own, but at
            most 0.1 with ``normalize_qk``.
        views: training pairs (k, v) that every token gives, each by projections of its own (paper, section 2.3).
        forget: a learned gate per token that leads the hidden state back towards W_0.
        short_conv: causal depthwise convolutions of length 4 on q and k, along the tokens in ``raster`` order (the
            paper) or along ``time`` at every place of the frame.
        share_qk: q and k share a projection and differ by their short convolutions (Mamba style).
        gate: multiply the output by gelu(W x) before the last projection (Mamba style).
        tanh_gate: multiply the output by tanh(alpha), alpha learned per channel from this value; 0 leaves a
            pretrained block as it was at the start, 0.1 is ttt-video's; none: no such gate.
        normalize_qk: scale q and k to unit length.
        rope: rotary positions within the chunk (token-causal) or the frame; none: on, except for convolutional
            inner models, which see positions by themselves.
        rope_theta: base of the rotary wavelengths.
        checkpoint_group: chunks per activation checkpoint of the eager scan; 0 stores everything. (Kernels recompute
            by themselves.)
        fused: Triton kernels in place of the eager scan: ``never``, ``auto`` where they were verified and found faster
            on such a GPU and pass a self-check on this one, or ``require``, an error where there are none.
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
    share_qk: bool = False
    gate: bool = False
    tanh_gate: float | None = None
    normalize_qk: bool = False
    rope: bool | None = None
    rope_theta: float = 10000.0
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
        if self.share_qk and self.short_conv == "none":
            raise ValueError("TTT.share_qk makes q and k the same but for their convolutions; set short_conv: raster.")
        if self.tanh_gate is not None and not math.isfinite(self.tanh_gate):
            raise ValueError(f"TTT.tanh_gate is {self.tanh_gate}; it is where alpha starts: 0, or 0.1, or none.")
        if self.fused not in ("auto", "never", "require"):
            raise ValueError(f"TTT.fused is {self.fused!r}; it must be auto, never or require.")
        if self.rope_theta <= 0 or self.checkpoint_group < 0:
            raise ValueError(
                f"TTT.rope_theta must be above 0 and checkpoint_group at least 0, not {self.rope_theta} and "
                f"{self.checkpoint_group}."
            )
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
        if self.normalize_qk and self.objective.uses_norm and rate > MAX_RATE_NORMALIZED:
            raise ValueError(
                f"TTT.base_rate is {rate}, but with normalize_qk the inner model's outputs start small and the "
                f"gradient through the LayerNorm is as many times larger: rates above {MAX_RATE_NORMALIZED} diverge; "
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
        return TTTLayer(self, dim)


_PARTS = {"inner": InnerModel, "chunk": Chunk, "objective": Objective, "optimizer": InnerOptimizer}

MAX_RATE = 10.0
"""Base rates above this are refused."""

MAX_RATE_L2 = 2.0
"""... with the loss 1/2 |g(k) - v|^2 (10 gave NaN within 500 frames)."""

MAX_RATE_NORMALIZED = 0.5
"""... with L2-normalised q and k and the LayerNorm in the loss (1.0 diverged at once, 0.1 trains)."""


class TTTState(NamedTuple):
    """All a TTT layer remembers: constant in size, whatever was read.

    Attributes:
        weights: the inner model at the start of the open chunk.
        pending: sum of rate * gradient over the tokens that the open chunk has read, without the step's scale.
        fading: sum of the logarithms of their forget gates, [B, H, 1, 1].
        moments: of the inner optimizer.
        position: tokens that the open chunk has read, int64 [B] on the host; rows may differ in age.
        tails: last inputs of what looks back, by name: the short convolutions (``q``, ``k``) [B, tokens, C], the
            inner model's kernel over time (``inner_q``, ``inner_k``) [B, tokens, H, d].
    """

    weights: Weights
    pending: Weights
    fading: Tensor
    moments: Moments
    position: Tensor
    tails: dict[str, Tensor]


class TTTLayer(SequenceLayer):
    """See ``TTT``. Shapes: tokens [B, T, C]; inner weights [B, H, inputs, outputs], in float32 at least.

    Args:
        config: its configuration.
        dim: channels C.

    Raises:
        ValueError: if ``dim`` does not divide into heads (of even dimension where positions are rotary).
    """

    def __init__(self, config: TTT, dim: int):
        super().__init__()
        heads = config.heads
        if dim % heads:
            raise ValueError(f"TTT cannot divide {dim} channels into {heads} heads; change heads or the width.")
        head_dim = dim // heads
        rope = not config.inner.sees_positions if config.rope is None else config.rope
        if rope and head_dim % 2:
            raise ValueError(f"Rotary positions need an even head dimension; {dim} channels / {heads} heads is odd.")
        base_rate = config.base_rate
        if base_rate is None:
            base_rate = min(config.inner.base_rate, 0.1) if config.normalize_qk else config.inner.base_rate

        self.config = config
        self.streams, self.causal = config.chunk.streams, config.chunk.causal
        self.project = Projections(config, dim, rope, base_rate)
        start = config.inner.init(head_dim, heads)
        self.weights = nn.ParameterDict({f"{name}_weight": w for name, (w, _) in start.items()})
        self.biases = nn.ParameterDict({f"{name}_bias": b for name, (_, b) in start.items() if b is not None})
        shape = (heads, 1, head_dim) if config.objective.uses_norm else None
        self.norm_scale = None if shape is None else nn.Parameter(torch.ones(shape))
        self.norm_shift = None if shape is None else nn.Parameter(torch.zeros(shape))
        # Only the paper's token mode learns the step's scale by position (delta of 1/(t+1) + delta_t).
        scales = config.chunk.tokens if isinstance(config.chunk, TokenCausal) else None
        self.scale_shift = None if scales is None else nn.Parameter(torch.zeros(scales))
        self.post_norm = nn.LayerNorm(dim, eps=EPS)
        self.g_proj = nn.Linear(dim, dim, bias=False) if config.gate else None
        self.o_proj = nn.Linear(dim, dim, bias=False)
        self.alpha = None if config.tanh_gate is None else nn.Parameter(torch.full((dim,), config.tanh_gate))
        exempt_from_decay(self.weights, self.biases, self.norm_scale, self.norm_shift, self.scale_shift, self.alpha)
        self.rate_warmup = 1.0
        self.checkpoint_group = config.checkpoint_group

    def unit(self, tokens_per_frame: int) -> int:
        return self.config.chunk.unit(tokens_per_frame)

    def init_state(self, batch: int) -> TTTState:
        weights = combine(lambda w: w.expand(batch, *w.shape[1:]), self._start())
        if not torch.is_grad_enabled():  # a state that nobody differentiates must not be the parameters themselves
            weights = combine(torch.clone, weights)
        return TTTState(
            weights,
            zeros_like(weights),
            next(iter(weights.values())).weight.new_zeros(batch, self.config.heads, 1, 1),
            self.config.optimizer.init_state(weights),
            torch.zeros(batch, dtype=torch.int64),
            self.project.init_state(batch) | self._no_past(batch),
        )

    def read(self, x: Tensor, state: TTTState, layout: Layout) -> tuple[Tensor, TTTState]:
        if not x.numel() or (layout.lengths is not None and not layout.lengths.any()):
            return 0.0 * x, state  # of x: what stands before this layer keeps a gradient
        chunk = self.config.chunk
        token_wise = isinstance(chunk, TokenCausal)
        period = chunk.tokens if isinstance(chunk, TokenCausal) else layout.tokens_per_frame
        positions = _positions(state.position if token_wise else torch.zeros(1, dtype=torch.int64), x) % period
        views, tails = self.project(x, state.tails, positions, 1 if token_wise else period, layout)
        # Tuples are made anew, not by _replace: torch.compile of PyTorch 2.11 cannot take those over a graph break
        views = Views(views.q, views.k, views.v, views.rate * self._rate_scale(x, layout), views.fade)
        views, tails = self._with_past(views, tails, layout)
        mode = mode_of(torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype)
        fused = use_kernels(self.config, views.q.shape, layout.grid, x.device, mode)
        with torch.autocast(x.device.type, enabled=False):
            state = TTTState(*state[:-1], tails)
            out, after = self._read_fused(views, state, layout, mode) if fused else self._scan(views, state, layout)
        y = self.post_norm(merge_heads(out).to(x.dtype))
        if self.g_proj is not None:
            y = y * F.gelu(self.g_proj(x), approximate="tanh")
        y = self.o_proj(y)
        return (y if self.alpha is None else y * torch.tanh(self.alpha).to(y.dtype)), after

    def _rate_scale(self, x: Tensor, layout: Layout) -> Tensor | float:
        """The warm-up's share of the rate; in full-batch descent also 1 / frames of each row: the mean over all."""
        if self.config.chunk.size(1) is not None:
            return self.rate_warmup
        tokens = torch.full((x.shape[0],), x.shape[1]) if layout.lengths is None else layout.lengths.clamp_min(1)
        scale = self.rate_warmup * layout.tokens_per_frame / tokens
        return scale.to(x.device, torch.float64 if x.dtype == torch.float64 else torch.float32)[
            :, None, None, None, None
        ]

    def _start(self) -> Weights:
        """W_0 as one row, in the precision that weights in motion need (bf16 drifts by percents)."""

        def row(x: Tensor) -> Tensor:
            # detached: a view of a parameter asks for its gradient even under no_grad
            return at_least_float32(x if torch.is_grad_enabled() else x.detach())[None]

        names = [key.removesuffix("_weight") for key in self.weights]
        biases = {name: row(self.biases[f"{name}_bias"]) for name in names if f"{name}_bias" in self.biases}
        return {name: Map(row(self.weights[f"{name}_weight"]), biases.get(name)) for name in names}

    def _no_past(self, batch: int) -> dict[str, Tensor]:
        """What the inner model's kernel over time looks back on before anything was read: [B, 0, H, d]."""
        if not self.config.inner.past_frames:
            return {}
        heads = self.config.heads
        empty = self.o_proj.weight.new_zeros(batch, 0, heads, self.o_proj.weight.shape[0] // heads)
        return {name: at_least_float32(empty) for name in ("inner_q", "inner_k")}

    def _with_past(self, views: Views, tails: dict[str, Tensor], layout: Layout) -> tuple[Views, dict[str, Tensor]]:
        """Puts before q and k what the inner model's kernel over time looks back on."""
        past = self.config.inner.past_frames * layout.tokens_per_frame
        if not past:
            return views, tails
        q = with_past(views.q.transpose(1, 2), tails["inner_q"], past)  # [B, P + T, H, d]
        k = with_past(views.k[:, :, 0].transpose(1, 2), tails["inner_k"], past)
        held = {"inner_q": last_valid(q, past, layout.lengths), "inner_k": last_valid(k, past, layout.lengths)}
        q, k = q.transpose(1, 2), k.transpose(1, 2)[:, :, None]
        return Views(q, k, views.v, views.rate, views.fade), tails | held

    def _scan(self, views: Views, state: TTTState, layout: Layout) -> tuple[Tensor, TTTState]:
        """Brings the rows to a common chunk grid, scans it, and reads the rows back."""
        chunk, device = self.config.chunk, views.q.device
        per_frame, length = layout.tokens_per_frame, views.v.shape[3]
        read = torch.full_like(state.position, length) if layout.lengths is None else layout.lengths
        position = self._position(state.position, read, per_frame)
        ends = position + read
        full = chunk.size(per_frame) or max(1, int(ends.max()))
        size = min(full, int(ends.max()))  # of the largest chunk that there is
        problem = self._problem(views, layout)
        # Rows of one age and length need no grid: what is left of their open chunk comes first.
        fresh, one_age = not position.any(), bool((position == position[0]).all())
        plain = layout.lengths is None and one_age and (fresh or not is_cumulative(problem, views))
        grid = None if plain else Grid(position, ends, size, device)
        out, fast = scan(
            problem,
            Fast(state.weights, None if fresh else state.pending, state.fading, state.moments),
            views if grid is None else grid.gather(views),
            size=size,
            scale=self._scale(size, per_frame, device, views.q.dtype),
            mask=chunk.mask(per_frame, size, device),
            closes=(chunks_begun if chunk.whole else chunk_ends)(ends, full, device),
            offset=int(position[0]) if plain else 0,
            group=self.checkpoint_group,
        )
        if grid is not None:
            out = grid.scatter(out, length)
        weights, pending, fading, moments = fast
        pending = zeros_like(weights) if pending is None else pending
        if chunk.whole:
            ends = torch.where(read > 0, ends, state.position)
        return out, TTTState(
            weights, pending, fading, moments, ends if chunk.size(1) is None else ends % full, state.tails
        )

    def _read_fused(self, views: Views, state: TTTState, layout: Layout, mode: str) -> tuple[Tensor, TTTState]:
        """``_scan`` by Triton kernels."""
        per_frame, length = layout.tokens_per_frame, views.v.shape[3]
        size = self.config.chunk.size(per_frame)
        assert size is not None
        read = torch.full_like(state.position, length) if layout.lengths is None else layout.lengths
        scale = self._scale(size, per_frame, views.q.device, views.q.dtype)[:, 0]
        given = (state.weights, state.pending, self._position(state.position, read, per_frame), layout.lengths)
        grid = layout.grid if self.config.chunk.whole else None
        parts = (self.config.inner, self.config.optimizer, views, self._norm(views))
        out, weights, pending = read_fused(*parts, scale, *given, grid, mode)
        position = (state.position + read) % size
        return out, state._replace(weights=weights, pending=pending, position=position)

    def _position(self, position: Tensor, read: Tensor, tokens_per_frame: int) -> Tensor:
        """Tokens of the open chunk that each row has read before.

        Raises:
            ValueError: if a chunk that is read as a whole is open, or the frames had another size before.
        """
        chunk = self.config.chunk
        if chunk.whole:
            if bool(((position > 0) & (read > 0)).any()):
                raise ValueError(
                    f"The sequence ended inside a chunk of {type(chunk).__name__} and cannot go on from there; split "
                    "it at whole chunks, or use chunk: FrameCausal."
                )
            return torch.zeros_like(position)
        if bool((position % chunk.unit(tokens_per_frame)).any()):
            raise ValueError(
                f"The state's open chunks have {position.tolist()} tokens, not whole frames of this call's "
                f"{tokens_per_frame}; the grid of a sequence must not change."
            )
        return position

    def _problem(self, views: Views, layout: Layout) -> Problem:
        config, norm = self.config, self._norm(views)
        return Problem(
            config.inner, config.objective, config.optimizer, norm, self._start(), layout.grid, self.rate_warmup
        )

    def _norm(self, views: Views) -> Norm:
        if self.norm_scale is None or self.norm_shift is None:
            return Norm(views.q.new_ones(()), views.q.new_zeros(()))
        return Norm(at_least_float32(self.norm_scale), at_least_float32(self.norm_shift))

    def _scale(self, size: int, tokens_per_frame: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """[K, 1]: 1/(t+1) + delta_t, at least 0, by token (paper, appendix); the mean over a frame by frame.

        The mean keeps the size of a frame's step independent of how finely the frame is cut into tokens.
        """
        if self.scale_shift is None:
            return torch.full((size, 1), 1.0 / tokens_per_frame, device=device, dtype=dtype)
        steps = 1.0 / torch.arange(1, size + 1, device=device, dtype=dtype)
        return (steps + self.scale_shift[:size].to(dtype)).clamp_min(0.0)[:, None]


def _positions(first: Tensor, x: Tensor) -> Tensor:
    """Places of the tokens of ``x`` [B, T, C] in their sequence, [T], or [B, T] where ``first`` [B] differs by row.

    Where it does not they are made on the device: a copy would wait for it, and could not be part of a CUDA graph.
    """
    if bool((first == first[0]).all()):
        return torch.arange(int(first[0]), int(first[0]) + x.shape[1], device=x.device)
    return first[:, None] + torch.arange(x.shape[1])
