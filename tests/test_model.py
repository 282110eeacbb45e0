"""The whole model: streamed equals whole, padding is invisible, the timeline ends in the answer, folders round-trip."""

import json

import pytest
import torch

from tests.helpers import ALL_ENCODERS, name, video_model
from tttvideo.backbone import Backbone
from tttvideo.encoder import ConvStem, Patches, Timm, Tubelets
from tttvideo.mixers import Attention, Bidirectional, Mamba, NoMixer
from tttvideo.model import ModelConfig, VideoModel
from tttvideo.pretrained import from_pretrained
from tttvideo.serialize import resolve_checkpoint
from tttvideo.tasks.classification import Classification
from tttvideo.ttt import MLP, TTT, Conv, FrameCausal, Stream, TokenCausal, Whole
from tttvideo.video.transforms import Preprocessing

SIZE = (32, 32)
MIXERS = [
    TTT(inner=MLP(), heads=2, chunk=TokenCausal(5)),
    TTT(inner=Conv(), heads=2, chunk=FrameCausal(2)),
    Attention(heads=2),
    NoMixer(),
]


def build(encoder=Patches(8), mixer=MIXERS[0], pooling="mean", **options):
    return video_model(Classification(pooling=pooling), encoder, mixer, labels="abc", pre_conv=True, **options)


def clips(lengths):
    torch.manual_seed(1)
    return torch.randint(0, 256, (len(lengths), max(lengths), 3, *SIZE), dtype=torch.uint8)


PAIRS = [(encoder, MIXERS[i % len(MIXERS)]) for i, encoder in enumerate(ALL_ENCODERS)]
STEM, POOLINGS = ConvStem((4, 8), (3, 2), (2, 1)), ("mean", "attention", "ema")
CASES = [(*pair, "mean") for pair in PAIRS] + [(STEM, *pair) for pair in zip(MIXERS, POOLINGS)]
"""Every encoder with a mixer, and every pooling."""


@pytest.mark.parametrize(("encoder", "mixer", "pooling"), CASES, ids=name)
def test_streamed_batched_and_alone_agree(encoder, mixer, pooling):
    """A padded batch in three segments = the padded batch at once = each video by itself."""
    model = build(encoder, mixer, pooling).double().eval()
    lengths = torch.tensor([11, 7, 4])
    frames = clips(lengths.tolist())
    with torch.no_grad():
        whole, _ = model(frames, lengths)
        step = 4  # two time steps of the encoders that have two frames in one
        segments = [(frames[:, s : s + step], (lengths - s).clamp(0, step)) for s in range(0, 11, step)]
        streamed = model.score_segments(segments)
        assert (whole.logits - streamed.logits).abs().max() <= 1e-12
        for row, length in enumerate(lengths.tolist()):
            alone, _ = model(frames[row : row + 1, :length])
            assert (alone.logits[0] - whole.logits[row]).abs().max() <= 1e-12
            assert torch.equal(alone.timeline[:, -1], alone.logits)
            steps = alone.timeline.shape[1]
            assert (alone.timeline[0] - whole.timeline[row, :steps]).abs().max() <= 1e-12


@pytest.mark.parametrize("encoder", [Patches(8), Tubelets(8, frames=2)], ids=name)
def test_streams_are_cut_at_whole_units_of_the_backbone(encoder):
    """Chunks of three time steps that see each other: cut there, and only there."""
    model = build(encoder, TTT(heads=2, chunk=Whole(3))).double().eval()
    unit = 3 * encoder.build(SIZE, 16).stride
    assert (model.frame_multiple, model.segment_frames(100), model.segment_frames(1)) == (
        unit,
        100 // unit * unit,
        unit,
    )
    lengths = torch.tensor([2 * unit + 1, unit])
    frames = clips(lengths.tolist())
    segments = [(frames[:, s : s + unit], (lengths - s).clamp(0, unit)) for s in range(0, 2 * unit + 1, unit)]
    with torch.no_grad():
        whole, _ = model(frames, lengths)
        streamed = model.score_segments(segments)
        ends_here, _ = model(frames[:, :unit])
        _, state = model(frames[:, : unit - 1])
        with pytest.raises(ValueError, match=r"whole chunks|no multiple of"):
            model(frames[:, unit - 1 :], None, state)
    assert (whole.logits - streamed.logits).abs().max() <= 1e-12
    assert (whole.timeline[:, 2] - ends_here.logits).abs().max() <= 1e-12


def test_a_model_that_does_not_stream_reads_each_video_whole():
    model = build(ConvStem((4, 8), (3, 2), (2, 1)), Bidirectional(Mamba(heads=2, state_dim=4))).double().eval()
    lengths = torch.tensor([11, 7, 4])
    frames = clips(lengths.tolist())
    assert not model.streams
    assert model.segment_frames(4) > 10**9
    whole = model.score_segments([(frames, lengths)])
    for row, length in enumerate(lengths.tolist()):
        alone = model.score_segments([(frames[row : row + 1, :length], torch.tensor([length]))])
        assert (alone.logits[0] - whole.logits[row]).abs().max() <= 1e-12
    with pytest.raises(ValueError, match="give each video whole, in one call"):
        model.score_segments([(frames[:, :4], lengths.clamp(0, 4)), (frames[:, 4:], (lengths - 4).clamp_min(0))])


@pytest.mark.parametrize(("encoder", "mixer"), PAIRS, ids=name)
def test_calls_with_nothing_and_with_too_much_padding(encoder, mixer):
    """A batch of which nothing can be read, and padding beyond the longest row."""
    model = build(encoder, mixer).double().eval()
    frames = clips([7, 7])
    with torch.no_grad():
        output, state = model(frames[:, :1], torch.tensor([0, 0]))
        assert torch.isfinite(output.logits).all()
        wide, _ = model(frames, torch.tensor([4, 2]), state)
        tight, _ = model(frames[:, :4], torch.tensor([4, 2]))
        assert (wide.logits - tight.logits).abs().max() <= 1e-12


def test_every_frame_counts():
    """The last frame of an unfinished tubelet changes the answer; frames of padding do not."""
    model = build(Tubelets(8, frames=4)).double().eval()
    frames, lengths = clips([10]), torch.tensor([9])
    with torch.no_grad():
        before, _ = model(frames, lengths)
        padding, last = frames.clone(), frames.clone()
        padding[:, 9] = 255 - padding[:, 9]
        last[:, 8] = 255 - last[:, 8]
        assert torch.equal(model(padding, lengths)[0].logits, before.logits)
        assert not torch.equal(model(last, lengths)[0].logits, before.logits)


def test_a_stream_is_cut_at_whole_time_steps():
    model = build(Tubelets(8, frames=4)).eval()
    _, state = model(clips([6]))
    with pytest.raises(ValueError, match="no multiple of 4 frames"):
        model(clips([4]), None, state)


@pytest.mark.parametrize("mixer", MIXERS, ids=name)
def test_every_parameter_has_a_gradient(mixer):
    """Several processes wait for the gradient of every parameter, be it zero."""
    model = build(Timm("mobilenetv3_small_050", pretrained="false", grid=(1, 1), frozen=False), mixer)
    output, _ = model(clips([3, 2]), torch.tensor([3, 2]))
    model.loss(output, torch.tensor([0, 2])).backward()
    assert [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("mixer", MIXERS, ids=name)
def test_inference_mode(mixer):
    model = build(mixer=mixer).eval()
    frames = clips([6])
    with torch.inference_mode():
        _, state = model(frames[:, :4])
        inferred, _ = model(frames[:, 4:], None, state)
    with torch.no_grad():
        whole, _ = model(frames)
    assert torch.allclose(inferred.logits, whole.logits, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "attention", "ema"])
def test_half_precision(pooling):
    """Sums over long videos stay in float32 under autocast, and a half-precision model runs."""
    model = build(Patches(4), MIXERS[-1], pooling).eval()
    torch.manual_seed(1)
    frames = torch.randint(0, 256, (1, 1030, 3, *SIZE), dtype=torch.uint8)  # 65,920 tokens
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        assert torch.isfinite(model(frames)[0].logits).all()
    with torch.no_grad():
        assert torch.isfinite(model.bfloat16()(frames[:, :10])[0].logits).all()


def test_training_reaches_every_parameter():
    model = build(ConvStem((4, 8), (3, 2), (2, 1)), pooling="attention")
    output, _ = model(clips([12, 5]), torch.tensor([12, 5]))
    model.loss(output, torch.tensor([0, 2])).backward()
    silent = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


def test_losses():
    model = build(multi_label=True)
    output, _ = model(clips([4, 4]))
    hot = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(output.logits, hot)
    assert torch.allclose(model.loss(output, hot), expected, rtol=1e-6)
    assert torch.equal(model.probabilities(output.logits), output.logits.sigmoid())
    single = build()
    soft = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    output, _ = single(clips([4, 4]))
    by_hand = -(soft * output.logits.log_softmax(-1)).sum(-1).mean()
    assert torch.allclose(single.loss(output, soft), by_hand, rtol=1e-6)


def test_frozen_timm_encoder_stays_frozen():
    model = build(Timm("test_resnet", pretrained="false", grid=(1, 1))).train()
    assert not model.encoder.model.training
    assert all(not p.requires_grad for p in model.encoder.model.parameters())
    before = model.encoder.model.bn1.running_mean.clone()
    model(clips([3, 2]), torch.tensor([3, 2]))[0].logits.sum().backward()
    assert torch.equal(before, model.encoder.model.bn1.running_mean)


def test_pretrained_file_is_loaded(tmp_path):
    import timm

    torch.manual_seed(3)
    donor = timm.create_model("test_resnet", num_classes=0)
    file = tmp_path / "weights.pth"
    torch.save(donor.state_dict(), file)
    model = build(Timm("test_resnet", pretrained=str(file), grid=(1, 1)))
    assert model.encoder.source == "weights file weights.pth"
    assert torch.equal(model.encoder.model.layer1[0].conv1.weight, donor.layer1[0].conv1.weight)


def test_a_file_without_the_weights_is_refused(tmp_path):
    import timm

    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pth")
    partial = timm.create_model("test_resnet", num_classes=0).state_dict()
    del partial["layer4.0.conv2.weight"]
    torch.save(partial, tmp_path / "partial.pth")
    for file in ("other.pth", "partial.pth"):
        with pytest.raises(ValueError, match="does not hold all weights"):
            build(Timm("test_resnet", pretrained=str(tmp_path / file), grid=(1, 1)))
    (tmp_path / "junk.pth").write_bytes(b"junk")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        build(Timm("test_resnet", pretrained=str(tmp_path / "junk.pth"), grid=(1, 1)))


def test_saved_model_is_the_model(tmp_path):
    model = build(ConvStem((4, 8), (3, 2), (2, 1), pool=(2, 2)), MIXERS[1], multi_label=True).eval()
    model.save_pretrained(tmp_path, {"selection": {"step": 3, "rule": "best"}})
    loaded = from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert loaded.preprocessing == model.preprocessing
    assert (loaded.labels, loaded.multi_label) == (model.labels, True)
    assert loaded.provenance == {"selection": {"step": 3, "rule": "best"}}
    frames = clips([6])
    assert torch.equal(loaded(frames)[0].logits, model(frames)[0].logits)


def test_a_saved_hybrid_is_the_hybrid(tmp_path):
    pattern = [TTT(heads=2), Attention(heads=2, window=4), Bidirectional(Mamba(heads=2), share=True)]
    config = ModelConfig(Patches(8), Backbone(width=16, depth=3, pattern=pattern, frame_attention=2))
    model = VideoModel(config, preprocessing=Preprocessing(size=SIZE), labels=["a", "b"]).eval()
    model.save_pretrained(tmp_path)
    loaded = from_pretrained(tmp_path)
    assert loaded.config == model.config
    frames = clips([6])
    assert torch.equal(loaded(frames)[0].logits, model(frames)[0].logits)


def test_decay_leaves_starts_rates_and_recurrences_alone():
    model = build(mixer=Bidirectional(Mamba(heads=2)))
    spared = model.no_weight_decay()
    assert {f"backbone.blocks.1.mixer.backwards.{key}" for key in ("A_log", "D", "dt_bias", "norm_scale")} <= spared
    assert "backbone.blocks.0.mixer.forwards.in_proj.weight" not in spared
    learned = build(mixer=Bidirectional(TTT(heads=2)))
    assert "backbone.blocks.0.mixer.forwards.weights.1_weight" in learned.no_weight_decay()


def test_foreign_classes_are_refused_before_import(tmp_path, monkeypatch):
    (tmp_path / "foreign.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\nclass Evil: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    build().save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    description = json.loads(path.read_text())
    description["model"]["init_args"]["encoder"]["class_path"] = "foreign.Evil"
    path.write_text(json.dumps(description))
    with pytest.raises(ValueError, match=r"foreign\.Evil"):
        from_pretrained(tmp_path / "model")
    assert not (tmp_path / "imported").exists()
    with pytest.raises(ValueError, match="not a configuration class"):
        from_pretrained(tmp_path / "model", trust=True)
    assert (tmp_path / "imported").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.pop("model"),
        lambda d: d.update(model=None),
        lambda d: d.update(labels="abc"),
        lambda d: d.update(labels=[d["labels"][0]] * len(d["labels"])),
        lambda d: d.update(labels=[""] * len(d["labels"])),
        lambda d: d.update(preprocessing=None),
        lambda d: d.update(provenance="abc"),
        lambda d: d.update(provenance={"trained_on": [1]}),
        lambda d: d.update(provenance={"drawn": {"val_fraction": "a"}}),
        lambda d: d.update(provenance={"clip_frames": -5}),
        lambda d: d["model"]["init_args"]["backbone"].update(init_args=None),
        lambda d: d["model"]["init_args"]["backbone"]["init_args"]["mixer"]["init_args"].update(heads="2"),
        lambda d: d["preprocessing"]["init_args"].update(stream=True),
        lambda d: d["preprocessing"]["init_args"].update(size=[20_000, 32]),
    ],
)
def test_a_damaged_configuration_is_one_sentence(tmp_path, damage):
    build().save_pretrained(tmp_path)
    description = json.loads((tmp_path / "config.json").read_text())
    del description["checksum"]  # as if somebody had counted it anew
    damage(description)
    (tmp_path / "config.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match=r"config\.json"):
        from_pretrained(tmp_path)


CHANGES = {
    "size": lambda d: d["preprocessing"]["init_args"].update(size=[64, 64]),
    "no size": lambda d: d["preprocessing"]["init_args"].pop("size"),
    "sampling": lambda d: d["preprocessing"]["init_args"].update(sampling="last=2"),
    "labels": lambda d: d["labels"].reverse(),
    "rate": lambda d: d["model"]["init_args"]["backbone"]["init_args"]["mixer"]["init_args"].update(rope_theta=10.0),
    "no provenance": lambda d: d.pop("provenance"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_that_no_shape_shows_is_refused(tmp_path, change):
    build(ConvStem((4, 8), (3, 2), (2, 1), pool=(2, 2))).save_pretrained(tmp_path)
    description = json.loads((tmp_path / "config.json").read_text())
    change(description)
    (tmp_path / "config.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match="not as they were written"):
        from_pretrained(tmp_path)
    del description["checksum"]  # on purpose, or of an earlier version
    (tmp_path / "config.json").write_text(json.dumps(description))
    from_pretrained(tmp_path)


def test_weights_of_another_training_are_refused(tmp_path):
    build().save_pretrained(tmp_path / "one")
    other = build()
    with torch.no_grad():
        other.head.classifier.bias[0] += 1e-3
    other.save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").replace(tmp_path / "one" / "model.safetensors")
    with pytest.raises(ValueError, match="not as they were written"):
        from_pretrained(tmp_path / "one")


def test_damaged_folders_say_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        resolve_checkpoint(tmp_path / "nothing")
    with pytest.raises(ValueError, match="holds no checkpoint"):
        resolve_checkpoint(tmp_path)
    build().save_pretrained(tmp_path)
    other = build(mixer=TTT(inner=MLP(expansion=2), heads=2))
    other.save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").replace(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="another architecture"):
        from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match="damaged"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("encoder", "words"),
    [
        (Patches(7), "do not divide"),
        (ConvStem((4,) * 6, (1,) * 6, (1,) * 6), "do not divide"),
        (ConvStem((4, 8), (1, 1), (1, 1), pool=(9, 9)), "must lie between"),
        (Timm("resnet81", pretrained="false"), "no model"),
        (Timm("test_resnet", pretrained="nowhere.pth"), "does not exist"),
        (Timm("test_resnet", pretrained="false", grid=(5, 5)), "fewer than the grid"),
        (Timm("vit_small_patch14_dinov2", pretrained="false", grid=(1, 1)), "do not divide into"),
    ],
    ids=name,
)
def test_sizes_that_do_not_fit(encoder, words):
    with pytest.raises(ValueError, match=words):
        build(encoder)


def test_frames_of_another_size_are_refused():
    with pytest.raises(ValueError, match="batch dimension"):
        build()(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match="between 0 and the 4 frames"):
        build()(clips([4]), torch.tensor([5]))
    with pytest.raises(ValueError, match="3 x 32 x 32"):
        build()(torch.zeros(1, 2, 3, 16, 16, dtype=torch.uint8))


def test_layer_decay_groups_cover_all_parameters():
    from timm.optim import create_optimizer_v2

    model = build()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.1, layer_decay=0.5)
    count = sum(len(group["params"]) for group in optimizer.param_groups)
    assert count == len(list(model.parameters()))
    scales = {group["lr_scale"] for group in optimizer.param_groups}
    assert len(scales) > 2
    assert max(scales) == 1.0


@torch.no_grad()
def test_a_stream_of_frames_is_the_clip():
    """Encoder, layers and pooling in the static memory of a ``Stream``: one recording, or two."""
    model = build(ConvStem((4, 8), (2, 2), (1, 1)), TTT(MLP(), heads=2)).double().eval()
    frames = clips([9])
    whole, _ = model(frames)
    stream = Stream(lambda x, state: model(x, None, state), frames[:, :1], model.init_state(1))
    timeline = [stream(frame).timeline.clone() for frame in frames.split(1, 1)]
    assert (torch.cat(timeline, 1) - whole.timeline).abs().max() <= 1e-12
    assert stream.graphs <= 2
