"""moving-shapes: coloured squares, discs and triangles fly straight, bounce off the edges and pass over each other.

All that moves goes on as it did: the future follows from a few frames, to the pixel. Shapes that lie higher hide lower
ones, so a model must remember what it does not see. Positions are real numbers and pixels are drawn where their centre
lies inside a shape.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .prediction import PredictionSuite
from .shapes import reflected
from .suite import Plan, SuiteError

BACKGROUND = 16


@dataclass(frozen=True)
class MovingShapes(PredictionSuite):
    """Coloured shapes that bounce off the edges and pass over each other.

    Args:
        shapes: number of shapes
        speed: how far a shape flies between two frames at most, in pixels; at least half of that
    """

    split: str = "train=3000,val=300"
    frames: int = 20
    size: int = 64
    shapes: int = 2
    speed: float = 4.0

    name: ClassVar[str] = "moving-shapes"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shapes < 1:
            raise SuiteError(f"shapes={self.shapes}: something must move.")
        if not 0 < self.speed < self.size / 4:
            raise SuiteError(f"speed={self.speed}: it must lie above 0 and below {self.size / 4:g}, a quarter frame.")

    @property
    def bounds(self) -> dict[str, float]:
        return {}

    def plan(self, split: str, index: int) -> Plan:
        rng = self.rng("shapes", split, index)
        cause: dict[str, int | str] = {}
        for i in range(1, self.shapes + 1):
            kind = ("square", "disc", "triangle")[int(rng.integers(3))]
            radius = rng.uniform(0.08, 0.15) * self.size
            angle, speed = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.0) * self.speed
            x, y = rng.uniform(radius, self.size - radius, 2)
            cause |= {f"kind_{i}": kind, f"radius_{i}": f"{radius:.3f}", f"colour_{i}": f"#{_bright(rng).hex()}"}
            cause |= {f"x_{i}": f"{x:.3f}", f"y_{i}": f"{y:.3f}"}
            cause |= {f"dx_{i}": f"{speed * np.cos(angle):.4f}", f"dy_{i}": f"{speed * np.sin(angle):.4f}"}
        return Plan(None, cause)

    def draw(self, plan: Plan, rng: np.random.Generator) -> np.ndarray:
        video = np.full((self.frames, self.size, self.size, 3), BACKGROUND, np.uint8)
        for i in range(1, self.shapes + 1):
            shape = {key: plan.cause[f"{key}_{i}"] for key in ("kind", "radius", "x", "y", "dx", "dy")}
            x, y = (self._flight(*(float(shape[k]) for k in ("radius", axis, f"d{axis}"))) for axis in "xy")
            colour = bytes.fromhex(str(plan.cause[f"colour_{i}"])[1:])
            video[self._mask(str(shape["kind"]), float(shape["radius"]), x, y)] = list(colour)
        return video

    def _flight(self, radius: float, start: float, step: float) -> np.ndarray:
        """Where the centre is in each frame, along one axis: the whole shape stays inside."""
        room = self.size - 2 * radius
        return radius + room * reflected((start - radius + step * np.arange(self.frames)) / room)

    def _mask(self, kind: str, radius: float, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """bool [F, H, W]: the pixels of a shape with these centres."""
        pixel = np.arange(self.size) + 0.5
        dx, dy = pixel - x[:, None, None], pixel[:, None] - y[:, None, None]
        if kind == "square":
            return np.broadcast_to(abs(dx) < radius, (len(x), self.size, self.size)) & (abs(dy) < radius)
        if kind == "disc":
            return dx**2 + dy**2 < radius**2
        return (abs(dy) < radius) & (abs(dx) < (dy + radius) / 2)  # a triangle that stands on its base


def _bright(rng: np.random.Generator) -> bytes:
    """A colour whose strongest channel is full and whose weakest is low: none looks like the background."""
    channels = np.array([255, 60, rng.integers(60, 256)], np.uint8)
    return rng.permutation(channels).tobytes()
