"""Starts Accelerate, checks that all started processes train together, and lets the leader act for all."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from ..printing import printable
from .config import ConfigError, RunConfig

if TYPE_CHECKING:
    from accelerate import Accelerator

Result = TypeVar("Result")

CPU_HINT = "on CPU start them with ACCELERATE_USE_CPU=1 torchrun --nproc_per_node N train.py ..."

TENSORBOARD = "tensorboard"

LOST = (
    "another process of this run ended; what it says, or its exit code, is the reason; continue with the same command "
    "and --resume auto"
)


def start(config: RunConfig) -> Accelerator:
    """The run's Accelerator.

    Raises:
        ConfigError: several processes were asked for but Accelerate runs one; a precision this machine does
        not
            have; a tracker that is unknown or not installed.
    """
    from accelerate import Accelerator
    from accelerate.tracking import TensorBoardTracker, get_available_trackers
    from accelerate.utils import GradientAccumulationPlugin

    available = [str(getattr(tracker, "value", tracker)) for tracker in get_available_trackers()]
    for tracker in config.trackers:
        if tracker not in available:
            raise ConfigError(
                f"trackers: {tracker!r} is not available here; installed are {', '.join(available) or 'none'}"
            )
    # by itself: its name is that of a folder of the run, where other trackers take that of a project
    trackers = [
        TensorBoardTracker(TENSORBOARD, str(config.out)) if name == TENSORBOARD else name for name in config.trackers
    ]
    try:
        accelerator = Accelerator(
            mixed_precision="no" if config.precision == "fp32" else config.precision,
            # the loop groups batches itself (exact resume); an explicit plugin also keeps accelerate from
            # dividing the loss by a number found in the environment
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            log_with=trackers or None,
            project_dir=config.out,
        )
    except (ValueError, ImportError) as error:
        raise ConfigError(f"precision {config.precision} does not work here: {error}") from error

    count = accelerator.num_processes
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != count:
        raise ConfigError(f"{started} processes were started but Accelerate runs {count} of them; {CPU_HINT}")
    if config.processes is not None and config.processes != count:
        raise ConfigError(f"processes is {config.processes} but this run has {count}; {CPU_HINT}")
    # `accelerate launch --num_processes 2` sets an address for processes to meet at, and then, on CPU,
    # starts one
    lonely = "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ
    if lonely and config.processes is None and "ACCELERATE_MIXED_PRECISION" in os.environ:
        raise ConfigError(
            "accelerate launch was asked for several processes but started one, as it does on CPU; "
            f"{CPU_HINT}, or say --processes 1 if one is meant"
        )
    return accelerator


def say(sentence: str, every_process: bool = False) -> None:
    """A line on stderr, of the first process alone if all would say the same."""
    if every_process or os.environ.get("RANK", "0") == "0":
        print(printable(sentence), file=sys.stderr, flush=True)


def leave() -> None:
    """Ends what the processes of a run exchange their numbers by."""
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def by_leader(accelerator: Accelerator, action: Callable[[], Result]) -> Result:
    """What the main process's `action` gives, on every process; if it raises a sentence for the user, all raise."""
    error: Exception | None = None
    answer: list = [None, None]
    if accelerator.is_main_process:
        try:
            answer[0] = action()
        except (ValueError, OSError) as raised:
            error, answer[1] = raised, str(raised)
    if accelerator.num_processes > 1:
        from accelerate.utils import broadcast_object_list

        broadcast_object_list(answer)
    if answer[1] is not None:
        raise error or ConfigError(answer[1])
    return answer[0]


def lost_another(error: RuntimeError) -> bool:
    """Whether it says that another process of the run is gone."""
    words = ("gloo", "nccl", "connection closed by peer", "connection reset by peer")
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and any(word in str(error).lower() for word in words)


def torchrun_hint() -> str:
    """What to know of signals under torchrun, where this process is."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return ""
    return (
        " (torchrun itself answers 1, and SIGUSR1 reaches its processes only with "
        "--signals-to-handle SIGTERM,SIGINT,SIGUSR1)"
    )
