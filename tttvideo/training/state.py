"""Training state beside the saved model: trained weights, optimizer, loss scale.

The moving average, where there is one, is the model that is saved. Nothing here is ever unpickled freely: weights are
safetensors, the rest is read with `weights_only`. Randomness needs no state (`randomness.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..serialize import save_weights

ROWS = "segment_states.safetensors"
WEIGHTS, OPTIMIZER, SCALER = "model.safetensors", "optimizer.bin", "scaler.pt"


def save_state(
    folder: Path,
    model: nn.Module,
    optimizer: Any,
    scaler: Any,
    rows: Sequence[dict[str, Tensor]] | None = None,
) -> None:
    """Write the state into `folder`.

    Args:
        model: not wrapped for several processes.
        scaler: of the loss in fp16, or None.
        rows: what the rows of each process carry from batch to batch (`Trainer.states`).
    """
    from safetensors.torch import save_file

    save_weights(model, folder)
    if rows is not None:
        save_file({f"{rank}.{k}": tensor for rank, own in enumerate(rows) for k, tensor in own.items()}, folder / ROWS)
    torch.save(optimizer.state_dict(), folder / OPTIMIZER)
    if scaler is not None:
        torch.save(scaler.state_dict(), folder / SCALER)


def load_state(folder: Path, model: nn.Module, optimizer: Any, scaler: Any) -> None:
    """Read what `save_state` wrote, or accelerate in earlier versions.

    Raises:
        Exception: any that the libraries raise for a damaged file.
    """
    from safetensors.torch import load_file

    # accelerate wrote the names of a wrapped model on several processes
    weights = {name.removeprefix("module."): tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    model.load_state_dict(weights)
    # An optimizer's options are what it was built with (`defaults`), and changed ones count; not so the learning rate,
    # which is the schedule's, and what only counts (the step of adan and lamb is no option).
    options = [key for key in optimizer.defaults if key not in ("lr", "lookahead_step")]
    present = [{key: group[key] for key in options if key in group} for group in optimizer.param_groups]
    optimizer.load_state_dict(_plain(folder / OPTIMIZER))
    for group, now in zip(optimizer.param_groups, present, strict=True):
        group.update(now)
    if scaler is not None:
        scaler.load_state_dict(_plain(folder / SCALER))


def load_rows(folder: Path, rank: int) -> dict[str, Tensor]:
    """What the rows of a process carried. Raises as `load_state`."""
    from safetensors.torch import load_file

    start = f"{rank}."
    return {name.removeprefix(start): t for name, t in load_file(folder / ROWS).items() if name.startswith(start)}


def _plain(path: Path) -> Any:
    """Tensors, numbers and containers of them. Raises ValueError for anything else, before it is built."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch's text recommends to read it with weights_only off
        raise ValueError(f"{path.name} is cut short, or holds something other than tensors and numbers") from error
