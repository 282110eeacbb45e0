"""A task of somebody's own, which answers nothing about evaluation, is evaluated, reported and compared."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from tests.evaluation.small import LABELS, evaluate, noise_video, small_run, small_set
from tttvideo.backbone import Backbone
from tttvideo.cli import main
from tttvideo.encoder import Patches
from tttvideo.evaluation.page import page_of, worst_of
from tttvideo.evaluation.samples import choose
from tttvideo.evaluation.table import Result
from tttvideo.export import export
from tttvideo.model import ModelConfig, VideoModel
from tttvideo.tasks import Criterion, Loss, Score, Task, TaskHead
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


def brightness_model(task=None, labels=()):
    torch.manual_seed(0)
    config = ModelConfig(Patches(16), Backbone(32, 1), task or Brightness())
    return VideoModel(config, preprocessing=Preprocessing(size=(32, 32)), labels=list(labels)).eval()


def brightness_run(folder):
    return small_run(folder / "run", brightness_model())


def test_a_task_from_nothing_is_evaluated_and_compared(tmp_path, capsys, monkeypatch):
    data = tmp_path / "videos"
    data.mkdir()
    for i in range(3):
        noise_video(data / f"{i}.mp4", 12, seed=i)
    (data / "broken.mp4").write_bytes(b"no video")
    run, out, model = brightness_run(tmp_path), tmp_path / "out", brightness_model()
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
    monkeypatch.setattr(BrightnessHead, "has_timeline", True)  # a stream's, of errors: there are no probabilities
    for option in (["--views", "clips=2:4"], ["--check-streaming", "1"], ["--context", "4"]):
        assert main([*words, *option, "--out", str(out), "--trust"]) == 2
        assert f"{option[0]} does not go with" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(["position", str(run), "--data", str(data), "--split", "all", "--out", str(out), "--trust"]) == 2
    assert "Brightness" in capsys.readouterr().err
    card = (export(run, tmp_path / "export", metrics=[out / "metrics.json"], trust=True) / "README.md").read_text()
    assert "trained for Brightness" in card
    assert "| 4 | dense |" in card


def first_frames(path, count):
    from tttvideo.evaluation.generating import read_clip

    return read_clip(str(path), Preprocessing(size=(32, 32)), count)


class OfClasses(Brightness):
    """Brightness of videos that have labels, too."""

    labelled = True

    def report(self, rows, labels, scored, names):
        confusion = torch.eye(len(names)).int().tolist()
        return self.summary(rows, labels, scored) | {"per_class": dict.fromkeys(names, 0.25), "confusion": confusion}


def test_a_score_that_is_no_right_answer_has_neither_chance_nor_ceiling(tmp_path):
    """Those of a generated set are of its classes."""
    run = small_run(tmp_path / "run", brightness_model(OfClasses(), LABELS))
    result = evaluate(run, small_set(tmp_path / "set", count=6), by=["first_onset"], workers=0, trust=True)
    (row,) = result.metrics["results"]
    assert (result.metrics["chance"], row["ceiling"]) == (None, None)
    assert {stratum["ceiling"] for strata in row["by"].values() for stratum in strata} == {None}
    page = page_of(result.metrics)
    headline, classes = page.headline, page.grids[-1]
    assert (classes.header, classes.rows[0][-1]) == (["class", "videos", "value"], "0.250")
    page.figures["confusion.png"].draw(tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").stat().st_size > 1000
    assert headline[0] == f"{row['error']:.4g}"
    assert "chance" not in headline[1]


def answered(values):
    rows = [
        {"path": f"{value}.mp4", "start": None, "end": None, "frames": "all", "sampling": "dense", "views": "whole"}
        | {"control": "", "failure": "", "quality": value}
        for value in values
    ]
    return [*rows, rows[0] | {"path": "broken.mp4", "failure": "no video", "quality": ""}]


@pytest.mark.parametrize(("lower", "worst"), [(True, [5, 3, 1]), (False, [1, 3, 5])])
@pytest.mark.parametrize("share", [False, True])
def test_the_worst_come_first_whichever_way_is_better(lower, worst, share):
    """In the pictures and in the table alike, and none is called wrong."""
    scale = 0.125 if share else 1.0
    rows = answered([scale * value for value in (1, 5, 3)])
    score = Score("quality", "quality", "quality of it", lower=lower, share=share)
    usual, pictured = choose(rows, 2, score)
    assert [rows[i]["quality"] for i in pictured] == [scale * value for value in worst]
    assert [rows[i]["quality"] for i in usual] == [scale * worst[2], scale * worst[0]]  # from the best to the worst
    main = {"frames": "all", "sampling": "dense", "views": "whole", "control": "", "quality": 3.0, "n": 4}
    table = worst_of(Result({"results": [main], "score": score._asdict()}, rows, []))
    assert [float(cells[0]) for _, cells in table.rows] == [scale * value for value in worst]
    assert table.title == "Worst videos"
    assert table.note == f"3 of 4 videos, the {'largest' if lower else 'smallest'} quality of it first"


def test_columns_of_the_data_stand_beside_those_of_the_task(tmp_path, capsys):
    """A column of the task's own name is refused; a video that could not be read counts in no stratum."""
    noise_video(tmp_path / "a.mp4", 4, seed=1)
    noise_video(tmp_path / "b.mp4", 4, seed=2)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    (tmp_path / "list.csv").write_text("path,room,error\na.mp4,hall,7\nb.mp4,shed,8\nbroken.mp4,hall,9\n")
    run, out = brightness_run(tmp_path), tmp_path / "out"
    words = ["evaluate", str(run), "--data", str(tmp_path / "list.csv"), "--split", "all", "--workers", "0"]
    words += ["--samples", "0", "--out", str(out), "--trust"]
    assert main([*words, "--by", "error"]) == 2
    assert "predictions.csv has a column 'error' of its own" in capsys.readouterr().err
    assert main([*words, "--by", "room"]) == 0
    with (out / "predictions.csv").open(newline="") as file:
        error = {Path(row["path"]).name: row["error"] for row in csv.DictReader(file)}
    assert error["broken.mp4"] == ""
    metrics = json.loads((out / "metrics.json").read_text())
    strata = {stratum["value"]: stratum for stratum in metrics["results"][0]["by"]["room"]}
    assert strata["hall"]["n"] == strata["shed"]["n"] == 1
    assert strata["hall"]["error"] == pytest.approx(float(error["a.mp4"]), rel=1e-5)
    assert strata["shed"]["error"] == pytest.approx(float(error["b.mp4"]), rel=1e-5)
    page = (out / "report.html").read_text()
    assert "Worst videos" in page
    assert "probability" not in page
