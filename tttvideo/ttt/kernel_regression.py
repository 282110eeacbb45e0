"""The Nadaraya-Watson estimator: a hidden state that is the whole training set (paper, section 2.6, theorem 2)."""

import torch
from torch import Tensor


def nadaraya_watson(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """The estimate of v at q from all pairs (k, v), weighted by the kernel exp(<q, k> / sqrt(d)).

    A learner that stores its training set instead of taking gradient steps; with this kernel it is softmax attention.

    Args:
        q: [B, H, T, d].
        k: [B, H, T, d].
        v: [B, H, T, d].
        causal: use only the pairs up to the query's own.
    """
    similarity = q @ k.mT * q.shape[-1] ** -0.5
    # a common factor cancels; without it exp overflows
    kernel = torch.exp(similarity - similarity.amax(-1, keepdim=True).detach())
    if causal:
        kernel = kernel.tril()
    return kernel @ v / kernel.sum(-1, keepdim=True)
