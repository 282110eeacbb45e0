"""The TTT layer: projections to the inner task's views, inner learning rates, the scan, gate and output."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .chunk import Chunk, FrameCausal, TokenCausal
from .dual import Problem, Tokens, scan
from .inner.base import InnerModel, Map, Weights
from .inner.mlp import MLP
from .interface import Layout, Mixer, SequenceLayer, merge_heads, split_heads
from .objective import EPS, Norm, Objective, ResidualL2
from .views import CausalConv, rotate


@dataclass(frozen=True)
class TTT(Mixer):
    """A sequence layer whose hidden state is a model, trained by gradient descent on the sequence as it is read.

    Attributes:
        inner: the hidden state: ``Linear``, ``MLP``, ``Conv`` or any class of yours by import path.
        heads: H; the head dimension is channels / heads.
        chunk: the inner mini-batch and its causality: ``TokenCausal`` (the paper) or ``FrameCausal``.
        objective: the inner loss.
        base_rate: inner learning rate before the learned per-token factor; none: the inner model's own.
        share_qk: q and k share a projection followed by a short causal convolution each (Mamba style).
        gate: multiply the output by gelu(W x) before the last projection (Mamba style).
        normalize_qk: scale q and k to unit length.
        rope: rotary positions within the chunk (token-causal) or the frame; none: on, except for inner models
            that mix tokens, whose convolutions see positions by themselves.
        rope_theta: base of the rotary wavelengths.
        checkpoint_group: chunks per activation checkpoint of the scan; 0 stores everything.
    """

    inner: InnerModel = field(default_factory=MLP)
    heads: int = 4
    chunk: Chunk = field(default_factory=FrameCausal)
    objective: Objective = field(default_factory=ResidualL2)
    base_rate: float | None = None
    share_qk: bool = False
    gate: bool = False
    normalize_qk: bool = False
    rope: bool | None = None
    rope_theta: float = 10000.0
    checkpoint_group: int = 0

    def __post_init__(self) -> None:
        if self.inner.mixes_tokens and isinstance(self.chunk, TokenCausal):
            raise ValueError(
                f"{type(self.inner).__name__} mixes the tokens of a frame, so a token-causal chunk would leak "
                "later tokens into earlier ones; use chunk: FrameCausal."
            )
        if self.base_rate is not None and self.base_rate < 0:
            raise ValueError(f"TTT.base_rate is {self.base_rate}; below 0 the hidden state would unlearn.")
        if self.rope_theta <= 0 or self.checkpoint_group < 0:
            raise ValueError(
                f"TTT.rope_theta must be above 0 and checkpoint_group at least 0, not {self.rope_theta} and "
                f"{self.checkpoint_group}."
            )

    def build(self, dim: int) -> TTTLayer:
        return TTTLayer(self, dim)


class TTTState(NamedTuple):
    """All a TTT layer remembers: constant in size, whatever was read.

    Attributes:
        weights: the inner model at the start of the open chunk.
        pending: sum of rate * gradient over the tokens that the open chunk has read, without the step's scale.
        position: tokens that the open chunk has read, int64 [B] on the host; rows may differ in age.
        tails: last inputs of the short convolutions, [B, 3, C] by name; empty without ``share_qk``.
    """

    weights: Weights
    pending: Weights
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
        if heads < 1 or dim % heads:
            raise ValueError(f"TTT cannot divide {dim} channels into {heads} heads; change heads or the width.")
        head_dim = dim // heads
        self.config = config
        self.rope = not config.inner.mixes_tokens if config.rope is None else config.rope
        if self.rope and head_dim % 2:
            raise ValueError(f"Rotary positions need an even head dimension; {dim} channels / {heads} heads is odd.")
        self.base_rate = config.inner.base_rate if config.base_rate is None else config.base_rate

        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.k_proj = None if config.share_qk else nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, dim, bias=False)
        self.o_proj = nn.Linear(dim, dim, bias=False)
        self.g_proj = nn.Linear(dim, dim, bias=False) if config.gate else None
        self.convs = nn.ModuleDict({n: CausalConv(dim) for n in ("q", "k")} if config.share_qk else {})
        self.post_norm = nn.LayerNorm(dim, eps=EPS)
        self.rate = nn.Linear(dim, heads)
        nn.init.normal_(self.rate.weight, std=0.02)
        nn.init.zeros_(self.rate.bias)
        self.norm_scale = nn.Parameter(torch.ones(heads, 1, head_dim))
        self.norm_shift = nn.Parameter(torch.zeros(heads, 1, head_dim))
        start = config.inner.init(head_dim, heads)
        self.weights = nn.ParameterDict({f"{name}_weight": w for name, (w, _) in start.items()})
        self.biases = nn.ParameterDict({f"{name}_bias": b for name, (_, b) in start.items() if b is not None})
        # Only the paper's token mode learns the step's scale by position (delta of 1/(t+1) + delta_t).
        self.scale_shift = (
            nn.Parameter(torch.zeros(config.chunk.tokens)) if isinstance(config.chunk, TokenCausal) else None
        )
        self.rate_warmup = 1.0
        self.checkpoint_group = config.checkpoint_group

    def init_state(self, batch: int) -> TTTState:
        weights = {
            name: Map(
                self._start(self.weights[f"{name}_weight"], batch),
                self._start(self.biases[f"{name}_bias"], batch) if f"{name}_bias" in self.biases else None,
            )
            for name in (key.removesuffix("_weight") for key in self.weights)
        }
        return TTTState(
            weights,
            _zeros_like(weights),
            torch.zeros(batch, dtype=torch.int64),
            {name: conv.init_state(batch) for name, conv in self.convs.items()},  # type: ignore[operator]
        )

    def unit(self, tokens_per_frame: int) -> int:
        return self.config.chunk.unit(tokens_per_frame)

    def read(self, x: Tensor, state: TTTState, layout: Layout) -> tuple[Tensor, TTTState]:
        tokens, tails = self._views(x, state, layout)
        with torch.autocast(x.device.type, enabled=False):
            out, after = self._scan(tokens, state._replace(tails=tails), layout)
        y = self.post_norm(merge_heads(out).to(x.dtype))
        if self.g_proj is not None:
            y = y * F.gelu(self.g_proj(x), approximate="tanh")
        return self.o_proj(y), after

    def _start(self, w0: Tensor, batch: int) -> Tensor:
        """W_0 for every row, in the precision that weights in motion need (bf16 drifts by percents)."""
        return _at_least_float32(w0).expand(batch, *w0.shape)

    def _views(self, x: Tensor, state: TTTState, layout: Layout) -> tuple[Tokens, dict[str, Tensor]]:
        """Projections, short convolutions, rotary positions and inner learning rates."""
        config = self.config
        q, v = self.q_proj(x), self.v_proj(x)
        k = q if self.k_proj is None else self.k_proj(x)
        tails = dict(state.tails)
        if config.share_qk:
            q, tails["q"] = self.convs["q"](q, tails["q"], layout.lengths)
            k, tails["k"] = self.convs["k"](k, tails["k"], layout.lengths)
        q, k, v = (_at_least_float32(split_heads(t, config.heads)) for t in (q, k, v))
        if config.normalize_qk:
            q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        if self.rope:
            period, first = layout.tokens_per_frame, torch.zeros(1, dtype=torch.int64)
            if isinstance(config.chunk, TokenCausal):
                period, first = config.chunk.tokens, state.position
            positions = (first[:, None] + torch.arange(x.shape[1])) % period
            q, k = rotate(q, positions, config.rope_theta), rotate(k, positions, config.rope_theta)
        strength = torch.sigmoid(_at_least_float32(self.rate(x)))
        rate = (self.base_rate * self.rate_warmup / q.shape[-1]) * strength.mT[..., None]
        return Tokens(q, k, v, rate.to(q.dtype)), tails

    def _scan(self, tokens: Tokens, state: TTTState, layout: Layout) -> tuple[Tensor, TTTState]:
        """Brings the rows to a common chunk grid, scans it, and reads the rows back."""
        chunk, device, dtype = self.config.chunk, tokens.q.device, tokens.q.dtype
        size, length = chunk.size(layout.tokens_per_frame), tokens.q.shape[2]
        ends = state.position + (length if layout.lengths is None else layout.lengths)
        if length == 0 or int(ends.max()) == 0:
            return tokens.q, state
        mask = chunk.mask(layout.tokens_per_frame, device)
        norm = Norm(_at_least_float32(self.norm_scale), _at_least_float32(self.norm_shift))
        problem = Problem(self.config.inner, self.config.objective, norm, layout.grid)

        fresh = not state.position.any()
        aligned = fresh and layout.lengths is None
        grid = None if aligned else _Grid(state.position, ends, size, device)
        out, weights, pending = scan(
            problem,
            state.weights,
            None if fresh else state.pending,
            tokens if grid is None else Tokens(*(grid.gather(x) for x in tokens)),
            size=size,
            scale=self._scale(size, layout.tokens_per_frame, device, dtype),
            mask=mask,
            closes=_closes(ends, size, math.ceil(int(ends.max()) / size), mask is None, device),
            group=self.checkpoint_group,
        )
        if grid is not None:
            out = grid.scatter(out, length)
        if pending is None:
            pending = _zeros_like(weights)
        return out, TTTState(weights, pending, ends % size, state.tails)

    def _scale(self, size: int, tokens_per_frame: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """[K, 1]: 1/(t+1) + delta_t, at least 0, by token (paper, appendix); the mean over a frame by frame.

        The mean keeps the size of a frame's step independent of how finely the frame is cut into tokens.
        """
        if self.scale_shift is None:
            return torch.full((size, 1), 1.0 / tokens_per_frame, device=device, dtype=dtype)
        steps = 1.0 / torch.arange(1, size + 1, device=device, dtype=dtype)
        return (steps + self.scale_shift.to(dtype)).clamp_min(0.0)[:, None]


class _Grid:
    """Rows of different ages and lengths on one grid of chunks: token t of row b stands at position[b] + t."""

    def __init__(self, position: Tensor, ends: Tensor, size: int, device: torch.device):
        slots = math.ceil(int(ends.max()) / size) * size
        source = torch.arange(slots) - position[:, None]
        self.valid = ((source >= 0) & (source < (ends - position)[:, None])).to(device)[:, None, :, None]
        self.source = source.clamp_min(0).to(device)
        self.position = position.to(device)

    def gather(self, x: Tensor) -> Tensor:
        """[B, H, T, d] -> [B, H, slots, d], zero where there is no token."""
        return torch.where(self.valid, _take(x, self.source.clamp_max(x.shape[2] - 1)), 0.0)

    def scatter(self, x: Tensor, length: int) -> Tensor:
        """[B, H, slots, d] -> [B, H, T, d]."""
        index = self.position[:, None] + torch.arange(length, device=x.device)
        return _take(x, index.clamp_max(x.shape[2] - 1))


def _take(x: Tensor, index: Tensor) -> Tensor:
    """x [B, H, S, d] at index [B, T] of dimension 2."""
    return x.gather(2, index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


def _closes(ends: Tensor, size: int, chunks: int, whole: bool, device: torch.device) -> list[bool | Tensor]:
    """For each chunk, whether its last token has been read, by row where rows differ."""
    if whole:
        return [True] * chunks  # a chunk is one frame, always read whole; padded frames have rate 0
    closes: list[bool | Tensor] = []
    for c in range(chunks):
        rows = ends >= (c + 1) * size
        uniform = bool(rows.all()) or not bool(rows.any())
        closes.append(bool(rows[0]) if uniform else rows.to(device)[:, None, None, None])
    return closes


def _zeros_like(weights: Weights) -> Weights:
    return {
        name: Map(torch.zeros_like(w), None if b is None else torch.zeros_like(b)) for name, (w, b) in weights.items()
    }


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
