"""A suite: generated videos with a known ceiling, the accuracy or error of a perfect observer.

A suite is one file with one frozen dataclass, a subclass of `ClassificationSuite` or `PredictionSuite`; its fields are
the options of `tttvideo make-data`. It plans a video (label and cause, the columns of meta.csv) and draws it.
"""

import re
import zlib
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np


class SuiteError(ValueError):
    """A wrong setting or folder, in one sentence."""


class Plan(NamedTuple):
    """What is going to happen in one video."""

    label: str | None  # None where there is nothing to classify
    cause: dict[str, int | str]  # the further columns of meta.csv: all that decides what can be known


@dataclass(frozen=True)
class Suite(ABC):
    """Settings that every suite has.

    Video i of a split is derived from (seed, split name, i) and the suite's own parameters alone: making more
    videos gives the same first ones again.

    Args:
        split: number of videos of each split, "train=3000,val=300"
        count: total number of videos, shared over the splits in the proportions of `split`; without it the
            numbers in `split` are taken as they are
        frames: frames per video
        size: height and width in pixels (even)
        fps: frames per second of the files
        seed: another seed gives other videos
    """

    split: str = "train=3000,val=300"
    count: int | None = None
    frames: int = 32
    size: int = 32
    fps: float = 30.0
    seed: int = 0

    name: ClassVar[str]
    revision: ClassVar[int] = 1  # raised when the same parameters give other videos than before
    quantiser: ClassVar[int] = 16  # of the H.264 files

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise SuiteError(f"frames={self.frames}: a video needs at least one frame.")
        if self.size < 16 or self.size % 2:
            raise SuiteError(f"size={self.size}: the size must be an even number of pixels, 16 or more.")
        if not 0 < self.fps <= 1000:
            raise SuiteError(f"fps={self.fps}: the frame rate must lie above 0 and not above 1000.")
        if self.seed < 0:
            raise SuiteError(f"seed={self.seed}: the seed must be 0 or more.")
        self.splits  # noqa: B018  (a wrong split text is refused here rather than in the middle of the work)

    @property
    def splits(self) -> dict[str, int]:
        """Number of videos of each split."""
        sizes = parse_split(self.split)
        return sizes if self.count is None else share(self.count, sizes)

    @abstractmethod
    def plan(self, split: str, index: int) -> Plan:
        """Label and cause of one video."""

    @abstractmethod
    def draw(self, plan: Plan, rng: np.random.Generator) -> np.ndarray:
        """Frames uint8 [F, H, W, 3] of a plan; `rng` decides whatever the plan leaves open."""

    @abstractmethod
    def known(self) -> dict[str, Any]:
        """What suite.json says of a perfect observer and of observers that need no model."""

    @classmethod
    @abstractmethod
    def sentence(cls, description: dict[str, Any]) -> str:
        """What to hold a model's figures against, from the contents of suite.json."""

    def draw_video(self, split: str, index: int) -> np.ndarray:
        """Frames uint8 [F, H, W, 3] of one video."""
        return self.draw(self.plan(split, index), self.rng("drawing", split, index))

    def rng(self, purpose: str, split: str, index: int) -> np.random.Generator:
        """Random numbers for one purpose in one video, independent of every other purpose and video."""
        key = (zlib.crc32(purpose.encode()), zlib.crc32(split.encode()), index)
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key))

    def describe(self) -> dict[str, Any]:
        """Contents of suite.json."""
        return {
            "name": self.name,
            "revision": self.revision,
            "parameters": asdict(self),
            "splits": self.splits,
            **self.known(),
        }


def parse_numbers(name: str, value: int | str) -> list[int]:
    """The numbers of a parameter that may have several, "4,1,4" -> [1, 4]. Raises SuiteError."""
    try:
        return sorted({int(part) for part in str(value).split(",")})
    except ValueError:
        raise SuiteError(f"{name}={value!r}: give a number, or several with commas, e.g. 1,4,16.") from None


def parse_split(text: str) -> dict[str, int]:
    """ "train=3000,val=300" -> {"train": 3000, "val": 300}. Raises SuiteError."""
    sizes: dict[str, int] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*([A-Za-z0-9][\w-]*)\s*=\s*([1-9][0-9]*)\s*", part)
        if match is None:
            raise SuiteError(
                f"split={text!r}: {part.strip()!r} is not NAME=NUMBER; write for example train=3000,val=300."
            )
        if match[1] in sizes:
            raise SuiteError(f"split={text!r}: the split {match[1]!r} is named twice.")
        sizes[match[1]] = int(match[2])
    return sizes


def share(count: int, proportions: dict[str, int]) -> dict[str, int]:
    """`count` videos in the given proportions, at least one each; the largest remainders are rounded up."""
    if count < len(proportions):
        raise SuiteError(f"count={count}: each of the {len(proportions)} splits needs at least one video.")
    exact = {name: count * weight / sum(proportions.values()) for name, weight in proportions.items()}
    sizes = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: sizes[name] - exact[name])
    for name in by_remainder[: count - sum(sizes.values())]:
        sizes[name] += 1
    for name in [name for name, size in sizes.items() if size == 0]:
        sizes[max(sizes, key=sizes.__getitem__)] -= 1
        sizes[name] = 1
    return sizes
