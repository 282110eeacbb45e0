"""count-events: how many brief events were there?

Grey shapes move all the time over a grey background. Between `least` and `most` times a saturated square, red, green
or blue, shows for `duration` frames at a random place. The class is how often: all counts are equally likely. A model
that skips frames misses events. All events last equally long, so a sum over all frames is memory enough: this suite
tells who sees every frame and can count over any length, not who binds one thing to another.

Onsets: the video is divided into cells of `spacing` frames; an event takes a cell of its own, all ways to choose them
being equally likely, and begins at one of the first spacing - duration frames of it, so that at least one quiet frame
stands between two events.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import comb
from typing import ClassVar

import numpy as np

from .classification import ClassificationSuite
from .shapes import grey_scene
from .suite import Plan, SuiteError

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


@dataclass(frozen=True)
class CountEvents(ClassificationSuite):
    """Brief coloured squares among moving grey shapes; the class is their number.

    Args:
        least: smallest number of events
        most: largest number of events
        duration: frames that an event lasts
        spacing: frames of a cell; each event has a cell of its own
        distractors: number of moving grey shapes
    """

    frames: int = 96
    least: int = 1
    most: int = 8
    duration: int = 2
    spacing: int = 8
    distractors: int = 4

    name: ClassVar[str] = "count-events"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.duration < 1:
            raise SuiteError(f"duration={self.duration}: an event lasts at least one frame.")
        if self.spacing <= self.duration:
            raise SuiteError(
                f"spacing={self.spacing}: a cell holds an event of {self.duration} frames and a quiet one, so it needs "
                f"at least {self.duration + 1} frames."
            )
        if not 0 <= self.least < self.most:
            raise SuiteError(f"least={self.least}, most={self.most}: give 0 <= least < most.")
        if self.cells < self.most:
            raise SuiteError(
                f"frames={self.frames}: {self.most} events in cells of {self.spacing} frames need at least "
                f"{self.most * self.spacing} frames."
            )
        if self.distractors < 0:
            raise SuiteError(f"distractors={self.distractors}: the number of shapes cannot be negative.")

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(str(n) for n in self.counts)

    @property
    def counts(self) -> range:
        return range(self.least, self.most + 1)

    @property
    def cells(self) -> int:
        """Places in time for an event; frames that are left over at the end are quiet."""
        return self.frames // self.spacing

    @property
    def starts(self) -> int:
        """First frames that an event can have within its cell."""
        return self.spacing - self.duration

    @property
    def event_size(self) -> int:
        """Side of the square in pixels: it covers a good part of every 16-pixel patch wherever it lies."""
        return 5 * self.size // 8

    def plan(self, split: str, index: int) -> Plan:
        label = self.balanced_label(split, index)
        rng = self.rng("events", split, index)
        count = int(label)
        cells = np.sort(rng.choice(self.cells, count, replace=False))
        onsets = (cells * self.spacing + rng.integers(0, self.starts, count)).tolist()
        cause: dict[str, int | str] = {"count": count, "duration": self.duration}
        for i in range(1, self.most + 1):  # every video has all columns; those of events that it lacks stay empty
            if i > count:
                cause |= {f"{key}_{i}": "" for key in ("onset", "colour", "x", "y")}
                continue
            x, y = rng.integers(0, self.size - self.event_size + 1, 2).tolist()
            colour = list(COLOURS)[int(rng.integers(len(COLOURS)))]
            cause |= {f"onset_{i}": onsets[i - 1], f"colour_{i}": colour, f"x_{i}": x, f"y_{i}": y}
        return Plan(label, cause)

    def draw(self, plan: Plan, rng: np.random.Generator) -> np.ndarray:
        video = grey_scene(rng, self.frames, self.size, self.distractors)
        cause = plan.cause
        for i in range(1, int(cause["count"]) + 1):
            onset, x, y = (int(cause[f"{key}_{i}"]) for key in ("onset", "x", "y"))
            square = video[onset : onset + self.duration, y : y + self.event_size, x : x + self.event_size]
            square[...] = COLOURS[str(cause[f"colour_{i}"])]
        return video

    # What can be known from the frames `indices`. Of the J frames at which an event can begin within its cell, a_c lead
    # to a sighting and b_c = J - a_c to none. If n events took place and those in the cells S were seen, the others are
    # hidden in n - |S| of the other cells: P(S | n) = prod_S a_c * e_{n-|S|}(b of the cells outside S) / (J^n C(M, n)),
    # e being the elementary symmetric polynomial. When within its cell an event was seen says nothing further. Cells
    # with equal a_c are alike, so it is enough to count how many of each kind are in S.

    def ceiling(self, indices: Sequence[int]) -> float:
        kinds = Counter(self.sightings(indices).tolist())
        right = Fraction(0)
        for seen, ways, hidden in self._views(sorted(kinds.items())):
            right += ways * max(self.likelihoods(seen, hidden))
        return float(right / len(self.counts))

    def sightings(self, indices: Sequence[int]) -> np.ndarray:
        """For every cell, how many of its possible first frames lead to an event that is seen: int64 [cells]."""
        frames = np.unique(np.asarray(indices, dtype=np.int64))
        onsets = (np.arange(self.cells) * self.spacing)[:, None] + np.arange(self.starts)
        seen = np.searchsorted(frames, onsets) < np.searchsorted(frames, onsets + self.duration)
        return seen.sum(1)

    def likelihoods(self, seen: int, hidden: list[int]) -> list[Fraction]:
        """For every count n, the probability of a view of `seen` events up to a factor that all n share; `hidden` are
        the e_0, e_1, ... of the cells without a sighting."""
        return [
            Fraction(hidden[n - seen] if n >= seen else 0, self.starts**n * comb(self.cells, n)) for n in self.counts
        ]

    def _views(self, kinds: list[tuple[int, int]]) -> Iterator[tuple[int, int, list[int]]]:
        """(events seen, weight of all such views, e_0 ... e_most of the other cells), for every number of cells of each
        kind, (sightings, cells), that can hold an event that is seen."""
        if not kinds:
            yield 0, 1, [1] + [0] * self.most
            return
        (sightings, cells), *others = kinds
        for rest, ways, hidden in self._views(others):
            for here in range(min(cells, self.most - rest) + 1 if sightings else 1):
                mine = ways * comb(cells, here) * sightings**here
                yield rest + here, mine, self._product(hidden, self.starts - sightings, cells - here)

    def _product(self, polynomial: list[int], weight: int, times: int) -> list[int]:
        """Coefficients of polynomial * (1 + weight x) ** times, up to x ** most."""
        power = [comb(times, k) * weight**k for k in range(self.most + 1)]
        return [sum(power[i] * polynomial[k - i] for i in range(k + 1)) for k in range(self.most + 1)]

    def oracle(self, row: Mapping[str, str], indices: Sequence[int]) -> str:
        frames = np.unique(np.asarray(indices, dtype=np.int64))
        outside = self.sightings(indices).tolist()
        seen = 0
        for i in range(1, int(row["count"]) + 1):
            onset = int(row[f"onset_{i}"])
            if np.searchsorted(frames, onset) < np.searchsorted(frames, onset + self.duration):
                seen += 1
                outside[onset // self.spacing] = None
        hidden = [1] + [0] * self.most
        for sightings, cells in Counter(a for a in outside if a is not None).items():
            hidden = self._product(hidden, self.starts - sightings, cells)
        chances = self.likelihoods(seen, hidden)
        return self.classes[chances.index(max(chances))]
