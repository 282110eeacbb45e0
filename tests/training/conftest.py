"""Small real videos, the command line of a small run, and a fresh Accelerate for each run in this process."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.video.clips import write


def write_video(path: Path, level: int, frames: int = 6, size: int = 32) -> None:
    """A moving bar over a background of brightness `level`."""
    pictures = np.full((frames, size, size, 3), level, np.uint8)
    for t in range(frames):
        pictures[t, :, 4 * t : 4 * t + 4] = 255 - level
    write(path, pictures, rate=10)


@pytest.fixture(scope="session")
def videos(tmp_path_factory) -> Path:
    """root/{train,val}/{bright,dark}/*.mp4: 14 videos to train on, 5 to validate on."""
    root = tmp_path_factory.mktemp("videos")
    for split, count in (("train", 7), ("val", 3)):
        for name, level in (("bright", 200), ("dark", 40)):
            for i in range(count - (split == "val" and name == "dark")):
                write_video(root / split / name / f"{i}.mp4", level + 5 * i, frames=4 + i % 4)
    return root


@pytest.fixture
def arguments(videos, tmp_path) -> Callable[..., list[str]]:
    """Arguments of a short run: dropout, augmentation, Mixup, CutMix, moving average, accumulation are on."""

    def build(*extra: str, out: str = "run", **settings: object) -> list[str]:
        values = {
            "data.root": videos,
            "data.size": "[16,16]",
            "data.batch_size": 2,
            "data.workers": 0,
            "data.augment.flip": 0.5,
            "data.augment.brightness": 0.3,
            "data.max_frames": 5,
            "model.encoder.patch": 8,
            "model.backbone.width": 16,
            "model.backbone.depth": 1,
            "model.backbone.dropout": 0.2,
            "model.backbone.mixer.heads": 2,
            "mix.mixup": 0.5,
            "mix.cutmix": 1.0,
            "mix.probability": 0.5,
            "optimizer.lr": 0.003,
            "schedule.epochs": 2,
            "schedule.warmup": 0.5,
            "schedule.inner_warmup": 0.5,
            "accumulate": 2,
            "ema": 0.9,
            "checkpoint.every": 3,
            "trackers": "[]",
            "out": tmp_path / out,
        }
        values.update({key.replace("__", "."): value for key, value in settings.items()})
        return [word for key, value in values.items() for word in (f"--{key}", str(value))] + list(extra)

    return build


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Sums differ in their last bits between numbers of threads, and curves are compared to the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Accelerate keeps one state per process; each run here is a process of its own in real life."""
    yield
    from accelerate.state import AcceleratorState, GradientState, PartialState

    AcceleratorState._reset_state()
    PartialState._reset_state()
    GradientState._reset_state()
