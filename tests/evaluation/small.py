"""A small generated set, a small model and a small run folder, made in a second or two."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.video.clips import write
from tttvideo.backbone import Backbone
from tttvideo.encoder import Patches, Tubelets
from tttvideo.evaluation import EvaluateConfig
from tttvideo.evaluation import evaluate as evaluate_config
from tttvideo.mixers import TTT, Mixer
from tttvideo.model import ModelConfig, VideoModel
from tttvideo.video.synthetic import FlashOrder, make
from tttvideo.video.transforms import Preprocessing

LABELS = list(FlashOrder().classes)


def small_set(out: Path, count: int = 12, frames: int = 20) -> Path:
    make(FlashOrder(split=f"val={count}", frames=frames), out, workers=1)
    return out


def small_model(
    labels: list[str] = LABELS, *, tubelets: bool = False, multi_label: bool = False, mixer: Mixer | None = None
) -> VideoModel:
    torch.manual_seed(0)
    encoder = Tubelets(patch=16, frames=2) if tubelets else Patches(patch=16)
    config = ModelConfig(encoder=encoder, backbone=Backbone(width=32, depth=1, mixer=mixer or TTT()))
    model = VideoModel(config, preprocessing=Preprocessing(size=(32, 32)), labels=labels, multi_label=multi_label)
    with torch.no_grad():
        # Large enough for different answers to different videos.
        model.head.classifier.weight.normal_(std=3.0)
    return model.eval()


def small_run(folder: Path, model: VideoModel, value: float = 0.25, provenance: dict | None = None) -> Path:
    """A run folder as training leaves it, with one checkpoint."""
    checkpoint = folder / "checkpoints" / "step-00000010"
    model.save_pretrained(checkpoint, provenance={"step": 10, **(provenance or {})})
    (folder / "config.yaml").write_text("data:\n  val_fraction: 0.5\n  split_seed: 7\nseed: 3\n")
    index = {
        "best": checkpoint.name,
        "best_value": value,
        "rule": "highest val top1",
        "split": "val",
        "split_rule": "val: the folder data/val, 12 videos",
        "last": checkpoint.name,
    }
    (folder / "checkpoints" / "index.json").write_text(json.dumps(index))
    return folder


@contextlib.contextmanager
def undrawn():
    """Figures are empty files: for tests of the numbers, as drawing takes a second each."""
    from matplotlib.figure import Figure

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda self, out, **_: isinstance(out, Path) and out.write_bytes(b""))
        yield


def noise_video(path: Path, frames: int, seed: int = 0, size: int = 32) -> Path:
    """An MP4 file of `frames` frames, each of one random colour."""
    rng = np.random.default_rng(seed)
    colours = np.array([rng.integers(0, 256, 3) for _ in range(frames)], np.uint8)
    pictures = np.broadcast_to(colours[:, None, None], (frames, size, size, 3))
    return write(path, pictures, options={"preset": "ultrafast", "qp": "20"})


def evaluate(run: Path, data: Path, **options):
    """The evaluation that `tttvideo evaluate RUN --data DATA --OPTION ...` does, without samples unless asked for."""
    words = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    words = {name: str(value) if isinstance(value, Path) else value for name, value in words.items()}
    return evaluate_config(EvaluateConfig(str(run), str(data), **({"samples": 0} | words)))
