"""Suites whose videos have a label with a known cause, so that the best possible accuracy is known too."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from .suite import Suite


@dataclass(frozen=True)
class ClassificationSuite(Suite):
    """A suite that also says what a perfect observer reaches who sees only some of the frames (`ceiling`), and what
    that observer answers for one video (`oracle`).

    Labels are balanced: each block of as many videos as there are classes holds every class once, in random order.
    """

    samplings: ClassVar[tuple[str, ...]] = ("dense", "fps=1", "uniform=16", "uniform=8", "segments=8", "last=16")
    ceilings_are: ClassVar[str] = "exact"  # or how they were measured
    strata: ClassVar[tuple[str, ...]] = ()  # columns of meta.csv that accuracy is worth reporting against

    @property
    def chance(self) -> float:
        """Accuracy of guessing."""
        return 1 / len(self.classes)

    @property
    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; they are also the names of the class folders."""

    @abstractmethod
    def ceiling(self, indices: Sequence[int]) -> float:
        """Accuracy of the best possible observer who sees the frames `indices` (increasing) and no others: exact, or
        what `ceilings_are` says."""

    @abstractmethod
    def oracle(self, row: Mapping[str, str], indices: Sequence[int]) -> str:
        """Answer of that observer for the video described by `row` of meta.csv."""

    def balanced_label(self, split: str, index: int) -> str:
        """Label of one video: its place in a random order of all classes, drawn per block."""
        block, number = divmod(index, len(self.classes))
        return self.classes[self.rng("label", split, block).permutation(len(self.classes))[number]]

    def known(self) -> dict[str, Any]:
        return {
            "classes": list(self.classes),
            "chance": self.chance,
            "ceilings_are": self.ceilings_are,
            "ceilings": [{"sampling": s, "top1": self.ceiling_under(s)} for s in self.samplings],
        }

    @classmethod
    def sentence(cls, description: dict[str, Any]) -> str:
        bounds = ", ".join(f"{row['sampling']} {row['top1']:.3f}" for row in description["ceilings"])
        best = "best possible top-1" if cls.ceilings_are == "exact" else f"top-1 of {cls.ceilings_are}"
        return f"{len(description['classes'])} classes; {best}: {bounds}; chance {description['chance']:.3f}"

    def ceiling_under(self, sampling: str, frames: int | None = None) -> float:
        """Ceiling for a sampling rule, in evaluation's order: cut to the first `frames` frames, then
        sample."""
        # A measured observer may fall below guessing, which anybody can do.
        return max(self.chance, self.ceiling(self.sampled(sampling, frames)))

    def sampled(self, sampling: str, frames: int | None = None) -> list[int]:
        """Frames that a sampling rule picks from a video of this suite, cut first to its first `frames`
        frames.

        Raises ValueError for a rule that does not exist.
        """
        import torch  # the makers' worker processes need no torch: they start sooner without

        from ..sampling import parse_sampling

        times = torch.arange(self.frames, dtype=torch.float64) / self.fps
        return parse_sampling(sampling).indices(times[:frames], None).tolist()
