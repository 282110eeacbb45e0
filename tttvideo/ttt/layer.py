"""The TTT layer: tokens to queries, keys, values and rates, the scan that learns from them, gate and output."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .chunk import TokenCausal
from .config import TTT
from .delta import is_delta_rule
from .inner_gradient import InnerLoop
from .inspection import ReadChunk
from .interface import Layout, SequenceLayer, exempt_from_decay, merge_heads
from .kernels import mode_of, norm_and_gate, split, use_kernels
from .kernels import read as read_fused
from .objective import EPS, Norm
from .primitives import at_least_float32, last_valid, product_dtype, query_key_value, with_past
from .projections import Projections
from .ragged import Slots, closing
from .scan import scan
from .state import Map, Moments, TTTState, Weights, zeros_like
from .tokens import Tokens


def _scan() -> Callable[..., tuple[Tensor, TTTState]]:
    """``scan``, under ``torch.compile`` outside its graphs."""
    if not torch.compiler.is_compiling():
        return scan
    from . import uncompiled

    return uncompiled.scan


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
        self.head_dim = head_dim = dim // heads
        self.past_frames = config.inner.past_frames
        self.chunk_is_whole, self.chunk_is_bounded = config.chunk.whole, config.chunk.size(1) is not None
        self.rope = not config.inner.sees_positions if config.rope is None else config.rope
        if self.rope and head_dim % 2:
            raise ValueError(f"Rotary positions need an even head dimension; {dim} channels / {heads} heads is odd.")
        if self.rope == "frame_row_column" and head_dim < 8:
            raise ValueError(f"rope: frame_row_column turns three parts of a head of {head_dim} channels; it needs 8.")
        self.config = config
        self.streams, self.causal = config.chunk.streams, config.chunk.causal
        self._set_rates()
        self.project = Projections(config, dim)
        self._add_start(config.inner.init(head_dim, heads))
        shape = (heads, 1, head_dim) if config.objective.uses_norm else None
        self.norm_scale = None if shape is None else nn.Parameter(torch.ones(shape))
        self.norm_shift = None if shape is None else nn.Parameter(torch.zeros(shape))
        # Only the paper's token mode learns the step's scale by position (delta of 1/(t+1) + delta_t).
        scales = config.chunk.tokens if isinstance(config.chunk, TokenCausal) else None
        self.scale_shift = None if scales is None else nn.Parameter(torch.zeros(scales))
        self.post_norm = nn.LayerNorm(dim, eps=EPS)
        self.g_proj = nn.Linear(dim, dim, bias=False) if config.gate else None
        self.o_proj = nn.Linear(dim, dim, bias=config.bias)
        self.alpha = None if config.tanh_gate is None else nn.Parameter(torch.full((dim,), config.tanh_gate))
        exempt_from_decay(self.weights, self.right, self.biases)
        exempt_from_decay(self.norm_scale, self.norm_shift, self.scale_shift, self.alpha)
        self._choose_scan()
        self.checkpoint_group = config.checkpoint_group

    def _set_rates(self) -> None:
        """Inner learning rates are ``base_rate`` times ``rate_factor``, times what the warm-up allows."""
        config, learning = self.config, self.config.learning
        usual = min(config.inner.base_rate, 0.1) if config.normalize_qk else config.inner.base_rate
        self.base_rate = usual if config.base_rate is None else config.base_rate
        sign = 1 if learning.direction == "descent" else -1
        self.rate_factor = sign / (self.head_dim if learning.rate_scale else 1)
        self.rate_warmup = 1.0

    def _add_start(self, start: dict[str, tuple[Tensor, Tensor | None]]) -> None:
        """W_0 as parameters, or the shapes of its maps where it is zero; and which of the maps learn."""
        inner, learning, rank = self.config.inner, self.config.learning, self.config.learning.start_rank
        self.learns = {inner.last or next(iter(start))} if learning.update == "last" else set(start)
        self.all_learn = len(self.learns) == len(start)
        self.zero_start = None
        if learning.start == "zero":
            self.zero_start = {name: (w.shape, None if b is None else b.shape) for name, (w, b) in start.items()}
            start = {}
        self.right = None
        if rank is not None:  # `start` keeps the left factors; standard deviations are LaCT's
            right = {}
            for name in [name for name in start if name != inner.last]:
                (heads, inputs, outputs), bias = start[name][0].shape, start[name][1]
                start[name] = torch.randn(heads, inputs, rank) / (2 * inputs**0.5), bias
                right[f"{name}_right"] = torch.randn(heads, rank, outputs) / (2 * rank**0.5)
            self.right = nn.ParameterDict(right)
        self.weights = nn.ParameterDict({f"{name}_weight": w for name, (w, _) in start.items()})
        self.biases = nn.ParameterDict({f"{name}_bias": b for name, (_, b) in start.items() if b is not None})

    def _choose_scan(self) -> None:
        """Whether the scan needs no loop over chunks, plain descent serves, and W_0 is needed."""
        config, learning = self.config, self.config.learning
        unmoved = config.inner.linear or (learning.update == "last" and config.inner.last is not None)
        at_start = learning.gradient_at == "start"
        constant = at_start or (unmoved and config.objective.constant_gradient)
        self.cumulative = constant and config.optimizer.cumulative and not config.forget
        self.delta = is_delta_rule(config)
        self.descends = config.optimizer.linear
        self.uses_start = config.forget or not self.descends or not self.all_learn or at_start

    def unit(self, tokens_per_frame: int) -> int:
        return self.config.chunk.unit(tokens_per_frame)

    def step_unit(self, tokens_per_frame: int) -> int:
        return self.config.chunk.size(tokens_per_frame) or tokens_per_frame

    def init_state(self, batch: int) -> TTTState:
        weights, zeros = {}, {}
        for name, (weight, bias) in self._start().items():
            if name not in self.learns:
                continue
            weight = weight.expand(batch, *weight.shape[1:])
            bias = None if bias is None else bias.expand(batch, *bias.shape[1:])
            if not torch.is_grad_enabled():  # a state that nobody differentiates must not be the parameters themselves
                weight, bias = weight.clone(), None if bias is None else bias.clone()
            weights[name] = Map(weight, bias)
            zeros[name] = Map(torch.zeros_like(weight), None if bias is None else torch.zeros_like(bias))
        config, tails = self.config, {}
        for name, conv in self.project.convs.items():
            tails[name] = conv.init_state(batch)
        if self.past_frames:
            nothing = weight.new_zeros(batch, 0, config.heads, self.head_dim)
            tails |= {"inner_q": nothing, "inner_k": nothing}
        if self.rope == "frame_row_column":
            tails["frames"] = weight.new_zeros(batch)
        count = weight.new_zeros(batch, int(config.optimizer.counts), 1, 1)
        return TTTState(
            weights,
            zeros,
            weight.new_zeros(batch, config.heads, 1, 1),
            Moments((zeros,) * config.optimizer.averages, count),
            torch.zeros(batch, dtype=torch.int64),
            tails,
        )

    def step(self, x: Tensor, state: TTTState, grid: tuple[int, int] = (1, 1)) -> tuple[Tensor, TTTState]:
        self.check_step(x, grid)
        layout = Layout(grid)
        if self.config.fused != "never" and self._use_kernels(x, layout) is not None:
            return self.read(x, state, layout)
        tokens, tails = self._tokens(x, state.tails, 0, layout)
        before = TTTState(state.weights, None, *state[2:5], tails)
        with torch.autocast(x.device.type, enabled=False):
            out, after = _scan()(self._loop(tokens, layout), before, tokens, **self._chunks(tokens, layout))
        return self._output(x, out), TTTState(after.weights, state.pending, *after[2:])

    def read(self, x: Tensor, state: TTTState, layout: Layout) -> tuple[Tensor, TTTState]:
        lengths, per_frame = layout.lengths, layout.grid[0] * layout.grid[1]
        if not x.numel() or (lengths is not None and not lengths.any()):
            return 0.0 * x, state  # of x: what stands before this layer keeps a gradient
        counts = [x.shape[1]] * len(x) if lengths is None else lengths.tolist()
        ages = self._ages(state.position, counts, per_frame)
        age = ages[0] if ages.count(ages[0]) == len(ages) else state.position
        mode = None if self.config.fused == "never" else self._use_kernels(x, layout)
        if mode is not None:
            x = x.to(product_dtype(x))  # once, and not by autocast for every projection
        tokens, tails = self._tokens(x, state.tails, age, layout, by_kernels=mode is not None)
        with torch.autocast(x.device.type, enabled=False):
            if mode is not None:
                out, after = self._read_fused(tokens, state, layout, counts, mode)
            elif lengths is not None or isinstance(age, Tensor) or (age and self.cumulative):
                out, after = self._scan_ragged(tokens, state, layout, ages, counts)
            else:
                before = TTTState(state.weights, state.pending if age else None, *state[2:])
                settings = self._chunks(tokens, layout)
                out, after = _scan()(self._loop(tokens, layout), before, tokens, offset=age, **settings)
                end = age + x.shape[1]
                position = torch.full_like(state.position, end % settings["size"] if self.chunk_is_bounded else end)
                after = TTTState(*after[:4], position, tails)
        pending = after.pending
        if pending is None:  # no chunk is open; all states look alike
            pending = zeros_like(state.weights) if any(ages) else state.pending
        return self._output(x, out, mode is not None), TTTState(after.weights, pending, *after[2:5], tails)

    @torch.no_grad()
    def chunks(self, x: Tensor, state: TTTState, layout: Layout) -> Iterator[ReadChunk]:
        """``x`` [B, T, C] chunk by chunk, for those who want to see what the hidden state does with it.

        Args:
            state: in which no chunk is open; every row of ``x`` is valid to its end.
        """
        layout = Layout(layout.grid)
        size = self.config.chunk.size(layout.tokens_per_frame) or x.shape[1]
        for piece in x.split(size, dim=1):
            tokens, _ = self._tokens(piece, state.tails, 0, layout)
            before = state
            _, state = self.read(piece, before, layout)
            rates = torch.sigmoid(at_least_float32(self.project.rate(piece))).mean(-1)
            closed = self.chunk_is_whole or piece.shape[1] == size
            yield ReadChunk(self._loop(tokens, layout), tokens, rates, before.weights, state.weights, closed)

    def _tokens(
        self, x: Tensor, tails: dict[str, Tensor], age: int | Tensor, layout: Layout, by_kernels: bool = False
    ) -> tuple[Tokens, dict[str, Tensor]]:
        """What the inner model is to read of x [B, T, C], and the tails after it. ``age``: tokens of the open chunk
        that each row has read before, int64 [B] where rows differ."""
        config, project = self.config, self.project
        token_wise, per_frame = isinstance(config.chunk, TokenCausal), layout.tokens_per_frame
        period = config.chunk.tokens if isinstance(config.chunk, TokenCausal) else per_frame
        positions = None
        if self.rope == "frame_row_column":
            positions, tails = self._frame_row_column(x, tails, layout)
        elif self.rope:
            first = age if token_wise else 0
            # made on the device where rows agree: a copy would wait for it, and could not be part of a CUDA graph
            device = "cpu" if isinstance(first, Tensor) else x.device
            before = first[:, None] if isinstance(first, Tensor) else first
            positions = torch.arange(x.shape[1], device=device) + before
            positions = positions % period
        to_heads = None
        if by_kernels:
            to_heads = functools.partial(split, heads=config.heads, theta=config.rope_theta)
        q, k, v, tails = query_key_value(project, x, tails, positions, layout, config.silu, to_heads)
        strength = torch.sigmoid(at_least_float32(project.rate(x))).mT  # [B, maps * V * H, T]
        strength = strength.unflatten(1, (-1, config.views * config.heads)).movedim(1, -1)  # [B, V * H, T, maps or 1]
        rate = strength * (self.base_rate * self.rate_factor * self.rate_warmup)
        if not self.chunk_is_bounded:
            rate = rate * self._share(x, layout)
        pairs = (config.views, config.heads)  # to [B, H, V, T, ..]
        k, v = k.unflatten(1, pairs).transpose(1, 2), v.unflatten(1, pairs).transpose(1, 2)
        rate = rate.unflatten(1, pairs).transpose(1, 2)
        fade = None
        if project.forget is not None:
            fade = F.logsigmoid(at_least_float32(project.forget(x))).mT[..., None] / (1 if token_wise else period)
        momentum = None
        if project.momentum is not None:
            momentum = torch.sigmoid(at_least_float32(project.momentum(x))).mT[..., None]
            momentum = torch.cat((momentum, torch.ones_like(momentum)), -1)
        past = self.past_frames * per_frame
        if past:  # what the inner model's kernel over time looks back on
            q = with_past(q.transpose(1, 2), tails["inner_q"], past)  # [B, P + T, H, d]
            k = with_past(k[:, :, 0].transpose(1, 2), tails["inner_k"], past)
            last = {name: last_valid(t, past, layout.lengths) for name, t in (("inner_q", q), ("inner_k", k))}
            q, k, tails = q.transpose(1, 2), k.transpose(1, 2)[:, :, None], tails | last
        return Tokens(q, k, v, rate, fade, momentum), tails

    def _frame_row_column(
        self, x: Tensor, tails: dict[str, Tensor], layout: Layout
    ) -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, Tensor]]:
        """Frame [B, T], row and column [T] of every token, and the tails, with the frames read after x."""
        per_frame, index = layout.tokens_per_frame, torch.arange(x.shape[1], device=x.device)
        before, cell = tails["frames"], index % per_frame
        read = x.shape[1] // per_frame
        if layout.lengths is not None:
            read = (layout.lengths // per_frame).to(before.device, non_blocking=True)
        positions = before[:, None] + index // per_frame, cell // layout.grid[1], cell % layout.grid[1]
        return positions, tails | {"frames": before + read}

    def _share(self, x: Tensor, layout: Layout) -> Tensor:
        """In full-batch descent 1 / frames of each row, [B, 1, 1, 1]: the step is that of the mean over them."""
        counts = torch.full((x.shape[0],), x.shape[1]) if layout.lengths is None else layout.lengths.clamp_min(1)
        share = (layout.tokens_per_frame / counts)[:, None, None, None]
        return share.to(x.device, torch.float64 if x.dtype == torch.float64 else torch.float32, non_blocking=True)

    def _chunks(self, tokens: Tokens, layout: Layout, longest: int | None = None) -> dict[str, Any]:
        """Settings of ``scan``: size, scale, mask and group. ``longest``: tokens read at most, T where not given."""
        chunk, like, per_frame = self.config.chunk, tokens.rate, layout.grid[0] * layout.grid[1]
        longest = tokens.v.shape[3] if longest is None else longest
        size = chunk.size(per_frame) or longest
        if self.scale_shift is None:
            # The mean over a frame keeps the size of its step independent of how finely it is cut into tokens.
            scale = like.new_full((1, 1), 1.0 / per_frame).expand(size, 1)
        else:  # 1/(t+1) + delta_t, at least 0 (paper, appendix)
            steps = 1.0 / torch.arange(1, size + 1, device=like.device, dtype=like.dtype)
            scale = (steps + self.scale_shift.to(like.dtype)).clamp_min(0.0)[:, None]
        mask = None if self.chunk_is_whole else chunk.mask(per_frame, min(size, longest), like.device)
        return {"size": size, "scale": scale, "mask": mask, "group": self.checkpoint_group}

    def _scan_ragged(
        self, tokens: Tokens, state: TTTState, layout: Layout, ages: list[int], counts: list[int]
    ) -> tuple[Tensor, TTTState]:
        """Rows of different ages and lengths: brought to common chunks, scanned, and brought back."""
        length, device = tokens.v.shape[3], tokens.q.device
        position, read = torch.tensor(ages), torch.tensor(counts)
        ends = position + read
        settings = self._chunks(tokens, layout, int(ends.max()))
        full, longest = settings["size"], min(settings["size"], int(ends.max()))
        settings |= {"size": longest, "closes": closing(ends, full, self.chunk_is_whole, device)}
        slots = Slots(position, ends, longest, device)
        before = TTTState(state.weights, state.pending if any(ages) else None, *state[2:])
        out, after = _scan()(self._loop(tokens, layout), before, slots.gather(tokens), **settings)
        if self.chunk_is_whole:
            ends = torch.where(read > 0, ends, state.position)
        position = ends % full if self.chunk_is_bounded else ends
        return slots.scatter(out, length), TTTState(*after[:4], position, state.tails)

    def _output(self, x: Tensor, out: Tensor, by_kernels: bool = False) -> Tensor:
        """Heads [B, H, T, d] to tokens [B, T, C]: norm, gates and the last projection."""
        gate = None if self.g_proj is None else self.g_proj(x)
        if by_kernels:
            y = norm_and_gate(out, self.post_norm.weight, self.post_norm.bias, gate, x.dtype)
        else:
            y = self.post_norm(merge_heads(out).to(x.dtype))
            y = y if gate is None else y * F.gelu(gate, approximate="tanh")
        y = self.o_proj(y)
        return y if self.alpha is None else y * torch.tanh(self.alpha).to(y.dtype)

    def _use_kernels(self, x: Tensor, layout: Layout) -> str | None:
        """What the Triton kernels multiply, or None: the eager scan computes this layer."""
        dtype, shape = product_dtype(x), (x.shape[0], self.config.heads, x.shape[1], self.head_dim)
        return mode_of(dtype) if use_kernels(self.config, shape, layout.grid, x.device, dtype) else None

    def _read_fused(
        self, tokens: Tokens, state: TTTState, layout: Layout, counts: list[int], mode: str
    ) -> tuple[Tensor, TTTState]:
        """``scan`` by Triton kernels, for rows of any age and length."""
        config, settings = self.config, self._chunks(tokens, layout)
        position = torch.zeros_like(state.position) if self.chunk_is_whole else state.position
        start = (state.weights, state.pending, position, layout.lengths, layout.grid if self.chunk_is_whole else None)
        parts = (config.inner, config.optimizer, tokens, self._loop(tokens, layout).norm)
        out, weights, pending = read_fused(*parts, settings["scale"][:, 0], *start, mode)
        position = (state.position + torch.tensor(counts)) % settings["size"]
        return out, TTTState(weights, pending, state.fading, state.moments, position, state.tails)

    def _ages(self, position: Tensor, counts: list[int], tokens_per_frame: int) -> list[int]:
        """Tokens of the open chunk that each row has read before.

        Raises:
            ValueError: if a chunk that is read as a whole is open, or the frames had another size before.
        """
        ages = position.tolist()
        if self.chunk_is_whole:
            if any(map(min, ages, counts)):
                raise ValueError(
                    f"The sequence ended inside a chunk of {type(self.config.chunk).__name__} and cannot go on from "
                    "there; split it at whole chunks, or use chunk: FrameCausal."
                )
            return [0] * len(ages)
        unit = self.config.chunk.unit(tokens_per_frame) if any(ages) else 1
        if unit > 1 and any(age % unit for age in ages):
            raise ValueError(
                f"The state's open chunks have {ages} tokens, not whole frames of this call's {tokens_per_frame}; "
                "the grid of a sequence must not change."
            )
        return ages

    def _loop(self, tokens: Tokens, layout: Layout) -> InnerLoop:
        config, start = self.config, self._start() if self.uses_start else {}
        frozen = {} if self.all_learn else {name: map for name, map in start.items() if name not in self.learns}
        if self.norm_scale is None or self.norm_shift is None:
            norm = Norm(tokens.q.new_ones(()), tokens.q.new_zeros(()))
        else:
            norm = Norm(at_least_float32(self.norm_scale), at_least_float32(self.norm_shift))
        return InnerLoop(
            config.inner,
            config.objective,
            None if self.descends else config.optimizer,
            norm,
            start,
            layout.grid,
            self.rate_warmup,
            self.cumulative,
            self.delta,
            frozen,
            config.learning,
        )

    def _start(self) -> Weights:
        """W_0 as one row, in the precision that weights in motion need (bf16 drifts by percents)."""
        start: Weights = {}
        dtype = torch.promote_types(self.post_norm.weight.dtype, torch.float32)
        if self.zero_start is not None:
            zeros = functools.partial(self.post_norm.weight.new_zeros, dtype=dtype)
            for name, (weight, bias) in self.zero_start.items():
                start[name] = Map(zeros((1, *weight)), None if bias is None else zeros((1, *bias)))
            return start
        for key, weight in self.weights.items():
            name = key.removesuffix("_weight")
            bias = self.biases.get(f"{name}_bias")
            if not torch.is_grad_enabled():  # a view of a parameter asks for its gradient even under no_grad
                weight, bias = weight.detach(), None if bias is None else bias.detach()
            weight = weight.to(dtype)
            if self.right is not None and f"{name}_right" in self.right:
                right = self.right[f"{name}_right"].to(dtype)
                identity = torch.eye(weight.shape[1], right.shape[2], dtype=dtype, device=right.device)
                weight = weight @ right + identity / 2
            start[name] = Map(weight[None], None if bias is None else bias.to(dtype)[None])
        return start
