"""What training needs besides the model that is saved: trained weights, optimizer, loss scale.

The moving average, where there is one, is the model that is saved. Nothing here is ever unpickled freely: weights are
safetensors, the rest is read with `weights_only`. Randomness needs no state (`randomness.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..serialize import save_weights

WEIGHTS, OPTIMIZER, SCALER = "model.safetensors", "optimizer.bin", "scaler.pt"


def save_state(folder: Path, model: nn.Module, optimizer: Any, scaler: Any) -> None:
    """Write the state into `folder`.

    Args:
        model: not wrapped for several processes.
        scaler: of the loss in fp16, or None.
    """
    save_weights(model, folder)
    torch.save(optimizer.state_dict(), folder / OPTIMIZER)
    if scaler is not None:
        torch.save(scaler.state_dict(), folder / SCALER)


def load_state(folder: Path, model: nn.Module, optimizer: Any, scaler: Any) -> None:
    """Read what `save_state` wrote, or accelerate in earlier versions.

    Raises:
        Exception: whatever a damaged file makes the libraries raise.
    """
    from safetensors.torch import load_file

    # accelerate wrote the names of a wrapped model on several processes
    weights = {name.removeprefix("module."): tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    model.load_state_dict(weights)
    optimizer.load_state_dict(_plain(folder / OPTIMIZER))
    if scaler is not None:
        scaler.load_state_dict(_plain(folder / SCALER))


def _plain(path: Path) -> Any:
    """Tensors, numbers and containers of them. Raises ValueError for anything else, before it is built."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch's text recommends to read it with weights_only off
        raise ValueError(f"{path.name} is cut short, or holds something other than tensors and numbers") from error
