"""shell-game: equal discs change places; where is the one that was marked at the start?

`discs` discs rest at the corners of a regular polygon, over grey shapes that move. For the first `mark` frames one of
them is red, the others yellow; then all are yellow. `swaps` times two neighbouring discs change places within
`duration` frames, each along its half of an ellipse. In the last `rest` frames all discs rest; the class is the corner
at which the marked one is: chance 1 / discs. Between two frames of a swap only nearness tells which disc is which, so
a model must follow one disc through every swap: frames cannot be skipped, and nothing before the end can be left out.

Onsets: all ways to place the swaps in order, without overlap, between mark and rest are equally likely, and so are the
pair of neighbours and the sense of rotation of each.

There is no closed form of what the best observer reaches. The stated ceiling is that of a tracker that knows the exact
places of all discs in the frames it sees and goes from each frame to the nearest disc in the next, measured on `DRAWN`
clips drawn for the purpose. With the default duration it never errs at stride 1 and 2, and is near chance from stride
3 on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import ClassVar

import numpy as np

from .classification import ClassificationSuite
from .shapes import grey_scene
from .suite import Plan, SuiteError

YELLOW, RED = (255, 255, 0), (255, 0, 0)
FLATNESS = 0.5  # of the ellipses: two discs of a swap pass at half the distance of their corners
DRAWN = 1200
"""Clips that the tracker is measured on: one standard error is at most 0.015."""


@dataclass(frozen=True)
class ShellGame(ClassificationSuite):
    """Equal discs that change places among moving grey shapes; the class is where the marked one ends.

    Args:
        discs: number of discs, and of classes
        swaps: how often two neighbours change places
        duration: frames that a swap lasts
        mark: frames at the start in which one disc is red
        rest: frames at the end in which nothing moves
        distractors: number of moving grey shapes behind the discs
    """

    frames: int = 256
    discs: int = 3
    swaps: int = 12
    duration: int = 8
    mark: int = 8
    rest: int = 8
    distractors: int = 4

    name: ClassVar[str] = "shell-game"
    samplings: ClassVar[tuple[str, ...]] = ("dense", "fps=15", "fps=10", "fps=7.5", "fps=1", "uniform=16", "last=64")
    strata: ClassVar[tuple[str, ...]] = ("moves",)
    ceilings_are: ClassVar[str] = f"a nearest-neighbour tracker's, measured on {DRAWN} drawn clips"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.discs < 3:  # of two, the number of swaps alone would tell
            raise SuiteError(f"discs={self.discs}: at least three discs are needed.")
        if self.duration < 1 or self.mark < 1 or self.rest < 1:
            raise SuiteError(
                f"duration={self.duration}, mark={self.mark}, rest={self.rest}: each lasts at least one frame."
            )
        if self.swaps < 1 or self.distractors < 0:
            raise SuiteError(
                f"swaps={self.swaps}, distractors={self.distractors}: at least one swap, and no negative number."
            )
        need = self.mark + self.swaps * self.duration + self.rest
        if self.frames < need:
            raise SuiteError(
                f"frames={self.frames}: {self.swaps} swaps of {self.duration} frames, the mark ({self.mark}) and the "
                f"rest ({self.rest}) need at least {need} frames."
            )
        if self.radius < 1.5:
            raise SuiteError(f"size={self.size}: {self.discs} discs would be smaller than 3 pixels.")

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(f"place-{i + 1:0{len(str(self.discs))}d}" for i in range(self.discs))

    def geometry(self) -> tuple[np.ndarray, float]:
        """Corners float [discs, 2], (x, y) in pixels, clockwise from the top; and the radius of a disc."""
        angle = np.pi / self.discs
        half_side, apothem = np.sin(angle), np.cos(angle)  # of a polygon of radius 1
        radius = 0.3 * half_side
        scale = (self.size / 2 - 0.5) / (max(1.0, apothem + FLATNESS * half_side) + radius)
        at = 2 * angle * np.arange(self.discs)
        corners = np.stack([np.sin(at), -np.cos(at)], axis=1) * scale + self.size / 2
        return corners, float(radius * scale)

    @property
    def radius(self) -> float:
        return self.geometry()[1]

    def plan(self, split: str, index: int) -> Plan:
        label = self.balanced_label(split, index)
        rng = self.rng("swaps", split, index)
        room = self.frames - self.mark - self.rest - self.swaps * (self.duration - 1)
        places = np.sort(rng.choice(room, self.swaps, replace=False))
        onsets = (places + self.mark + np.arange(self.swaps) * (self.duration - 1)).tolist()
        # Corner i swaps with its neighbour i + 1.
        corners = rng.integers(0, self.discs, self.swaps).tolist()
        turns = rng.choice([-1, 1], self.swaps).tolist()
        visited = [self.classes.index(label)]
        for corner in reversed(corners):  # back from where the marked disc must end
            visited.append(self._swapped(visited[-1], corner))
        moves = sum(here != there for here, there in pairwise(visited))
        cause: dict[str, int | str] = {"discs": self.discs, "moves": moves, "start": visited[-1] + 1}
        for i in range(self.swaps):
            cause |= {f"onset_{i + 1}": onsets[i], f"corner_{i + 1}": corners[i] + 1, f"turn_{i + 1}": turns[i]}
        return Plan(label, cause)

    def _swapped(self, at: int, corner: int) -> int:
        other = (corner + 1) % self.discs
        return {corner: other, other: corner}.get(at, at)

    def paths(self, cause: Mapping[str, int | str] | Mapping[str, str]) -> np.ndarray:
        """Where every disc is in every frame: float [F, discs, 2], (x, y) in pixels; disc 0 is the marked one."""
        corners, _ = self.geometry()
        start = int(cause["start"]) - 1
        at = [start, *(i for i in range(self.discs) if i != start)]  # the corner of each disc
        path = np.empty((self.frames, self.discs, 2))
        path[:] = corners[at]
        theta = np.pi * np.arange(1, self.duration + 1)[:, None] / self.duration
        for i in range(1, self.swaps + 1):
            onset, corner, turn = (int(cause[f"{key}_{i}"]) for key in ("onset", "corner", "turn"))
            first, second = corner - 1, corner % self.discs
            one, two = at.index(first), at.index(second)
            middle, along = (corners[first] + corners[second]) / 2, (corners[second] - corners[first]) / 2
            across = FLATNESS * turn * np.array([-along[1], along[0]])
            away = along * np.cos(theta) - across * np.sin(theta)
            path[onset : onset + self.duration, one] = middle - away
            path[onset : onset + self.duration, two] = middle + away
            path[onset + self.duration :, one], path[onset + self.duration :, two] = corners[second], corners[first]
            at[one], at[two] = second, first
        return path

    def draw(self, plan: Plan, rng: np.random.Generator) -> np.ndarray:
        video = grey_scene(rng, self.frames, self.size, self.distractors)
        path, radius = self.paths(plan.cause), self.radius
        pixel = np.arange(self.size) + 0.5
        for disc in reversed(range(self.discs)):
            dx, dy = (pixel - path[:, disc, axis, None] for axis in (0, 1))
            inside = dx[:, None, :] ** 2 + dy[:, :, None] ** 2 < radius**2
            video[inside] = YELLOW
            if disc == 0:
                video[: self.mark][inside[: self.mark]] = RED
        return video

    def ceiling(self, indices: Sequence[int]) -> float:
        paths, places = _drawn(self)
        return float((self.tracked(paths[:, list(indices)], indices) == places).mean())

    def oracle(self, row: Mapping[str, str], indices: Sequence[int]) -> str:
        """The tracker's answer."""
        return self.classes[int(self.tracked(self.paths(row)[None, list(indices)], indices)[0])]

    def tracked(self, paths: np.ndarray, indices: Sequence[int]) -> np.ndarray:
        """The corner nearest to the disc that was followed, int [V], for places [V, n, discs, 2] in the frames
        `indices`; the first corner where no frame shows the mark."""
        marked = sum(index < self.mark for index in indices)
        if not marked:
            return np.zeros(len(paths), dtype=np.int64)
        videos, held = np.arange(len(paths)), np.zeros(len(paths), dtype=np.int64)
        for now in range(marked, len(indices)):
            before = paths[videos, now - 1, held]
            held = np.linalg.norm(paths[:, now] - before[:, None], axis=-1).argmin(1)
        last = paths[videos, -1, held]
        corners, _ = self.geometry()
        return np.linalg.norm(corners - last[:, None], axis=-1).argmin(1)


@lru_cache(maxsize=1)
def _drawn(suite: ShellGame) -> tuple[np.ndarray, np.ndarray]:
    """Paths float32 [DRAWN, F, discs, 2] and final corners int [DRAWN] of the clips that the ceiling is measured on."""
    plans = [suite.plan("ceiling", i) for i in range(DRAWN)]
    paths = np.stack([suite.paths(plan.cause).astype(np.float32) for plan in plans])
    return paths, np.array([suite.classes.index(plan.label) for plan in plans])
