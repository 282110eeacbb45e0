"""How the hidden state learns, where that departs from the paper: other layers' updates, and controls of our own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from .config import TTT


@dataclass(frozen=True)
class Learning:
    """Where a chunk's gradient is taken, of what, and how far the step goes. All defaults together are the paper's.

    ``update``, ``direction`` and ``gradient_at`` are the controls of "TTT with KV binding is secretly linear
    attention" (arXiv 2602.21204), and so is ``TTT.share_qk`` without ``short_conv`` (q = k). Does the hidden state
    learn, or is it a sum of what was read?

    Attributes:
        rate_scale: what ``base_rate`` is divided by: ``head_dim``, about |k|^2, so that a rate is a share of the way
            to the target; null: nothing, which is the same share where |k| = 1 (``normalize_qk``).
        rate_per_map: every affine map of the inner model has a learned rate of its own (LaCT).
        start: W_0 is ``learned``, or ``zero`` and not learned, as in linear attention and the delta rule (inner models
            of one map, losses without the inner LayerNorm).
        start_rank: W_0 of every map but the last is left @ right + I / 2, of this rank (LaCT; inner models with a last
            map after others); null: all its numbers are learned.
        forget_first: the forget gate acts before the gradient is taken, as in Gated DeltaNet, not after it (chunks read
            as a whole: ``FrameCausal(1)``, ``TokenCausal(1)``, ``Whole``).
        update: ``all`` maps learn, or the ``last`` one only; the others stay as W_0 has them.
        direction: ``descent``, or ``ascent``, away from the target.
        gradient_at: weights at the chunk's start (``chunk``), or W_0 for all chunks (``start``): then the weights are
            a sum over the past whatever the loss, and no chunk waits for another.
    """

    rate_scale: Literal["head_dim"] | None = "head_dim"
    rate_per_map: bool = False
    start: Literal["learned", "zero"] = "learned"
    start_rank: int | None = None
    forget_first: bool = False
    update: Literal["all", "last"] = "all"
    direction: Literal["descent", "ascent"] = "descent"
    gradient_at: Literal["chunk", "start"] = "chunk"

    def __post_init__(self) -> None:
        for name, words in _WORDS.items():
            if getattr(self, name) not in words:
                *most, last = ("null" if word is None else word for word in words)
                said = f"it must be {', '.join(most)} or {last}."
                raise ValueError(f"Learning.{name} is {getattr(self, name)!r}; {said}")
        if self.start_rank is not None and self.start_rank < 1:
            raise ValueError(f"Learning.start_rank is {self.start_rank}; it is at least 1, or null.")

    def check(self, config: TTT) -> None:
        """Raises ValueError, in one sentence, where this does not go together with the rest of a layer."""
        inner, name = config.inner, type(config.inner).__name__
        single = len(inner.maps(8)) == 1
        if self.start == "zero" and (not single or config.objective.uses_norm or config.optimizer.weight_norm):
            raise ValueError(
                f"TTT.learning.start is zero, but {name} with {type(config.objective).__name__}"
                f"{' and weight_norm' if config.optimizer.weight_norm else ''} cannot learn from there; use an inner "
                "model of one map such as Linear, the objective L2 or DotProduct, and no weight_norm; or start: "
                "learned (after a recipe, --config layer-ttt-mlp before the inner model)."
            )
        grouped = any(map.groups for map in inner.maps(8).values())
        if self.start_rank is not None and (self.start == "zero" or grouped):
            raise ValueError(
                f"TTT.learning.start_rank is {self.start_rank}, but W_0 of {name} with start: {self.start} is no "
                "product of two matrices; leave start_rank out."
            )
        if self.start_rank is not None and inner.last is None:
            raise ValueError(
                f"TTT.learning.start_rank is {self.start_rank}, of every map but the last, but {name} has no map that "
                "is the last of several; leave start_rank out, or use an inner model that has one, such as GLU."
            )
        if self.update == "last" and inner.last is None and not single:
            raise ValueError(
                f"TTT.learning.update is last, but {name} does not say which of its maps is the last; set its class "
                "variable `last`, or use update: all."
            )
        if self.forget_first and not (config.forget and config.chunk.whole):
            raise ValueError(
                "TTT.learning.forget_first needs forget: true and a chunk that is read as a whole: FrameCausal with "
                "frames: 1, TokenCausal with tokens: 1, or Whole."
            )
        if self.gradient_at == "start" and config.optimizer.steps > 1:
            raise ValueError(
                f"TTT.optimizer.steps is {config.optimizer.steps}, but with learning.gradient_at: start all "
                "steps would be the same; use steps: 1."
            )
        if self.rate_per_map and inner.mixes_tokens:
            raise ValueError(
                f"TTT.learning.rate_per_map weighs what each token teaches a map, but {name} mixes the tokens of a "
                "frame; leave it out, or use Linear, MLP or GLU."
            )
        if self.rate_scale is None:
            _check_unscaled_rate(config)


_WORDS = {
    "rate_scale": ("head_dim", None),
    "start": ("learned", "zero"),
    "update": ("all", "last"),
    "direction": ("descent", "ascent"),
    "gradient_at": ("chunk", "start"),
}


def _check_unscaled_rate(config: TTT) -> None:
    """Raises ValueError for a ``base_rate`` with which, not divided by the head dimension, training diverges.

    Measured on unit q and k, 25 outer steps over 12 frames of 4 tokens, then 300 frames. L2: Linear trains to its
    theoretical bound, 2; MLP to 1, GLU to 0.3 (NaN above). But 25 steps are few: with 0.3 a longer training of an MLP
    diverged at step 191, with 0.1 one of 1,500 did not (docs/results/ttt-leads.jsonl), hence 0.1. DWConv, Conv and
    ConvDepthwise train to 2, also on a still scene (at 4 the first has weights of 1e6 there, the others NaN; their
    learned factor is about 1/2, hence 1). DotProduct: the step of a model that is not linear in its weights grows with
    them, beyond 1e15 at 0.1. With the inner LayerNorm nothing became infinite, but a whole model's loss was 5.4 at once
    with 1.0 / 32 (for the same reason rates that are divided by d are refused above ``config.MAX_RATE_NORMALIZED``).
    """
    inner, objective, optimizer = config.inner, config.objective, config.optimizer
    if not optimizer.follows_length or optimizer.clip is not None or optimizer.weight_norm:
        return
    if objective.constant_gradient:
        most = math.inf if inner.linear else 0.03
    elif not config.normalize_qk:
        raise ValueError(
            "TTT.learning.rate_scale is null, but keys of any length make steps of any length; set normalize_qk: true, "
            "or clip the gradient."
        )
    elif objective.uses_norm:
        most = 0.015
    else:
        most = inner.largest_rate
    if config.base_rate is None or config.base_rate > most:
        raise ValueError(
            f"TTT.base_rate is {config.base_rate or 'null'}, but with learning.rate_scale: null {type(inner).__name__} "
            f"with {type(objective).__name__} is known to train up to {most} only; set base_rate to at most that."
        )
