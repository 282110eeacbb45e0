"""TTT-MLP as the authors' public code computes it: an eager loop over mini-batches with the inner gradient by hand.

The formulas and their order are those of ``TTTMLP`` in test-time-training/ttt-lm-pytorch (dual form, training, no
checkpointing), restated on the parameters of our layer, so that both can be compared on equal work. Two habits of
theirs are left out, both in its favour: unused zero gradients of the size of the weights, and a preallocated output
whose in-place writes cost a copy of the whole output per mini-batch in the backward pass.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tttvideo.ttt import MLP, TTT, TokenCausal
from tttvideo.ttt.layer import TTTLayer


class PlainTTTMLP(nn.Module):
    """The same function of the same parameters as ``layer``, a token-causal ``TTT`` with the inner model ``MLP``.

    ``forward(x [B, T, C]) -> [B, T, C]``, T a multiple of the mini-batch.
    """

    def __init__(self, layer: TTTLayer):
        super().__init__()
        config = layer.config
        assert config == TTT(MLP(), heads=config.heads, chunk=config.chunk)
        assert isinstance(config.chunk, TokenCausal)
        self.layer, self.heads, self.size = layer, config.heads, config.chunk.tokens

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer
        batch, length, _ = x.shape
        q, k, v = (
            projection(x).reshape(batch, length, self.heads, -1).transpose(1, 2)
            for projection in (layer.project.q_proj, layer.project.k_proj, layer.project.v_proj)
        )
        cos, sin = rotations(torch.arange(length, device=x.device) % self.size, q)
        q, k = q * cos + turned(q) * sin, k * cos + turned(k) * sin
        out = self.scan(*(self.mini_batches(t) for t in (q, k, v)), self.step_sizes(x))
        out = out.permute(1, 0, 3, 2, 4).reshape(x.shape)
        return layer.o_proj(layer.post_norm(out))

    def mini_batches(self, x: Tensor) -> Tensor:
        """[B, H, T, d] -> [mini-batches, B, H, K, d]."""
        return x.unflatten(2, (-1, self.size)).permute(2, 0, 1, 3, 4)

    def step_sizes(self, x: Tensor) -> Tensor:
        """eta [mini-batches, B, H, K, K]: scale of the token that reads times rate of the token that is learned."""
        layer = self.layer
        dim = x.shape[-1] // self.heads
        rate = torch.sigmoid(layer.project.rate(x)).mT.unflatten(2, (-1, self.size))
        rate = layer.base_rate * rate.permute(2, 0, 1, 3)[..., None, :] / dim
        scale = 1.0 / torch.arange(1, self.size + 1, device=x.device, dtype=x.dtype)
        scale = torch.clamp_min(scale + layer.scale_shift, 0.0)
        return scale[:, None] * rate

    def scan(self, q: Tensor, k: Tensor, v: Tensor, eta: Tensor) -> Tensor:
        """All [mini-batches, B, H, K, d or K] -> outputs, likewise."""
        layer, batch = self.layer, q.shape[1]
        kinds = (("weight", layer.weights), ("bias", layer.biases))
        start = (weight[f"{name}_{kind}"] for name in "12" for kind, weight in kinds)
        w = [p.expand(batch, *p.shape) for p in start]
        outputs = []
        for i in range(len(q)):
            w, out = self.mini_batch(w, q[i], k[i], v[i], eta[i])
            outputs.append(out)
        return torch.stack(outputs)

    def mini_batch(self, w: list[Tensor], q: Tensor, k: Tensor, v: Tensor, eta: Tensor) -> tuple[list[Tensor], Tensor]:
        w1, b1, w2, b2 = w
        gamma, beta = self.layer.norm_scale, self.layer.norm_shift
        z1 = k @ w1 + b1
        x2 = F.gelu(z1, approximate="tanh")
        z2 = x2 @ w2 + b2
        g2 = ln_l2_gradient(z2, v - k, gamma, beta)
        g1 = g2 @ w2.transpose(-2, -1) * gelu_gradient(z1)

        scores1 = torch.tril(q @ k.transpose(-2, -1))
        b1_bar = b1 - torch.tril(eta) @ g1
        z1_bar = q @ w1 - (eta * scores1) @ g1 + b1_bar
        x2_bar = F.gelu(z1_bar, approximate="tanh")
        scores2 = torch.tril(x2_bar @ x2.transpose(-2, -1))
        b2_bar = b2 - torch.tril(eta) @ g2
        z2_bar = x2_bar @ w2 - (eta * scores2) @ g2 + b2_bar

        last = eta[:, :, -1, :, None]
        w1 = w1 - (last * k).transpose(-1, -2) @ g1
        b1 = b1 - torch.sum(last * g1, dim=-2, keepdim=True)
        w2 = w2 - (last * x2).transpose(-1, -2) @ g2
        b2 = b2 - torch.sum(last * g2, dim=-2, keepdim=True)
        return [w1, b1, w2, b2], q + layer_norm(z2_bar, gamma, beta)


def layer_norm(x: Tensor, gamma: Tensor, beta: Tensor, eps: float = 1e-6) -> Tensor:
    mean = x.mean(dim=-1, keepdim=True)
    variance = x.var(dim=-1, keepdim=True, unbiased=False)
    return gamma * ((x - mean) / torch.sqrt(variance + eps)) + beta


def ln_l2_gradient(x: Tensor, target: Tensor, gamma: Tensor, beta: Tensor, eps: float = 1e-6) -> Tensor:
    """d/dx of 1/2 |LN(x) - target|^2."""
    dim = x.shape[-1]
    mean = x.mean(dim=-1, keepdim=True)
    variance = x.var(dim=-1, keepdim=True, unbiased=False)
    std = torch.sqrt(variance + eps)
    xh = (x - mean) / std
    g = (gamma * xh + beta - target) * gamma
    total = dim * g - g.sum(dim=-1, keepdim=True) - xh * (g * xh).sum(dim=-1, keepdim=True)
    return 1.0 / dim * total / std


def gelu_gradient(x: Tensor) -> Tensor:
    t = torch.tanh(0.79788456 * x * (1 + 0.044715 * x * x))
    return 0.5 * x * ((1 - t * t) * (0.79788456 + 0.1070322243 * x * x)) + 0.5 * (1 + t)


def rotations(positions: Tensor, like: Tensor, theta: float = 10000.0) -> tuple[Tensor, Tensor]:
    """cos and sin [T, d] of rotary positions, every pair of columns alike."""
    dim = like.shape[-1]
    angle = positions[:, None].double() * theta ** (-torch.arange(0, dim, 2, device=like.device).double() / dim)
    angle = angle.repeat_interleave(2, dim=-1)
    return angle.cos().to(like.dtype), angle.sin().to(like.dtype)


def turned(x: Tensor) -> Tensor:
    """(x0, x1, ...) -> (-x1, x0, ...)."""
    return torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)
