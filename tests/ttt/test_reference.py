"""The authors' recorded layers: outputs to 1e-6, all gradients to 1e-5 (shared/reference, when present)."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tttvideo.ttt.convert import from_ttt_lm, our_name

REFERENCE = Path(__file__).resolve().parents[2] / ".." / "shared" / "reference" / "ttt_lm"


@pytest.mark.parametrize("name", ["ttt_linear", "ttt_mlp", "ttt_mlp_mamba"])
def test_from_ttt_lm(name):
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


def test_missing_tensor_is_named():
    with pytest.raises(ValueError, match="W1"):
        from_ttt_lm({"q_proj.weight": torch.eye(4)}, num_heads=1, mini_batch_size=2, base_lr=1.0)
