"""moving-digits: Moving MNIST (Srivastava et al., arXiv 1502.04681) from the user's own MNIST files.

The protocol is that of OpenSTL's loader and of the authors before it: frames of 64 x 64, two digits of 28 x 28 cut out
of MNIST, 20 frames of which 10 are given. A digit starts anywhere and flies in a random direction by a tenth of its
room (36 pixels) between frames; at an edge it stops for that frame and its direction there turns round. Where digits
overlap the brighter pixel shows. The training split is drawn from MNIST's training images, every other one from its
test images.
"""

import gzip
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np

from .prediction import PredictionSuite
from .suite import Plan, SuiteError

SIDE = 28
STEP = 0.1
FILES = {True: "train-images-idx3-ubyte", False: "t10k-images-idx3-ubyte"}


@dataclass(frozen=True)
class MovingDigits(PredictionSuite):
    """Moving MNIST: two digits fly over a black frame. It needs the image files of MNIST.

    Args:
        mnist: folder with train-images-idx3-ubyte and t10k-images-idx3-ubyte, as they are or with .gz
        digits: digits in a video
    """

    split: str = "train=10000,val=1000"
    frames: int = 20
    size: int = 64
    mnist: str = ""
    digits: int = 2

    name: ClassVar[str] = "moving-digits"
    quantiser: ClassVar[int] = 0  # figures of the field are of exact pixels

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.mnist:
            raise SuiteError("moving-digits needs --mnist FOLDER, where MNIST's image files lie (idx3-ubyte, or .gz).")
        if self.digits < 1 or self.size <= SIDE:
            raise SuiteError(
                f"digits={self.digits}, size={self.size}: at least one digit, and frames larger than its {SIDE} pixels."
            )
        for training in FILES:
            images(self.mnist, training)

    @property
    def bounds(self) -> dict[str, float]:
        return {}

    def plan(self, split: str, index: int) -> Plan:
        rng = self.rng("digits", split, index)
        training = split.startswith("train")
        count = len(images(self.mnist, training))
        cause: dict[str, int | str] = {}
        for i in range(1, self.digits + 1):
            x, y = rng.uniform(0, 1, 2)
            angle = rng.uniform(0, 2 * np.pi)
            cause |= {f"image_{i}": f"{'train' if training else 't10k'}:{int(rng.integers(count))}"}
            cause |= {f"x_{i}": f"{x:.6f}", f"y_{i}": f"{y:.6f}", f"angle_{i}": f"{angle:.6f}"}
        return Plan(None, cause)

    def draw(self, plan: Plan, rng: np.random.Generator) -> np.ndarray:
        video = np.zeros((self.frames, self.size, self.size), np.uint8)
        for i in range(1, self.digits + 1):
            which, number = str(plan.cause[f"image_{i}"]).split(":")
            digit = images(self.mnist, which == "train")[int(number)]
            x, y, angle = (float(plan.cause[f"{key}_{i}"]) for key in ("x", "y", "angle"))
            lefts, tops = self.trajectory(x, np.cos(angle)), self.trajectory(y, np.sin(angle))
            for frame, left, top in zip(video, lefts.tolist(), tops.tolist(), strict=True):
                under = frame[top : top + SIDE, left : left + SIDE]
                np.maximum(under, digit, out=under)
        return np.repeat(video[..., None], 3, axis=-1)

    def trajectory(self, position: float, direction: float) -> np.ndarray:
        """The digit's first row or column in each frame, int [F]; ``position`` in 0..1 of its room at the start, before
        the first step."""
        positions = []
        for _ in range(self.frames):
            position += direction * STEP
            if position <= 0.0:
                position, direction = 0.0, -direction
            if position >= 1.0:
                position, direction = 1.0, -direction
            positions.append(position)
        return ((self.size - SIDE) * np.array(positions)).astype(np.int32)


@cache
def images(folder: str, training: bool) -> np.ndarray:
    """MNIST's images, uint8 [n, 28, 28]. Raises SuiteError."""
    name = FILES[training]
    files = [Path(folder) / name, Path(folder) / f"{name}.gz"]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise SuiteError(f"{folder} has no {name} and no {name}.gz; --mnist names the folder of MNIST's image files.")
    try:
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise SuiteError(f"{file} cannot be read ({error}).") from None
    magic, count, *sides = np.frombuffer(data[:16].ljust(16, b"\0"), ">i4")
    if magic != 2051 or sides != [SIDE, SIDE] or count < 1 or len(data) != 16 + count * SIDE**2:
        raise SuiteError(f"{file} is not a file of MNIST images (idx3-ubyte, {SIDE} x {SIDE}, at least one).")
    return np.frombuffer(data, np.uint8, offset=16).reshape(-1, SIDE, SIDE)
