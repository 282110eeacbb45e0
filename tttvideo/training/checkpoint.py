"""Checkpoints: written atomically, the last few and the best kept, and all that exact resume needs inside.

    checkpoints/index.json                   which is last, which is best, by what rule and on which split
    checkpoints/step-00000120/
        config.json, model.safetensors       the model to use (moving average if on); `from_pretrained` reads it
        progress.json                        position in the run, what must be equal for it to mean the same, and a
                                             checksum of every file
        training_state/                      trained weights, optimizer, loss scale (state.py)

A checkpoint is complete or absent: it is written beside its place under a name that starts with a dot,
flushed to disk and renamed. A kill leaves at worst such a dotted folder, which the next start removes. Checksums
are compared before anything is read, so that damage by the disk is noticed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..files import parse_json, write_text
from ..model import ModelConfig
from ..plain import from_plain, public_names, to_plain
from ..serialize import read_index
from ..video.transforms import Preprocessing
from .config import ConfigError
from .position import CHECKPOINT_NAME, PROGRESS, Progress, name_of, read_position, sealed
from .run_folder import writing

STATE = "training_state"


@dataclass(frozen=True)
class Rule:
    """How the best checkpoint is chosen; recorded beside it.

    Args:
        metric: key of the validation metrics; None where nothing is validated.
        split: name of the split that decides.
        split_rule: the sentence that says how the split was made.
        part: the part of the split that decides, such as "the first 64 frames of 20 of 200 videos"; "": all of it.
    """

    metric: str | None
    split: str
    split_rule: str
    lower: bool = False  # whether lower figures are better
    videos: str = ""  # fingerprint of the videos that decide: unlike the sentence, it stays when the folder moves
    part: str = ""

    def __str__(self) -> str:
        if not self.metric:
            return "the last step, as nothing was validated"
        part = f" of {self.part}" if self.part else ""
        return f"{'lowest' if self.lower else 'highest'} {self.split} {self.metric}{part}"


class Checkpoints:
    """The checkpoints of one run folder.

    Args:
        folder: R/checkpoints.
        keep: how many of the latest stay.
        rule: how the best is chosen.
        trained_on: fingerprints of the training videos (`training_marks`), by which evaluation recognises them.
        frame_rate: median frame rate of the training videos as read, in Hz; None: unknown.
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

    def chosen(self, resume: str) -> Path | None:
        """The checkpoint that `--resume` means: auto, or the name of one.

        Raises:
            ConfigError: there is none of that name.
        """
        self.mend()
        if resume == "auto":
            return self.last()
        name = Path(resume).name
        if len(Path(resume).parts) > 1 and Path(resume).resolve().parent != self.folder.resolve():
            raise ConfigError(
                f"resume: {resume} is no checkpoint of {self.folder.parent}; give the --out of its run, or start from "
                "its weights with --init_from"
            )
        if name not in self._names():
            there = ", ".join(self._names()) or "none"
            raise ConfigError(f"resume: {self.folder} holds no checkpoint {name}; there are {there}")
        return self.folder / name

    def clean(self, resumed: Path | None, progress: Progress) -> list[str]:
        """Remove the remains of interrupted writes and removals, and set aside checkpoints later than `resumed`, or the
        next resume would begin at those; returns their new names.

        Args:
            resumed: the checkpoint that the run goes on from, whose position is `progress`; None: it begins.
        """
        with writing(self.folder):
            for leftover in self.folder.glob(".*"):
                if leftover.is_dir() and not leftover.is_symlink():
                    shutil.rmtree(leftover)
                else:
                    leftover.unlink()
            later = [name for name in self._names() if resumed is None or name > resumed.name]
            if later and resumed:  # first: the index never names what is set aside
                self._write_index(progress, resumed.name)
            for name in later:
                shutil.rmtree(self.folder / f"aside-{name}", ignore_errors=True)
                (self.folder / name).rename(self.folder / f"aside-{name}")
        return [f"aside-{name}" for name in later]

    def mend(self) -> None:
        """Finish putting a checkpoint in the place of another of the same position, where a kill came in between."""
        for old in self.folder.glob(".step-*.old"):
            written, name = old.with_name(old.name.removesuffix(".old")), old.name[1:].removesuffix(".old")
            if written.exists() and not (self.folder / name).exists():
                written.rename(self.folder / name)

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
    ) -> Progress:
        """Write the checkpoint of a position. Called by the main process.

        Args:
            progress: the position.
            metrics: validation figures at this position, if it was validated.
            save_model: writes config.json and model.safetensors into a folder, with provenance.
            save_state: writes what training needs besides into a folder.

        Returns:
            The progress, with this checkpoint as the best if the rule says so.

        Raises:
            StorageError: it cannot be written; what was there stays.
        """
        name = name_of(progress.step)
        if self.rule.metric is None:
            progress = replace(progress, best=name)
        elif metrics and self.improves(progress, metrics):
            progress = replace(progress, best=name, best_value=metrics[self.rule.metric])
        provenance = {
            "step": progress.step,
            "epochs": progress.epoch,
            "metrics": metrics or {},
            "measured_part": self.rule.part,
            "split": self.rule.split,
            "split_rule": self.rule.split_rule,
            "trained_on": self.trained_on,
            "frame_rate": self.frame_rate,
            "clip_frames": self.clip_frames,
        }
        temporary, final = self.folder / f".{name}", self.folder / name
        try:
            with writing(final):
                shutil.rmtree(temporary, ignore_errors=True)
                (temporary / STATE).mkdir(parents=True)
                save_state(temporary / STATE)
                save_model(temporary, provenance)
                write_text(temporary / PROGRESS, sealed(progress, temporary), durable=True)
                _flush_tree(temporary)
                if final.exists():  # the same position, now validated: the new one replaces it
                    final.rename(self.folder / f".{name}.old")
                temporary.rename(final)
                _flush(self.folder)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)  # on a full disk it is in the way
            raise
        self._write_index(progress, name)
        with writing(self.folder):
            self._prune(progress)
        return progress

    def read(self, checkpoint: Path, fixed: dict[str, Any], model_config: dict[str, Any]) -> Progress:
        """The position a checkpoint was written at, after checking that it is whole and belongs to the run as
        configured now.

        Args:
            checkpoint: a folder of this class.
            fixed: what must be equal for the position to mean the same samples.
            model_config: the model's config.json as it would be written now ("model", "labels", ...).

        Raises:
            ConfigError: damaged, another architecture, other labels, another number of processes, ...
        """
        try:
            progress = read_position(checkpoint)
            saved = parse_json((checkpoint / "config.json").read_bytes())
            parts = {part: _completed(saved.get(part)) for part in ("model", "preprocessing", "labels", "multi_label")}
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise self.damaged(checkpoint, error) from error
        for part, old_part in parts.items():
            difference = first_difference(old_part, model_config.get(part), part)
            if difference:
                key, old, new = difference
                key = key.replace(".init_args", "").removesuffix(".class_path")
                raise ConfigError(
                    f"cannot resume from {checkpoint}, which holds another model: {key} is {old} there and "
                    f"{new} now; resume with the settings in the run's config.yaml, or give another --out"
                )
        optimizer = {key: value for key, value in fixed.items() if key.startswith("optimizer.")}
        difference = first_difference(optimizer | progress.fixed, fixed, "")  # earlier versions did not keep these
        if difference:
            key, old, new = difference
            why = (
                "its optimizer's state would not fit"
                if key in optimizer
                else "its position would not mean the same samples"
            )
            raise ConfigError(
                f"cannot resume from {checkpoint}: it was saved with {key} = {old} and this start has {new}, "
                f"so {why}; start as before, or give another --out"
            )
        if self.forgets():
            progress = replace(progress, best=None, best_value=None)
        if progress.best is not None and not (self.folder / progress.best).is_dir():
            progress = replace(progress, best=None)
        return progress

    def damaged(self, checkpoint: Path, why: object) -> ConfigError:
        """The error of a checkpoint that cannot be used, with what to go on from."""
        whole = None
        for name in reversed(self._names()):
            if name != checkpoint.name and whole is None:
                try:
                    read_position(self.folder / name)
                    whole = name
                except (OSError, ValueError, TypeError, AttributeError, RecursionError):
                    continue
        todo = f"go on from {whole} with --resume {whole}" if whole else "no other one is whole: give another --out"
        reason = " ".join(str(why).split())[:200] or type(why).__name__
        if isinstance(why, OSError) and why.strerror:
            reason = f"{Path(why.filename or checkpoint).name}: {why.strerror}"
        return ConfigError(f"{checkpoint} is damaged and cannot be resumed from: {reason}; {todo}")

    def forgets(self) -> str | None:
        """Why the best value so far says nothing any more (a sentence), or None if it does."""
        file = self.folder / "index.json"
        if not file.exists():
            return None
        try:
            index = read_index(
                file,
                "delete it and start again: it is written anew, and the best checkpoint so far stands in the "
                "checkpoints too",
            )
        except ValueError as error:
            raise ConfigError(str(error)) from None
        # a run started before fingerprints were kept is compared by the sentence
        key = "videos" if index.get("videos") and self.rule.videos else "split_rule"
        now = {"rule": str(self.rule), "split": self.rule.split, key: getattr(self.rule, key, None)}
        if all(index.get(name) == value for name, value in now.items()):
            return None
        return (
            f"the best checkpoint so far is forgotten, as it was chosen otherwise: by {index['rule']} "
            f"({index['split_rule']})"
        )

    def _names(self) -> list[str]:
        if not self.folder.is_dir():
            return []
        return sorted(p.name for p in self.folder.glob("step-*") if CHECKPOINT_NAME.fullmatch(p.name) and p.is_dir())

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
        with writing(self.folder / "index.json"):
            write_text(self.folder / "index.json", json.dumps(index, indent=2) + "\n", durable=True)

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
    """A description completed with the defaults of fields that its classes gained later."""
    try:
        return to_plain(from_plain(saved))
    except (ValueError, TypeError):  # of a user's own class, or of another version: as it stands
        return public_names(saved)


def first_difference(old: Any, new: Any, key: str) -> tuple[str, Any, Any] | None:
    """The first place where two trees of plain data differ: (dotted key, old value, new value)."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in {**old, **new}:
            below = f"{key}.{name}" if key else str(name)
            difference = first_difference(old.get(name), new.get(name), below)
            if difference:
                return difference
        return None
    if isinstance(old, list | tuple) and isinstance(new, list | tuple):
        if len(old) != len(new):
            return (f"the length of {key}", len(old), len(new))
        for i, (a, b) in enumerate(zip(old, new)):
            difference = first_difference(a, b, f"{key}[{i}]")
            if difference:
                return difference
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
