"""occlusion: an object goes behind a wall, stays hidden for some frames, and comes out on the other side.

The object has a random colour, form and height. It flies at a constant speed up to the wall, is wholly hidden for
exactly `hidden` frames, and then comes out at the same speed. In the first frame in which it shows again its colour
can be known only from what was seen before the wall.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .prediction import UNIFORM_VARIANCE, PredictionSuite, Revealed
from .suite import Plan, SuiteError

BACKGROUND, WALL = 32, 112


@dataclass(frozen=True)
class Occlusion(PredictionSuite):
    """An object passes behind a wall and must come out as it went in, at the right time.

    Args:
        hidden: frames for which the object cannot be seen
        speed: pixels that it flies between two frames
    """

    frames: int = 32
    size: int = 64
    hidden: int = 8
    speed: int = 4

    name: ClassVar[str] = "occlusion"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden < 1:
            raise SuiteError(f"hidden={self.hidden}: the object is hidden for at least one frame.")
        if not 1 <= self.speed <= self.object:
            raise SuiteError(f"speed={self.speed}: it must lie between 1 and {self.object}, the width of the object.")
        if self.frames < (need := max(self.approaches) + self.hidden + 1):
            raise SuiteError(f"frames={self.frames}: until the object shows again it may take {need} frames.")

    @property
    def object(self) -> int:
        """Width and height of the object in pixels, and the width of the wall."""
        return self.size // 4

    @property
    def approaches(self) -> range:
        """Frames from the start until the object is hidden: it starts inside the frame and clear of the wall."""
        return range(-(-self.object // self.speed), self.left // self.speed + 1)

    @property
    def left(self) -> int:
        """First column of the wall."""
        return (self.size - self.object) // 2

    @property
    def grouped(self) -> str:
        return "emergence"

    @property
    def bounds(self) -> dict[str, float]:
        # Both know where and when; without memory the mean colour is best, and the last frame shows the background.
        off = 127.5 / 255 - BACKGROUND / 255
        return {"no_memory": UNIFORM_VARIANCE, "copy_last": UNIFORM_VARIANCE + off**2}

    def plan(self, split: str, index: int) -> Plan:
        rng = self.rng("object", split, index)
        red, green, blue = rng.integers(0, 256, 3).tolist()
        cause: dict[str, int | str] = {
            "kind": ("square", "disc")[int(rng.integers(2))],
            "colour": f"#{red:02x}{green:02x}{blue:02x}",
            "top": int(rng.integers(0, self.size - self.object + 1)),
            "hidden_from": int(rng.choice(self.approaches)),
        }
        return Plan(None, cause | {"shows_at": int(cause["hidden_from"]) + self.hidden})

    def draw(self, plan: Plan, rng: np.random.Generator) -> np.ndarray:
        video = np.full((self.frames, self.size, self.size, 3), BACKGROUND, np.uint8)
        video[self.mask({key: str(value) for key, value in plan.cause.items()})] = list(
            bytes.fromhex(str(plan.cause["colour"])[1:])
        )
        video[:, :, self.left : self.left + self.object] = WALL
        return video

    def mask(self, row: Mapping[str, str]) -> np.ndarray:
        """bool [F, H, W]: the pixels of the object, behind the wall too."""
        frame = np.arange(self.frames)
        hidden_from, shows_at = int(row["hidden_from"]), int(row["shows_at"])
        moved = np.minimum(frame - hidden_from, 0) + np.maximum(frame - shows_at + 1, 0)
        x = self.left + self.speed * moved[:, None, None]
        pixel, half = np.arange(self.size), self.object / 2
        dx, dy = pixel - x + 0.5 - half, pixel[:, None] - int(row["top"]) + 0.5 - half
        if row["kind"] == "square":
            return np.broadcast_to(abs(dx) < half, (self.frames, self.size, self.size)) & (abs(dy) < half)
        return dx**2 + dy**2 < half**2

    def revealed(self, row: Mapping[str, str]) -> Revealed:
        at = np.arange(self.frames) == int(row["shows_at"])
        mask = self.mask(row) & at[:, None, None]
        mask[:, :, : self.left + self.object] = False
        return Revealed(np.where(at, 0, -1), mask)
