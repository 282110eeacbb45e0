"""Errors on newly revealed pixels: those of copy-last and the mean by hand, however the video is cut; reported."""

import json
import shutil

import numpy as np
import pytest
import torch

from tests.evaluation.small import small_run
from tttvideo.backbone import Backbone
from tttvideo.cli import main
from tttvideo.encoder import Patches, Tubelets
from tttvideo.evaluation.suites import revealed_errors
from tttvideo.evaluation.table import METHODS
from tttvideo.mixers import TTT
from tttvideo.model import ModelConfig, VideoModel
from tttvideo.tasks import Prediction
from tttvideo.video.synthetic import Occlusion, Revisit, make
from tttvideo.video.transforms import Preprocessing

SUITE = Revisit(split="train=1,val=3", frames=14, size=32, columns=5)


def copier(size: int = 32, tubelets: bool = False) -> VideoModel:
    """A model that has learned nothing: it predicts the last frame again."""
    torch.manual_seed(0)
    encoder = Tubelets(16, frames=2) if tubelets else Patches(16)
    config = ModelConfig(encoder, Backbone(width=32, depth=1, mixer=TTT(heads=2)), Prediction(residual=True))
    return VideoModel(config, preprocessing=Preprocessing(size=(size, size)), labels=[]).eval()


def drawn(count=3):
    """Frames uint8 [V, F, 3, H, W] and what is revealed."""
    plans = [SUITE.plan("val", i) for i in range(count)]
    frames = np.stack([SUITE.draw(plan, SUITE.rng("drawing", "val", i)) for i, plan in enumerate(plans)])
    told = [SUITE.revealed({key: str(value) for key, value in plan.cause.items()}) for plan in plans]
    return torch.from_numpy(frames).permute(0, 1, 4, 2, 3), told


@pytest.mark.parametrize("cut", [14, 5, 1])
def test_by_hand_however_it_is_cut(cut):
    frames, told = drawn()
    lengths = torch.tensor([14, 14, 9])
    pieces = [
        (frames[:, i : i + cut], (lengths - i).clamp(0, frames[:, i : i + cut].shape[1])) for i in range(0, 14, cut)
    ]
    squared, counts = revealed_errors(copier(), pieces, told, 4)
    video = frames.double().numpy() / 255
    sums, values = np.zeros((len(METHODS), 4)), np.zeros(4)
    for v in range(3):
        for t in range(1, int(lengths[v])):
            mask, group = told[v].mask[t], told[v].group[t]
            last, before = video[v, t - 1], video[v, max(t - 2, 0)]
            guesses = (last, last, video[v, :t].mean(0), np.clip(2 * last - before, 0, 1))
            for m, guess in enumerate(guesses):
                sums[m, group] += np.square(guess - video[v, t])[:, mask].sum()
            values[group] += 3 * mask.sum()
    assert counts.sum(0).tolist() == values.tolist()
    assert squared.sum(0).numpy() == pytest.approx(sums, rel=1e-5)


def test_tubelets_reveal_a_time_step_at_once():
    frames, told = drawn()
    squared, values = revealed_errors(copier(tubelets=True), [(frames, torch.full((3,), 14))], told, 4)
    # the first time step has nothing before it
    skipped = sum(3 * t.mask[1].sum() for t in told)
    assert values.sum() == sum(3 * t.mask.sum() for t in told) - skipped
    assert squared[:, 0].sum() == squared[:, METHODS.index("copy_last")].sum()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make(SUITE, tmp_path_factory.mktemp("sets") / "revisit").out


def evaluated(model, data, out, capsys):
    run = small_run(out / "run", model)
    words = ["evaluate", run, "--data", data, "--split", "val", "--context", "4", "--horizon", "4", "--out", out]
    assert main([str(word) for word in words]) == 0
    return json.loads((out / "metrics.json").read_text()), capsys.readouterr().out


def test_reported_beside_what_is_expected(data, tmp_path, capsys):
    metrics, said = evaluated(copier(), data, tmp_path, capsys)
    found = metrics["revealed"]
    assert found["by"] == "lap"
    assert list(found["mse"]) == list(METHODS)
    assert found["mse"]["model"] == found["mse"]["copy_last"]
    # one column of 4 cells a frame: lap 0 has one frame, then 5, 5 and 2
    assert found["values"] == [3 * n * 4 * 8 * 8 * 3 for n in (1, 5, 5, 2)]
    assert found["bounds"] == metrics["suite"]["bounds"]
    assert abs(found["mse"]["copy_last"][1] - found["bounds"]["copy_last"]) < 0.05
    assert "no memory 0.0840, copy last 0.1680" in said
    assert (tmp_path / "revealed.png").stat().st_size > 1000


def test_a_model_of_other_frames_is_told(data, tmp_path, capsys):
    metrics, said = evaluated(copier(size=16), data, tmp_path, capsys)
    assert metrics["revealed"] is None
    assert not (tmp_path / "revealed.png").exists()
    assert "note: errors by lap were not measured: revisit has frames of 32 x 32" in said


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "meta.csv").unlink(), "meta.csv cannot be read (No such file"),
        (
            lambda folder: (folder / "meta.csv").write_text(
                (folder / "meta.csv").read_text().replace("direction", "way")
            ),
            "meta.csv is damaged (KeyError: 'direction')",
        ),
        (
            lambda folder: (folder / "suite.json").write_text(
                (folder / "suite.json").read_text().replace('"bounds"', '"limits"')
            ),
            "",
        ),
    ],
    ids=["gone", "another column", "no bounds"],
)
def test_damaged_side_files_cost_only_the_errors_by_lap(data, tmp_path, capsys, damage, said):
    folder = tmp_path / "set"
    shutil.copytree(data, folder)
    damage(folder)
    metrics, shown = evaluated(copier(), folder, tmp_path, capsys)
    assert metrics["revealed"] is None
    assert len(metrics["per_horizon"]["model"]["mse"]) == 4
    assert said in shown


def test_a_damaged_description_is_named(data, tmp_path, capsys):
    folder = tmp_path / "set"
    shutil.copytree(data, folder)
    (folder / "suite.json").write_text("{")
    run = small_run(tmp_path / "run", copier())
    assert main(["evaluate", str(run), "--data", str(folder), "--split", "val", "--context", "4"]) == 2
    said = capsys.readouterr().err
    assert "suite.json is damaged" in said
    assert "make the set again" in said


def test_what_is_never_revealed_has_no_figure(tmp_path, capsys):
    suite = Occlusion(split="val=2", frames=16, size=32, hidden=3)
    metrics, _ = evaluated(copier(), make(suite, tmp_path / "set").out, tmp_path, capsys)
    assert metrics["revealed"]["by"] == "emergence"
    assert metrics["revealed"]["mse"]["copy_last"][0] > 0
