"""Output of a run: lines of its logs, points in the trackers, and its progress on the screen."""

from __future__ import annotations

import math
import threading
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

from ..plain import to_plain
from ..video.dataset import Failure
from ..video.index import Index
from . import memory
from .checkpoint import Progress
from .config import RunConfig
from .launch import TENSORBOARD
from .loop import StepResult
from .progress import Display, clock
from .run_folder import RunFolder, Skipped, writing

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.tracking import GeneralTracker


PROJECT = "tttvideo"
"""Of the runs in trackers that keep projects."""

CHANCE_AFTER = 300
"""Optimizer steps after which a training accuracy at chance is said."""


class Record:
    """Every process calls it; the leader writes and shows.

    Args:
        logged: the figures that the task logs besides the loss.
        total_steps: of the whole run.
        progress: where it begins.
        chance: accuracy of guessing on the training videos; None where there is none.

    Attributes:
        unreadable: of each split, the first video that could not be read.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        accelerator: Accelerator,
        *,
        logged: tuple[str, ...],
        total_steps: int,
        progress: Progress,
        chance: float | None = None,
    ):
        self.config = config
        self.folder = folder
        self.accelerator = accelerator
        self.leader = accelerator.is_main_process
        self.logged = logged
        self.chance = chance
        self._steps = progress.step  # at the end of the last epoch
        self.display = Display(main=self.leader, total_steps=total_steps, done_steps=progress.step)
        self.unreadable: dict[str, Skipped] = {}
        self._excepthook = threading.excepthook

    def say(self, sentence: str) -> None:
        self.display.say(sentence)
        self.keep(sentence)

    def keep(self, sentence: str) -> None:
        """A line for the run folder alone."""
        if self.leader:
            self.folder.console.append(sentence)

    def open_trackers(self, done_steps: int) -> None:
        """Hides from TensorBoard what an interrupted run drew beyond `done_steps`. Other trackers get the settings; a
        resumed run is a new one there, of the same group."""
        if not self.config.trackers:
            return
        threading.excepthook = self._failed_thread
        for tracker in self.accelerator.log_with:
            if getattr(tracker, "name", None) == TENSORBOARD:
                tracker.init_kwargs = {"purge_step": done_steps + 1}  # type: ignore[attr-defined]
        name = self.folder.path.resolve().name
        with writing(self.folder.path / TENSORBOARD):
            self.accelerator.init_trackers(PROJECT, init_kwargs={"wandb": {"name": name, "group": name}})
        settings = _flat(to_plain(self.config))
        for tracker in self.accelerator.trackers:
            if tracker.name != TENSORBOARD:
                tracker.store_init_configuration(settings)

    def step(self, number: int, result: StepResult) -> None:
        """A step's line in steps.jsonl, its points in the trackers, and the line of progress."""
        totals, step = result.progress.totals, result.progress.step
        figures = {"loss": result.loss, **result.figures, "lr": result.lr}
        if self.leader:
            norm = {"grad_norm": result.grad_norm, "frames": result.frames}
            self.folder.steps.append({"step": step, "epoch": number, **figures, **norm})
        means = self._means(totals)
        if step % self.config.log_every == 0:
            points = {**figures, "grad_norm": result.grad_norm} | {f"mean_{k}": v for k, v in means.items()}
            self._track({f"train/{k}": v for k, v in points.items()}, step)
        rate = totals["frames"] / totals["seconds"]
        if line := self.display.step(number, self.config.schedule.epochs, step, means, rate):
            self.keep(line)

    def epoch(self, progress: Progress, lr: float, metrics: dict[str, float] | None) -> None:
        """An epoch's line in log.jsonl, its points in the trackers, and its line on the console.

        Args:
            progress: at the end of the epoch, not yet counted as done.
            lr: of its last step.
            metrics: of its validation, if there was one.
        """
        self.warn_of_chance(progress)
        number, totals, means = progress.epoch + 1, progress.totals, self._means(progress.totals)
        line: dict[str, Any] = {
            "epoch": number,
            "step": progress.step,
            **{f"train_{name}": value for name, value in means.items()},
            **{f"val_{name}": value for name, value in (metrics or {}).items()},
            "frames_per_second": totals["frames"] / totals["seconds"],
            "seconds": totals["seconds"],
            "skipped": int(totals["failed"]),
            "lr": lr,
            "peak_memory_mb": memory.peak_mb(self.accelerator.device),
        }
        if self.leader:
            self.folder.log.append(line)
        self._track({f"epoch/{k}": v for k, v in line.items() if k != "step"}, progress.step)
        measured = "  ".join(f"{name} {value:.4g}" for name, value in (metrics or {}).items())
        self.say(
            f"epoch {number}/{self.config.schedule.epochs}  "
            + "  ".join(f"{name} {value:.4f}" for name, value in means.items())
            + f"  {line['frames_per_second']:,.0f} frames/s  {clock(totals['seconds'])}"
            + (f"  | {self.config.data.split_val}: {measured}" if metrics else "")
        )

    def warn_of_chance(self, progress: Progress) -> None:
        """Says, once, that the first `CHANCE_AFTER` steps have taught nothing, at the end of the epoch they end in."""
        before, self._steps = self._steps, progress.step
        accuracy, counted = self._means(progress.totals).get("accuracy"), progress.totals["counted"]
        if self.chance is None or accuracy is None or not before < CHANCE_AFTER <= progress.step:
            return
        error = math.sqrt(self.chance * (1 - self.chance) / max(counted, 1))
        if accuracy <= self.chance + 2 * error:
            self.say(
                f"note: after {progress.step} steps the training accuracy is {accuracy:.2f}, and guessing reaches "
                f"{self.chance:.2f}; what usually helps: more steps (schedule.steps), another optimizer.lr, what moves "
                "in place of pictures (ConvStem's inputs: motion), a frozen pre-trained encoder (--config "
                "folder-pretrained)"
            )

    def skip(self, index: Index, failures: list[Failure]) -> None:
        """List videos that could not be read, each once."""
        skipped = []
        for failure in failures:
            video = index.videos[failure.index]
            reason = failure.reason.removeprefix(f"{failure.path}: ")
            skipped.append(Skipped(failure.path, reason, video.start, video.end))
        if skipped:
            self.unreadable.setdefault(index.split, skipped[0])
        for video in self.folder.skip(index.split, skipped) if self.leader and skipped else []:
            self.say(f"skipped {video.path}: {video.reason}")

    def refuse_nothing_learned(self, progress: Progress, train: Index, least_frames: int) -> None:
        """A run of which no video could be used must not look like a success: raises ValueError."""
        if progress.totals["counted"]:
            return
        count, first = len(train.videos), self.unreadable.get(train.split)
        if first is None:
            raise ValueError(
                f"each of the {count} training videos is too short to learn from: the task's "
                f"settings need {least_frames} frames or more; change them, and add --resume auto"
            )
        raise ValueError(f"none of the {count} training videos could be read (first: {first.path}: {first.reason})")

    def close_trackers(self) -> None:
        for tracker in self.accelerator.trackers:
            with self._writing(tracker):
                tracker.finish()

    def close(self, error: BaseException | None) -> None:
        if error is not None:
            with suppress(OSError):
                self.keep(f"ended by {type(error).__name__}: {' '.join(str(error).split())}")
        threading.excepthook = self._excepthook
        self.display.close()
        self.folder.close()

    def _failed_thread(self, failure: threading.ExceptHookArgs) -> None:
        """TensorBoard's thread that writes fails in public, and then in `_track`, which tells it."""
        if not (isinstance(failure.exc_value, OSError) and type(failure.thread).__module__.startswith("tensorboard.")):
            self._excepthook(failure)

    def _track(self, figures: dict[str, float], step: int) -> None:
        for tracker in self.accelerator.trackers:
            with self._writing(tracker):
                tracker.log(figures, step=step)

    def _writing(self, tracker: GeneralTracker) -> AbstractContextManager[None]:
        return writing(self.folder.path / TENSORBOARD) if tracker.name == TENSORBOARD else nullcontext()

    def _means(self, totals: dict[str, float]) -> dict[str, float]:
        """Loss and the task's figures, per video (or what else counts) so far."""
        return {name: totals[name] / max(totals["counted"], 1) for name in ("loss", *self.logged)}


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    """Plain settings by dotted key, a class by its name."""
    if isinstance(value, dict) and set(value) == {"class_path", "init_args"}:
        name = {f"{key}.class": value["class_path"]} if key else {}
        return name | _flat(value["init_args"], key)
    if isinstance(value, dict):
        parts = (_flat(item, f"{key}.{name}" if key else name) for name, item in value.items())
        return {name: item for part in parts for name, item in part.items()}
    return {key: value if value is None or isinstance(value, (bool, int, float, str)) else str(value)}
