"""Suites for prediction: what comes next follows from what was seen, and it is known how much of it does."""

import tempfile
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..mp4 import read_mp4, write_mp4
from .suite import Suite

CODEC_VIDEOS = 4
"""Videos on which the codec's error is measured."""

UNIFORM_VARIANCE = (256**2 - 1) / 12 / 255**2
"""Of a value drawn evenly from 0, 1, ... 255, as a pixel in 0..1."""


class Revealed(NamedTuple):
    """What only a memory can know of one video.

    Attributes:
        group: int [F], what the revealed pixels of a frame are counted under (``PredictionSuite.grouped``); -1 where
            there are none.
        mask: bool [F, H, W], the pixels that show in a frame what no frame just before it showed.
    """

    group: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class PredictionSuite(Suite):
    """A suite without labels. Errors are mean squares over pixels in 0..1."""

    @property
    @abstractmethod
    def bounds(self) -> dict[str, float]:
        """Errors on revealed pixels of observers that are not perfect, by name: exact expectations."""

    @property
    def grouped(self) -> str:
        """What the groups of ``Revealed`` are; empty where nothing is revealed and all pixels count."""
        return ""

    def revealed(self, row: Mapping[str, str]) -> Revealed | None:
        """What is revealed in the video described by `row` of meta.csv; None where nothing is told apart."""
        return None

    def known(self) -> dict[str, Any]:
        return {"grouped": self.grouped, "bounds": {**self.bounds, "codec": self.codec_error()}}

    @classmethod
    def sentence(cls, description: dict[str, Any]) -> str:
        where = "on newly revealed pixels" if description["grouped"] else "of all pixels"
        bounds = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in description["bounds"].items())
        return f"mean squared errors {where} (pixels in 0..1): {bounds}"

    def codec_error(self) -> float:
        """What remains for an observer who knows the drawn frames: the codec's error, measured on a few videos."""
        total = pixels = 0.0
        with tempfile.TemporaryDirectory() as folder:
            for index in range(CODEC_VIDEOS):
                plan = self.plan("val", index)
                drawn = self.draw(plan, self.rng("drawing", "val", index))
                file = Path(folder) / "video.mp4"
                write_mp4(file, drawn, self.fps, self.quantiser)
                squared = np.square((read_mp4(file).astype(np.float64) - drawn) / 255)
                revealed = self.revealed({key: str(value) for key, value in plan.cause.items()})
                counted = squared if revealed is None else squared[revealed.mask]
                total, pixels = total + counted.sum(), pixels + counted.size
        return float(total / pixels)
