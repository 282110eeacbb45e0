"""What encoders with a pre-trained model share: what of it learns, tokens of its pooled maps, and their cache."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from ..ttt.interface import exempt_from_decay
from ..video.features import CachedFeatures
from ..video.transforms import Preprocessing
from .base import Encoder, EncoderState, FrameEncoder
from .unfreezing import check_trainable, trained_modules


class Pretrained(Encoder):
    """The settings that all these encoders have; the docstrings of ``Timm`` and ``Transformers`` explain them."""

    name: str
    grid: tuple[int, int]
    frozen: bool
    trainable: int
    cache: str | None
    cache_dtype: Literal["fp16", "bf16"]
    cache_views: int

    def __post_init__(self) -> None:
        check_trainable(self.trainable, self.frozen)
        if self.cache is not None and self.learns:
            raise ValueError(
                "encoder.cache keeps what an encoder makes of videos, which changes while the encoder is trained; set "
                "encoder.frozen: true and encoder.trainable: 0, or encoder.cache: null."
            )
        if self.cache_views < 1:
            raise ValueError(f"encoder.cache_views must be at least 1, not {self.cache_views}.")

    @property
    def learns(self) -> bool:
        return not self.frozen or self.trainable > 0

    def portable(self) -> Self:
        return replace(self, cache=None, cache_views=1)

    @property
    def views(self) -> int:
        return 0 if self.cache is None else self.cache_views


class PretrainedEncoder(FrameEncoder):
    """Pooled maps of ``model``, each position mapped to the width by ``projection``, and ``position`` added.

    Attributes:
        config: its settings.
        source: where the weights came from.
    """

    config: Pretrained
    model: nn.Module
    source: str
    _trained: Sequence[nn.Module]

    def finish(self, channels: int, dim: int) -> None:
        """What follows the model, whose maps have ``channels``; called at the end of ``__init__``."""
        self._trained = trained_modules(self.model, self.trained_blocks, self.config.frozen)
        self.train()
        if not self.config.learns:
            self.feature_shape = (channels, *self.grid)
        self.reads_pixels = self.config.cache is None
        self.projection = nn.Linear(channels, dim)
        self.position = nn.Parameter(torch.randn(self.grid[0] * self.grid[1], dim) * 0.02)
        exempt_from_decay(self.position)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.model.eval()
        for module in self._trained:
            module.train(mode)
        return self

    def _tokens(self, maps: Tensor) -> Tensor:
        """[..., channels, rows, columns] -> [..., N, C]."""
        return self.projection(maps.flatten(-2).mT) + self.position

    def embed(
        self, features: Tensor, lengths: Tensor | None, state: EncoderState
    ) -> tuple[Tensor, Tensor | None, EncoderState]:
        """As ``forward``, by the features of each time step's first frame: ``features`` and caches give all its frames
        the same."""
        _, steps, after = self._count(features, lengths, state)
        return self._tokens(features[:, :: self.stride].to(self.position.dtype)), steps, after

    def described(self) -> dict[str, Any]:
        """What tells the model apart, beside its weights."""
        return {"name": self.config.name}

    def used_weights(self) -> dict[str, Tensor]:
        """Those that the features depend on."""
        return self.model.state_dict()

    def reading(self, preprocessing: Preprocessing) -> Preprocessing:
        """With a cache: the features that it keeps for these weights."""
        config = self.config
        if config.cache is None:
            return preprocessing
        assert self.feature_shape is not None
        encoder = {
            **self.described(),
            "grid": config.grid,
            "statistics": self.statistics,
            "weights": digest(self.used_weights()),
        }
        read = {f.name: getattr(preprocessing, f.name) for f in fields(preprocessing)}
        return CachedFeatures(
            **read,
            shape=self.feature_shape,
            folder=config.cache,
            encoder=encoder,
            kind=config.cache_dtype,
            views=config.cache_views,
            window=self.stride,
        )


def digest(weights: Mapping[str, Tensor]) -> str:
    """Of all numbers, by name; the same wherever they lie."""
    sha = hashlib.sha256()
    for name, weight in sorted(weights.items()):
        sha.update(f"{name} {weight.dtype} {list(weight.shape)}".encode())
        sha.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return sha.hexdigest()
