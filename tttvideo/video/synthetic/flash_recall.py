"""flash-recall: key -> value flashes, then one key alone; what was its value?

Grey shapes move all the time over a grey background. At `pairs` random moments the whole frame shows, for
`duration` frames, a pair: the key is a pattern of black and coloured cells, the value is the colour. The last
`query` frames show one of the keys in white. The class is the colour that this key had: eight classes, chance 1/8.
Values are drawn independently, so two keys may have the same one, and knowing all values but the needle's (the
queried pair's) tells nothing. A model must bind: which colours were there is not enough once pairs > 1.

Keys: the frame is cut into 4 x 4 cells, and a key colours half of them. They are the Walsh patterns (all products of
stripes and checkerboards of the four cell coordinates' bits) and their negatives, so any two of the 30 differ in
8 or 16 of the 16 cells, and cells are size / 4 pixels wide: no codec and no patch embedding confuses them.

Onsets: with L = T - query - gap frames for the flashes, all ways to place `pairs` flashes of d frames in order
without overlap are equally likely; there are C(L - pairs (d-1), pairs) of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import comb, factorial
from typing import ClassVar

import numpy as np

from .classification import ClassificationSuite
from .shapes import grey_scene
from .suite import Plan, SuiteError, parse_numbers

# The hues at the corners of the colour cube and two that lie as far from them as they do from black and white.
COLOURS = {
    "blue": (0, 0, 255),
    "cyan": (0, 255, 255),
    "green": (0, 255, 0),
    "magenta": (255, 0, 255),
    "pink": (255, 128, 128),
    "red": (255, 0, 0),
    "teal": (0, 128, 128),
    "yellow": (255, 255, 0),
}
WHITE = (255, 255, 255)  # of the query


def _walsh() -> np.ndarray:
    """The 30 keys, bool [30, 4, 4]: parities of 1 to 4 of the bits of (row, column), then their negatives."""
    cell = np.arange(16)
    parities = [[bin(n & bits).count("1") % 2 for n in cell] for bits in range(1, 16)]
    patterns = np.array(parities, dtype=bool).reshape(15, 4, 4)
    return np.concatenate([patterns, ~patterns])


KEYS = _walsh()


@dataclass(frozen=True)
class FlashRecall(ClassificationSuite):
    """Key -> value flashes among moving grey shapes, then one key alone; the class is its value.

    Args:
        pairs: key -> value flashes in a video; several numbers, "1,4,16", are shared evenly by the videos
        keys: number of different keys that occur in the set
        duration: frames that a flash lasts
        query: frames at the end that show the queried key
        gap: frames between the last possible flash and the query in which only the shapes move
        distractors: number of moving grey shapes
    """

    frames: int = 96
    pairs: int | str = 4
    keys: int = 16
    duration: int = 2
    query: int = 32
    gap: int = 0
    distractors: int = 4

    name: ClassVar[str] = "flash-recall"
    strata: ClassVar[tuple[str, ...]] = ("pairs", "depth")

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = parse_numbers("pairs", self.pairs)
        object.__setattr__(self, "pairs", counts[0] if len(counts) == 1 else ",".join(map(str, counts)))
        if self.duration < 1 or self.query < 1:
            raise SuiteError(
                f"duration={self.duration}, query={self.query}: a flash and the query last at least one frame each."
            )
        if not 1 <= self.keys <= len(KEYS):
            raise SuiteError(f"keys={self.keys}: there are between 1 and {len(KEYS)} different keys.")
        if not 1 <= min(self.counts) <= max(self.counts) <= self.keys:
            raise SuiteError(
                f"pairs={self.pairs}: a video shows at least one pair, and no key twice (keys={self.keys})."
            )
        if self.gap < 0 or self.distractors < 0:
            raise SuiteError(f"gap={self.gap}, distractors={self.distractors}: neither can be negative.")
        need = max(self.counts) * self.duration + self.gap + self.query
        if self.frames < need:
            raise SuiteError(
                f"frames={self.frames}: {max(self.counts)} flashes of {self.duration} frames, a gap of {self.gap} and "
                f"a query of {self.query} need at least {need} frames."
            )
        if self.size % 4:
            raise SuiteError(f"size={self.size}: a key has 4 x 4 cells, so the size must divide by 4.")

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(COLOURS)

    @property
    def room(self) -> int:
        """Frames in which flashes may be: those before the gap and the query."""
        return self.frames - self.query - self.gap

    @property
    def counts(self) -> list[int]:
        """Numbers of pairs that a video of this set can have."""
        return parse_numbers("pairs", self.pairs)

    def slots(self, pairs: int) -> int:
        """Different numbers out of so many stand for exactly one admissible set of onsets: the flashes as one
        frame each."""
        return self.room - pairs * (self.duration - 1)

    def pairs_of(self, split: str, index: int) -> int:
        """How many pairs a video has: equally many videos of each label have each number, up to one."""
        block, number = divmod(index // len(self.classes), len(self.counts))
        # One order for each label, so that number and label are independent.
        label = self.classes.index(self.balanced_label(split, index))
        order = self.rng(f"count of pairs {label}", split, block).permutation(len(self.counts))
        return self.counts[order[number]]

    def plan(self, split: str, index: int) -> Plan:
        label = self.balanced_label(split, index)
        rng = self.rng("pairs", split, index)
        pairs = self.pairs_of(split, index)
        places = sorted(rng.choice(self.slots(pairs), pairs, replace=False).tolist())
        onsets = [position + i * (self.duration - 1) for i, position in enumerate(places)]
        keys = rng.choice(self.keys, pairs, replace=False).tolist()
        values = [self.classes[i] for i in rng.integers(0, len(COLOURS), pairs).tolist()]
        needle = int(rng.integers(pairs))
        values[needle] = label
        cause: dict[str, int | str] = {
            "pairs": pairs,
            "duration": self.duration,
            "needle": needle + 1,
            "depth": self.frames - self.query - onsets[needle] - self.duration,
        }
        for i, (key, value, onset) in enumerate(zip(keys, values, onsets, strict=True), 1):
            cause |= {f"key_{i}": key, f"value_{i}": value, f"onset_{i}": onset}
        for i in range(pairs + 1, max(self.counts) + 1):  # every row of meta.csv has the same columns
            cause |= {f"key_{i}": "", f"value_{i}": "", f"onset_{i}": ""}
        return Plan(label, cause)

    def draw(self, plan: Plan, rng: np.random.Generator) -> np.ndarray:
        video = grey_scene(rng, self.frames, self.size, self.distractors)
        cause = plan.cause
        for i in range(1, int(cause["pairs"]) + 1):
            onset = int(cause[f"onset_{i}"])
            video[onset : onset + self.duration] = self.flash(int(cause[f"key_{i}"]), COLOURS[str(cause[f"value_{i}"])])
        video[self.frames - self.query :] = self.flash(int(cause[f"key_{cause['needle']}"]), WHITE)
        return video

    def flash(self, key: int, colour: tuple[int, int, int]) -> np.ndarray:
        """Frame uint8 [H, W, 3]: the key in this colour on black."""
        cell = self.size // 4
        cells = KEYS[key].repeat(cell, axis=0).repeat(cell, axis=1)
        return cells[..., None] * np.array(colour, dtype=np.uint8)

    # What can be known from the frames `indices`. Values are uniform and independent of everything else, and so is
    # which pair is the needle. If the query is seen, the answer is certain where the needle's flash is seen, and one
    # of eight elsewhere. If it is not seen, each flash is the needle with probability 1 / pairs: the best answer is
    # the commonest of the m values seen, right if the needle is one of those (expected commonest count / pairs), and
    # in one of eight cases if it is none of the m.

    # In a set with several numbers of pairs the number is no secret once the query has been seen; before, it is taken
    # to be known too, which makes no difference to the answer.

    def ceiling(self, indices: Sequence[int]) -> float:
        return sum(self._ceiling(indices, pairs) for pairs in self.counts) / len(self.counts)

    def _ceiling(self, indices: Sequence[int], pairs: int) -> float:
        seen_at = self.seen_at(indices)
        placements = comb(self.slots(pairs), pairs)
        if self.query_seen(indices):
            needles = placements * pairs
            in_view = sum(self.needles_at(onset, pairs) for onset in np.flatnonzero(seen_at).tolist())
            return float(Fraction(in_view, needles) + Fraction(needles - in_view, 8 * needles))
        right = Fraction(0)
        for m, count in enumerate(self.placements_by_seen(seen_at, pairs)):
            expected = commonest(m, len(COLOURS)) + Fraction(pairs - m, len(COLOURS))
            right += count * expected / pairs
        return float(right / placements)

    def needles_at(self, onset: int, pairs: int) -> int:
        """In how many of all (placement, which flash is the needle) the needle starts at frame `onset`."""
        count = 0
        for earlier in range(pairs):
            free = onset - earlier * (self.duration - 1)
            if free >= earlier:
                count += comb(free, earlier) * comb(max(self.slots(pairs) - 1 - free, 0), pairs - 1 - earlier)
        return count

    def placements_by_seen(self, seen_at: np.ndarray, pairs: int) -> list[int]:
        """Number of placements of all flashes in which m of them are seen, for m = 0 ... pairs."""
        # ways[t][k][m]: k flashes, m of them seen, in the frames before t
        ways = np.zeros((self.room + 1, pairs + 1, pairs + 1), dtype=object)
        ways[0, 0, 0] = 1
        for t in range(1, self.room + 1):
            ways[t] = ways[t - 1]
            onset = t - self.duration
            if onset >= 0:
                m = int(seen_at[onset])
                ways[t, 1:, m:] += ways[onset, :-1, : pairs + 1 - m]
        return ways[self.room, pairs].tolist()

    def seen_at(self, indices: Sequence[int]) -> np.ndarray:
        """For every possible onset, whether a flash that starts there is seen: bool [room - duration + 1]."""
        frames = np.unique(np.asarray(indices, dtype=np.int64))
        onsets = np.arange(self.room - self.duration + 1)
        return np.searchsorted(frames, onsets) < np.searchsorted(frames, onsets + self.duration)

    def query_seen(self, indices: Sequence[int]) -> bool:
        return any(self.frames - self.query <= index < self.frames for index in indices)

    def oracle(self, row: Mapping[str, str], indices: Sequence[int]) -> str:
        seen_at = self.seen_at(indices)
        numbers = range(1, int(row["pairs"]) + 1)
        values = {i: row[f"value_{i}"] for i in numbers if seen_at[int(row[f"onset_{i}"])]}
        if self.query_seen(indices):
            return values.get(int(row["needle"]), self.classes[0])
        shown = list(values.values())
        return max(self.classes, key=shown.count)


def commonest(m: int, classes: int) -> Fraction:
    """Expected count of the commonest of m independent, uniform draws out of `classes`."""
    # At most c of each: m! times the coefficient of x^m in (sum over i <= c of x^i / i!) ** classes.
    at_most = []
    for most in range(m + 1):
        power = [Fraction(1)] + [Fraction(0)] * m
        for _ in range(classes):
            power = [
                sum((power[n - i] / factorial(i) for i in range(min(n, most) + 1)), Fraction(0)) for n in range(m + 1)
            ]
        at_most.append(factorial(m) * power[m] / classes**m)
    return sum((1 - p for p in at_most), Fraction(0))
