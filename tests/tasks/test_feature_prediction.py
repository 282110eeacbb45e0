"""Prediction of a frozen encoder's features: the same learning as of pixels, with its maps for frames."""

import json

import pytest
import torch

from tests.evaluation.small import noise_video, small_run
from tests.helpers import examine, video_model
from tttvideo.cli import main
from tttvideo.encoder import Patches, Timm
from tttvideo.pretrained import from_pretrained
from tttvideo.tasks import Prediction, roll_out

SIZE = (32, 48)
VIT = Timm("test_vit", pretrained="false", grid=(2, 3))


def build(encoder=VIT, **task):
    return video_model(Prediction("features", **task), encoder, size=SIZE, depth=1).eval()


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture(scope="module")
def frames():
    torch.manual_seed(1)
    return torch.randint(0, 256, (2, 7, 3, *SIZE), dtype=torch.uint8)


def test_truth_is_what_the_encoder_sees(model, frames):
    pixels = (frames.float() / 255 - model.encoder.mean) / model.encoder.std
    maps = model.encoder.model.forward_intermediates(
        pixels.flatten(0, 1), indices=1, norm=True, output_fmt="NCHW", intermediates_only=True
    )[-1]
    assert model.truth(frames).shape == (2, 7, 64, 2, 3)
    assert (model.truth(frames).flatten(0, 1) - maps).abs().max() < 1e-5


def test_reading_features_is_reading_frames(model, frames):
    """Tokens come of the same maps whether the task is classification or prediction of features."""
    encoder, lengths = model.encoder, torch.tensor([7, 4])
    state = encoder.init_state(2)
    with torch.no_grad():
        direct, steps, _ = encoder(frames, lengths, state)
        again, steps_again, _ = encoder.embed(encoder.features(frames, lengths), lengths, state)
    valid = torch.arange(7) < lengths[:, None]
    assert (direct - again)[valid].abs().max() < 1e-6
    assert torch.equal(steps, steps_again)


def test_streamed_padded_and_alone_agree(frames):
    model = build().double()
    lengths = torch.tensor([7, 4])
    with torch.no_grad():
        whole, _ = model(frames, lengths)
        state, streamed = None, None
        for start in range(0, 7, 3):
            piece = frames[:, start : start + 3]
            streamed, state = model(piece, (lengths - start).clamp(0, piece.shape[1]), state)
        alone, _ = model(frames[1:, :4])
    assert (whole.upcoming - streamed.upcoming).abs().max() <= 1e-12
    assert (whole.upcoming[1] - alone.upcoming[0]).abs().max() <= 1e-12


def test_loss_by_hand(frames):
    model = build(context=2, residual=False)
    lengths = torch.tensor([7, 4])
    output, _ = model(frames, lengths)
    truth = model.truth(frames)
    rows = [
        (length - 2) * (output.timeline[row, 1 : length - 1, 0] - truth[row, 2:length]).square().mean()
        for row, length in ((0, 7), (1, 4))
    ]
    loss = model.loss(output, (frames, lengths))
    assert float(loss.detach()) == pytest.approx(float(sum(rows).detach()) / 7, rel=1e-5)
    loss.backward()
    assert all((p.grad is None) == name.startswith("encoder.model.") for name, p in model.named_parameters())


def test_an_untrained_change_is_the_last_frame_again(frames):
    model = build(residual=True)
    with torch.no_grad():
        model.head.to_pixels.weight.zero_()
        output, _ = model(frames)
    assert torch.equal(output.timeline[:, :, 0], model.truth(frames))
    rows = examine(model.head, model.outputs([(frames, torch.tensor([7, 7]))]))
    assert torch.equal(rows[:, 1:3], rows[:, 3:5])  # errors of the model and of copy-last
    assert rows[:, 1].min() > 0


def test_rollouts_read_what_they_made(model, frames):
    made = roll_out(model, [(frames[:, :5], None)], 3)
    assert made.shape == (2, 3, 64, 2, 3)
    again = roll_out(model, [(frames[:, :5], None), (made[:, :1], None)], 2)
    assert (again - made[:, 1:]).abs().max() < 1e-5
    with torch.no_grad():
        assert torch.equal(made[:, 0], model(frames[:, :5])[0].upcoming[:, 0])  # not clamped to 0..1
    assert made.min() < 0


def test_training_rollouts_have_a_gradient(frames):
    model = build(rollout=3, rollout_from=0.0)
    model.head.set_progress(0.99)
    model.train()
    lengths = torch.tensor([7, 5])
    output, _ = model(frames, lengths)
    loss = model.loss(output, (frames, lengths))
    loss.backward()
    assert model.encoder.projection.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    "encoder", [Patches(8), Timm("test_vit", pretrained="false", grid=(2, 3), frozen=False)], ids=type
)
def test_features_that_move_are_no_target(encoder):
    with pytest.raises(ValueError, match="frozen: true"):
        build(encoder)


def test_evaluated_and_not_drawn(model, tmp_path, capsys):
    run = small_run(tmp_path / "run", model)
    folder = tmp_path / "videos"
    folder.mkdir()
    for i in range(2):
        noise_video(folder / f"{i}.mp4", 9, seed=i)
    words = ["evaluate", run, "--data", folder, "--split", "all", "--context", "5", "--horizon", "4"]
    assert main([str(word) for word in [*words, "--out", tmp_path]]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["space"] == "features"
    found = metrics["per_horizon"]
    assert set(found["model"]) == {"mse", "mae", "cosine"}
    assert all(len(found[method][name]) == 4 for method in found for name in ("mse", "mae", "cosine"))
    assert 0 < found["copy_last"]["cosine"][0] <= 1
    loaded = from_pretrained(run)
    assert loaded.config == model.config
    capsys.readouterr()
    for option in ("--grey", "--lpips=x.pth", "--fvd=x.pt"):
        assert main([str(word) for word in [*words, option, "--out", tmp_path]]) == 2
        assert "predicts features; leave" in capsys.readouterr().err
    assert main(["predict", str(run), str(folder / "0.mp4"), "--out", str(tmp_path / "p")]) == 2
    assert "of which there is no picture" in capsys.readouterr().err
