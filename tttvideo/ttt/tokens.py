"""What an inner model reads: keys, values and queries of tokens, and how strongly each of them teaches."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Tokens(NamedTuple):
    """The tokens of a call, of a chunk or of a part of one; V is the number of training pairs (k, v) of each token.

    Attributes:
        q: queries [B, H, P + T, d], after those of the P tokens before that the inner model looks back on.
        k: keys [B, H, V, P + T, d].
        v: values [B, H, V, T, d].
        rate: inner learning rates [B, H, V, T, 1], 0 for padding.
        fade: logarithm of what is kept of the old weights [B, H, T, 1], 0 for padding; None: no forget gate.
        momentum: what each would keep of the average gradient, and 1, [B, H, T, 2], 0 and 0 for padding; None: not
            learned.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    rate: Tensor
    fade: Tensor | None = None
    momentum: Tensor | None = None
