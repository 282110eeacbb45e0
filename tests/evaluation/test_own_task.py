"""A task of somebody's own, which answers nothing about evaluation, is evaluated, reported and compared."""

import json
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tests.evaluation.small import noise_video, small_run
from tttvideo.backbone import Backbone
from tttvideo.cli import main
from tttvideo.encoder import Patches
from tttvideo.export import export
from tttvideo.model import ModelConfig, VideoModel
from tttvideo.tasks import Criterion, Loss, Task, TaskHead
from tttvideo.tasks.base import Examiner
from tttvideo.video.transforms import Preprocessing


@dataclass(frozen=True)
class Brightness(Task):
    """How bright a video is on the average."""

    labelled = False

    def build(self, sizes):
        return BrightnessHead(sizes.width)

    def criterion(self, multi_label):
        return Criterion("error", lower=True)

    def target(self, frames, lengths, labels):
        return frames.float().mean((1, 2, 3, 4)) / 255

    def summary(self, rows: Tensor, labels: Tensor, scored: Tensor) -> dict[str, float]:
        return {"error": float(rows[scored].mean()) if scored.any() else float("nan"), "n": int(scored.sum())}


class Guess(NamedTuple):
    value: Tensor
    truth: Tensor


class Errors(Examiner):
    def __init__(self):
        self.parts = []

    def add(self, lengths, output):
        self.parts.append((output.value - output.truth).abs())

    def rows(self):
        return torch.stack(self.parts).mean(0)[:, None]


class BrightnessHead(TaskHead):
    columns = 1

    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, 1)

    def init_state(self, batch):
        return torch.zeros(batch, 1)

    def forward(self, tokens, steps, frames, lengths, state):
        truth = frames.float().mean((1, 2, 3, 4)) / 255
        return Guess(self.linear(tokens.mean((1, 2)))[:, 0], truth), state

    def loss(self, output, target):
        return Loss((output.value - target).square().sum(), torch.tensor(len(target)))

    def figures(self, output, target):
        return {}

    def examiner(self):
        return Errors()


def test_a_task_from_nothing_is_evaluated_and_compared(tmp_path, capsys):
    data = tmp_path / "videos"
    data.mkdir()
    for i in range(3):
        noise_video(data / f"{i}.mp4", 12, seed=i)
    (data / "broken.mp4").write_bytes(b"no video")
    torch.manual_seed(0)
    config = ModelConfig(Patches(16), Backbone(32, 1), Brightness())
    model = VideoModel(config, preprocessing=Preprocessing(size=(32, 32)), labels=[]).eval()
    run, out = small_run(tmp_path / "run", model), tmp_path / "out"
    words = ["evaluate", str(run), "--data", str(data), "--split", "all", "--frames", "4,all", "--workers", "0"]
    assert main([*words, "--out", str(out), "--trust"]) == 0
    assert "1 of 4 videos failed" in capsys.readouterr().out
    metrics = json.loads((out / "metrics.json").read_text())
    assert (metrics["task"], metrics["chance"], metrics["n_failed"]) == ("Brightness", None, 1)
    for row, frames in zip(metrics["results"], (4, 12)):
        with torch.no_grad():
            clips = [first_frames(data / f"{i}.mp4", frames) for i in range(3)]
            errors = [abs(float(output.value - output.truth)) for output in (model(clip[None])[0] for clip in clips)]
        assert abs(row["error"] - sum(errors) / 3) < 1e-5
        assert row["n"] == 3
    assert (out / "report.html").read_text().count("data:image/png;base64,") == 1 + 3 + 3
    assert main(["compare", str(out), "--resamples", "50", "--out", str(tmp_path / "compared")]) == 0
    protocol = json.loads((tmp_path / "compared" / "compare.json").read_text())["protocols"]["frames"]
    assert (protocol["unit"], protocol["lower_is_better"], protocol["series"]["out"]["n"]) == ("error", True, [3, 3])
    assert protocol["series"]["out"]["mean"][1] - metrics["results"][1]["error"] < 1e-5
    capsys.readouterr()
    for option in (["--views", "clips=2:4"], ["--check-streaming", "1"], ["--context", "4"]):
        assert main([*words, *option, "--out", str(out), "--trust"]) == 2
        assert f"{option[0]} does not go with" in capsys.readouterr().err
    assert main(["position", str(run), "--data", str(data), "--split", "all", "--out", str(out), "--trust"]) == 2
    assert "Brightness" in capsys.readouterr().err
    card = (export(run, tmp_path / "export", metrics=[out / "metrics.json"], trust=True) / "README.md").read_text()
    assert "trained for Brightness" in card
    assert "| 4 | dense |" in card


def first_frames(path, count):
    from tttvideo.evaluation.generating import read_clip

    return read_clip(str(path), Preprocessing(size=(32, 32)), count)
