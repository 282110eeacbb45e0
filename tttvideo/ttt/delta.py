"""The delta rule without a loop over frames: one matrix, plain least squares, the update before the reading.

The gradient of 1/2 |k W - v|^2 is linear in W, so what each token writes is the solution of one triangular system, and
the frames of a span need one product each way (the WY form of DeltaNet, arXiv 2406.06484, section 3.2; here the step
is a frame's, whose tokens do not see what each other writes).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .config import TTT
from .inner import Linear
from .inner_gradient import InnerLoop
from .objective import L2
from .primitives import in_chunks, states_of_chunks
from .state import Map, TTTState
from .step import Steps
from .tokens import Tokens

SPAN = 64
"""Tokens that are solved for together, at most. Longer spans cost more a token, shorter ones more steps in sequence."""


def is_delta_rule(config: TTT) -> bool:
    """Whether the hidden state of a layer is read by ``read_delta_rule`` where its chunks are small enough."""
    learning, chunk = config.learning, config.chunk
    return (
        type(config.inner) is Linear
        and not config.inner.bias
        and type(config.objective) is L2
        and config.optimizer.linear
        and not config.forget
        and config.views == 1
        and chunk.whole
        and chunk.size(1) is not None
        and learning.gradient_at == "chunk"
    )


def read_delta_rule(
    loop: InnerLoop, state: TTTState, tokens: Tokens, steps: Steps, closes: int | Sequence[bool | Tensor]
) -> tuple[Tensor, TTTState]:
    """Many chunks of K tokens, each read as a whole: W <- W - scale sum_s rate_s k_s^T (k_s W - v_s), z_t = q_t W.

    With W_c the weights before the chunk of token s, and K, V the rows of a span, the token writes
    u_s = scale rate_s (v_s - k_s W_c), where W_c = W + sum of k_r^T u_r over all tokens r of the span's earlier chunks;
    so (I + A) u = scale rate (V - K W) with A[s, r] = scale rate_s k_s . k_r for those r.

    Args:
        steps: of one chunk.
        closes: not used; where a row has no token its rate is 0, and nothing is written.

    Returns:
        z [B, H, T, d], and the state after the tokens.
    """
    size, length = len(steps.scale), tokens.v.shape[3]
    span = min(SPAN // size, -(-length // size)) * size
    ((name, (weight, _)),) = state.weights.items()
    k, v, rate = (t[:, :, 0] for t in (tokens.k, tokens.v, tokens.rate * steps.last))
    q, k, v, rate = (in_chunks(t, span) for t in (tokens.q, k, v, rate))
    chunk = torch.arange(span, device=q.device) // size
    strong = rate * k
    written = torch.linalg.solve_triangular(
        torch.where(chunk[:, None] > chunk, strong @ k.mT, 0.0),
        torch.cat((rate * v, strong), dim=-1),
        upper=False,
        unitriangular=True,
    )
    values, keys = written.split([v.shape[-1], k.shape[-1]], dim=-1)  # u = values - keys W
    moved = torch.eye(k.shape[-1], dtype=k.dtype, device=k.device) - k.mT @ keys
    before, weight = states_of_chunks(moved, k.mT @ values, weight)
    z = q @ before + torch.where(chunk[:, None] >= chunk, q @ k.mT, 0.0) @ (values - keys @ before)
    return z.flatten(2, 3)[:, :, :length], TTTState({name: Map(weight, None)}, *state[1:])
