"""The authors' recorded layers: outputs to 1e-6, all gradients to 1e-5 (shared/reference, when present)."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tttvideo.ttt.convert import from_ttt_lm, our_name

REFERENCE = Path(__file__).resolve().parents[2] / ".." / "shared" / "reference" / "ttt_lm"


RECORDINGS = ["ttt_linear", "ttt_mlp", "ttt_mlp_mamba"]


@pytest.mark.parametrize("name", RECORDINGS)
def test_from_ttt_lm(name):
    compare_with_recording(name)


def compare_with_recording(name, **changed):
    """The layer with the authors' weights, its configuration ``changed``, against what theirs put out."""
    path = REFERENCE / f"{name}.safetensors"
    if not path.exists():
        pytest.skip("recorded reference tensors are not here (../shared/reference)")
    with safe_open(path, "pt") as file:
        meta = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    parameters = {k.removeprefix("param."): v for k, v in tensors.items() if k.startswith("param.")}
    layer = from_ttt_lm(
        parameters,
        num_heads=int(meta["H"]),
        mini_batch_size=int(meta["mini_batch_size"]),
        base_lr=float(meta["ttt_base_lr"]),
        rope_theta=float(meta["rope_theta"]),
    )
    layer.layer.config = dataclasses.replace(layer.layer.config, **changed)
    x = tensors["x"].clone().requires_grad_()
    y = layer(x)
    assert (y - tensors["y"]).abs().max() <= 1e-6
    (y * tensors["loss_weight"]).sum().backward()
    assert (x.grad - tensors["grad.x"]).abs().max() <= 1e-5
    found = dict(layer.layer.named_parameters())
    for theirs in parameters:
        grad = found[our_name(theirs)].grad.reshape(parameters[theirs].shape)
        expected = tensors[f"grad.{theirs}"]
        assert (grad - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max())), theirs
    assert set(found) == {our_name(k) for k in parameters}


def small():
    """A layer of the authors' shapes: two heads of 4, mini-batches of 3."""
    shapes = {"W1": (2, 4, 4), "b1": (2, 1, 4), "learnable_token_idx": (3,), "ttt_norm_weight": (2, 4)}
    shapes |= {"ttt_norm_bias": (2, 4), "learnable_ttt_lr_weight": (2, 1, 8), "learnable_ttt_lr_bias": (2, 1)}
    shapes |= {f"{name}_proj.weight": (8, 8) for name in "qkvo"} | {f"post_norm.{n}": (8,) for n in ("weight", "bias")}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def test_shapes_and_names_are_checked():
    options = {"num_heads": 2, "mini_batch_size": 3, "base_lr": 1.0}
    assert from_ttt_lm(small(), **options)(torch.randn(2, 7, 8)).shape == (2, 7, 8)
    for name in small():
        with pytest.raises(ValueError, match="layer"):
            from_ttt_lm({k: v for k, v in small().items() if k != name}, **options)
    with pytest.raises(ValueError, match="mini-batch of 4"):
        from_ttt_lm(small(), **{**options, "mini_batch_size": 4})
    with pytest.raises(ValueError, match="no place"):
        from_ttt_lm({**small(), "extra": torch.zeros(1)}, **options)


def test_missing_tensor_is_named():
    with pytest.raises(ValueError, match="W1"):
        from_ttt_lm({"q_proj.weight": torch.eye(4)}, num_heads=1, mini_batch_size=2, base_lr=1.0)
