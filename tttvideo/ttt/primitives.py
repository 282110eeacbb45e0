"""What sequence layers are made of around their update rule: projections to heads, short convolutions, rotary
positions, and the last tokens that a state keeps for what looks back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from .derivatives import transformed
from .interface import Layout


def query_key_value(
    layer: Any,
    x: Tensor,
    tails: dict[str, Tensor],
    positions: Tensor | tuple[Tensor, Tensor, Tensor] | None,
    layout: Layout,
    silu: bool = False,
    to_heads: Callable[..., list[Tensor]] | None = None,
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Queries, keys and values of every head.

    Args:
        layer: has ``q_proj``, ``k_proj`` (None: as ``q_proj``) and ``v_proj``, ``convs`` (empty, or a ``CausalConv``
            for ``q`` and one for ``k``), and ``config`` with ``heads``, ``short_conv``, ``normalize_qk`` and
            ``rope_theta``.
        x: [B, T, C].
        tails: last inputs of the convolutions, by name.
        positions: [T] or [B, T], by which q and k are rotated; or frame, row and column of the tokens; None: they are
            not rotated.
        silu: apply SiLU to q, k and v after the convolutions.
        to_heads: ``kernels.split`` with ``heads`` and ``theta``, which does all that follows the projections in the
            dtype that they have; None: PyTorch's operations do it, in float32 at least.

    Returns:
        q [B, H, T, d], k and v [B, heads of theirs, T, d], and the tails after x.
    """
    config = layer.config
    q, v = layer.q_proj(x), layer.v_proj(x)
    k = q if layer.k_proj is None else layer.k_proj(x)
    if layer.convs:
        step, tails = layout.tokens_per_frame if config.short_conv == "time" else 1, dict(tails)
        q, tails["q"] = layer.convs["q"](q, tails["q"], layout.lengths, step)
        k, tails["k"] = layer.convs["k"](k, tails["k"], layout.lengths, step)
        if "v" in layer.convs:
            v, tails["v"] = layer.convs["v"](v, tails["v"], layout.lengths, step)
    if to_heads is not None:
        q, k = to_heads(positions, q, k, silu=silu, unit=config.normalize_qk)
        (v,) = to_heads(None, v, silu=silu)
        return q, k, v, tails
    heads = (-1, q.shape[-1] // config.heads)
    q = at_least_float32(q).unflatten(-1, heads).transpose(1, 2)
    k = at_least_float32(k).unflatten(-1, heads).transpose(1, 2)
    v = at_least_float32(v).unflatten(-1, heads).transpose(1, 2)
    if silu:
        q, k, v = F.silu(q), F.silu(k), F.silu(v)
    if config.normalize_qk:
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    if isinstance(positions, tuple):
        q, k = rotate_by_frame_row_column(positions, config.rope_theta, q, k)
    elif positions is not None:
        q, k = rotate(positions, config.rope_theta, q, k)
    return q, k, v, tails


def rotate_by_frame_row_column(
    positions: tuple[Tensor, Tensor, Tensor], theta: float, q: Tensor, k: Tensor
) -> tuple[Tensor, Tensor]:
    """3/8 of every head's channels, rounded down to pairs, are turned by row and as many by column, the first ones by
    frame (ttt-video; CogVideoX, arXiv 2408.06072). ``Attention.rope: time_and_place`` divides a head otherwise.

    Args:
        positions: frame, row and column, [T] or [B, T] each.
        theta: base of the wavelengths of each part.
        q: [B, H, T, d] with d at least 8, and k likewise.
    """
    spatial = q.shape[-1] * 3 // 16 * 2
    return rotate_parts(positions, (theta,) * 3, [q.shape[-1] - 2 * spatial, spatial, spatial], q, k)


def rotate_parts(
    positions: Sequence[Tensor], thetas: Sequence[float], sizes: list[int], q: Tensor, k: Tensor
) -> tuple[Tensor, Tensor]:
    """``rotate`` of consecutive parts of every head, of ``sizes`` channels, by positions and a base of their own."""
    parts = zip(positions, thetas, q.split(sizes, -1), k.split(sizes, -1), strict=True)
    turned = [rotate(*part) for part in parts]
    return torch.cat([a for a, _ in turned], -1), torch.cat([b for _, b in turned], -1)


def rotate(positions: Tensor, theta: float, *tensors: Tensor) -> list[Tensor]:
    """Rotary position embedding in interleaved pairs (paper, appendix; RoFormer, equation 34).

    On a CPU the last bit of a token may depend on how many stand beside it.

    Args:
        positions: [T] or [B, T], any dtype.
        theta: base of the geometric progression of wavelengths.
        tensors: [B, H, T, d] each, d even and the same.
    """
    like = tensors[0]
    cos, sin = rotation(positions, theta, like.shape[-1], like.device, like.dtype)
    if cos.dim() == 3:
        cos, sin = cos[:, None], sin[:, None]
    if like.device.type == "cpu" and {x.dtype for x in tensors} <= {torch.float32, torch.float64} and not _recorded():
        turns = torch.complex(cos, sin)  # one pass, not one for each strided half; what follows wants heads apart
        return [torch.view_as_real(_as_complex(x) * turns).flatten(-2).contiguous() for x in tensors]
    rotated = []
    for x in tensors:
        even, odd = x[..., 0::2], x[..., 1::2]
        rotated.append(torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2))
    return rotated


def _recorded() -> bool:
    """True where operators are recorded or transformed, not computed; what is recorded is to run anywhere, and complex
    numbers do not."""
    return transformed() or get_proxy_mode() is not None


def _as_complex(x: Tensor) -> Tensor:
    """[..., d] as [..., d / 2] complex numbers, without a copy where pairs lie side by side and on even addresses."""
    pairs = x.unflatten(-1, (-1, 2))
    *strides, last = pairs.stride()
    if last != 1 or pairs.storage_offset() % 2 or any(stride % 2 for stride in strides):
        pairs = pairs.clone(memory_format=torch.contiguous_format)
    return torch.view_as_complex(pairs)


def rotation(
    positions: Tensor, theta: float, dim: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the angles by which ``rotate`` turns pairs of ``dim`` channels, [T or B, T, dim / 2]."""
    precise = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    exponent = torch.arange(0, dim, 2, device=device, dtype=precise) / dim
    angle = positions.to(device, precise, non_blocking=True)[..., None] * theta**-exponent
    return angle.cos().to(dtype), angle.sin().to(dtype)


class CausalConv(nn.Module):
    """Depthwise causal convolution along the sequence; its tail is part of the streaming state.

    Args:
        dim: channels C.
        kernel: tokens seen, the current one included (4 in the paper's Mamba-style block).
        bias: add a learned one, zero at first.
    """

    def __init__(self, dim: int, kernel: int = 4, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim, 1, kernel))
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None
        nn.init.uniform_(self.weight, -(kernel**-0.5), kernel**-0.5)

    def init_state(self, batch: int) -> Tensor:
        """The tail: the last inputs of each row, [B, up to (kernel - 1) * step, C]; none so far."""
        return self.weight.new_zeros(batch, 0, self.weight.shape[0])

    def forward(self, x: Tensor, tail: Tensor, lengths: Tensor | None, step: int = 1) -> tuple[Tensor, Tensor]:
        """``x`` [B, T, C], ``lengths`` int64 [B] on the host or None -> (y [B, T, C], new tail).

        ``step``: distance between the tokens seen; the tokens per frame make it a convolution over time at every
        place of the frame.
        """
        full = with_past(x, tail, (self.weight.shape[-1] - 1) * step)
        weight, bias = self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype)
        y = F.conv1d(full.mT, weight, bias, dilation=step, groups=x.shape[-1]).mT
        return y, last_valid(full, full.shape[1] - x.shape[1], lengths)


def with_past(x: Tensor, tail: Tensor, size: int) -> Tensor:
    """``size`` tokens of the past before ``x`` [B, T, ...]: those of ``tail``, zeros where nothing was read yet.

    Raises:
        ValueError: if ``tail`` comes from frames of another size.
    """
    if tail.shape[1] not in (0, size):
        raise ValueError(
            f"The state looks back on {tail.shape[1]} tokens, but frames of this call's grid need {size}; the grid of "
            "a sequence must not change."
        )
    return torch.cat((x.new_zeros(x.shape[0], size - tail.shape[1], *x.shape[2:]), tail.to(x.dtype), x), dim=1)


def last_valid(full: Tensor, count: int, lengths: Tensor | None) -> Tensor:
    """The last ``count`` valid entries along dimension 1 of ``full`` [B, count + T, ...], rows having
    ``lengths`` valid entries after the first ``count``."""
    if lengths is None:
        return full[:, full.shape[1] - count :].clone()  # a view would keep the whole call alive in the state
    index = (lengths[:, None] + torch.arange(count)).to(full.device, non_blocking=True)
    return full[torch.arange(full.shape[0], device=full.device)[:, None], index]


def in_chunks(x: Tensor, size: int) -> Tensor:
    """[B, H, T, ...] -> [B, H, chunks, size, ...], zeros after the last token."""
    return F.pad(x, (0, 0) * (x.dim() - 3) + (0, -x.shape[2] % size)).unflatten(2, (-1, size))


def states_of_chunks(moved: Tensor, added: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """S before each chunk, [B, H, chunks, d, e], and after the last, where a chunk makes ``moved`` S + ``added`` of it.

    Args:
        moved: [B, H, chunks, d, d].
        added: [B, H, chunks, d, e].
        state: S before the first chunk, [B, H, d, e].
    """
    before = []
    # unbind: the backward pass of an index would fill a tensor as large as all chunks for each of them
    for move, add in zip(moved.unbind(2), added.unbind(2), strict=True):
        before.append(state)
        state = move @ state + add
    return torch.stack(before, dim=2), state


def at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def product_dtype(x: Tensor) -> torch.dtype:
    """The type in which matrix products of ``x`` are made here: autocast's where it is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
