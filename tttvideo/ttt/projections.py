"""The parameters of a TTT layer that turn tokens into what its hidden state learns from."""

from __future__ import annotations

from torch import nn

from .config import TTT
from .interface import exempt_from_decay
from .primitives import CausalConv


class Projections(nn.Module):
    """The projections of a TTT layer: q, k and v of every head, inner learning rates, gates.

    Args:
        config: the layer's.
        dim: channels C.
    """

    def __init__(self, config: TTT, dim: int):
        super().__init__()
        self.config = config
        wide = dim * config.views
        self.q_proj = nn.Linear(dim, dim, bias=config.bias)
        self.k_proj = None if config.share_qk else nn.Linear(dim, wide, bias=config.bias)
        self.v_proj = nn.Linear(dim, wide, bias=config.bias)
        convs = {} if config.short_conv == "none" else {"q": CausalConv(dim), "k": CausalConv(wide)}
        if convs and config.conv_values:
            convs["v"] = CausalConv(wide)
        self.convs = nn.ModuleDict(convs)
        maps = 1
        if config.learning.rate_per_map and config.learning.update == "all":
            maps = len(config.inner.maps(dim // config.heads))
        self.rate = nn.Linear(dim, config.heads * config.views * maps)
        nn.init.normal_(self.rate.weight, std=0.02)
        nn.init.zeros_(self.rate.bias)
        self.forget = nn.Linear(dim, config.heads) if config.forget else None
        if self.forget is not None:
            # Keeps 99% of the old weights per frame (per token where chunks are of tokens) to begin with.
            nn.init.normal_(self.forget.weight, std=0.02)
            nn.init.constant_(self.forget.bias, 4.6)
        self.momentum = nn.Linear(dim, config.heads) if config.optimizer.momentum == "learned" else None
        if self.momentum is not None:
            nn.init.normal_(self.momentum.weight, std=0.02)
            nn.init.zeros_(self.momentum.bias)
        exempt_from_decay(self.rate, self.forget, self.momentum)
