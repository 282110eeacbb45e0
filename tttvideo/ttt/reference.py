"""The definition of a TTT layer's inner loop, in plain PyTorch: slow, for reading. tests/ttt/test_dual.py
holds the layer to it.

The hidden state is a list of weights. While a sequence is read they are trained, chunk by chunk, on the loss of
mapping each token's key to its value; each token's query is read with the weights of that moment.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Model = Callable[[Tensor, list[Tensor]], Tensor]  # g(x [..., T, d], weights) -> z [..., T, d]
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # (z, k, v) -> the loss of every token [..., S]
Read = Callable[[Tensor, Tensor], Tensor]  # (z, q) -> out [..., T, d]


def chunk(
    g: Model,
    loss: Loss,
    read: Read,
    weights: list[Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rate: Tensor,
    scale: Tensor,
    sees: Tensor,
    start: list[Tensor] | None = None,
    forget: Tensor | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Gradient descent on one chunk of T tokens, each of which gives S / T pairs (k, v), pair by pair.

    Args:
        q: [..., T, d]; k and v: [..., S, d]; rate: learning rates [..., S].
        scale: [T], of the step that token t reads at.
        sees: bool [T, T], sees[t, s]: token t reads with what was learned from token s.
        start: W_0, to which the forget gates ``forget`` [..., T] in 0..1 (1: nothing is forgotten) lead back.

    Returns:
        out [..., T, d], and the weights after the last token.
    """
    with torch.enable_grad():
        weights = [w.detach().requires_grad_() for w in weights]
        losses = (rate * loss(g(k, weights), k, v)).unbind(-1)
        gradients = [torch.autograd.grad(one.sum(), weights, retain_graph=True) for one in losses]
    out, tokens = [], len(sees)
    for t in range(tokens):
        w_t = weights
        if start is not None and forget is not None:
            kept = forget[..., sees[t]].prod(-1)
            w_t = [
                w0 + kept.reshape(*kept.shape, *[1] * (w.dim() - kept.dim())) * (w - w0) for w0, w in zip(start, w_t)
            ]
        visible = [gradient for s, gradient in enumerate(gradients) if sees[t, s % tokens]]
        w_t = [w - scale[t] * sum(steps) for w, *steps in zip(w_t, *visible)]
        out.append(read(g(q, w_t), q)[..., t, :])
    return torch.stack(out, -2), w_t


def sequence(g: Model, loss: Loss, read: Read, weights: list[Tensor], chunks: list[tuple[Tensor, ...]]) -> Tensor:
    """Reads chunk after chunk, each a tuple (q, k, v, rate, scale, sees): W <- W_T at the chunk's end."""
    outs = []
    for tokens in chunks:
        out, weights = chunk(g, loss, read, weights, *tokens)
        outs.append(out)
    return torch.cat(outs, -2)
