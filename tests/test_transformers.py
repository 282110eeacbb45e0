"""Encoders of the transformers library, tiny and random, from a local folder."""

import copy
import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

transformers = pytest.importorskip("transformers", reason="needs the extra transformers")

from tttvideo.backbone import Backbone  # noqa: E402
from tttvideo.encoder import Transformers  # noqa: E402
from tttvideo.mixers import TTT  # noqa: E402
from tttvideo.model import ModelConfig, VideoModel  # noqa: E402
from tttvideo.pretrained import from_pretrained  # noqa: E402
from tttvideo.tasks import Classification  # noqa: E402
from tttvideo.ttt import FrameCausal  # noqa: E402
from tttvideo.video.transforms import Preprocessing  # noqa: E402

TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
IMAGE = {**TINY, "image_size": 32, "patch_size": 8, "intermediate_size": 32}
KINDS = {
    "V-JEPA 2": lambda t: t.VJEPA2Model(
        t.VJEPA2Config(
            **TINY, patch_size=8, crop_size=32, frames_per_clip=4, pred_hidden_size=16, pred_num_attention_heads=2,
            pred_num_hidden_layers=1,
        )
    ),
    "VideoMAE": lambda t: t.VideoMAEModel(t.VideoMAEConfig(**IMAGE, num_frames=4)),
    "VideoPrism": lambda t: t.VideoPrismVisionModel(
        t.VideoPrismVisionConfig(
            hidden_size=16, num_attention_heads=2, intermediate_size=32, image_size=32, num_frames=4,
            tubelet_size=[1, 8, 8], num_spatial_layers=1, num_temporal_layers=1, num_auxiliary_layers=0,
        )
    ),
    "DINOv3": lambda t: t.DINOv3ViTModel(t.DINOv3ViTConfig(**IMAGE, num_register_tokens=3)),
    "SigLIP": lambda t: t.SiglipVisionModel(t.SiglipVisionConfig(**IMAGE)),
}  # fmt: skip
VIDEO = ("V-JEPA 2", "VideoMAE", "VideoPrism")
MEAN, STD = [0.2, 0.3, 0.4], [0.5, 0.25, 0.2]


def folder(kind, path):
    torch.manual_seed(0)
    KINDS[kind](transformers).save_pretrained(path)
    name = "video_preprocessor_config.json" if kind in VIDEO else "preprocessor_config.json"
    (path / name).write_text(json.dumps({"image_mean": MEAN, "image_std": STD}))
    return str(path)


def model_of(encoder):
    torch.manual_seed(1)
    backbone = Backbone(width=16, depth=1, mixer=TTT(heads=2, chunk=FrameCausal(frames=1)))
    config = ModelConfig(encoder.resolved(()), backbone, Classification())
    return VideoModel(config, preprocessing=Preprocessing(size=(32, 32)), labels=["a", "b"]).double().eval()


def clip(frames, batch=1):
    return torch.randint(
        0, 256, (batch, frames, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(2)
    )


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@torch.no_grad()
def test_tokens_are_those_of_the_model_in_its_own_preprocessing(kind, tmp_path):
    name = folder(kind, tmp_path)
    encoder = model_of(Transformers(name, grid=(4, 4))).encoder
    window = 4 if kind in VIDEO else 1
    assert encoder.stride == window
    frames = clip(2 * window)
    got, _, _ = encoder(frames, None, encoder.init_state(1))
    own = KINDS[kind](transformers)  # another seed: the weights must come from the folder
    own = type(own).from_pretrained(name).double().eval()
    x = (frames / 255.0 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    for step in range(2):
        part = x[:, step * window : (step + 1) * window].double()
        if kind == "V-JEPA 2":
            tokens = own.get_vision_features(part)
        else:
            tokens = own(part if kind in VIDEO else part[:, 0]).last_hidden_state
        tokens = tokens[:, -(tokens.shape[1] // 16) * 16 :].unflatten(1, (-1, 16)).mean(1)
        expected = encoder.projection(tokens) + encoder.position
        assert torch.allclose(got[:, step], expected, atol=1e-5)


@torch.no_grad()
def test_streamed_is_whole_and_the_last_window_is_moved_back(kind, tmp_path):
    model = model_of(Transformers(folder(kind, tmp_path)))
    frames = clip(11)
    whole, _ = model(frames)
    state, at = None, 0
    for count in (4, 4, 3):
        streamed, state = model(frames[:, at : at + count], state=state)
        at += count
    assert torch.allclose(streamed.logits, whole.logits, atol=1e-12)
    padded, _ = model(torch.cat([frames, clip(11)]), torch.tensor([11, 2]))
    assert torch.allclose(padded.logits[:1], whole.logits, atol=1e-12)
    if kind in VIDEO:
        encoder = model.encoder
        last = encoder(frames, None, encoder.init_state(1))[0][:, -1]
        moved = encoder(frames[:, -4:], None, encoder.init_state(1))[0][:, 0]
        assert torch.allclose(last, moved, atol=1e-12)
        short = encoder(frames[:, :2], None, encoder.init_state(1))[0]
        again = encoder(frames[:, [0, 1, 1, 1]], None, encoder.init_state(1))[0]
        assert torch.allclose(short, again, atol=1e-12)
        with pytest.raises(ValueError, match="cut streams at multiples"):
            model(frames[:, :4], state=state)


def test_a_checkpoint_does_not_need_the_folder(kind, tmp_path):
    model = model_of(Transformers(folder(kind, tmp_path / "model"))).float()
    model.save_pretrained(tmp_path / "checkpoint")
    (tmp_path / "model").rename(tmp_path / "gone")
    loaded = from_pretrained(tmp_path / "checkpoint")
    with torch.no_grad():
        assert torch.equal(loaded(clip(8))[0].logits, model(clip(8))[0].logits)


def test_frozen_and_trained(kind, tmp_path):
    name = folder(kind, tmp_path)
    frozen, trained = (model_of(Transformers(name, frozen=frozen)).train() for frozen in (True, False))
    assert torch.equal(copy.deepcopy(frozen)(clip(8))[0].logits, frozen(clip(8))[0].logits)  # as a moving average does
    assert not any(p.requires_grad for p in frozen.encoder.model.parameters())
    assert not frozen.encoder.model.training
    trained.loss(trained(clip(8))[0], torch.tensor([1])).backward()
    weights = [p for p in trained.encoder.model.parameters() if p.requires_grad]
    assert len(weights) > 10
    assert all(p.grad is not None for p in weights)


def test_wrong_input_is_one_sentence(tmp_path):
    name = folder("VideoMAE", tmp_path / "a")
    with pytest.raises(ValueError, match=r"divides into patches of 8 x 8.*set data\.size"):
        Transformers(name).build((30, 32), 16)
    with pytest.raises(ValueError, match=r"set data\.size to the model's \(32\)"):
        Transformers(name).build((64, 64), 16)
    with pytest.raises(ValueError, match=r"\); leave encoder\.window out \(the model was trained with windows of 4"):
        Transformers(name, window=8).build((32, 32), 16)
    image = folder("DINOv3", tmp_path / "b")
    with pytest.raises(ValueError, match=r"reads images, so encoder\.window is 4 in vain"):
        Transformers(image, window=4).build((32, 32), 16)
    (tmp_path / "b" / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=r"no preprocessor_config\.json with image_mean"):
        Transformers(image).build((32, 32), 16)
    with pytest.raises(ValueError, match=r"none, which is no folder; correct encoder\.name"):
        Transformers(str(tmp_path / "none")).build((32, 32), 16)
    transformers.BertModel(transformers.BertConfig(**TINY, intermediate_size=16)).save_pretrained(tmp_path / "c")
    with pytest.raises(ValueError, match="of type bert"):
        Transformers(str(tmp_path / "c")).build((32, 32), 16)


def test_the_last_blocks_of_a_frozen_model_learn(kind, tmp_path):
    model = model_of(Transformers(folder(kind, tmp_path), trainable=1)).train()
    model.loss(model(clip(8))[0], torch.tensor([1])).backward()
    net, (block,) = model.encoder.model, model.encoder.trained_blocks
    assert {name for name, p in net.named_parameters() if p.grad is not None} == set(block)
    assert len({re.match(r".*?\.\d+\.", name)[0] for name in block}) == 1, "one item of one list"
    assert not any("predictor" in name for name in block)
    assert {module.training for module in net.modules()} == {False, True}
    with pytest.raises(ValueError, match=r"encoder.trainable is 9, and .* has \d blocks"):
        model_of(Transformers(folder(kind, tmp_path), trainable=9))


@pytest.mark.parametrize(
    ("file", "text", "sentence"),
    [
        ("video_preprocessor_config.json", "{", r"video_preprocessor_config\.json cannot be read, or gives no"),
        ("video_preprocessor_config.json", '{"image_mean": null, "image_std": 1}', "image_mean of three .* got null"),
        ("video_preprocessor_config.json", '{"image_mean": [0, 0, 0, 0], "image_std": 1}', "image_mean of three"),
        ("video_preprocessor_config.json", '{"image_mean": "0.5", "image_std": 1}', "image_mean of three"),
        ("video_preprocessor_config.json", '{"image_mean": [NaN, 0, 0], "image_std": 1}', "image_mean of three"),
        ("video_preprocessor_config.json", '{"image_mean": 0, "image_std": [0, 0, 0]}', "image_std of .* above 0"),
        ("config.json", '{"model_type": "videomae", "num_frames": 0}', "num_frames of at least 1"),
        ("config.json", "{}", r"the folder needs a sound config\.json"),
        ("model.safetensors", "half", r"the folder needs a sound config\.json and model\.safetensors"),
    ],
)
def test_damaged_settings_of_a_folder_are_one_sentence(file, text, sentence, tmp_path):
    name = folder("VideoMAE", tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(ValueError, match=sentence):
        Transformers(name).build((32, 32), 16)


def test_one_number_is_that_of_all_colours(tmp_path):
    name = folder("VideoMAE", tmp_path)
    (tmp_path / "video_preprocessor_config.json").write_text('{"image_mean": 0.5, "image_std": 0.25}')
    encoder = Transformers(name).build((32, 32), 16)
    assert encoder.statistics == ((0.5,) * 3, (0.25,) * 3)


def test_weights_in_half_precision_are_read_in_single(kind, tmp_path):
    name = folder(kind, tmp_path)
    whole = model_of(Transformers(name)).encoder.model.state_dict()
    KINDS[kind](transformers).from_pretrained(name).half().save_pretrained(name)
    half = Transformers(name).resolved(())
    for load in (True, False):
        encoder = half.build((32, 32), 16, load=load)
        assert {p.dtype for p in encoder.parameters()} == {torch.float32}
        assert encoder(clip(4), None, encoder.init_state(1))[0].isfinite().all()
    weights = half.build((32, 32), 16).model.state_dict()
    assert all(torch.allclose(weights[key], whole[key].float(), atol=1e-3) for key in whole)


def test_weights_that_are_never_used_do_not_tell_caches_apart(tmp_path, capfd):
    """Of V-JEPA 2 without a predictor, which is drawn anew at each start."""
    name = folder("V-JEPA 2", tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    weights = {key: weight for key, weight in load_file(file).items() if "predictor" not in key}
    save_file(weights, file, {"format": "pt"})
    keys = set()
    for seed in (0, 1):
        torch.manual_seed(seed)
        encoder = Transformers(name, cache=str(tmp_path / "cache")).build((32, 32), 16)
        keys.add(encoder.reading(Preprocessing(size=(32, 32))).key)
    assert len(keys) == 1
    assert "predictor" not in "".join(capfd.readouterr()), "no report of what is missing"
    first = next(key for key in weights if "encoder" in key)
    save_file(weights | {first: weights[first] + 1}, file, {"format": "pt"})
    encoder = Transformers(name, cache=str(tmp_path / "cache")).build((32, 32), 16)
    assert encoder.reading(Preprocessing(size=(32, 32))).key not in keys
