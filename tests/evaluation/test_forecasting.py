"""Predictions measured by horizon, and drawn: by hand, beside what needs no model; one sentence for what cannot be."""

import json
import shutil

import numpy as np
import pytest
import torch

from tests.evaluation.small import evaluate, noise_video, small_model, small_run
from tttvideo.backbone import Backbone
from tttvideo.cli import main
from tttvideo.encoder import Patches, Tubelets
from tttvideo.evaluation.generating import forecasts, read_clip, shown_horizons
from tttvideo.evaluation.page import page_of
from tttvideo.evaluation.table import METHODS
from tttvideo.export import export
from tttvideo.inference.predict import mismatches
from tttvideo.mixers import TTT
from tttvideo.model import ModelConfig, VideoModel
from tttvideo.pretrained import from_pretrained
from tttvideo.tasks import Prediction, roll_out
from tttvideo.tasks.frame_metrics import FrameMetrics
from tttvideo.video.decode import open_video
from tttvideo.video.mp4 import write_mp4
from tttvideo.video.reading import sampled_rate, usual_rate
from tttvideo.video.transforms import Preprocessing


def predictor(tubelets: bool = False, sampling: str = "dense", size: int = 32) -> VideoModel:
    torch.manual_seed(0)
    encoder = Tubelets(16, frames=2) if tubelets else Patches(16)
    config = ModelConfig(encoder, Backbone(width=32, depth=1, mixer=TTT(heads=2)), Prediction())
    model = VideoModel(config, preprocessing=Preprocessing(size=(size, size), sampling=sampling), labels=[])
    with torch.no_grad():
        model.head.to_pixels.weight.normal_(std=0.05)
    return model.eval()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Five videos in one folder: 24, 24, 20 and 7 frames, and one that is none."""
    folder = tmp_path_factory.mktemp("loose")
    for i, frames in enumerate((24, 24, 20, 7)):
        noise_video(folder / f"{i}.mp4", frames, seed=i)
    (folder / "broken.mp4").write_bytes(b"not a video")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("runs") / "predictor", predictor())


def error(capsys, *words) -> str:
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    return said


def test_figures_by_hand():
    truth = torch.rand(2, 3, 3, 16, 16)
    made = truth.clone()
    made[:, 1] += 0.1
    found = FrameMetrics()(made, truth)
    assert found.shape == (2, 5, 3)
    assert found[0, :, 0].tolist() == pytest.approx([0.0, 0.0, 100.0, 1.0, 1.0])
    pixels = 3 * 16 * 16
    assert found[0, :3, 1].tolist() == pytest.approx([0.01 * pixels, 0.1 * pixels, 20.0], rel=1e-4)
    assert 0 < found[0, 3, 1] < 1
    assert FrameMetrics()(made[..., :8, :8], truth[..., :8, :8])[:, 3].isnan().all()
    assert shown_horizons(1) == [1]
    assert shown_horizons(10) == [1, 2, 4, 8, 10]


def test_metrics_by_horizon_for_the_model_and_every_trivial_prediction(run, data, tmp_path, capsys):
    words = ["evaluate", run, "--data", data, "--split", "all", "--context", "6", "--horizon", "5", "--out", tmp_path]
    assert main([str(word) for word in words]) == 0
    said = capsys.readouterr().out
    assert "summed over channels" in said
    assert "2 of 5 videos were not measured" in said
    assert "it has 7 frames of the 11 that are needed" in said
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["task"], metrics["n_videos"], metrics["n_failed"]) == ("Prediction", 5, 2)
    assert list(metrics["per_horizon"]) == ["model", "copy_last", "mean_frame", "linear"]
    assert all(
        len(row[name]) == 5
        for row in metrics["per_horizon"].values()
        for name in ("mse", "mae", "psnr", "ssim", "ssim_openstl")
    )
    assert (tmp_path / "error_by_horizon.png").stat().st_size > 1000
    rows = (tmp_path / "predictions.csv").read_text().splitlines()
    assert len(rows) == 6
    arrays = np.load(tmp_path / "per_video.npz")
    assert arrays["mse"].shape == (5, 4, 5)
    measured = arrays["mse"][~np.isnan(arrays["mse"]).any((1, 2))]
    assert len(measured) == 3
    for i, name in enumerate(arrays["methods"]):
        assert measured[:, i].mean(0) == pytest.approx(metrics["per_horizon"][name]["mse"], rel=1e-5)
    page = (tmp_path / "report.html").read_text()
    assert "http" not in page  # nothing comes from elsewhere
    assert page.count("data:image/png;base64,") == 1 + 2 + 1  # a figure, usual videos, the worst
    assert "it has 7 frames of the 11 that are needed" in page
    assert all(title in page for title in ("Squared error of a frame", "PSNR (dB)", "SSIM"))
    assert f"<b>{metrics['mean']['model']['mse']:.4g}</b> squared error" in page
    for row, value in zip((*metrics["mean"].values(), *metrics["per_horizon"].values()), (1.0,) * 4 + ([1.0] * 5,) * 4):
        row["edge_error"] = value  # a metric of somebody's own, of which nothing is known but its name
    *_, last = page_of(metrics).grids
    assert (last.title, last.best, last.details) == ("edge error", frozenset(), True)
    # by hand, one video after the other
    model = from_pretrained(run)
    errors = {method: torch.zeros(3, 5) for method in METHODS}
    for i in range(3):
        clip = read_clip(str(data / f"{i}.mp4"), model.preprocessing, 11) / 255.0
        made = {
            "model": roll_out(model, [(clip[None, :6], None)], 5)[0],
            "copy_last": clip[5].expand(5, -1, -1, -1),
            "mean_frame": clip[:6].mean(0).expand(5, -1, -1, -1),
            "linear": torch.stack([(clip[5] + h * (clip[5] - clip[4])).clamp(0, 1) for h in range(1, 6)]),
        }
        for method, frames in made.items():
            errors[method][i] = (frames - clip[6:]).square().flatten(1).sum(1)
    for method in METHODS:
        expected = errors[method].mean(0).tolist()
        assert metrics["per_horizon"][method]["mse"] == pytest.approx(expected, rel=1e-4)
        assert metrics["mean"][method]["mse"] == pytest.approx(sum(expected) / 5, rel=1e-4)


def test_the_context_is_read_in_segments_and_writing_is_a_choice(data):
    model = predictor(tubelets=True)
    context = read_clip(str(data / "0.mp4"), model.preprocessing, 12)[None]
    whole = forecasts(model, context, 7)
    pieces = forecasts(model, context, 7, segment=4)
    assert (whole["model"] - pieces["model"]).abs().max() <= 1e-6
    kept = forecasts(model, context, 7, write=False)["model"]
    assert torch.equal(kept[:, :4], whole["model"][:, :4])
    assert not torch.equal(kept, whole["model"])


def test_drawn_beside_the_truth(run, data, tmp_path, capsys):
    words = ["predict", run, data / "2.mp4", "--context", "8", "--horizon", "16", "--out", tmp_path]
    assert main([str(word) for word in words]) == 0
    shown = capsys.readouterr()
    assert "written to" in shown.out
    assert "copy_last" in shown.out
    assert "ends after 20 frames: the last 4 have no truth beside" in shown.err
    with open_video(tmp_path / "2-predicted.mp4") as reader:
        assert (reader.info.frames, reader.info.fps) == (24, 25.0)
        film = reader.read()
    clip = read_clip(str(data / "2.mp4"), Preprocessing(size=(32, 32)), 20)
    middle = film.shape[-1] // 2
    for frame in (0, 7, 19):  # the upper picture is the truth
        assert np.allclose(film[frame, :, 16 + 48, middle], clip[frame, :, 16, 16], atol=12)
    from PIL import Image

    with Image.open(tmp_path / "2-predicted.png") as strip:
        assert strip.width > 10 * 96
        assert strip.height > 3 * 96


def test_a_long_context_is_shown_from_its_end(run, tmp_path):
    noise_video(tmp_path / "long.mp4", 84)
    words = ["predict", run, tmp_path / "long.mp4", "--context", "80", "--horizon", "3", "--out", tmp_path / "out"]
    assert main([str(word) for word in words]) == 0
    with open_video(tmp_path / "out" / "long-predicted.mp4") as reader:
        assert reader.info.frames == 64 + 3


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--horizon", "0"], "--horizon is 0, which leaves nothing to predict"),
        (["--context", "0"], "--context must be at least 1 frame; got 0"),
        (["--context", "24"], "has 24 frames, which a context of 24 leaves nothing of; give --context 23 or less"),
        (["--context", "400"], "has 24 frames, which a context of 400 leaves nothing of"),
        (["--write", "never"], "write must be one of 'all', 'context', not 'never'"),
    ],
)
def test_settings_that_cannot_be(run, data, tmp_path, capsys, words, sentence):
    assert sentence in error(capsys, "predict", run, data / "0.mp4", "--out", tmp_path, *words)


def test_videos_and_checkpoints_that_cannot_be(run, data, tmp_path, capsys):
    one = noise_video(tmp_path / "one.mp4", 1)
    assert "one.mp4 has a single frame" in error(capsys, "predict", run, one, "--out", tmp_path)
    assert "broken.mp4" in error(capsys, "predict", run, data / "broken.mp4", "--out", tmp_path)
    folder = tmp_path / "ones"
    folder.mkdir()
    shutil.copy(one, folder)
    sentence = error(capsys, "evaluate", run, "--data", folder, "--split", "all", "--out", tmp_path / "out")
    assert "none of the 1 videos of split all can be measured" in sentence
    assert "--frames does not go with" in error(capsys, "evaluate", run, "--data", data, "--frames", "8")
    assert "knows no classes" in error(capsys, "classify", run, data / "0.mp4")
    classifier = small_run(tmp_path / "classifier", small_model())
    assert "predicts no frames" in error(capsys, "predict", classifier, one, "--out", tmp_path)
    assert "--horizon does not go with" in error(capsys, "evaluate", classifier, "--data", data, "--horizon", "8")
    stepped = small_run(tmp_path / "tubelets", predictor(tubelets=True))
    said = error(capsys, "predict", stepped, data / "0.mp4", "--context", "5", "--out", tmp_path)
    assert "--context must be a multiple of 2 frames, the model's time step; got 5" in said


def test_the_video_itself_stays(run, data, tmp_path):
    film = shutil.copy(data / "0.mp4", tmp_path / "clip.mp4")
    before = film.read_bytes()
    assert main(["predict", str(run), str(film), "--out", str(tmp_path), "--horizon", "2"]) == 0
    assert film.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "clip-predicted.mp4",
        "clip-predicted.png",
        "clip.mp4",
    ]


def test_a_video_shorter_than_a_time_step(tmp_path, capsys):
    stepped = small_run(tmp_path / "tubelets", predictor(tubelets=True))
    short = noise_video(tmp_path / "short.mp4", 2)
    said = error(capsys, "predict", stepped, short, "--context", "2", "--out", tmp_path)
    assert "short.mp4 has 2 frames; this model reads 2 at a time, so it needs 3" in said


def test_damaged_weights_are_told(data, tmp_path, capsys):
    model = predictor()
    with torch.no_grad():
        model.head.to_pixels.bias[0] = torch.nan
    damaged = small_run(tmp_path / "damaged", model)
    for words in (["predict", damaged, data / "0.mp4"], ["evaluate", damaged, "--data", data, "--split", "all"]):
        assert "predictions are not numbers" in error(capsys, *words, "--context", "4", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_legend_is_never_cut(run, data, tmp_path):
    from PIL import Image

    words = ["predict", run, data / "0.mp4", "--context", "1", "--horizon", "1", "--out", tmp_path]
    assert main([str(word) for word in words]) == 0
    with Image.open(tmp_path / "0-predicted.png") as strip:
        below = np.asarray(strip.convert("L"))[-32:]
    assert (below[:, -3:] == 255).all()
    assert (below[:, 200:] < 128).any()


def test_videos_unlike_those_of_the_training_get_a_sentence(tmp_path, capsys, data):
    model = predictor()
    model.provenance = {"frame_rate": 50.0}
    model.save_pretrained(tmp_path / "model")
    wide = tmp_path / "wide.mp4"
    write_mp4(wide, np.zeros((14, 48, 96, 3), np.uint8), 25)
    assert main(["predict", str(tmp_path / "model"), str(wide), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().err.splitlines()
    assert "has 48 x 96 pixels: scaled and cropped to the model's 32 x 32" in said[0]
    assert "read at 25 frames a second and the model learned from 50: motion looks 2 times as fast to it" in said[1]
    assert mismatches("v", (32, 32), 25.0, Preprocessing(size=(32, 32)), 26.0) == []
    assert mismatches("v", (32, 32), None, Preprocessing(size=(32, 32)), 26.0) == []
    assert (sampled_rate(25.0, "fps=5"), sampled_rate(25.0, "dense"), sampled_rate(25.0, "uniform=4")) == (5, 25, None)
    paths = [str(data / name) for name in ("0.mp4", "broken.mp4", "1.mp4")]
    assert usual_rate(paths, Preprocessing()) == 25.0
    assert usual_rate(paths[1:2], Preprocessing()) is None


def test_an_export_predicts_the_same_and_says_what_it_is(run, data, tmp_path):
    found = evaluate(run, data, split="all", context=4, horizon=2)
    assert found.metrics["notes"] == []
    (run / "metrics.json").write_text(json.dumps(found.metrics))
    out = export(run, tmp_path / "export")
    again = evaluate(out, data, split="all", context=4, horizon=2)
    assert again.metrics["per_horizon"] == found.metrics["per_horizon"]
    card = (out / "README.md").read_text()
    assert "predicts the next frames" in card
    assert "| frames ahead | model | copy last | mean frame | linear |" in card
    (run / "metrics.json").unlink()
