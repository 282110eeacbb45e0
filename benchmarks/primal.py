"""The primal form of a token-causal TTT layer, vectorised over the chunk: what the dual form is compared with.

Every token's own weights W_t are formed, all of a chunk at once: W_t = W - scale[t] * (sum to t of the outer products
of inputs and gradients), then every query is read with its own. Everything else is the layer's own code.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tttvideo.ttt import Layout, TokenCausal
from tttvideo.ttt.inner_gradient import InnerLoop, traces
from tttvideo.ttt.interface import merge_heads
from tttvideo.ttt.layer import TTTLayer
from tttvideo.ttt.scan import cut
from tttvideo.ttt.state import Map, Weights
from tttvideo.ttt.tokens import Tokens


class PrimalTTT(nn.Module):
    """The same function of the same parameters as ``layer``; T is a multiple of its chunk."""

    def __init__(self, layer: TTTLayer):
        super().__init__()
        assert isinstance(layer.config.chunk, TokenCausal)
        self.layer, self.size = layer, layer.config.chunk.tokens

    def forward(self, x: Tensor) -> Tensor:
        layer, layout = self.layer, Layout()
        tokens, _ = layer._tokens(x, {}, 0, layout)
        loop, settings = layer._loop(tokens, layout), layer._chunks(tokens, layout)
        outputs, weights = [], layer.init_state(x.shape[0]).weights
        for piece in cut(tokens, self.size):
            out, weights = chunk(loop, weights, piece, settings["scale"])
            outputs.append(out)
        return layer.o_proj(layer.post_norm(merge_heads(torch.cat(outputs, 2))))


def chunk(loop: InnerLoop, weights: Weights, tokens: Tokens, scale: Tensor) -> tuple[Tensor, Weights]:
    """One chunk: outputs [B, H, K, d], and the weights of its last token."""
    each = {}  # W_t [B, H, K, inputs, outputs] and b_t [B, H, K, outputs]
    for name, (inputs, gradients) in traces(loop, weights, tokens).items():
        products = (inputs[..., :, None] * gradients[..., None, :]).cumsum(2)
        bias = weights[name].bias
        each[name] = Map(
            weights[name].weight[:, :, None] - scale[..., None] * products,
            None if bias is None else bias - scale * gradients.cumsum(2),
        )

    def own(name: str, x: Tensor) -> Tensor:
        z = (x[..., None, :] @ each[name].weight).squeeze(-2)
        bias = each[name].bias
        return z if bias is None else z + bias

    out = loop.objective.read(loop.model(tokens.q, own, loop.grid), tokens.q, loop.norm)
    last = {
        name: Map(map.weight[:, :, -1], None if map.bias is None else map.bias[:, :, -1:]) for name, map in each.items()
    }
    return out, last
