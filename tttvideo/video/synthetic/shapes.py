"""Grey squares and discs that move over a grey background: the scene in which suites hide what matters."""

import numpy as np


def grey_scene(rng: np.random.Generator, frames: int, size: int, shapes: int) -> np.ndarray:
    """RGB frames uint8 [F, size, size, 3] of `shapes` moving shapes, all in shades of grey."""
    grey = np.full((frames, size, size), rng.integers(60, 130), np.uint8)
    for _ in range(shapes):
        grey[moving_shape(rng, frames, size)] = rng.integers(0, 220)
    return np.repeat(grey[..., None], 3, axis=-1)


def moving_shape(rng: np.random.Generator, frames: int, size: int) -> np.ndarray:
    """Mask bool [F, size, size] of a square or disc that flies straight and is reflected at the edges."""
    start, angle = rng.uniform(0, 1, 2), rng.uniform(0, 2 * np.pi)
    speed = rng.uniform(0.01, 0.04) * np.array([np.cos(angle), np.sin(angle)])  # frame widths per frame
    centre = size * reflected(start + speed * np.arange(frames)[:, None])
    away = np.abs(np.arange(size) + 0.5 - centre.T[:, :, None])  # [2, F, size]
    dx, dy = away[0][:, None, :], away[1][:, :, None]
    radius = rng.uniform(0.06, 0.16) * size
    if rng.random() < 0.5:
        return (dx < radius) & (dy < radius)
    return dx**2 + dy**2 < radius**2


def reflected(path: np.ndarray) -> np.ndarray:
    """A path that runs straight, folded into 0..1: reflection at both ends."""
    return np.abs((path + 1) % 2 - 1)  # a triangle wave
