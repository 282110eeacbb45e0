"""Checkpoints: written atomically, the last few and the best kept, and all that exact resume needs inside.

    checkpoints/index.json                   which is last, which is best, by what rule and on which split
    checkpoints/step-00000120/
        config.json, model.safetensors       the model to use (moving average if on); `from_pretrained` reads
        it progress.json                        position in the run, and what must be equal for it to mean
        the same training_state/                      accelerate's: trained weights, optimizer, moving
        average, loss scale

A checkpoint is complete or absent: it is written beside its place under a name that starts with a dot,
flushed to disk and renamed. A kill leaves at worst such a dotted folder, which the next start removes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tttvideo.model import ModelConfig
from tttvideo.serialize import from_plain, public_names, to_plain
from tttvideo.training.config import ConfigError
from tttvideo.training.run_folder import write_atomically
from tttvideo.video.transforms import Preprocessing

STATE = "training_state"


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


@dataclass(frozen=True)
class Rule:
    """How the best checkpoint is chosen; recorded beside it.

    Args:
        metric: key of the validation metrics; None where nothing is validated.
        split: name of the split that decides.
        split_rule: the sentence that says how the split was made.
    """

    metric: str | None
    split: str
    split_rule: str
    lower: bool = False  # whether lower figures are better
    videos: str = ""  # fingerprint of the videos that decide: unlike the sentence, it stays when the folder moves

    def __str__(self) -> str:
        if not self.metric:
            return "the last step, as nothing was validated"
        return f"{'lowest' if self.lower else 'highest'} {self.split} {self.metric}"


class Checkpoints:
    """The checkpoints of one run folder.

    Args:
        folder: R/checkpoints.
        keep: how many of the latest stay.
        rule: how the best is chosen.
        trained_on: marks of the training videos (`training_marks`); evaluation knows them again by these.
        frame_rate: at which those were read, in Hz, where that is known.
        clip_frames: frames of a usual training clip; evaluation counts lengths in it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int,
        rule: Rule,
        trained_on: str | None = None,
        frame_rate: float | None = None,
        clip_frames: int | None = None,
    ):
        self.folder = folder
        self.keep = keep
        self.rule = rule
        self.trained_on = trained_on
        self.frame_rate = frame_rate
        self.clip_frames = clip_frames

    def last(self) -> Path | None:
        """The latest complete checkpoint."""
        names = self._names()
        return self.folder / names[-1] if names else None

    def clean(self) -> None:
        """Remove what a killed write or a killed removal left."""
        for leftover in self.folder.glob(".*"):
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()

    def improves(self, progress: Progress, metrics: dict[str, float] | None) -> bool:
        """Whether these figures would make a new best checkpoint (the earliest of equals stays)."""
        if not metrics or self.rule.metric is None:
            return False
        if progress.best_value is None:
            return True
        value = metrics[self.rule.metric]
        return value < progress.best_value if self.rule.lower else value > progress.best_value

    def save(
        self,
        progress: Progress,
        metrics: dict[str, float] | None,
        *,
        save_model: Callable[[Path, dict[str, Any]], None],
        save_state: Callable[[Path], object],
        barrier: Callable[[], None],
        main: bool,
    ) -> Progress:
        """Write the checkpoint of a position. Called by all processes together.

        Args:
            progress: the position.
            metrics: validation figures at this position, if it was validated.
            save_model: writes config.json and model.safetensors into a folder, with provenance (main
            process).
            save_state: writes accelerate's state into a folder (all processes).
            barrier: waits for all processes.
            main: whether this is the main process.

        Returns:
            The progress, with this checkpoint as the best if the rule says so.
        """
        name = f"step-{progress.step:08d}"
        if self.rule.metric is None:
            progress = replace(progress, best=name)
        elif metrics and self.improves(progress, metrics):
            progress = replace(progress, best=name, best_value=metrics[self.rule.metric])

        temporary = self.folder / f".{name}"
        if main:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(temporary, ignore_errors=True)
            (temporary / STATE).mkdir(parents=True)
        barrier()
        save_state(temporary / STATE)
        barrier()
        if main:
            provenance = {
                "step": progress.step,
                "epochs": progress.epoch,
                "metrics": metrics or {},
                "split": self.rule.split,
                "split_rule": self.rule.split_rule,
                "trained_on": self.trained_on,
                "frame_rate": self.frame_rate,
                "clip_frames": self.clip_frames,
            }
            save_model(temporary, provenance)
            write_atomically(temporary / "progress.json", json.dumps(asdict(progress), indent=2))
            _flush_tree(temporary)
            final = self.folder / name
            if final.exists():  # the same position, now validated: the new one replaces it
                final.rename(self.folder / f".{name}.old")
            temporary.rename(final)
            _flush(self.folder)
            self._write_index(progress, name)
            self._prune(progress)
        barrier()
        return progress

    def read(self, checkpoint: Path, fixed: dict[str, Any], model_config: dict[str, Any]) -> Progress:
        """The position a checkpoint was written at, after checking that it belongs to the run as configured
        now.

        Args:
            checkpoint: a folder of this class.
            fixed: what must be equal for the position to mean the same samples.
            model_config: the model's config.json as it would be written now ("model", "labels", ...).

        Raises:
            ConfigError: another architecture, other labels, another number of processes, ...
        """
        try:
            progress = Progress(**json.loads((checkpoint / "progress.json").read_text(encoding="utf-8")))
            saved = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"{checkpoint} is damaged and cannot be resumed from: {error}") from error
        for part in ("model", "preprocessing", "labels", "multi_label"):
            difference = first_difference(_completed(saved.get(part)), model_config.get(part), part)
            if difference:
                key, old, new = difference
                key = key.replace(".init_args", "").removesuffix(".class_path")
                raise ConfigError(
                    f"cannot resume from {checkpoint}, which holds another model: {key} is {old} there and "
                    f"{new} now; resume with the settings in the run's config.yaml, or give another --out"
                )
        difference = first_difference(progress.fixed, fixed, "")
        if difference:
            key, old, new = difference
            raise ConfigError(
                f"cannot resume from {checkpoint}: it was saved with {key} = {old} and this start has {new}, "
                "so its position would not mean the same samples; start as before, or give another --out"
            )
        if self.forgets():
            progress = replace(progress, best=None, best_value=None)
        if progress.best is not None and not (self.folder / progress.best).is_dir():
            progress = replace(progress, best=None)
        return progress

    def forgets(self) -> str | None:
        """Why the best value so far says nothing any more (a sentence), or None if it does."""
        try:
            index = json.loads((self.folder / "index.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        # a run started before fingerprints were kept is compared by the sentence
        key = "videos" if index.get("videos") and self.rule.videos else "split_rule"
        now = {"rule": str(self.rule), "split": self.rule.split, key: getattr(self.rule, key, None)}
        if all(index.get(name) == value for name, value in now.items()):
            return None
        return (
            f"the best checkpoint so far is forgotten, as it was chosen otherwise: by {index.get('rule')} "
            f"({index.get('split_rule')})"
        )

    def _names(self) -> list[str]:
        if not self.folder.is_dir():
            return []
        return sorted(p.name for p in self.folder.glob("step-*") if (p / "progress.json").is_file())

    def _write_index(self, progress: Progress, last: str) -> None:
        index = {
            "best": progress.best,
            "best_value": progress.best_value,
            "rule": str(self.rule),
            "split": self.rule.split,
            "split_rule": self.rule.split_rule,
            "videos": self.rule.videos,
            "last": last,
        }
        write_atomically(self.folder / "index.json", json.dumps(index, indent=2) + "\n")

    def _prune(self, progress: Progress) -> None:
        for name in self._names()[: -self.keep]:
            if name != progress.best:
                # renamed first, so that a kill cannot leave half a checkpoint under a valid name
                doomed = self.folder / f".{name}.old"
                (self.folder / name).rename(doomed)
        for doomed in self.folder.glob(".*.old"):
            shutil.rmtree(doomed)


def describe(model: ModelConfig, preprocessing: Preprocessing, labels: list[str], multi_label: bool) -> dict[str, Any]:
    """The part of a checkpoint's config.json that must be the same to resume from it."""
    return {
        "model": to_plain(model),
        "preprocessing": to_plain(preprocessing),
        "labels": labels,
        "multi_label": multi_label,
    }


def _completed(saved: Any) -> Any:
    """A description with the fields that were added to its classes since, at their defaults: what it meant."""
    try:
        return to_plain(from_plain(saved))
    except (ValueError, TypeError):  # of a user's own class, or of another version: as it stands
        return public_names(saved)


def first_difference(old: Any, new: Any, key: str) -> tuple[str, Any, Any] | None:
    """The first place where two trees of plain data differ: (dotted key, old value, new value)."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in {**old, **new}:
            below = f"{key}.{name}" if key else str(name)
            found = first_difference(old.get(name), new.get(name), below)
            if found:
                return found
        return None
    if isinstance(old, list | tuple) and isinstance(new, list | tuple):
        if len(old) != len(new):
            return (f"the length of {key}", len(old), len(new))
        for i, (a, b) in enumerate(zip(old, new)):
            found = first_difference(a, b, f"{key}[{i}]")
            if found:
                return found
        return None
    return None if old == new else (key, old, new)


def _flush_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        _flush(path)
    _flush(folder)


def _flush(path: Path) -> None:
    """fsync a file or a directory (a rename is durable once its directory is)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
