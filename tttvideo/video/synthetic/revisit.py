"""revisit: a camera pans over a random texture that closes on itself; who remembers knows what comes next.

The texture is made of square cells of independent random colours, and it goes round: after `columns` columns it begins
again. In every frame the camera is one column further, so exactly one column of cells is newly revealed at one edge,
and all else merely moved by a cell. In the first lap the new column cannot be known; from the second lap on it has been
seen before, by whoever remembers. (Where the laps of a set have several lengths, the first column of a second lap
cannot be known either: nothing has shown yet that it is one.)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .prediction import UNIFORM_VARIANCE, PredictionSuite, Revealed
from .suite import Plan, SuiteError, parse_numbers


@dataclass(frozen=True)
class Revisit(PredictionSuite):
    """A camera pans round a random texture, column by column; each lap shows the same again.

    Args:
        cell: height and width of a cell in pixels (even); the camera moves by one cell between frames
        columns: columns of cells of the whole texture, one lap; several numbers, "6,7,8,9", are shared evenly by the
            videos, so that repeating what was there a fixed time ago does not do
        direction: where the camera goes: left, right, or both (each video one of them)
    """

    frames: int = 64
    size: int = 64
    cell: int = 8
    columns: int | str = 16
    direction: str = "both"

    name: ClassVar[str] = "revisit"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frames < 2:
            raise SuiteError(
                f"frames={self.frames}: something is revealed from the second frame on, so two frames or more."
            )
        laps = parse_numbers("columns", self.columns)
        if self.cell < 2 or self.cell % 2 or self.size % self.cell:
            raise SuiteError(
                f"cell={self.cell}: cells have an even number of pixels that divides the frame of {self.size}."
            )
        if self.direction not in ("left", "right", "both"):
            raise SuiteError(f"direction={self.direction!r}: it must be left, right or both.")
        object.__setattr__(self, "columns", laps[0] if len(laps) == 1 else ",".join(map(str, laps)))
        if laps[0] <= self.shown:
            raise SuiteError(
                f"columns={self.columns}: a frame shows {self.shown} columns at once, so a lap needs more than that."
            )

    @property
    def shown(self) -> int:
        """Columns of cells in a frame."""
        return self.size // self.cell

    @property
    def laps(self) -> list[int]:
        """Columns that the texture of a video of this set can have."""
        return parse_numbers("columns", self.columns)

    @property
    def grouped(self) -> str:
        return "lap"

    @property
    def bounds(self) -> dict[str, float]:
        # The best guess without memory is the mean colour; the last frame has another cell of the texture there.
        return {"no_memory": UNIFORM_VARIANCE, "copy_last": 2 * UNIFORM_VARIANCE}

    def plan(self, split: str, index: int) -> Plan:
        rng = self.rng("camera", split, index)
        drawn = ("left", "right")[int(rng.integers(2))]
        direction = drawn if self.direction == "both" else self.direction
        texture = int(rng.integers(2**31))
        return Plan(None, {"direction": direction, "columns": self.laps[index % len(self.laps)], "texture": texture})

    def draw(self, plan: Plan, rng: np.random.Generator) -> np.ndarray:
        columns = int(plan.cause["columns"])
        texture = np.random.default_rng(int(plan.cause["texture"])).integers(0, 256, (self.shown, columns, 3), np.uint8)
        step = 1 if plan.cause["direction"] == "right" else -1
        first = step * np.arange(self.frames)[:, None] + np.arange(self.shown)
        cells = texture[:, first % columns].transpose(1, 0, 2, 3)  # [F, rows, shown, 3]
        return cells.repeat(self.cell, axis=1).repeat(self.cell, axis=2)

    def revealed(self, row: Mapping[str, str]) -> Revealed:
        mask = np.zeros((self.frames, self.size, self.size), bool)
        edge = slice(self.size - self.cell, self.size) if row["direction"] == "right" else slice(0, self.cell)
        mask[1:, :, edge] = True
        columns = int(
            row.get("columns") or self.columns
        )  # sets of one length, made before there were several, do not say
        # The new column of frame t is the t-th after those of the first frame.
        lap = (self.shown - 1 + np.arange(self.frames)) // columns
        return Revealed(np.where(np.arange(self.frames) > 0, lap, -1), mask)
