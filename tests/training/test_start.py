"""`--init_from`: what is loaded, resized and left, said in a table; what does not fit is refused."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.evaluation.small import small_model
from tests.test_weights_from_others import WORDS, ttt_lm_folder
from tttvideo.encoder import Patches, Tubelets
from tttvideo.mixers import LinearAttention
from tttvideo.model import ModelConfig, VideoModel
from tttvideo.training.config import ConfigError
from tttvideo.training.start import POSITION, start_from
from tttvideo.ttt_lm import read_ttt_lm
from tttvideo.video.transforms import Preprocessing


def like(config, size=(32, 32), labels="abc"):
    torch.manual_seed(1)
    return VideoModel(config, preprocessing=Preprocessing(size=size), labels=list(labels))


def rows(start):
    """Of each part: loaded, resized, left."""
    words = [line.split() for line in start.lines()]
    return {row[0]: tuple(map(int, row[1:4])) for row in words if row[0] in ("encoder", "backbone", "head")}


def test_weights_that_are_not_finite_or_may_not_be_read_are_refused(source, monkeypatch):
    model, path = source
    with torch.no_grad():
        model.backbone.norm.weight[0] = torch.nan
    model.save_pretrained(path)
    with pytest.raises(ConfigError, match=r"backbone\.norm\.weight in .* not finite, so its weights are damaged"):
        start_from(like(model.config), path)
    Path(path, "model.safetensors").write_bytes(b"")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may read everything
    with pytest.raises(ValueError, match="cannot be read: this user has no permission to"):
        start_from(like(model.config), path)


@pytest.fixture
def source(tmp_path):
    model = small_model()
    model.save_pretrained(tmp_path / "source")
    return model, str(tmp_path / "source")


def test_positions_are_resized_to_frames_of_another_size(source):
    there, path = source
    with torch.no_grad():  # a plane over the grid of 2 x 2, whose values a finer grid lies between
        there.encoder.position.copy_(torch.tensor([0.0, 1.0, 2.0, 3.0])[:, None].expand_as(there.encoder.position))
    there.save_pretrained(path)
    here = like(there.config, size=(64, 96))
    start = start_from(here, path)
    assert start.resized == {POSITION: "2 x 2 -> 4 x 6"}
    plane = here.encoder.position.detach().unflatten(0, (4, 6))
    assert bool((plane.diff(dim=0) > 0).all() and (plane.diff(dim=1) > 0).all())
    assert float(plane.mean()) == pytest.approx(1.5, abs=1e-5)
    encoder, backbone, head = (len(part.state_dict()) for part in (here.encoder, here.backbone, here.head))
    assert rows(start) == {"encoder": (encoder - 1, 1, 0), "backbone": (backbone, 0, 0), "head": (0, 0, head)}
    assert all(t.equal(there.backbone.state_dict()[key]) for key, t in here.backbone.state_dict().items())
    assert any("tensors of the checkpoint are not used: head." in line for line in start.lines())


def test_as_many_places_in_another_order_are_resized_too(source):
    there, path = source
    start_from(here := like(there.config, size=(32, 64)), path)
    here.save_pretrained(path)
    turned = like(there.config, size=(64, 32))
    assert start_from(turned, path).resized == {POSITION: "2 x 4 -> 4 x 2"}
    assert not torch.equal(turned.encoder.position, here.encoder.position)


def test_another_encoder_starts_afresh_and_another_backbone_is_refused(source):
    there, path = source
    for encoder in (Tubelets(patch=16, frames=2), Patches(patch=8)):
        here = like(ModelConfig(encoder=encoder, backbone=there.config.backbone))
        before = {key: t.clone() for key, t in here.encoder.state_dict().items()}
        start = start_from(here, path)
        assert all(t.equal(before[key]) for key, t in here.encoder.state_dict().items())
        assert rows(start)["encoder"] == (0, 0, len(before))
        assert rows(start)["backbone"][1:] == (0, 0)
        assert not start.resized
        assert any("of another shape" in line for line in start.lines())
    other = replace(there.config.backbone, mixer=LinearAttention())
    with pytest.raises(ConfigError, match="does not fit this model's, which has another architecture"):
        start_from(like(ModelConfig(encoder=Patches(patch=16), backbone=other)), path)


def test_the_backbone_of_a_language_model(tmp_path):
    path = ttt_lm_folder(tmp_path / "lm", "mamba")
    language = read_ttt_lm(path)
    here = like(ModelConfig(encoder=Patches(patch=16), backbone=language.config))
    start = start_from(here, str(path))
    assert all(torch.equal(t, language.tensors[key].to(t.dtype)) for key, t in here.backbone.state_dict().items())
    assert rows(start)["encoder"][0] == 0
    assert rows(start)["backbone"] == (len(language.tensors), 0, 0)
    assert sorted(start.unused) == WORDS
    assert {start.left[name] for name in start.left if name.startswith("encoder.")} == {"the checkpoint has none"}
    here(torch.zeros(1, 3, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(ConfigError, match=r"give it the settings in tttvideo\.ttt_lm\.read_ttt_lm"):
        start_from(small_model(), str(path))
