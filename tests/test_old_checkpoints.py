"""Checkpoints of commit be1bc61 load for ever: their class paths name files of that time, whatever has moved since.

tests/checkpoints/NAME were trained two steps by that commit, and outputs.json holds what it made of `clip()`.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import tttvideo
from tttvideo.plain import from_plain, public_name, public_names, to_plain

FOLDER = Path(__file__).parent / "checkpoints"
NAMES = ["mlp", "conv", "prediction"]

# Every configuration class of that commit, as its checkpoints name it.
OLD_PATHS = """
    backbone.Backbone encoder.patches.Patches encoder.patches.Tubelets encoder.pretrained.Timm encoder.stem.ConvStem
    mixers.attention.Attention mixers.bidirectional.Bidirectional mixers.conv_lstm.ConvLSTM
    mixers.frame_attention.FrameAttention mixers.linear_attention.LinearAttention mixers.lstm.LSTM mixers.mamba.Mamba
    mixers.none.NoMixer model.ModelConfig tasks.classification.Classification tasks.prediction.Prediction
    ttt.chunk.FrameCausal ttt.chunk.TokenCausal ttt.chunk.Whole ttt.inner.attention.SelfAttention ttt.inner.conv.Conv
    ttt.inner.conv_depthwise.ConvDepthwise ttt.inner.dwconv.DWConv ttt.inner.glu.GLU ttt.inner.linear.Linear
    ttt.inner.mlp.MLP ttt.layer.TTT ttt.objective.DotProduct ttt.objective.L2 ttt.objective.ResidualL2
    ttt.optimizer.Adam ttt.optimizer.Momentum ttt.optimizer.Muon ttt.optimizer.SGD video.transforms.Augmentation
    video.transforms.Preprocessing
""".split()  # noqa: SIM905


def clip(frames: int = 8, size: int = 32) -> torch.Tensor:
    """uint8 [1, F, 3, H, W] of hashed numbers, the same with every version of PyTorch."""
    numbers = torch.arange(frames * 3 * size * size, dtype=torch.int64)
    return (numbers * 2654435761 % 2**32 // 2**24).to(torch.uint8).reshape(1, frames, 3, size, size)


def class_paths(data) -> set[str]:
    if isinstance(data, list):
        return set().union(*map(class_paths, data))
    if not isinstance(data, dict):
        return set()
    below = set().union(*map(class_paths, data.values()))
    return below | {data["class_path"]} if "class_path" in data else below


@pytest.mark.parametrize("name", NAMES)
def test_old_checkpoints_give_their_outputs(name):
    model = tttvideo.from_pretrained(FOLDER / name).eval()
    with torch.no_grad():
        output, _ = model(clip())
    values = output.upcoming[0, 0, :, ::8, ::8] if name == "prediction" else output.logits
    expected = json.loads((FOLDER / "outputs.json").read_text())[name]
    torch.testing.assert_close(values.flatten(), torch.tensor(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("path", OLD_PATHS)
def test_old_class_paths_are_found(path):
    old = f"tttvideo.{path}"
    plain = {"class_path": old, "init_args": {}}
    if old.endswith("Preprocessing"):
        plain["init_args"] = {"size": [8, 8]}
    if old.endswith("Timm"):
        plain["init_args"] = {"name": "resnet18"}
    value = from_plain(plain)
    assert type(value).__name__ == old.rpartition(".")[2]
    assert to_plain(value)["class_path"] == public_name(old)


def limited(new, old):
    """``new`` without settings that came after ``old`` was written."""
    if isinstance(old, dict):
        return {key: limited(new[key], value) for key, value in old.items() if key in new}
    if isinstance(old, list):
        return [limited(*pair) for pair in zip(new, old, strict=True)]
    return new


@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_name_public_classes(name, tmp_path):
    """What is written today names no file inside a package, but what the package lists."""
    tttvideo.from_pretrained(FOLDER / name).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    old = json.loads((FOLDER / name / "config.json").read_text())
    expected = public_names(old["model"])
    assert limited(written["model"], expected) == expected
    deepest = {path: path.count(".") for path in class_paths(written["model"])}
    assert max(deepest.values()) == 2, deepest  # tttvideo.ttt.MLP


def test_names_of_others_stay():
    assert public_name("mypkg.inner.MLP") == "mypkg.inner.MLP"
    assert public_name("tttvideo.nowhere.Thing") == "tttvideo.nowhere.Thing"
    assert public_name("tttvideo.ttt.inner.mlp.MLP") == "tttvideo.ttt.MLP"
    assert public_name("tttvideo.ttt.a_file_that_is_no_more.MLP") == "tttvideo.ttt.MLP"
