"""Where a model runs, and beside how many other processes."""

from __future__ import annotations

import os

import torch


def choose_device(name: str | None) -> torch.device | None:
    """The device of that name, tried; None where none is named.

    Raises:
        ValueError: where it cannot be used.
    """
    if name is None:
        return None
    if name.isdigit():
        raise ValueError(f"--device {name} is no device; write cuda:{name}, or cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name} cannot be used here: {reason}") from None
    return device


def best_device() -> torch.device:
    """The accelerator, where there is one."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def started_processes() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def one_process() -> None:
    """
    Raises:
        ValueError: if several processes were started.
    """
    if (started := started_processes()) > 1:
        raise ValueError(f"{started} processes were started, but this command runs in one; leave torchrun out")


def join_processes(wanted: torch.device | None) -> tuple[torch.device, int, int]:
    """This process's device, its number, and how many there are.

    Raises:
        ValueError: if the processes that were started did not come together.
    """
    from accelerate import PartialState
    from accelerate.utils import str_to_bool

    # Without cpu=True, accelerate silently makes single processes of those that torchrun started on a CPU.
    asked = bool(str_to_bool(os.environ.get("ACCELERATE_USE_CPU", "false")))
    accelerated = torch.accelerator.is_available()
    state = PartialState(cpu=asked or not accelerated or (wanted is not None and wanted.type == "cpu"))
    if state.num_processes != started_processes():
        raise ValueError(f"{started_processes()} processes were started, but accelerate joined {state.num_processes}")
    own: torch.device = state.device  # type: ignore[assignment]  # with the index of this very process
    device = own if wanted is None or (wanted.type == own.type and wanted.index is None) else wanted
    return device, state.process_index, state.num_processes
