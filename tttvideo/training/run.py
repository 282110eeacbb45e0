"""A training run from its settings to its last checkpoint: `Run` is the story, top to bottom."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from ..model import VideoModel
from ..serialize import load_weights, resolve_checkpoint
from ..video.dataset import Failure
from ..video.index import Index, save_labels
from ..video.loader import EpochSampler, Loader, train_loader, val_loader
from ..video.overlap import training_marks
from ..video.reading import damaged_videos_named, usual_length, usual_rate
from . import launch, memory
from .arguments import parse
from .checkpoint import Checkpoints, Progress, Rule, describe
from .config import RunConfig
from .loop import NonFinite, StepResult, Trainer
from .mix import ClipMix
from .optimizer import Schedule, build_optimizer
from .progress import Display, clock
from .run_folder import RunFolder, Skipped, changed_settings, fingerprint
from .validation import score

if TYPE_CHECKING:
    from timm.utils import ModelEmaV3  # pyright: ignore


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the command line says.

    Returns:
        Exit code: 0 done, 1 stopped because the loss is not finite, 2 wrong input, 130 interrupted.
    """
    first = os.environ.get("RANK", "0") == "0"
    try:
        with damaged_videos_named():
            train(*parse(argv))
    except NonFinite as error:
        if first:
            print(f"stopped: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        if first or isinstance(error, OSError):  # a ValueError is the same on every process
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if first:
            print("interrupted: continue with the same command and --resume auto", file=sys.stderr)
        return 130
    return 0


def train(config: RunConfig, yaml: str) -> None:
    """Train as configured; `yaml` is the configuration as text, for the run folder."""
    run = Run(config, yaml)
    run.prepare()
    run.resume()
    try:
        while run.progress.epoch < config.schedule.epochs:
            run.epoch()
    except NonFinite as error:
        good = run.checkpoints.last()
        raise NonFinite(f"{error}; the last good checkpoint is {good or 'none: none was written yet'}") from None
    finally:
        run.close()
    run.finish()


class Run:
    """One training run. Every process has one, and all call the same methods in the same order.

    Wrong input is found by `prepare` and `resume`, by every process alike, before anything is written.

    Attributes:
        progress: the position reached, between two optimizer steps.
        model: as it is trained, not wrapped for several processes.
        ema: moving average of the weights, or None.
    """

    train: Index
    val: Index | None
    train_batches: Loader  # of this process
    val_batches: Loader | None
    rule: Rule
    checkpoints: Checkpoints
    progress: Progress
    model: VideoModel
    ema: ModelEmaV3 | None
    trainer: Trainer
    display: Display

    def __init__(self, config: RunConfig, yaml: str):
        self.config = config
        self.yaml = yaml
        self.task = config.model.task
        self.folder = RunFolder(config.out, resume=config.resume == "auto")
        self.accelerator = launch.start(config)
        self.leader = self.accelerator.is_main_process
        self._unreadable: Skipped | None = None  # the first training video that could not be read

    @property
    def n_batches(self) -> int:
        """Batches of an epoch, of each process."""
        return len(self.train_batches)

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.n_batches // self.config.accumulate)

    def prepare(self) -> None:
        """The videos, the rule by which the best checkpoint is chosen, the checkpoints that there are."""
        self._index()
        self.criterion = self.task.criterion(self.train.multi_label)
        self.rule = Rule(
            metric=self.criterion.metric if self.val else None,
            lower=self.criterion.lower,
            split=self.config.data.split_val,
            split_rule=self.val.rule if self.val else self.train.rule,
            videos=fingerprint(self.val or self.train),
        )
        preprocessing = self.config.data.preprocessing
        paths = [video.path for video in self.train.videos] if self.leader else []
        length = usual_length(paths, preprocessing)
        if length and self.config.data.max_frames:
            length = min(length, self.config.data.max_frames)
        self.checkpoints = Checkpoints(
            self.folder.checkpoints,
            keep=self.config.checkpoint.keep,
            rule=self.rule,
            trained_on=training_marks(self.train.videos) if self.leader else None,
            frame_rate=usual_rate(paths, preprocessing),
            clip_frames=length,
        )

    def _index(self) -> None:
        data, task = self.config.data, self.task
        part = {"rank": self.accelerator.process_index, "world": self.accelerator.num_processes}
        self.train = data.index(data.split_train, labelled=task.labelled)
        self.train_batches = train_loader(data, self.train, seed=self.config.seed, **part)
        self.val = self.val_batches = None
        if self.config.evaluate_every:
            self.val = data.index(
                data.split_val,
                labels=self.train.labels,
                multi_label=self.train.multi_label,
                labelled=task.labelled,
            )
            self.val_batches = val_loader(data, self.val, **part)

    def resume(self) -> None:
        """Stand at the last checkpoint, or at the beginning where there is none; then the first files are written."""
        config, folder = self.config, self.folder
        last = self.checkpoints.last() if config.resume else None
        fixed = {
            "processes": self.accelerator.num_processes,
            "data.batch_size": config.data.batch_size,
            "accumulate": config.accumulate,
            "seed": config.seed,
            "batches per epoch": self.n_batches,
            "the training videos' fingerprint": fingerprint(self.train),
        }
        described = describe(config.model, config.data.preprocessing, self.train.labels, self.train.multi_label)
        self.progress = self.checkpoints.read(last, fixed, described) if last else Progress(fixed=fixed)
        self._build(last)
        if last:
            self.accelerator.load_state(str(last / "training_state"))
        self.accelerator.wait_for_everyone()  # all have looked before the first file is written

        self._introduce(last)
        if self.leader and self.progress.epoch < config.schedule.epochs:  # a finished run stays as it is
            folder.begin(self.yaml, epoch=self.progress.epoch, step=self.progress.step)
            if self.task.labelled:
                save_labels(folder.path / "labels.json", self.train.labels)
            self.checkpoints.clean()
        if config.trackers:
            # hides from TensorBoard what the interrupted run drew beyond the checkpoint
            purge = {"purge_step": self.progress.step + 1}
            self.accelerator.init_trackers("tensorboard", init_kwargs={"tensorboard": purge})
        memory.reset(self.accelerator.device)

    def _build(self, last: Path | None) -> None:
        """The model, its moving average, the optimizer and the schedule, with the weights of a start from nothing."""
        from timm.utils import ModelEmaV3  # pyright: ignore

        config = self.config
        torch.manual_seed(config.seed)
        self.model = VideoModel(
            config.model,
            preprocessing=config.data.preprocessing,
            labels=self.train.labels,
            multi_label=self.train.multi_label,
            load=last is None and not config.init_from,  # pretrained weights are in the checkpoint already
        ).to(self.accelerator.device)
        if config.init_from and last is None:
            load_weights(self.model, resolve_checkpoint(config.init_from), parts=("encoder", "backbone"))
        if config.activation_checkpointing:
            self.model.set_checkpointing(config.activation_checkpointing)
        # before `prepare`: a copy of a prepared model would call the original's forward
        self.ema = ModelEmaV3(self.model, decay=config.ema, use_warmup=True) if config.ema else None
        optimizer = build_optimizer(self.model, config.optimizer)
        model, optimizer = self.accelerator.prepare(self.model, optimizer)
        if self.ema is not None:
            self.accelerator.register_for_checkpointing(self.ema)
        self.trainer = Trainer(
            self.accelerator,
            model,
            optimizer,
            Schedule(optimizer, config.schedule, self.steps_per_epoch),
            ClipMix(config.mix, len(self.train.labels)),
            ema=self.ema,
            accumulate=config.accumulate,
            clip_grad=config.optimizer.clip_grad,
            seed=config.seed,
        )

    def _introduce(self, last: Path | None) -> None:
        """Say what is trained on what, and from where."""
        config, progress, world = self.config, self.progress, self.accelerator.num_processes
        total = self.trainer.schedule.total_steps
        self.display = display = Display(main=self.leader, total_steps=total, done_steps=progress.step)
        classes = f", {len(self.train.labels)} classes" if self.task.labelled else ""
        display.say(f"train  {len(self.train.videos)} videos{classes} ({self.train.rule})")
        if self.val:
            display.say(f"val    {len(self.val.videos)} videos ({self.val.rule}); best checkpoint: {self.rule}")
            if self.criterion.note:
                display.say(f"       {self.criterion.note}")
        display.say(
            f"model  {sum(p.numel() for p in self.model.parameters()):,} parameters; {world} process"
            f"{'es' if world > 1 else ''} on {self.accelerator.device.type}, {config.precision}; "
            f"{self.steps_per_epoch} steps per epoch"
        )
        if source := getattr(self.model.encoder, "source", None):
            display.say(f"encoder {source if last is None and not config.init_from else 'weights from the checkpoint'}")
        if config.init_from and last is None:
            display.say(f"start  encoder and backbone of {resolve_checkpoint(config.init_from)}")
        if last:
            display.say(f"resume {last.name}: epoch {progress.epoch + 1}, batch {progress.batch} of {self.n_batches}")
            for change in changed_settings(self.folder.path / "config.yaml", self.yaml):
                display.say(f"note: changed since the run was started, the curve will differ: {change}")
            if sentence := self.checkpoints.forgets():
                display.say(f"note: {sentence}")
        elif config.resume:
            display.say(f"note: {self.folder.path} holds no checkpoint yet: starting afresh")

    def epoch(self) -> None:
        """The rest of the present epoch, then its validation, its line in the log and its checkpoint."""
        number, every = self.progress.epoch + 1, self.config.checkpoint.every
        order = cast(EpochSampler, self.train_batches.batch_sampler)
        order.set_epoch(self.progress.epoch)
        order.skip(self.progress.batch)
        for result in self.trainer.epoch(self.train_batches, self.n_batches, self.progress):
            self.progress = result.progress
            self._log_step(number, result)
            if every and self.progress.step % every == 0 and self.progress.batch < self.n_batches:
                self.save()

        pause = time.monotonic()
        self._refuse_nothing_learned()
        final = number == self.config.schedule.epochs
        metrics = self.validate() if self.val and (final or number % self.config.evaluate_every == 0) else None
        self._log_epoch(number, result.lr, metrics)
        # Only now is the epoch done.
        self.progress = replace(self.progress, epoch=number, batch=0, totals={})
        due = self.config.checkpoint.each_epoch or (every and self.progress.step % every == 0)
        if due or final or self.checkpoints.improves(self.progress, metrics):
            self.save(metrics)
        self.display.pause(time.monotonic() - pause)

    def validate(self) -> dict[str, float]:
        """Figures of the model that would be saved now, as it would be used: inner rates at full value."""
        assert self.val is not None
        assert self.val_batches is not None
        evaluated = self.trainer.evaluated_model
        evaluated.set_inner_rate(1.0)
        scores = score(evaluated, self.val_batches, self.val, self.accelerator)
        self._skip(self.val, scores.failures)
        return {**self.task.summary(scores.rows, scores.labels, scores.scored), "failed": len(scores.failures)}

    def save(self, metrics: dict[str, float] | None = None) -> None:
        """Checkpoint the position; all processes together."""
        self.folder.sync()
        self.progress = self.checkpoints.save(
            self.progress,
            metrics,
            save_model=self.trainer.evaluated_model.save_pretrained,
            save_state=lambda path: self.accelerator.save_state(str(path)),
            barrier=self.accelerator.wait_for_everyone,
            main=self.leader,
        )

    def close(self) -> None:
        """Put down what is open, however the run ended."""
        self.display.close()
        self.folder.close()

    def finish(self) -> None:
        """End the trackers and say which checkpoint is the best."""
        self.accelerator.end_training()
        progress = self.progress
        if self.leader and progress.best:
            value = "" if progress.best_value is None else f" = {progress.best_value:.4f}"
            best = self.folder.checkpoints / progress.best
            print(f"done: best checkpoint {best} ({self.rule}{value}; {self.rule.split_rule})")

    def _log_step(self, number: int, result: StepResult) -> None:
        """A step's line in steps.jsonl, its points in the trackers, and what is shown of it."""
        config, totals, step = self.config, result.progress.totals, result.progress.step
        self._skip(self.train, result.failures)
        figures = {"loss": result.loss, **result.figures, "lr": result.lr}
        if self.leader:
            norm = {"grad_norm": result.grad_norm, "frames": result.frames}
            self.folder.steps.append({"step": step, "epoch": number, **figures, **norm})
        if step % config.log_every == 0:
            self.accelerator.log({f"train/{k}": v for k, v in figures.items()}, step=step)
        rate = totals["frames"] / totals["seconds"]
        self.display.step(number, config.schedule.epochs, step, self._means(), rate)

    def _log_epoch(self, number: int, lr: float, metrics: dict[str, float] | None) -> None:
        """An epoch's line in log.jsonl, its points in the trackers, and what is said of it."""
        totals, means, step = self.progress.totals, self._means(), self.progress.step
        line: dict[str, Any] = {
            "epoch": number,
            "step": step,
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
        self.accelerator.log({f"epoch/{k}": v for k, v in line.items() if k != "step"}, step=step)
        measured = "  ".join(f"{name} {value:.4g}" for name, value in (metrics or {}).items())
        self.display.say(
            f"epoch {number}/{self.config.schedule.epochs}  "
            + "  ".join(f"{name} {value:.4f}" for name, value in means.items())
            + f"  {line['frames_per_second']:,.0f} frames/s  {clock(totals['seconds'])}"
            + (f"  | {self.config.data.split_val}: {measured}" if metrics else "")
        )

    def _means(self) -> dict[str, float]:
        """Loss and the task's figures, per video of the epoch so far."""
        totals = self.progress.totals
        return {name: totals[name] / max(totals["counted"], 1) for name in ("loss", *self.model.head.logged)}

    def _skip(self, index: Index, failures: list[Failure]) -> None:
        """List videos that could not be read, each once."""
        skipped = []
        for failure in failures:
            video = index.videos[failure.index]
            reason = failure.reason.removeprefix(f"{failure.path}: ")
            skipped.append(Skipped(failure.path, reason, video.start, video.end))
        if index is self.train and skipped and self._unreadable is None:
            self._unreadable = skipped[0]
        for video in self.folder.skip(index.split, skipped) if self.leader and skipped else []:
            self.display.say(f"skipped {video.path}: {video.reason}")

    def _refuse_nothing_learned(self) -> None:
        """A run of which no video could be used must not look like a success."""
        if self.progress.totals["counted"]:
            return
        count, first = len(self.train.videos), self._unreadable
        if first is None:
            raise ValueError(
                f"each of the {count} training videos is too short to learn from: the task's "
                f"settings need {self.task.least_frames} frames or more; change them, and add --resume auto"
            )
        raise ValueError(f"none of the {count} training videos could be read (first: {first.path}: {first.reason})")
