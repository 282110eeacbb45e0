"""Linear attention: a TTT layer's control, whose hidden state is a sum of outer products instead of a trained model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ttt.interface import Layout, Mixer, SequenceLayer, merge_heads, valid_tokens
from ..ttt.objective import EPS
from ..ttt.primitives import CausalConv, at_least_float32, in_chunks, product_dtype, query_key_value
from . import fused


@dataclass(frozen=True)
class LinearAttention(Mixer):
    """out_t = phi(q_t) S_t with S_t = sum_s phi(k_s)^T v_s over the tokens seen (arXiv 2006.16236).

    Everything around it - projections, short convolutions, rotary positions, LayerNorm over C, gate - is the TTT
    layer's, so that the two differ in the update rule alone. With ``identity`` it is the limit of a linear inner
    model without bias, norm and residual that starts at 0 and takes one step for the whole sequence. In plain PyTorch,
    or, causal over tokens, by flash-linear-attention's kernel where that is installed and a GPU is there (``fused``).

    Attributes:
        heads: H.
        causality: ``frame``: a token sees its own whole frame and all frames before; ``token``: all tokens up to
            itself.
        feature_map: phi of q and k: ``identity``, ``elu`` (elu + 1, positive) or ``silu``.
        normalizer: divide by phi(q_t) . sum_s phi(k_s); needs the positive ``elu``.
        short_conv: causal convolutions on q and k, as in ``TTT``.
        share_qk: one projection for q and k, as in ``TTT``.
        gate: output gate, as in ``TTT``.
        normalize_qk: q and k of unit length, as in ``TTT``.
        rope_period: rotary positions of q and k count this many tokens and start again, as they do in a TTT layer
            (``TokenCausal.tokens``); null: the tokens of a frame; 0: no rotary positions. They come before phi, so
            that its output stays positive.
        rope_theta: base of the rotary wavelengths.
        chunk: tokens per matrix product, rounded down to whole frames where they must stay whole. It sets the
            speed and, but for rounding, no value.
    """

    heads: int = 4
    causality: Literal["frame", "token"] = "frame"
    feature_map: Literal["identity", "elu", "silu"] = "identity"
    normalizer: bool = False
    short_conv: Literal["none", "raster", "time"] = "none"
    share_qk: bool = False
    gate: bool = False
    normalize_qk: bool = False
    rope_period: int | None = None
    rope_theta: float = 10000.0
    chunk: int = 64

    def __post_init__(self) -> None:
        if self.causality not in ("frame", "token"):
            raise ValueError(f"LinearAttention.causality is {self.causality!r}; it must be frame or token.")
        if self.feature_map not in _FEATURES:
            raise ValueError(
                f"LinearAttention.feature_map is {self.feature_map!r}; it must be one of {', '.join(_FEATURES)}."
            )
        if self.normalizer and self.feature_map != "elu":
            raise ValueError(
                f"LinearAttention.normalizer would divide by sums of either sign with feature_map: {self.feature_map}; "
                "use feature_map: elu."
            )
        if self.short_conv not in ("none", "raster", "time"):
            raise ValueError(f"LinearAttention.short_conv is {self.short_conv!r}; it must be none, raster or time.")
        if self.share_qk and self.short_conv == "none":
            raise ValueError(
                "LinearAttention.share_qk makes q and k the same but for their convolutions; set short_conv: raster."
            )
        if self.chunk < 1 or self.rope_theta <= 0 or (self.rope_period or 0) < 0:
            raise ValueError(
                "LinearAttention.chunk must be at least 1, rope_theta above 0 and rope_period at least 0, not "
                f"{self.chunk}, {self.rope_theta} and {self.rope_period}."
            )

    def build(self, dim: int) -> LinearAttentionLayer:
        return LinearAttentionLayer(self, dim)


_FEATURES = {"identity": lambda x: x, "elu": lambda x: F.elu(x) + 1.0, "silu": F.silu}


class LinearAttentionState(NamedTuple):
    """``sums`` [B, H, d, d] of phi(k)^T v, in float32 at least (with ``normalizer`` [B, H, d, d + 1]: the last
    column is the sum of phi(k)); ``seen`` tokens, int64 [B] on the host; and by name the last inputs of the short
    convolutions, [B, tokens, C]."""

    sums: Tensor
    seen: Tensor
    tails: dict[str, Tensor]


class LinearAttentionLayer(SequenceLayer):
    """See ``LinearAttention``.

    Raises:
        ValueError: if ``dim`` does not divide into heads (of even dimension where positions are rotary).
    """

    def __init__(self, config: LinearAttention, dim: int):
        super().__init__()
        odd = config.rope_period != 0 and config.heads > 0 and (dim // config.heads) % 2
        if config.heads < 1 or dim % config.heads or odd:
            raise ValueError(
                f"LinearAttention cannot divide {dim} channels into {config.heads} heads"
                f"{' of even dimension, which rotary positions need' if odd else ''}; change heads or the width."
            )
        self.config = config
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.k_proj = None if config.share_qk else nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, dim, bias=False)
        self.o_proj = nn.Linear(dim, dim, bias=False)
        self.g_proj = nn.Linear(dim, dim, bias=False) if config.gate else None
        self.convs = nn.ModuleDict({n: CausalConv(dim) for n in ("q", "k")} if config.short_conv != "none" else {})
        self.post_norm = nn.LayerNorm(dim, eps=EPS)

    def init_state(self, batch: int) -> LinearAttentionState:
        weight, heads = self.o_proj.weight, self.config.heads
        d = weight.shape[0] // heads
        sums = at_least_float32(weight).new_zeros(batch, heads, d, d + self.config.normalizer)
        tails = {name: conv.init_state(batch) for name, conv in self.convs.items()}  # type: ignore[operator]
        return LinearAttentionState(sums, torch.zeros(batch, dtype=torch.int64), tails)

    def unit(self, tokens_per_frame: int) -> int:
        return tokens_per_frame if self.config.causality == "frame" else 1

    def read(self, x: Tensor, state: LinearAttentionState, layout: Layout) -> tuple[Tensor, LinearAttentionState]:
        if not x.shape[1]:
            return x, state
        positions = None
        if self.config.rope_period != 0:
            period = self.config.rope_period or layout.tokens_per_frame
            positions = (state.seen[:, None] + torch.arange(x.shape[1])) % period
        q, k, v, tails = query_key_value(self, x, state.tails, positions, layout)
        # a sum of many terms divides: not in half precision
        kernel_dtype = torch.float32 if self.config.normalizer else product_dtype(x)
        with torch.autocast(x.device.type, enabled=False):
            phi = _FEATURES[self.config.feature_map]
            q, k = phi(q), phi(k)
            valid = valid_tokens(layout.lengths, x.shape[1], x.device)
            if valid is not None:  # phi(0) need not be 0
                k = k * valid[:, None, :, None]
            if self.config.normalizer:
                v = F.pad(v, (0, 1), value=1.0)
            unit = self.unit(layout.tokens_per_frame)
            form = fused.linear_attention(q, unit, kernel_dtype) or attend
            out, sums = form(q, k, v, state.sums, self.config.chunk, unit)
            if self.config.normalizer:
                out = out[..., :-1] / out[..., -1:].clamp_min(torch.finfo(out.dtype).tiny)
        y = self.post_norm(merge_heads(out).to(x.dtype))
        if self.g_proj is not None:
            y = y * F.gelu(self.g_proj(x), approximate="tanh")
        seen = state.seen + (x.shape[1] if layout.lengths is None else layout.lengths)
        return self.o_proj(y), LinearAttentionState(sums, seen, tails)


def attend(q: Tensor, k: Tensor, v: Tensor, sums: Tensor, chunk: int, unit: int) -> tuple[Tensor, Tensor]:
    """Linear attention in chunks: products within each, one sum for all that came before it.

    Args:
        q: [B, H, T, d]; k likewise, zero where a token is padding.
        v: [B, H, T, e].
        sums: [B, H, d, e], of everything before.
        chunk: tokens per chunk, at most; whole units, at least one.
        unit: tokens that see each other: a frame's, or 1.

    Returns:
        out [B, H, T, e] and the sums after T tokens.
    """
    length = q.shape[2]
    size = min(max(chunk // unit, 1) * unit, length)
    q, k, v = (in_chunks(t, size) for t in (q, k, v))
    group = torch.arange(size, device=q.device) // unit
    scores = (q @ k.mT).masked_fill(group[:, None] < group, 0.0)
    before = torch.cat((sums[:, :, None], k.mT @ v), dim=2).cumsum(2)
    out = q @ before[:, :, :-1] + scores @ v
    # clone: a view would keep the sums of all chunks alive in the state
    return out.flatten(2, 3)[:, :, :length], before[:, :, -1].clone()
