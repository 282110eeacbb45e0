"""A suite: generated videos whose labels have a known cause, so that the best possible accuracy is known too.

A suite is one file with one frozen dataclass, a subclass of `Suite`; its fields are the options of `tttvideo
make-data`. It plans a video (label and cause), draws it, and says what a perfect observer reaches who sees
only some of the frames (`ceiling`) and what that observer answers for one video (`oracle`).
"""

import re
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np


class SuiteError(ValueError):
    """A wrong setting or folder, in one sentence."""


class Plan(NamedTuple):
    """What is going to happen in one video."""

    label: str
    cause: dict[str, int | str]  # the further columns of meta.csv: everything the oracle needs


@dataclass(frozen=True)
class Suite(ABC):
    """Settings that every suite has.

    Video i of a split is derived from (seed, split name, i) and the suite's own parameters alone: making more
    videos gives the same first ones again. Labels are balanced: each block of as many videos as there are
    classes holds every class once, in random order.

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
    samplings: ClassVar[tuple[str, ...]] = ("dense", "fps=1", "uniform=16", "uniform=8", "segments=8", "last=16")
    ceilings_are: ClassVar[str] = "exact"  # or how they were measured
    strata: ClassVar[tuple[str, ...]] = ()  # columns of meta.csv that accuracy is worth reporting against

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

    @property
    def chance(self) -> float:
        """Accuracy of guessing."""
        return 1 / len(self.classes)

    @property
    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; they are also the names of the class folders."""

    @abstractmethod
    def plan(self, split: str, index: int) -> Plan:
        """Label and cause of one video."""

    @abstractmethod
    def draw(self, plan: Plan, rng: np.random.Generator) -> np.ndarray:
        """Frames uint8 [F, H, W, 3] of a plan; `rng` decides whatever has nothing to do with the label."""

    @abstractmethod
    def ceiling(self, indices: Sequence[int]) -> float:
        """Accuracy of the best possible observer who sees the frames `indices` (increasing) and no others: exact, or
        what `ceilings_are` says."""

    @abstractmethod
    def oracle(self, row: Mapping[str, str], indices: Sequence[int]) -> str:
        """Answer of that observer for the video described by `row` of meta.csv."""

    def draw_video(self, split: str, index: int) -> np.ndarray:
        """Frames uint8 [F, H, W, 3] of one video."""
        return self.draw(self.plan(split, index), self.rng("drawing", split, index))

    def balanced_label(self, split: str, index: int) -> str:
        """Label of one video: its place in a random order of all classes, drawn per block."""
        block, place = divmod(index, len(self.classes))
        return self.classes[self.rng("label", split, block).permutation(len(self.classes))[place]]

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
            "classes": list(self.classes),
            "chance": self.chance,
            "ceilings_are": self.ceilings_are,
            "ceilings": [{"sampling": s, "top1": self.ceiling_under(s)} for s in self.samplings],
        }

    def ceiling_under(self, sampling: str, frames: int | None = None) -> float:
        """Ceiling for a sampling rule, in evaluation's order: cut to the first `frames` frames, then
        sample."""
        return self.ceiling(self.sampled(sampling, frames))

    def sampled(self, sampling: str, frames: int | None = None) -> list[int]:
        """Frames that a sampling rule picks from a video of this suite, cut first to its first `frames`
        frames.

        Raises ValueError for a rule that does not exist.
        """
        import torch  # the makers' worker processes need no torch: they start sooner without

        from tttvideo.video.sampling import parse_sampling

        times = torch.arange(self.frames, dtype=torch.float64) / self.fps
        return parse_sampling(sampling).indices(times[:frames], None).tolist()


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
