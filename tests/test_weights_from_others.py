"""Checkpoints of the authors' own models, against what those put out (tests/recorded)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.helpers import distance, recorded
from tttvideo.mixers import TTT
from tttvideo.ttt import MLP, FrameCausal, Linear, TokenCausal, convert
from tttvideo.ttt.convert import from_ttt_video
from tttvideo.ttt.interface import Layout
from tttvideo.ttt_lm import read_ttt_lm

RECORDED = Path(__file__).parent / "recorded"
WORDS = ["embed_tokens.weight", "lm_head.weight"]


def checkpoint_of(tensors):
    return {name.removeprefix("checkpoint."): t for name, t in tensors.items() if name.startswith("checkpoint.")}


def ttt_lm_folder(folder, name, parts=1, **changed):
    """A checkpoint folder as ttt-lm's ``save_pretrained`` makes it, in one or several files."""
    folder.mkdir(exist_ok=True)
    with safe_open(RECORDED / f"ttt_lm_whole_{name}.safetensors", "pt") as file:
        settings = json.loads(file.metadata()["config"]) | changed
    (folder / "config.json").write_text(json.dumps(settings))
    tensors = checkpoint_of(recorded(f"ttt_lm_whole_{name}"))
    for part in range(parts):
        save_file(dict(list(tensors.items())[part::parts]), folder / f"model-{part + 1:05}-of-{parts:05}.safetensors")
    return folder


def agrees(run, tensors):
    """Outputs and the gradient with respect to the input; GELU's constants and norms in float32 are theirs."""
    x = tensors["x"].requires_grad_()
    y = run(x)
    assert distance(y, tensors["y"]) <= 1e-6
    (gradient,) = torch.autograd.grad((y * tensors["weight"]).sum(), x)
    assert distance(gradient, tensors["grad.x"]) <= 1e-5 * (1 + float(tensors["grad.x"].abs().max()))


@pytest.mark.parametrize(("name", "inner", "mamba"), [("mamba", MLP(), True), ("transformer", Linear(), False)])
def test_a_whole_checkpoint_of_ttt_lm(name, inner, mamba, tmp_path):
    """Two blocks, two mini-batches of 8 tokens and five tokens more, in one file and in parts."""
    tensors = recorded(f"ttt_lm_whole_{name}")
    one, parts = (read_ttt_lm(ttt_lm_folder(tmp_path / f"{n}", name, parts=n)) for n in (1, 3))
    assert sorted(one.left) == sorted(parts.left) == WORDS
    assert one.config == parts.config
    assert (one.config.depth, one.config.width, one.config.mlp_ratio, one.config.norm) == (2, 16, 2.5, "rms")
    mixer = one.config.mixer
    assert (mixer.inner, mixer.chunk, mixer.heads) == (inner, TokenCausal(8), 2)
    assert (one.config.pre_conv, mixer.share_qk, mixer.gate) == (mamba,) * 3
    stack = parts.build()
    agrees(lambda x: stack(x)[0], tensors)
    torch.save(checkpoint_of(tensors), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_bytes((tmp_path / "1" / "config.json").read_bytes())
    assert all(t.equal(one.tensors[key]) for key, t in read_ttt_lm(tmp_path).tensors.items())


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"model_type": "llama"}, "give the folder of a ttt-lm checkpoint"),
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps 1e-05; expected 1e-06"),
        ({"ttt_base_lr": "fast"}, "ttt_base_lr 'fast'; expected a number"),
    ],
)
def test_settings_of_ttt_lm_that_ours_lacks(changed, sentence, tmp_path):
    folder = ttt_lm_folder(tmp_path, "transformer", **changed)
    with pytest.raises(ValueError, match=sentence):
        read_ttt_lm(folder)


def test_a_checkpoint_of_ttt_lm_with_tensors_of_other_shapes(tmp_path):
    folder = ttt_lm_folder(tmp_path, "transformer")
    (file,) = folder.glob("*.safetensors")
    tensors = checkpoint_of(recorded("ttt_lm_whole_transformer"))
    layer = "model.layers.0."
    names = (f"{layer}seq_modeling_block.W1", f"{layer}seq_modeling_block.learnable_token_idx")
    for name in (*names, f"{layer}mlp.up_proj.weight", "model.norm.weight"):
        for wrong in (torch.tensor(1.0), torch.ones(2, 3), torch.ones(0)):
            save_file({**tensors, name: wrong}, file)
            with pytest.raises(ValueError, match=r"does not fit|cannot divide|is odd"):
                read_ttt_lm(folder)


def test_a_checkpoint_of_ttt_lm_that_is_not_whole(tmp_path):
    folder = ttt_lm_folder(tmp_path, "transformer", parts=3)
    (folder / "model-00002-of-00003.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match=r"00002-of-00003\.safetensors cannot be read"):
        read_ttt_lm(folder)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match=r"missing|nothing for"):
        read_ttt_lm(folder)


def test_the_layer_of_ttt_video_turned_by_frame_row_and_column():
    """Outputs and all gradients, whole and frame by frame."""
    tensors = recorded("ttt_video_layer_3d")
    layer, left = from_ttt_video(checkpoint_of(tensors), base_lr=0.1, rope_theta=10000.0)
    assert not left
    x, layout = tensors["x"].requires_grad_(), Layout((2, 3))
    y = layer(x, None, layout)[0]
    assert distance(y, tensors["y"]) <= 1e-7
    state, pieces = None, []
    for frame in x.split(6, 1):
        piece, state = layer(frame, state, layout)
        pieces.append(piece)
    assert distance(torch.cat(pieces, 1), y) <= 1e-12
    unturned, _ = from_ttt_video(checkpoint_of(tensors), base_lr=0.1)
    assert distance(unturned(x, None, layout)[0], y) > 1e-2
    expected = {"x": tensors["grad.x"]}
    for theirs in checkpoint_of(tensors):
        expected[convert._TTT_VIDEO[f"ssm.ttt.{theirs}"]] = tensors[f"gradient.{theirs}"]
    leaves = {"x": x, **dict(layer.named_parameters())}
    assert leaves.keys() == expected.keys()
    gradients = torch.autograd.grad((y * tensors["weight"]).sum(), list(leaves.values()))
    for key, gradient in zip(leaves, gradients, strict=True):
        value = expected[key]
        assert distance(gradient.reshape(value.shape), value) <= 1e-6 * (1 + float(value.abs().max())), key


@pytest.mark.parametrize(("name", "rate"), [("mlp", 0.1), ("linear", 1.0)])
def test_the_layer_of_ttt_video(name, rate):
    """Their layer with biases and its forward gate, chunks of 6 tokens: frames of 2 x 3."""
    tensors = recorded(f"ttt_video_layer_{name}")
    block = checkpoint_of(tensors)
    attention = {"q.weight": torch.zeros(1), "backward_ssm_gating_video.gating_alpha": torch.zeros(16)}
    layer, left = from_ttt_video({**block, **attention}, base_lr=rate)
    assert left == sorted(attention)
    assert isinstance(layer.config, TTT)
    assert (layer.config.chunk, layer.config.bias, layer.config.objective.eps) == (FrameCausal(1), True, 1e-8)
    agrees(lambda x: layer(x, None, Layout((2, 3)))[0], tensors)
    own = {key.removeprefix("ssm.ttt."): t for key, t in block.items() if key.startswith("ssm.ttt.")}
    ungated, left = from_ttt_video(own, base_lr=rate)
    y = ungated(tensors["x"], None, Layout((2, 3)))[0] * block["forward_ssm_gating_video.gating_alpha"].tanh()
    assert not left
    assert distance(y, tensors["y"]) <= 1e-6
    for lost in own:
        with pytest.raises(ValueError, match=r"missing|not the whole|no place|does not fit"):
            from_ttt_video({key: t for key, t in own.items() if key != lost}, base_lr=rate)
