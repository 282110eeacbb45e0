"""A folder of small videos whose frames say which ones they are."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from tests.video.clips import write
from tttvideo.video.dataset import DataConfig
from tttvideo.video.transforms import Augmentation

FPS = 10
AUGMENT = Augmentation(speed=(0.7, 1.4), drop=0.1, scale=(0.5, 1.0), flip=0.5, brightness=0.3, erase=0.3)


def make_video(path: Path, frames: int, size: int = 16, shade: int = 0) -> str:
    """Lossless; frame i is grey of value 5 i + shade, so that a frame says which one it is."""
    grey = (5 * np.arange(frames) + shade).astype(np.uint8)
    pictures = np.broadcast_to(grey[:, None, None, None], (frames, size, size * 3 // 2, 3))
    return str(write(path, pictures, rate=FPS, options={"crf": "0", "preset": "ultrafast"}, pix_fmt="yuv444p"))


def config(folder: Path, **changes) -> DataConfig:
    base = DataConfig(root=str(folder), size=(16, 16), batch_size=4, workers=0, augment=AUGMENT)
    return replace(base, **changes)


def shades(frames: torch.Tensor) -> list[int]:
    return [round(float(f.float().mean())) for f in frames]


def batches(loader) -> list:
    """Everything that a batch holds, comparable."""
    return [
        (
            b.indices.tolist(),
            b.lengths.tolist(),
            b.labels.tolist(),
            [f.index for f in b.failures],
            b.frames.numpy().tobytes(),
        )
        for b in loader
    ]
