"""A training run from its settings to its last checkpoint: `Run` is the story, top to bottom."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from ..model import VideoModel
from ..printing import sentence
from ..serialize import load_weights
from ..video.features import CachedFeatures
from ..video.index import Index, largest_class, save_labels, videos_of_each_class
from ..video.loader import EpochSampler, Loader, film_lengths, val_loader
from ..video.overlap import training_marks
from ..video.reading import damaged_videos_named, usual_length, usual_rate
from ..video.transforms import Preprocessing
from . import launch, memory
from .arguments import parse
from .checkpoint import STATE, Checkpoints, Progress, Rule, describe
from .config import RunConfig
from .features import fill_cache
from .folds import cross_validate
from .introduction import introduction
from .lock import RunLock
from .loop import NonFinite, Trainer
from .mix import ClipMix
from .optimizer import Schedule, build_optimizer, in_epochs
from .position import depends_on
from .record import Record
from .run_folder import RunFolder, fingerprint, writing
from .segments import prepare_model, trainer_of, training_loader
from .signals import Signals, Stopped, end_soon
from .start import brings_encoder, start_from
from .state import load_rows, load_state, save_state
from .validation import SEGMENT, score, validation_videos

if TYPE_CHECKING:
    from timm.utils import ModelEmaV3  # pyright: ignore


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the command line says.

    Returns:
        Exit code: 0 done; 1 stopped because the loss is not finite, or another process of the run ended; 2 wrong
        input, or a file, a disk or a data worker failed; 143, 138, 130 stopped by SIGTERM, SIGUSR1, SIGINT.
    """
    try:
        with damaged_videos_named():
            config, yaml = parse(argv)
            train(config, yaml) if config.folds is None else cross_validate(config, train)
        launch.leave()
    except NonFinite as error:
        launch.say(f"stopped: {error}")
        return 1
    except (ValueError, OSError) as error:
        # a ValueError is the same on every process
        launch.say(f"error: {sentence(error)}", every_process=isinstance(error, OSError))
        return 2
    except Stopped as stop:
        launch.say(f"stopped by {stop}: continue with the same command and --resume auto{launch.torchrun_hint()}")
        return stop.exit_code
    except RuntimeError as error:
        if not launch.lost_another(error):
            raise
        launch.say(f"stopped: {launch.LOST}", every_process=True)
        return 1
    except KeyboardInterrupt:
        launch.say("interrupted: continue with the same command and --resume auto")
        return 130
    return 0


def train(config: RunConfig, yaml: str) -> None:
    """Train as configured; `yaml` is the configuration as text, for the run folder.

    Raises:
        Stopped: by a signal; the run can be resumed.
    """
    run = Run(config, yaml)
    with run.signals:
        try:
            run.prepare()
            run.resume()
            with run.signals.deferred():
                while not run.trainer.schedule.done(run.progress):
                    run.epoch()
            run.finish()
        except RuntimeError as error:
            run.signals.raise_if(launch.lost_another(error))  # which was sent it, too, and ended sooner
            raise
        except NonFinite as error:
            good = run.checkpoints.last() or "none: none was written yet"
            raise NonFinite(f"{error}; the last good checkpoint is {good}") from None
        except Stopped as stop:
            end_soon(stop.exit_code)
            raise
        finally:
            run.close(sys.exception())


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
    val_batches: tuple[Loader, list[list[int]]] | None  # of this process: the loader of their pieces, and their videos
    rule: Rule
    checkpoints: Checkpoints
    progress: Progress
    model: VideoModel
    ema: ModelEmaV3 | None
    trainer: Trainer
    record: Record

    def __init__(self, config: RunConfig, yaml: str):
        self.config = config
        self.yaml = yaml
        self.task = config.model.task
        self.folder = RunFolder(config.out, resume=config.resume is not None)
        self.lock = RunLock(self.folder.path)
        self.signals = Signals(self._last_words)
        self.accelerator = launch.start(config)
        self.leader = self.accelerator.is_main_process
        self._share = {"rank": self.accelerator.process_index, "world": self.accelerator.num_processes}
        self._states: list[dict[str, torch.Tensor]] | None = None  # what all processes' rows carry
        self._saved: tuple[int, int] | None = None  # epoch and batch of the last checkpoint

    @property
    def n_batches(self) -> int:
        """Batches of an epoch, of each process."""
        return len(self.train_batches)

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.n_batches // self.config.accumulate)

    def prepare(self) -> None:
        """The folder's lock, the videos, the rule by which the best checkpoint is chosen, the checkpoints that there
        are."""
        if note := self._by_leader(self.lock.take):
            launch.say(f"note: {note}")
        self.folder.refuse_second()  # one may have begun and ended since
        self.index()
        self.criterion = self.task.criterion(self.train.multi_label)
        self.rule = Rule(
            metric=self.criterion.metric if self.val else None,
            lower=self.criterion.lower,
            split=self.config.data.split_val,
            split_rule=self.val.rule if self.val else self.train.rule,
            videos=fingerprint(self.val or self.train),
            part=self._part,
        )
        preprocessing = self.config.model.encoder.reading(self.config.data.preprocessing)
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

    def index(self) -> None:
        data, task = self.config.data, self.task
        if data.list and not data.root and self.config.model.encoder.root:
            data = replace(data, root=self.config.model.encoder.root)
        self.train = data.index(data.split_train, labelled=task.labelled)
        encoder = self.config.model.encoder.resolved([video.path for video in self.train.videos])
        self.config = replace(self.config, data=data, model=replace(self.config.model, encoder=encoder))
        reading = encoder.reading(data.preprocessing)
        self._lengths = film_lengths(data, self.train, reading) if self.config.training.carries else []
        self.train_batches = self.training_videos(reading)
        self.val, self._part = validation_videos(self.config, self.train)
        encoder.check_paths([video.path for part in (self.train, self.val) if part for video in part.videos])
        self.config = replace(self.config, schedule=in_epochs(self.config.schedule, self.steps_per_epoch))

    def resume(self) -> None:
        """Stand at the last checkpoint, or at the beginning where there is none; then the first files are written."""
        config, folder = self.config, self.folder
        last = self._by_leader(lambda: self.checkpoints.chosen(str(config.resume))) if config.resume else None
        processes, videos = self.accelerator.num_processes, fingerprint(self.train)
        fixed = depends_on(config, processes, self.n_batches, videos)
        described = describe(config.model, config.data.preprocessing, self.train.labels, self.train.multi_label)
        self.progress = Progress(fixed=fixed)
        if last:
            self.progress = self._by_leader(lambda: self.checkpoints.read(last, fixed, described))
            self._saved = (self.progress.epoch, self.progress.batch)
        self.build(last)
        if last:
            self._load(last)
        self._open_videos()
        self.accelerator.wait_for_everyone()  # all have looked before the first file is written

        self.record = Record(
            config,
            folder,
            self.accelerator,
            logged=self.model.head.logged,
            total_steps=self.trainer.schedule.total_steps,
            progress=self.progress,
            chance=largest_class(self.train),
        )
        for line in introduction(self, last):
            self.record.say(line)
        if self.leader and not self.trainer.schedule.done(self.progress):  # a finished run stays as it is
            self.lock.check_before_writing()
            for note in folder.begin(self.yaml, epoch=self.progress.epoch, step=self.progress.step):
                self.record.say(f"note: {note}")
            if self.task.labelled:
                with writing(folder.path / "labels.json"):
                    save_labels(folder.path / "labels.json", self.train.labels)
            for name in self.checkpoints.clean(last, self.progress):
                self.record.say(f"note: a later checkpoint is set aside as {folder.checkpoints / name}")
            self.start.write(folder.path)
        self.record.open_trackers(self.progress.step)
        memory.reset(self.accelerator.device)

    def training_videos(self, reading: Preprocessing) -> Loader:
        unit = self.model.frame_multiple if hasattr(self, "model") else 1
        return training_loader(self.config, self.train, self._lengths, reading, self._share, unit)

    def _open_videos(self) -> None:
        """How this model's encoder reads videos; with a cache of features, what it lacks is encoded first."""
        reading, data = self.model.reading, self.config.data
        if isinstance(reading, CachedFeatures):
            reading = replace(reading, augment=data.augment)
            fill_cache(self.model, reading, self.config, self.train, self.val, leader=self.leader)
            self.accelerator.wait_for_everyone()
        if isinstance(reading, CachedFeatures) or self.config.training.carries:
            self.train_batches = self.training_videos(reading)
        self.val_batches = None
        if self.val:
            segment, first = self.model.segment_frames(SEGMENT), self.config.validation.max_frames
            self.val_batches = val_loader(data, self.val, segment=segment, first=first, reading=reading, **self._share)

    def _load(self, last: Path) -> None:
        """The weights and the optimizer of a checkpoint. Whatever damage makes the libraries raise is one sentence."""
        try:
            if self.ema is not None:  # the average is the model that was saved
                load_weights(self.ema.module, last)
            load_state(last / STATE, self.model, self.trainer.optimizer, self.accelerator.scaler)
            if self.config.training.carries:
                self.trainer.restore(load_rows(last / STATE, self.accelerator.process_index))
        except Exception as error:
            raise self.checkpoints.damaged(last, error) from error

    def build(self, last: Path | None) -> None:
        """The model, its moving average, the optimizer and the schedule, with the weights of a start from nothing."""
        from timm.utils import ModelEmaV3  # pyright: ignore

        config = self.config
        torch.manual_seed(config.seed)
        self.model = VideoModel(
            config.model,
            preprocessing=config.data.preprocessing,
            labels=self.train.labels,
            multi_label=self.train.multi_label,
            load=last is None and not brings_encoder(config.init_from),
        ).to(self.accelerator.device)
        self.model.head.set_class_counts(videos_of_each_class(self.train))
        self.start = start_from(self.model, config.init_from if last is None else None)
        if config.activation_checkpointing:
            self.model.set_checkpointing(config.activation_checkpointing)
        prepare_model(self.model, config.training)
        # before `prepare`: a copy of a prepared model would call the original's forward
        self.ema = ModelEmaV3(self.model, decay=config.ema, use_warmup=True) if config.ema else None
        optimizer = build_optimizer(self.model, config.optimizer)
        model, optimizer = self.accelerator.prepare(self.model, optimizer)
        self.trainer = trainer_of(config, self.accelerator)(
            self.accelerator,
            model,
            optimizer,
            Schedule(optimizer, config.schedule, self.steps_per_epoch),
            ClipMix(config.mix, len(self.train.labels)),
            ema=self.ema,
            accumulate=config.accumulate,
            clip_grad=config.optimizer.clip_grad,
            seed=config.seed,
            signal=lambda: self.signals.received,
        )

    def epoch(self) -> None:
        """The rest of the present epoch, then its validation, its line in the log and its checkpoint.

        Raises:
            Stopped: a signal came, after a step, on all processes alike; or in the validation. Whatever ends that,
                there is a checkpoint of its beginning.
            ConfigError: the folder was taken over by another run; nothing more is written.
        """
        config, number, every = self.config, self.progress.epoch + 1, self.config.checkpoint.every
        cast(EpochSampler, self.train_batches.batch_sampler).start_at(self.progress.epoch, self.progress.batch)
        for result in self.lock.while_ours(self.trainer.epoch(self.train_batches, self.n_batches, self.progress)):
            self.progress = result.progress
            self.record.skip(self.train, result.failures)
            self.record.step(number, result)
            inside = self.progress.batch < self.n_batches
            if result.signal or (every and self.progress.step % every == 0 and inside):
                self.save()
            if result.signal:
                raise Stopped(result.signal)

        pause = time.monotonic()
        self.record.refuse_nothing_learned(self.progress, self.train, self.task.least_frames)
        final, step = number == config.schedule.epochs, self.progress.step
        due = final or config.checkpoint.each_epoch or (every and step % every == 0)
        metrics = None
        if self.val and (final or number % config.evaluate_every == 0):
            if due and self._saved != (self.progress.epoch, self.progress.batch):
                self.save()
            self._states = self.trainer.states()  # the leader may have to save alone
            try:
                with self.signals.immediate():
                    metrics = self.validate()
            except BaseException:
                if self.leader and self._saved != (self.progress.epoch, self.progress.batch):
                    self._write_checkpoint(None)  # by itself: the others may have ended
                raise
        self.lock.check_before_writing()
        self.record.epoch(self.progress, self.trainer.schedule.set(step - 1), metrics)
        # Only now is the epoch done.
        self.progress = replace(self.progress, epoch=number, batch=0, totals={})
        if due or self.checkpoints.improves(self.progress, metrics):
            self.save(metrics)
        self.record.display.pause(time.monotonic() - pause)

    def validate(self) -> dict[str, float]:
        """Figures of the model that would be saved now, as it would be used: inner rates at full value."""
        assert self.val is not None
        assert self.val_batches is not None
        evaluated = self.trainer.evaluated_model
        evaluated.set_inner_rate(1.0)
        pieces, videos = self.val_batches
        with self.trainer.evaluating():
            scores = score(evaluated, self.lock.while_ours(pieces), videos, self.val, self.accelerator)
        self.record.skip(self.val, scores.failures)
        return {**self.task.summary(scores.rows, scores.labels, scores.scored), "failed": len(scores.failures)}

    def save(self, metrics: dict[str, float] | None = None) -> None:
        """Checkpoint the position; all processes together."""
        self._states = self.trainer.states()
        self.progress = self._by_leader(lambda: self._write_checkpoint(metrics))
        self._saved = (self.progress.epoch, self.progress.batch)

    def _write_checkpoint(self, metrics: dict[str, float] | None) -> Progress:
        self.lock.check()
        self.folder.sync()
        return self.checkpoints.save(
            self.progress,
            metrics,
            save_model=self.trainer.evaluated_model.save_pretrained,
            save_state=lambda folder: save_state(
                folder, self.model, self.trainer.optimizer, self.accelerator.scaler, self._states
            ),
        )

    def finish(self) -> None:
        """End the trackers, say why a run ends early, and which checkpoint is the best."""
        if reason := self.trainer.schedule.ended_early(self.progress):
            self.record.say(reason)
        self.record.close_trackers()
        if self.leader and (progress := self.progress).best:
            value = "" if progress.best_value is None else f" = {progress.best_value:.4f}"
            best = self.folder.checkpoints / progress.best
            self.record.say(f"done: best checkpoint {best} ({self.rule}{value}; {self.rule.split_rule})")

    def close(self, error: BaseException | None) -> None:
        """Close all files and trackers, record an error in the folder, and release the lock."""
        if hasattr(self, "record"):
            self.record.close(error if self.lock.is_ours() else None)  # nothing is written into another run's folder
        self.lock.release()

    def _by_leader(self, action: Callable[[], Any]) -> Any:
        return launch.by_leader(self.accelerator, action)

    def _last_words(self, why: str) -> None:
        """Called just before the process is ended by force."""
        launch.say(f"stopped: {why}; continue from the last checkpoint with the same command and --resume auto")
        self.lock.release()
