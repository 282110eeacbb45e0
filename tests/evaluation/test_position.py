"""Loss by position is the loss that a video would have which ends there; of predictions, that of the next frame."""

import json

import pytest
import torch
import torch.nn.functional as F

from tests.evaluation.small import noise_video, small_model, small_run, small_set, undrawn
from tttvideo.backbone import Backbone
from tttvideo.cli import main
from tttvideo.encoder import Patches, Tubelets
from tttvideo.evaluation import position
from tttvideo.evaluation.bootstrap import Bootstrap
from tttvideo.evaluation.position import curve_of, position_table_of
from tttvideo.mixers import TTT, Bidirectional
from tttvideo.model import ModelConfig, VideoModel
from tttvideo.tasks import Prediction
from tttvideo.video.index import Index, Video
from tttvideo.video.segments import read_segments
from tttvideo.video.transforms import Preprocessing


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    videos = [
        Video(str(noise_video(folder / f"{n}.mp4", n, seed=n)), i % 6, None, None, None)
        for i, n in enumerate((5, 13, 9))
    ]
    return Index(videos, [], False, "all", "")


def whole(video, model):
    (piece,) = read_segments([video.path], model.preprocessing, segment=10**6)
    return piece.frames


@pytest.mark.parametrize("tubelets", [False, True])
def test_classification_is_the_loss_of_videos_that_end_there(index, tubelets):
    model = small_model(tubelets=tubelets)
    found = position.losses_by_position(model, index, segment=4, batch_size=2)
    assert found.failures == {}
    curve = curve_of([position_table_of(index, found)], Bootstrap(200))[0]
    stride = 2 if tubelets else 1
    assert curve.frames == [float(n) for n in range(stride, 14 - 13 % stride, stride)]
    for place, frames in enumerate(curve.frames):
        losses = []
        for video in index.videos:
            clip = whole(video, model)
            if clip.shape[1] >= frames:
                with torch.no_grad():
                    logits = model(clip[:, : int(frames)])[0].logits
                losses.append(float(F.cross_entropy(logits, torch.tensor([video.label]))))
        assert curve.videos[place] == len(losses)
        assert curve.loss[place] == pytest.approx(sum(losses) / len(losses), abs=1e-4)
        assert curve.low[place] <= curve.loss[place] <= curve.high[place]


@pytest.mark.parametrize("tubelets", [False, True])
def test_prediction_is_the_error_of_the_next_time_step(index, tubelets):
    torch.manual_seed(0)
    config = ModelConfig(Tubelets(16, frames=2) if tubelets else Patches(16), Backbone(32, 1), Prediction())
    model = VideoModel(config, preprocessing=Preprocessing(size=(32, 32)), labels=[]).eval()
    with torch.no_grad():
        model.head.to_pixels.weight.normal_(std=0.05)
    found = position.losses_by_position(model, index, segment=4, batch_size=3)
    curve = curve_of([position_table_of(index, found)], Bootstrap(200))[0]
    stride = 2 if tubelets else 1
    assert curve.frames[0] == stride
    for place, frames in enumerate(map(int, curve.frames)):
        errors = []
        for video in index.videos:
            clip = whole(video, model)
            if clip.shape[1] >= frames + stride:
                with torch.no_grad():
                    made = model(clip[:, :frames])[0].upcoming[0].clamp(0, 1)
                truth = clip[0, frames : frames + stride] / 255
                errors.append(float((made - truth).square().flatten(1).sum(1).mean()))
        assert curve.videos[place] == len(errors)
        assert curve.loss[place] == pytest.approx(sum(errors) / len(errors), rel=1e-4)


def test_long_curves_are_averaged(index, monkeypatch):
    model = small_model()
    full = position.losses_by_position(model, index, frames=12).losses
    monkeypatch.setattr(position, "POINTS", 4)
    short = position.losses_by_position(model, index, frames=12)
    assert short.frames == [2.0, 5.0, 8.0, 11.0]
    assert short.losses[:, 0] == pytest.approx(full[:, :3].mean(1))  # all three videos are so long


def test_a_model_that_reads_backwards_has_no_such_curve(index):
    with pytest.raises(ValueError, match="needs a model that reads forwards"):
        position.losses_by_position(small_model(mixer=Bidirectional(TTT())), index)


def test_the_command_and_its_place_in_a_comparison(tmp_path, capsys):
    data = small_set(tmp_path / "set", count=6)
    run = small_run(tmp_path / "run", small_model())
    broken = data / "val" / "red-blue" / "broken.mp4"
    broken.write_bytes(b"no video")
    out = tmp_path / "out"
    words = ["position", f"A={run}", "--data", str(data), "--split", "all"]
    assert main([*words, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "broken.mp4" in shown
    found = json.loads((out / "position.json").read_text())
    assert (found["task"], found["unit"]) == ("Classification", "nats")
    assert found["series"]["A"]["frames"] == [float(n) for n in range(1, 21)]
    assert (out / "position.png").read_bytes().startswith(b"\x89PNG")
    evaluate = ["evaluate", str(run), "--data", str(data), "--workers", "0", "--frames", "8,all", "--split", "all"]
    with undrawn():
        assert main([*evaluate, "--out", str(out)]) == 0
        assert main(["compare", str(out), "--out", str(tmp_path / "compared")]) == 0
    compared = json.loads((tmp_path / "compared" / "compare.json").read_text())
    line = compared["protocols"]["position"]["series"]["out"]
    assert compared["protocols"]["position"]["x"] == found["series"]["A"]["frames"]
    assert line["mean"] == pytest.approx(found["series"]["A"]["loss"])
    assert line["n"] == [6] * 20
    report = (out / "report.html").read_text()
    assert "broken.mp4" in report
    assert "http" not in report  # nothing comes from elsewhere
    assert report.count("data:image/png;base64,") >= 2 + 6
    for label in ("red-blue", "green-red"):
        assert label in report
    capsys.readouterr()
    assert main([*words, "--out", str(out), "--frames", "0"]) == 2
    assert "--frames must be a number of frames, 1 or more, or all; got '0'" in capsys.readouterr().err
    assert main([*words, "--out", str(out), "--frames", "1000"]) == 2
    assert "--frames asks for the first 1000 frames, but the longest video" in capsys.readouterr().err
    assert main([*words, "--out", str(out), "--segment", "-5"]) == 2
    assert "--segment must be a multiple of" in capsys.readouterr().err


def test_a_damaged_video_is_named_in_a_sentence(tmp_path, capsys):
    """The name that a video has is no command to the terminal."""
    (tmp_path / "set").mkdir()
    file = noise_video(tmp_path / "set" / "a\x1b[31m.mp4", 40, size=64)
    data = bytearray(file.read_bytes())
    at = data.index(b"mdat") + 1200
    data[at : at + 300] = bytes(byte ^ 0x5A for byte in data[at : at + 300])
    file.write_bytes(data)
    model = VideoModel(
        ModelConfig(Patches(16), Backbone(32, 1), Prediction()), preprocessing=Preprocessing(size=(32, 32)), labels=[]
    )
    words = ["position", str(small_run(tmp_path / "run", model)), "--data", str(tmp_path / "set"), "--split", "all"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().err
    assert said.startswith(f"warning: {tmp_path}/set/a\\x1b[31m.mp4: only the first ")
    assert said.count("\n") == 1


def test_the_command_on_predictions(tmp_path, capsys):
    model = VideoModel(
        ModelConfig(Patches(16), Backbone(32, 1), Prediction()), preprocessing=Preprocessing(size=(32, 32)), labels=[]
    )
    run = small_run(tmp_path / "run", model)
    folder = tmp_path / "loose"
    folder.mkdir()
    for n in (6, 9):
        noise_video(folder / f"{n}.mp4", n, seed=n)
    words = ["position", str(run), "--data", str(folder), "--split", "all", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    found = json.loads((tmp_path / "out" / "position.json").read_text())
    assert found["task"] == "Prediction"
    assert found["series"]["run"]["frames"] == [float(n) for n in range(1, 9)]
    assert found["series"]["run"]["videos"] == [2] * 5 + [1] * 3
    with torch.no_grad():
        model.head.to_pixels.weight.normal_(std=0.05)
    other = small_run(tmp_path / "other", model)
    out = tmp_path / "seeds"
    assert main(["position", f"A={run},{other}", f"B={other}", *words[2:-1], str(out)]) == 0
    both = json.loads((out / "position.json").read_text())["series"]
    losses = [found["series"]["run"]["loss"], both["B"]["loss"]]
    assert both["A"]["loss"] == pytest.approx([sum(pair) / 2 for pair in zip(*losses)])
    assert (both["A"]["seeds"], len(both["A"]["weights_sha256"])) == (2, 2)
    assert main(["position", f"A={other}", *words[2:-1], str(out)]) == 0
    assert main(["compare", f"A={tmp_path / 'out'},{out}", "--out", str(tmp_path / "compared")]) == 0
    line = json.loads((tmp_path / "compared" / "compare.json").read_text())["protocols"]["position"]["series"]["A"]
    assert line["seeds"] == 2
    assert line["mean"] == pytest.approx(both["A"]["loss"], rel=1e-5)
    capsys.readouterr()
    classifier = small_run(tmp_path / "classifier", small_model())
    assert main([*words[:2], str(classifier), *words[2:]]) == 2
    assert "compare equal tasks" in capsys.readouterr().err
