"""flash-order: two short flashes of different colours; which came first?

Grey shapes move all the time over a grey background. At two random moments a saturated square, red, green or
blue, shows for `duration` frames. The class is the ordered pair of colours: six classes, chance 1/6. A model
that skips frames misses flashes, one that forgets loses their order.

Onsets: with T frames and flashes of d frames, the pair (s1, s2) is uniform over all pairs of integers with
0 <= s1, s1 + d <= s2, s2 + d <= T (the second may follow the first at once); there are
(T-2d+1)(T-2d+2)/2 of them.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .classification import ClassificationSuite
from .shapes import grey_scene
from .suite import Plan, SuiteError

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
PAIRS = {f"{first}-{second}": (first, second) for first in COLOURS for second in COLOURS if first != second}


@dataclass(frozen=True)
class FlashOrder(ClassificationSuite):
    """Two coloured flashes among moving grey shapes; the class is the ordered pair of their colours.

    Args:
        duration: frames that a flash lasts
        distractors: number of moving grey shapes
    """

    duration: int = 2
    distractors: int = 4

    name: ClassVar[str] = "flash-order"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.duration < 1:
            raise SuiteError(f"duration={self.duration}: a flash lasts at least one frame.")
        if self.frames < 2 * self.duration:
            raise SuiteError(
                f"frames={self.frames}: two flashes of {self.duration} frames need at least {2 * self.duration} frames."
            )
        if self.distractors < 0:
            raise SuiteError(f"distractors={self.distractors}: the number of shapes cannot be negative.")

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(sorted(PAIRS))

    def plan(self, split: str, index: int) -> Plan:
        label = self.balanced_label(split, index)
        rng = self.rng("flashes", split, index)
        # Two different numbers out of T-2d+2 stand for exactly one admissible pair of onsets.
        low, high = sorted(rng.choice(self.frames - 2 * self.duration + 2, 2, replace=False).tolist())
        cause: dict[str, int | str] = {"duration": self.duration}
        for which, colour, onset in zip(
            ("first", "second"), PAIRS[label], (low, high + self.duration - 1), strict=True
        ):
            x, y = rng.integers(0, self.size - self.flash_size + 1, 2).tolist()
            cause |= {f"{which}_colour": colour, f"{which}_onset": onset, f"{which}_x": x, f"{which}_y": y}
        return Plan(label, cause)

    @property
    def flash_size(self) -> int:
        """Side of the flash in pixels: it covers a good part of every 16-pixel patch wherever it lies."""
        return 5 * self.size // 8

    def draw(self, plan: Plan, rng: np.random.Generator) -> np.ndarray:
        video = grey_scene(rng, self.frames, self.size, self.distractors)
        cause = plan.cause
        for which in ("first", "second"):
            onset, x, y = (int(cause[f"{which}_{key}"]) for key in ("onset", "x", "y"))
            video[onset : onset + self.duration, y : y + self.flash_size, x : x + self.flash_size] = COLOURS[
                str(cause[f"{which}_colour"])
            ]
        return video

    # What can be known from the frames `indices`. Colours are independent of onsets, and a frame outside the
    # flashes says nothing about them, so all that matters is at which of these frames each flash is seen.
    # Both seen: the class is certain. One seen: its colour is certain; whether it was the first or the second
    # is decided by how many onset pairs give just this view as the first flash and how many as the second;
    # the other colour is one of two. None seen: one of six.

    def ceiling(self, indices: Sequence[int]) -> float:
        as_first, as_second, onset_pairs, none = self.count_views(indices)
        alone = as_first.keys() | as_second.keys()
        one = sum(as_first.values()) + sum(as_second.values())
        right_order = sum(max(as_first[view], as_second[view]) for view in alone)
        both = onset_pairs - one - none
        return (both + right_order / 2 + none / 6) / onset_pairs

    def count_views(self, indices: Sequence[int]) -> tuple[Counter, Counter, int, int]:
        """Onset pairs, counted exactly: for each view of a lone flash, those that show it as the first flash
        and as the second; all pairs; and those that show nothing."""
        last = self.frames - self.duration
        views = self.views(indices)
        hidden = np.array([not view for view in views], dtype=np.int64)
        hidden_before = np.concatenate([[0], np.cumsum(hidden)])  # counts the onsets below s
        as_first: Counter = Counter()
        as_second: Counter = Counter()
        none = 0
        for onset, view in enumerate(views):
            earlier = int(hidden_before[max(onset - self.duration + 1, 0)])
            later = int(hidden_before[-1] - hidden_before[min(onset + self.duration, last + 1)])
            if view:
                as_first[view] += later
                as_second[view] += earlier
            else:
                none += later
        room = self.frames - 2 * self.duration + 1
        return as_first, as_second, room * (room + 1) // 2, none

    def views(self, indices: Sequence[int]) -> list[tuple[int, ...]]:
        """For every possible onset, the frames among `indices` at which that flash is seen."""
        frames = np.unique(np.asarray(indices, dtype=np.int64))
        onsets = np.arange(self.frames - self.duration + 1)
        begin, end = np.searchsorted(frames, onsets), np.searchsorted(frames, onsets + self.duration)
        return [tuple(frames[b:e].tolist()) for b, e in zip(begin, end, strict=True)]

    def oracle(self, row: Mapping[str, str], indices: Sequence[int]) -> str:
        views = self.views(indices)
        first, second = (views[int(row[f"{which}_onset"])] for which in ("first", "second"))
        if first and second:
            return f"{row['first_colour']}-{row['second_colour']}"
        if not first and not second:
            return self.classes[0]
        view, colour = (first, row["first_colour"]) if first else (second, row["second_colour"])
        as_first, as_second, _, _ = self.count_views(indices)
        # The other colour is a guess between two: the next in the circle of colours.
        colours = list(COLOURS)
        other = colours[(colours.index(colour) + 1) % len(colours)]
        return f"{colour}-{other}" if as_first[view] >= as_second[view] else f"{other}-{colour}"
