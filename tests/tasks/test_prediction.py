"""Prediction: no look into the future, streamed equals whole, the loss looks at what it says, rollouts go on."""

import pytest
import torch

from tests.helpers import ALL_MIXERS, each_kind, examine, name, video_model
from tttvideo.backbone import Backbone
from tttvideo.encoder import ConvStem, Patches, Timm, Tubelets
from tttvideo.mixers import Attention, Bidirectional, LinearAttention, Mamba, NoMixer
from tttvideo.model import ModelConfig, VideoModel
from tttvideo.pretrained import from_pretrained
from tttvideo.tasks import Prediction, roll_out
from tttvideo.tasks.trivial import History
from tttvideo.ttt import MLP, TTT, Conv, FrameCausal, TokenCausal, Whole
from tttvideo.video.transforms import Preprocessing

SIZE = (16, 24)
PREDICTION = Prediction()
MIXER = TTT(heads=2)
TUBELETS = Tubelets(8, frames=2)
STEM = ConvStem((4, 8), (3, 2), (2, 1))


def build(task=PREDICTION, encoder=Patches(8), mixer=MIXER, **backbone):
    return video_model(task, encoder, mixer, size=SIZE, **backbone).double().eval()


def clips(*lengths):
    torch.manual_seed(1)
    return torch.randint(0, 256, (len(lengths), max(lengths), 3, *SIZE), dtype=torch.uint8)


def refused(mixer, **backbone):
    with pytest.raises(ValueError) as found:
        build(mixer=mixer, **backbone)
    return str(found.value)


@pytest.mark.parametrize("mixer", each_kind(ALL_MIXERS), ids=name)
def test_the_future_does_not_change_a_prediction(mixer):
    """Every mixer that is taken predicts from the past alone, and from the whole of each frame of it."""
    built = mixer.build(16)
    if not built.causal:
        assert "later frame" in refused(mixer)
        return
    if built.unit(6) % 6:
        assert "frame_attention" in refused(mixer)
    model = build(mixer=mixer, depth=1, frame_attention=2)
    frames = clips(6)
    changed = frames.clone()
    changed[:, 4:] = 255 - changed[:, 4:]
    with torch.no_grad():
        one, two = model(frames)[0].timeline, model(changed)[0].timeline
    assert (one[:, :4] - two[:, :4]).abs().max() <= 1e-12
    assert (one[:, 4] - two[:, 4]).abs().max() > 1e-6
    corner = frames.clone()
    corner[:, 3, :, -8:, -8:] = 255 - corner[:, 3, :, -8:, -8:]  # the last token reaches the first one's patch
    with torch.no_grad():
        moved = model(corner)[0].timeline
    assert (one[:, 3, ..., :8, :8] - moved[:, 3, ..., :8, :8]).abs().max() > 1e-9


def test_backbones_that_do_not_fit_are_refused_with_what_does():
    for mixer in (TTT(heads=2, chunk=Whole(2)), Bidirectional(Attention(heads=2))):
        assert "FrameCausal" in refused(mixer)
    for mixer in (
        TTT(heads=2, chunk=TokenCausal(4)),
        Mamba(heads=2),
        NoMixer(),
        Attention(heads=2, causality="token"),
        LinearAttention(heads=2, causality="token"),
    ):
        assert "frame_attention" in refused(mixer)
        build(mixer=mixer, frame_attention=2)
    build(mixer=TTT(heads=2, chunk=Whole(1)))
    build(encoder=ConvStem((4, 8, 8), (1, 1, 1), (1, 1, 1), pool=(1, 1)), mixer=Mamba(heads=2))  # one token is a frame
    with pytest.raises(ValueError, match="cannot divide frames of 16 x 24"):
        build(encoder=Timm("test_resnet", pretrained="false", grid=(1, 1)), task=Prediction()) and build(
            encoder=ConvStem((4, 8), (1, 1), (1, 1), pool=(3, 5))
        )


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "huber"},
        {"context": 0},
        {"rollout": 0},
        {"gradient_difference": -1.0},
        {"rollout_from": 1.0},
    ],
)
def test_settings_that_cannot_be(settings):
    with pytest.raises(ValueError, match=f"Prediction.*{next(iter(settings))}"):
        Prediction(**settings)


CASES = [(Patches(8), TTT(heads=2)), (TUBELETS, TTT(inner=Conv(), heads=2)), (STEM, Attention(heads=2))]


@pytest.mark.parametrize(("encoder", "mixer"), CASES, ids=name)
def test_streamed_padded_and_alone_agree(encoder, mixer):
    model = build(encoder=encoder, mixer=mixer, pre_conv=True)
    lengths = torch.tensor([11, 7, 4])
    frames = clips(*lengths.tolist())
    with torch.no_grad():
        whole, _ = model(frames, lengths)
        state, streamed = None, None
        for start in range(0, 11, 4):
            streamed, state = model(frames[:, start : start + 4], (lengths - start).clamp(0, 4), state)
        assert (whole.upcoming - streamed.upcoming).abs().max() <= 1e-12
        for row, length in enumerate(lengths.tolist()):
            alone, _ = model(frames[row : row + 1, :length])
            steps = alone.timeline.shape[1]
            assert (alone.upcoming[0] - whole.upcoming[row]).abs().max() <= 1e-12
            assert (alone.timeline[0] - whole.timeline[row, :steps]).abs().max() <= 1e-12
            assert torch.equal(alone.timeline[:, -1], alone.upcoming)


def test_patches_come_to_their_places():
    """Residual prediction of an untrained model is the last frame; a bias moves the pixel it belongs to."""
    model = build(encoder=TUBELETS)
    head = model.head
    frames = clips(5)
    pixels = frames.double() / 255.0
    with torch.no_grad():
        head.to_pixels.weight.zero_()
        made = model(frames)[0].timeline
        assert torch.allclose(made[:, 0, 0], pixels[:, 1], atol=1e-12)
        assert torch.allclose(made[:, 0, 1], pixels[:, 1], atol=1e-12)
        assert torch.allclose(made[:, 2, 0], pixels[:, 4], atol=1e-12)  # of an unfinished tubelet
        head.to_pixels.bias.view(2, 3, 8, 8)[1, 2, 3, 5] = 1.0
        change = (model(frames)[0].timeline - made)[0, 0]
    assert set(map(tuple, change.nonzero().tolist())) == {
        (1, 2, 8 * i + 3, 8 * j + 5) for i in (0, 1) for j in range(3)
    }
    assert change.max() == pytest.approx(0.225)


@pytest.mark.parametrize("context", [1, 3])
@pytest.mark.parametrize("kind", ["mse", "smooth_l1"])
def test_loss_by_hand(context, kind):
    model = build(Prediction(loss=kind, context=context, gradient_difference=0.5, residual=False))
    lengths = torch.tensor([6, 4, 1])
    frames = clips(6, 4, 1)
    output, _ = model(frames, lengths)
    mean, std, rows = model.head.mean, model.head.std, []
    for row, length in ((0, 6), (1, 4)):
        made = (output.timeline[row, context - 1 : length - 1, 0] - mean) / std
        truth = (frames[row, context:length].double() / 255.0 - mean) / std
        d = (made - truth).abs()
        each = d.square() if kind == "mse" else torch.where(d < 1, d.square() / 2, d - 0.5)
        edges = [(made.diff(dim=i).abs() - truth.diff(dim=i).abs()).abs().mean() for i in (-1, -2)]
        rows.append((length - context) * (each.mean() + 0.5 * sum(edges)))
    target = model.config.task.target(frames, lengths, torch.full((3,), -1))
    loss = model.loss(output, target)
    assert float(loss.detach()) == pytest.approx(float((sum(rows) / (10 - 2 * context)).detach()), rel=1e-12)
    assert model.head.loss(output, target).count == 10 - 2 * context
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_what_is_too_short_gives_no_loss():
    model = build(Prediction(context=4))
    output, _ = model(clips(4))
    target = (clips(4), torch.tensor([4]))
    assert model.loss(output, target) == 0
    assert model.head.loss(output, target).count == 0
    rows = examine(model.head, [(*target, output)])
    with pytest.raises(ValueError, match="none of the 1 videos to validate on"):
        model.config.task.summary(rows, torch.tensor([-1]), torch.tensor([True]))


@pytest.mark.parametrize("encoder", [Patches(8), TUBELETS], ids=name)
def test_a_training_rollout_predicts_the_end_from_its_own_predictions(encoder):
    model = build(Prediction(rollout=3, rollout_from=0.0), encoder)
    stride = model.encoder.stride
    lengths = torch.tensor([7, 5, 2]) * stride
    lengths[2] -= stride - 1  # ends within a tubelet
    frames = clips(*lengths.tolist())
    model.head.set_progress(0.99)
    assert model.head.own_steps == 3
    model.train()
    output, _ = model(frames, lengths)
    model.eval()
    made, _, counts = model.head._compared(output, (frames, lengths))
    for row, steps in ((0, 7), (1, 5)):
        assert sorted(output.at[row][counts[row]].tolist()) == list(range(1, steps))
        known = (steps - 3) * stride
        free = roll_out(model, [(frames[row : row + 1, :known], None)], 3 * stride)[0].unflatten(0, (3, stride))
        own = [made[row, i] for at in range(steps - 3, steps) for i in (output.at[row] == at).nonzero()[-1].tolist()]
        assert (torch.stack(own).clamp(0, 1) - free).abs().max() <= 1e-12
    model.loss(output, (frames, lengths)).backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


def test_rollouts_lengthen_over_the_training():
    head = build(Prediction(rollout=4, rollout_from=0.5)).head
    steps = []
    for done in (0.0, 0.49, 0.5, 0.63, 0.76, 0.88, 0.99):
        head.set_progress(done)
        steps.append(head.own_steps)
    assert steps == [1, 1, 1, 2, 3, 4, 4]


@pytest.mark.parametrize(("encoder", "mixer"), CASES, ids=name)
def test_rollout_streams_its_context_and_goes_on(encoder, mixer):
    """In float32, as it is used: the context in pieces = whole-clip teacher forcing."""
    model = build(encoder=encoder, mixer=mixer).float()
    frames = clips(12, 12)
    with torch.no_grad():
        forced, _ = model(frames)
    pieces = [(part, None) for part in frames.split(4, dim=1)]
    made = roll_out(model, pieces, 5)
    stride = model.encoder.stride
    assert made.shape == (2, 5, 3, *SIZE)
    assert (made[:, :stride] - forced.upcoming.clamp(0, 1)).abs().max() <= 1e-6
    # generated frames are read like true ones
    again = roll_out(model, [*pieces, (made[:, : 2 * stride], None)], 1)
    assert (again[:, 0] - made[:, 2 * stride]).abs().max() <= 1e-5
    first = slice(0, stride)
    kept = roll_out(model, pieces, 3 * stride, write=False)
    assert torch.equal(kept[:, first], made[:, first])
    assert torch.equal(kept[:, stride : 2 * stride], made[:, stride : 2 * stride])  # read before it could be written
    assert not torch.equal(kept[:, 2 * stride :], roll_out(model, pieces, 3 * stride)[:, 2 * stride :])


def test_rollouts_that_cannot_be():
    model = build(encoder=TUBELETS)
    with pytest.raises(ValueError, match="horizon of 0"):
        roll_out(model, [(clips(4), None)], 0)
    with pytest.raises(ValueError, match="no frames"):
        roll_out(model, [], 1)
    with pytest.raises(ValueError, match="no multiple of 2 frames"):
        roll_out(model, [(clips(3), None)], 4)


@pytest.mark.parametrize("encoder", [Patches(8), TUBELETS], ids=name)
def test_examined_in_segments_is_by_hand(encoder):
    model = build(Prediction(context=2), encoder)
    stride = model.encoder.stride
    lengths = torch.tensor([11, 6, 1])
    frames = clips(11, 6, 1)
    segments = [(frames[:, s : s + 4], (lengths - s).clamp(0, 4)) for s in range(0, 11, 4)]
    rows = examine(model.head, model.outputs(segments))
    first = -(-2 // stride) * stride  # predicted from at least two frames
    for row, length in ((0, 11), (1, 6)):
        x = frames[row, : length // stride * stride] / 255.0
        with torch.no_grad():
            made = model(frames[row : row + 1, :length])[0].timeline[0].flatten(0, 1)[first - stride : len(x) - stride]
        wanted = torch.arange(first, len(x))
        before = wanted // stride * stride - 1  # the last frame that was seen
        mean = torch.stack([x[: i + 1].mean(0) for i in before])
        linear = x[before] + (wanted - before)[:, None, None, None] * (x[before] - x[before - 1])
        expected = [len(wanted)]
        for guess in (made, x[before], mean, linear):
            d = guess.clamp(0, 1) - x[wanted]
            expected += [d.square().sum(), d.abs().sum()]
        assert rows[row].tolist() == pytest.approx([float(e) for e in expected], rel=1e-6)
    figures = model.config.task.summary(rows, torch.full((3,), -1), torch.tensor([True] * 3))
    assert (figures["n"], figures["too_short"]) == (2, 1)
    assert figures["mse"] == pytest.approx(float((rows[:2, 1] / rows[:2, 0]).mean()), rel=1e-6)
    assert figures["linear_mae"] == pytest.approx(float((rows[:2, 8] / rows[:2, 0]).mean()), rel=1e-6)


def test_trivial_predictions():
    x = torch.rand(2, 5, 3, 2, 2)
    history = History(2, x)
    history.add(x[:, :3], torch.tensor([True, True]))
    history.add(x[:, 3:], torch.tensor([True, False]))
    guesses = {name: guess[:, 2] for name, guess in history.guesses(3).items()}
    assert torch.equal(guesses["copy_last"][1], x[1, 2])
    assert torch.allclose(guesses["mean_frame"][0], x[0].mean(0))
    assert torch.allclose(guesses["linear"][0], x[0, 4] + 3 * (x[0, 4] - x[0, 3]))
    still = History(1, x)
    still.add(x[:1, :1], torch.tensor([True]))
    assert torch.equal(still.guesses(1)["linear"], x[:1, :1])


def test_saved_and_read_back(tmp_path):
    model = build(Prediction(loss="smooth_l1", residual=False, context=2), mixer=TTT(inner=MLP(), chunk=FrameCausal(2)))
    model = model.float()
    model.save_pretrained(tmp_path)
    loaded = from_pretrained(tmp_path)
    assert loaded.config == model.config
    frames = clips(5)
    assert torch.equal(loaded(frames)[0].timeline, model(frames)[0].timeline)
    with pytest.raises(ValueError, match="trained for Prediction and knows no classes"):
        loaded.classify("clip.mp4")


def test_it_learns_a_motion():
    """A bright column moves one pixel a frame: in seconds far below copy-last-frame."""
    torch.manual_seed(0)
    config = ModelConfig(Patches(8), Backbone(width=48, depth=1, mixer=TTT(heads=2)), Prediction())
    model = VideoModel(config, preprocessing=Preprocessing(size=(16, 16)), labels=[])
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-3)
    clip = torch.zeros(16, 6, 3, 16, 16)
    for row in range(16):
        for t in range(6):
            clip[row, t, :, :, (row + t) % 16] = 1.0
    lengths = torch.full((16,), 6)
    for _ in range(50):
        output, _ = model(clip)
        loss = model.loss(output, (clip, lengths))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    rows = examine(model.head, model.outputs([(clip, lengths)]))
    figures = config.task.summary(rows, torch.full((16,), -1), torch.ones(16, dtype=torch.bool))
    assert figures["mse"] < 0.1 * figures["copy_last_mse"]
