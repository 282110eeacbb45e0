"""Models of many timm families, random weights, as encoders: what the encoder reads is the model's own last map."""

import math

import pytest
import timm
import torch

from tests.helpers import video_model
from tttvideo.encoder import Timm
from tttvideo.training.config import OptimizerConfig
from tttvideo.training.optimizer import build_optimizer

QUICK = ["test_vit", "test_convnext", "test_efficientnet", "test_byobnet", "test_resnet"]
"""timm's own tiny test models: tokens, maps with the channels last within, and a last convolution that counts."""
FAMILIES = [
    *("hiera_tiny_224", "hieradet_small", "fastvit_t8", "efficientnet_lite0", "ghostnet_050", "hrnet_w18_small"),
    *("mobilenetv3_small_050", "mobilevit_xxs", "swin_tiny_patch4_window7_224", "swinv2_cr_tiny_ns_224", "levit_128s"),
    *("crossvit_tiny_240", "cait_xxs24_224", "convit_tiny", "coat_tiny", "edgenext_xx_small", "efficientformer_l1"),
    *("efficientvit_b0", "efficientvit_m0", "eva02_tiny_patch14_224", "deit_tiny_distilled_patch16_224", "pit_ti_224"),
    *("vit_tiny_patch16_dinov3_qkvb", "regnetx_002", "repvit_m0_9", "mixer_s32_224", "davit_tiny", "focalnet_tiny_srf"),
    *("poolformer_s12", "resnet10t", "inception_next_atto", "xcit_nano_12_p16_224", "tiny_vit_5m_224", "dla46x_c"),
]


def _gives_a_map(model, size) -> bool:
    features = model.forward_features(torch.zeros(1, 3, *size))
    return isinstance(features, torch.Tensor) and features.dim() == 4


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES)])
def test_a_family_is_read_to_its_last_layer(name):
    if not timm.is_model(name):
        pytest.skip(f"this timm has no {name}")
    model = timm.create_model(name, num_classes=0)
    size = model.pretrained_cfg["input_size"][1:]
    config = Timm(name=name, pretrained="false", grid=(2, 2))
    if not hasattr(model, "forward_intermediates") and not _gives_a_map(model, size):
        with pytest.raises(ValueError, match=f"{name} has no feature map of its frames; use another model"):
            config.build(size, 8)
        return  # timm 1.0.20; later ones have it for all of these
    encoder = config.build(size, 8)
    frames = torch.rand(2, 3, *size)
    with torch.no_grad():
        maps = encoder._pooled(frames)
        own = encoder.model.forward_features(frames)
    assert maps.shape[2:] == (2, 2)
    assert maps.isfinite().all()
    if not isinstance(own, torch.Tensor):  # several rows of tokens (crossvit, coat): the last of them
        return
    assert maps.shape[1] == encoder.model.num_features  # nothing behind the map is dropped
    if own.dim() == 3:
        own = own[:, own.shape[1] - math.isqrt(own.shape[1]) ** 2 :]  # without class and register tokens
        expected = own.mean(1)
    else:
        expected = own.mean((1, 2)) if own.shape[-1] == maps.shape[1] != own.shape[1] else own.mean((2, 3))
    side = round(own.shape[1] ** 0.5) if own.dim() == 3 else min(sorted(own.shape)[1:3])
    if side % 2 == 0:  # pools of equal size: their mean is the mean of all tokens
        assert torch.allclose(maps.mean((2, 3)), expected, atol=1e-4, rtol=1e-4)


def test_a_file_of_the_initial_weights_is_a_file_of_weights(tmp_path):
    torch.manual_seed(0)  # the seed that the model itself starts from
    donor = timm.create_model("test_vit", num_classes=0)
    torch.save(donor.state_dict(), tmp_path / "weights.pth")
    encoder = Timm("test_vit", pretrained=str(tmp_path / "weights.pth"), grid=(2, 2)).build((160, 160), 8)
    assert all(torch.equal(a, b) for a, b in zip(encoder.model.parameters(), donor.parameters(), strict=True))
    tensors = donor.state_dict()
    del tensors["norm.bias"]  # not only matrices count
    torch.save(tensors, tmp_path / "fewer.pth")
    with pytest.raises(ValueError, match="1 of 78 are not in it"):
        Timm("test_vit", pretrained=str(tmp_path / "fewer.pth"), grid=(2, 2)).build((160, 160), 8)


class Plant:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


def test_a_file_with_code_is_refused_and_does_not_run(tmp_path):
    torch.save({"model": Plant(tmp_path / "it-ran")}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="holds Python objects, which would run its code"):
        Timm("test_vit", pretrained=str(tmp_path / "weights.pth"), grid=(2, 2)).build((160, 160), 8)
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize("name", QUICK)
def test_the_last_blocks_of_a_frozen_encoder_learn(name):
    """The others have no gradient, no graph, and stay in evaluation mode: their statistics do not move."""
    encoder = Timm(name=name, pretrained="false", grid=(1, 1), trainable=1).build((64, 64), 8).train()
    net = encoder.model
    before = {key: value.clone() for key, value in net.state_dict().items()}
    saved = []
    frames = torch.rand(2, 3, 3, 64, 64)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
        tokens = encoder(frames, None, encoder.init_state(2))[0]
    torch.manual_seed(0)
    (tokens * torch.randn_like(tokens)).sum().backward()  # a plain sum has no gradient through a norm
    learned = {key for key, weight in net.named_parameters() if weight.grad is not None and weight.grad.any()}
    (block,) = encoder.trained_blocks
    assert learned
    assert learned <= set(block)
    assert set(block) < {key for key, _ in net.named_parameters()}
    assert {key for key, weight in net.named_parameters() if weight.requires_grad} <= set(block)
    moved = {key.rpartition(".")[0] for key, value in net.state_dict().items() if not torch.equal(value, before[key])}
    assert moved <= {key.rpartition(".")[0] for key in block}
    if name == "test_efficientnet":
        assert moved, "the trained block's own statistics follow"
    whole = []
    everything = Timm(name=name, pretrained="false", grid=(1, 1), frozen=False).build((64, 64), 8).train()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: whole.append(x.numel()) or x, lambda x: x):
        everything(frames, None, everything.init_state(2))
    assert len(saved) < 0.7 * len(whole)
    assert encoder.feature_shape is None  # what is trained is no target, and is not kept


def test_each_trained_block_is_a_layer_of_its_own():
    model = video_model(
        encoder=Timm(name="test_vit", pretrained="false", grid=(2, 2), trainable=2), size=(64, 64), depth=2
    )
    optimizer = build_optimizer(model, OptimizerConfig(lr=1.0, layer_decay=0.5))
    scale = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    rates = {name: scale[id(p)] for name, p in model.named_parameters() if p.requires_grad}
    assert rates["head.classifier.weight"] == rates["backbone.norm.weight"] == 1
    assert rates["backbone.blocks.0.mlp.up.weight"] == 0.5
    first, second = model.encoder.trained_blocks
    assert {rates[f"encoder.model.{name}"] for name in first} == {0.125}
    assert {rates[f"encoder.model.{name}"] for name in second} == {0.25} == {rates["encoder.projection.weight"]}
    assert "norm.weight" in second  # what follows the last block


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"trainable": 99}, r"encoder.trainable is 99, and test_vit has \d+ blocks; lower it, or train all of it"),
        ({"trainable": -1}, "encoder.trainable must be 0"),
        ({"trainable": 1, "frozen": False}, "encoder.frozen: false trains all blocks"),
        ({"trainable": 1, "cache": "features"}, "set encoder.frozen: true and encoder.trainable: 0, or"),
    ],
)
def test_blocks_that_cannot_be_trained(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Timm(name="test_vit", pretrained="false", grid=(1, 1), **settings).build((64, 64), 8)


def test_a_net_whose_blocks_timm_does_not_tell_apart(monkeypatch):
    monkeypatch.delattr(timm.models.VisionTransformer, "group_matcher")
    with pytest.raises(ValueError, match="timm does not tell the blocks of test_vit apart"):
        Timm(name="test_vit", pretrained="false", grid=(1, 1), trainable=1).build((64, 64), 8)
