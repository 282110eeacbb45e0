"""The position of a run, and the file of a checkpoint that holds it, with checksums of itself and all other files."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import file_checksum, parse_json
from ..serialize import CHECKPOINT_NAME

if TYPE_CHECKING:
    from .config import RunConfig

PROGRESS = "progress.json"


@dataclass(frozen=True)
class Progress:
    """A position between two optimizer steps.

    Args:
        epoch: epochs completed, validation included.
        batch: batches done in the present epoch, by each process.
        step: optimizer steps done since the start.
        totals: sums over the present epoch so far (loss, the task's figures, how much counted in them, frames,
            failed, seconds).
        best: name of the best checkpoint so far, and its value.
        fixed: what a position depends on (processes, batch size, seed, videos, ...); must be equal to resume.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    totals: dict[str, float] = field(default_factory=dict)
    best: str | None = None
    best_value: float | None = None
    fixed: dict[str, Any] = field(default_factory=dict)


def depends_on(config: RunConfig, processes: int, batches: int, videos: str) -> dict[str, Any]:
    """`Progress.fixed` of a run: what must stay for a position to mean the same samples, and for the optimizer's state
    beside it to fit (keys with "optimizer.").

    Args:
        batches: of an epoch, of each process.
        videos: fingerprint of the training videos.
    """
    fixed = {
        "processes": processes,
        "data.batch_size": config.data.batch_size,
        "accumulate": config.accumulate,
        "seed": config.seed,
        "batches per epoch": batches,
        "the training videos' fingerprint": videos,
        "optimizer.name": config.optimizer.name,
        "optimizer.layer_decay": config.optimizer.layer_decay,
    }
    if config.training.carries:
        fixed["training.segment_frames"] = config.training.segment_frames
    return fixed


def read_position(checkpoint: Path) -> Progress:
    """The position that a checkpoint holds, after verifying the checksums of all its files.

    Raises:
        OSError, ValueError, TypeError, RecursionError: the checkpoint is damaged; why.
    """
    if not (checkpoint / PROGRESS).is_file():  # nor may it be a pipe, which would be waited for
        raise ValueError(f"{PROGRESS} is missing")
    content = parse_json((checkpoint / PROGRESS).read_bytes())
    if not isinstance(content, dict):
        raise ValueError(f"{PROGRESS} is no JSON object")
    files = content.pop("files", {})  # none in a checkpoint of an earlier version
    if "checksum" in content and content.pop("checksum") != _checksum_of(content, files):
        raise ValueError(f"{PROGRESS} is not as it was written")
    if missing := [item.name for item in fields(Progress) if item.name not in content]:
        raise ValueError(f"{PROGRESS} has no {missing[0]!r}")
    progress = Progress(**content)
    _refuse_absurd(progress)
    if name_of(progress.step) != checkpoint.name:
        raise ValueError(f"{PROGRESS} is of step {progress.step}")
    for name, checksum in files.items():
        if not (checkpoint / name).is_file():
            raise ValueError(f"{name} is missing")
        if file_checksum(checkpoint / name) != checksum:
            raise ValueError(f"{name} is not as it was written")
    return progress


def _refuse_absurd(progress: Progress) -> None:
    """Raises ValueError for a position that no run can have."""
    for name in ("epoch", "batch", "step"):
        value = getattr(progress, name)
        if type(value) is not int or value < 0:
            raise ValueError(f"{PROGRESS} says {name} {value!r}, which is no whole number of at least 0")
    numbers = [*progress.totals.values()] if isinstance(progress.totals, dict) else [None]
    numbers += [progress.best_value] if progress.best_value is not None else []
    if not all(type(number) in (int, float) for number in numbers):
        raise ValueError(f"{PROGRESS} holds sums that are no numbers")
    if progress.batch and not {"loss", "frames", "seconds"} <= progress.totals.keys():
        raise ValueError(f"{PROGRESS} lacks the sums of the epoch that it is in")
    if not isinstance(progress.fixed, dict):
        raise ValueError(f"{PROGRESS} does not say what the position depends on")
    if not (progress.best is None or (isinstance(progress.best, str) and CHECKPOINT_NAME.fullmatch(progress.best))):
        raise ValueError(f"{PROGRESS} names {progress.best!r} as the best checkpoint")
    batches, accumulate = (progress.fixed.get(name) for name in ("batches per epoch", "accumulate"))
    if type(batches) is int and type(accumulate) is int and accumulate > 0:
        steps = progress.epoch * math.ceil(batches / accumulate) + math.ceil(progress.batch / accumulate)
        if progress.batch > batches or steps != progress.step:
            raise ValueError(
                f"{PROGRESS} says step {progress.step}, but {progress.epoch} epochs and {progress.batch} batches of "
                f"{batches}, {accumulate} a step, make {steps}"
            )


def sealed(progress: Progress, folder: Path) -> str:
    """progress.json of a checkpoint whose other files are in `folder`."""
    files = {
        path.relative_to(folder).as_posix(): file_checksum(path) for path in sorted(folder.rglob("*")) if path.is_file()
    }
    content = json.loads(json.dumps(asdict(progress)))
    return json.dumps({**content, "files": files, "checksum": _checksum_of(content, files)}, indent=2)


def _checksum_of(content: dict[str, Any], files: Any) -> str:
    return hashlib.sha256(json.dumps([content, files], sort_keys=True).encode()).hexdigest()


def name_of(step: int) -> str:
    return f"step-{step:08d}"
