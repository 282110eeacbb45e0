"""Settings of a training run: nested frozen dataclasses, read from YAML and the command line by `arguments.py`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Literal

from ..arguments import ConfigError
from ..model import ModelConfig
from ..video.dataset import DataConfig
from ..video.features import IN_TIME
from ..video.sampling import Dense, Uniform, parse_sampling


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise ConfigError(sentence)


@dataclass(frozen=True)
class OptimizerConfig:
    """The outer optimizer, built by timm's `create_optimizer_v2`.

    Args:
        name: any optimizer timm knows (adamw, sgd, lamb, muon, ...).
        lr: learning rate at the top of the schedule.
        weight_decay: decoupled weight decay; vectors (biases, norms) and parameters that mark themselves
            (`parameter._no_weight_decay = True`) are exempt.
        betas: the optimizer's betas; null takes the optimizer's own default.
        layer_decay: learning rate factor from one layer to the one below (0.75 for fine-tuning); null: all layers
            learn at the same rate.
        clip_grad: largest allowed norm of the whole gradient; null does not clip.
    """

    name: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.05
    betas: tuple[float, float] | None = None
    layer_decay: float | None = None
    clip_grad: float | None = 1.0

    def __post_init__(self) -> None:
        _require(0 < self.lr < math.inf, f"optimizer.lr must be positive, not {self.lr}")
        _require(
            0 <= self.weight_decay < math.inf, f"optimizer.weight_decay must not be negative, not {self.weight_decay}"
        )
        _require(
            self.betas is None or all(0 <= beta < 1 for beta in self.betas),
            f"optimizer.betas must lie in [0, 1), not {self.betas}",
        )
        _require(
            self.clip_grad is None or self.clip_grad > 0,
            f"optimizer.clip_grad must be positive (or null for no clipping), not {self.clip_grad}",
        )
        _require(
            self.layer_decay is None or 0 < self.layer_decay <= 1,
            f"optimizer.layer_decay must lie in (0, 1] (or be null), not {self.layer_decay}",
        )


@dataclass(frozen=True)
class ScheduleConfig:
    """How long to train and how the learning rates move, counted in optimizer steps (timm's schedulers).

    Args:
        epochs: passes over the training videos.
        steps: length of the run in optimizer steps, in place of epochs (to whole epochs): small data want many epochs;
            null: epochs counts, as it does where it is given after steps (on the command line, in a later file).
        patience: ends the run when the best checkpoint is so many epochs old; null: it never does.
        name: cosine falls to min_lr over all epochs; step multiplies by decay_rate every decay_epochs.
        warmup: epochs (a fraction is allowed) of linear rise from warmup_lr; where it is longer than the run, half
            of the run.
        warmup_steps: the same in optimizer steps, in place of warmup; null: warmup counts.
        warmup_lr: learning rate of the first step of the warm-up.
        min_lr: learning rate at the end of the cosine.
        decay_epochs: length of one stair (step schedule).
        decay_rate: factor of one stair (step schedule).
        inner_warmup: epochs (a fraction is allowed) over which the inner learning rates of the TTT layers
            rise linearly from a tenth of their configured value; where it is longer than the run, half of the run;
            0 starts at the full value.
        inner_warmup_steps: the same in optimizer steps, in place of inner_warmup; null: inner_warmup counts.
    """

    epochs: int = 10
    steps: int | None = None
    patience: int | None = None
    name: Literal["cosine", "step"] = "cosine"
    warmup: float = 0.0
    warmup_steps: int | None = None
    warmup_lr: float = 1e-6
    min_lr: float = 1e-6
    decay_epochs: float = 10.0
    decay_rate: float = 0.1
    inner_warmup: float = 0.0
    inner_warmup_steps: int | None = None

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, f"schedule.epochs must be at least 1, not {self.epochs}")
        for name in ("steps", "patience"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"schedule.{name} must be at least 1 (or null), not {value}")
        for name in ("warmup_steps", "inner_warmup_steps"):
            value = getattr(self, name)
            _require(value is None or value >= 0, f"schedule.{name} must not be negative, not {value}")
        _require(
            0 <= self.warmup < math.inf, f"schedule.warmup must be a number of epochs, 0 or more, not {self.warmup}"
        )
        _require(self.warmup_lr >= 0, f"schedule.warmup_lr must not be negative, not {self.warmup_lr}")
        _require(self.min_lr >= 0, f"schedule.min_lr must not be negative, not {self.min_lr}")
        _require(self.decay_rate > 0, f"schedule.decay_rate must be positive, not {self.decay_rate}")
        _require(self.decay_epochs > 0, f"schedule.decay_epochs must be positive, not {self.decay_epochs}")
        _require(
            0 <= self.inner_warmup < math.inf,
            f"schedule.inner_warmup must be a number of epochs, 0 or more, not {self.inner_warmup}",
        )


@dataclass(frozen=True)
class MixConfig:
    """Mixup and CutMix of whole clips (timm); both 0 turns them off.

    Args:
        mixup: alpha of Mixup's Beta distribution.
        cutmix: alpha of CutMix's Beta distribution; the same box is cut in all frames of a clip.
        probability: share of the batches that are mixed.
        switch: probability of CutMix where both are on.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    probability: float = 1.0
    switch: float = 0.5

    def __post_init__(self) -> None:
        _require(
            self.mixup >= 0 and self.cutmix >= 0,
            f"mix.mixup and mix.cutmix must not be negative: {self.mixup}, {self.cutmix}",
        )
        _require(
            0 <= self.probability <= 1 and 0 <= self.switch <= 1,
            f"mix.probability and mix.switch are probabilities, not {self.probability}, {self.switch}",
        )


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written and how many stay on disk. The best one always stays.

    Args:
        every: optimizer steps between checkpoints inside an epoch; 0 for none.
        each_epoch: write one at the end of each epoch.
        keep: how many of the latest are kept.
    """

    every: int = 0
    each_epoch: bool = True
    keep: int = 2

    def __post_init__(self) -> None:
        _require(self.every >= 0, f"checkpoint.every must be 0 (never) or a number of steps, not {self.every}")
        _require(self.keep >= 1, f"checkpoint.keep must be at least 1, not {self.keep}")


@dataclass(frozen=True)
class ValidationConfig:
    """What validation during training may cost. Its figures then are of a part, which is said and recorded with them.

    Args:
        max_frames: only the first so many frames of each video are read (before the sampling rule); null: all.
        videos: at most so many videos, drawn once (data.split_seed) and evenly over the classes' shares; null: all.
    """

    max_frames: int | None = None
    videos: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_frames", "videos"):
            value = getattr(self, name)
            _require(
                value is None or value >= 1, f"validation.{name} must be at least 1 (or null for all), not {value}"
            )


@dataclass(frozen=True)
class TrainingConfig:
    """How training reads long videos, and what its steps are made of.

    Args:
        segment_frames: reads films of any length in segments of so many frames, batch_size films side by side, with a
            step after each segment; null: a step reads whole clips.
        detach_every: 1: the state is carried from segment to segment without its graph; 0: one step for a whole film,
            whose segments are computed again in the backward pass: the gradient of whole training, in the memory of one
            segment.
        start_gradient: which segments give W_0, the initial weights, a gradient. stop: the first of each film;
            straight: every one, as if its state were W_0 (values are those carried).
        restart: probability that a segment in the middle of a film begins with W_0.
        compile: modules: torch.compile of encoder, blocks and head; graph: forward and backward pass as one CUDA graph.
            Both for whole clips of the first few lengths; null: neither.
    """

    segment_frames: int | None = None
    detach_every: int = 1
    start_gradient: Literal["stop", "straight"] = "stop"
    restart: float = 0.0
    compile: Literal["modules", "graph"] | None = None

    def __post_init__(self) -> None:
        whole = self.segment_frames is None or self.compile is None
        _require(whole, "training.compile serves whole clips; leave out training.compile or training.segment_frames")
        _require(
            self.segment_frames is None or self.segment_frames >= 1,
            f"training.segment_frames must be at least 1 (or null for whole clips), not {self.segment_frames}",
        )
        _require(
            self.detach_every in (0, 1), f"training.detach_every must be 1 (each segment) or 0, not {self.detach_every}"
        )
        _require(0 <= self.restart < 1, f"training.restart is a probability below 1, not {self.restart}")
        whole = self.detach_every == 1 or self.segment_frames is not None
        _require(whole, "training.detach_every is of segments; set training.segment_frames too")
        _require(
            self.carries or (self.start_gradient, self.restart) == ("stop", 0.0),
            "training.start_gradient and restart are of carried states: they need segment_frames and detach_every: 1",
        )

    @property
    def carries(self) -> bool:
        """Whether states are carried from step to step."""
        return self.segment_frames is not None and self.detach_every == 1


@dataclass(frozen=True)
class RunConfig:
    """Train a video model on a folder of videos: everything that a run depends on.

    Args:
        data: the videos and how they are read.
        model: the architecture.
        optimizer: the outer optimizer.
        schedule: length of training and learning rates over it.
        mix: Mixup and CutMix.
        training: how long videos are read in training.
        validation: how much of the validation split is measured during training.
        checkpoint: when checkpoints are written.
        folds: cross-validation: trains so many models in out/fold-1, out/fold-2 ..., each on all videos of
            data.split_train and data.split_val but one fold, on which it is measured (data.fold), and ends with a table
            of means and intervals; null: one model.
        init_from: a run folder, checkpoint or export whose encoder and backbone weights the training starts from,
            whatever that was trained for (prediction of frames, say, before classification), or the folder of a ttt-lm
            checkpoint, of which it takes the backbone. A table says what was taken.
        precision: fp32, or mixed precision in bf16 or fp16 (the inner weights stay float32 in all of them).
        accumulate: batches per optimizer step, which descends the mean over all their videos together (batch norm and
            Mixup see each batch alone).
        activation_checkpointing: recompute the chunk scan in the backward pass in groups of this many chunks: less
            memory, more time; 0 leaves what the model's own configuration says.
        ema: decay of the moving average of the weights (0.9 to 0.9999; it warms up); null: no average. With it on,
            the averaged weights are validated and saved.
        evaluate_every: epochs between validations (the last epoch is always validated); 0 for never.
        seed: decides initialisation, order, augmentation and dropout.
        out: the run folder.
        resume: auto continues the run in `out` from its last checkpoint, a name such as step-00000040 from that one
            (later ones are set aside); null starts a new one.
        trackers: accelerate's experiment trackers (tensorboard, wandb, mlflow, ...).
        log_every: optimizer steps between two points in the trackers.
        processes: number of processes the run must have; null accepts any.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    mix: MixConfig = field(default_factory=MixConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    folds: int | None = None
    init_from: str | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    accumulate: int = 1
    activation_checkpointing: int = 0
    ema: float | None = None
    evaluate_every: int = 1
    seed: int = 0
    out: str | None = None
    resume: str | None = None
    trackers: tuple[str, ...] = ("tensorboard",)
    log_every: int = 10
    processes: int | None = None

    def __post_init__(self) -> None:
        _require(
            self.model.task.labelled or not (self.mix.mixup or self.mix.cutmix),
            f"mix.mixup and mix.cutmix mix labels, which {type(self.model.task).__name__} does not use; leave them out",
        )
        _require(
            self.data.max_frames is None or self.data.max_frames >= self.model.task.least_frames,
            f"data.max_frames is {self.data.max_frames}, but {type(self.model.task).__name__} as configured learns "
            f"from clips of at least {self.model.task.least_frames} frames",
        )
        _require(
            self.resume is None or re.fullmatch(r"auto|(.*/)?step-\d+/?", self.resume) is not None,
            f"resume must be auto, null or a checkpoint of the run such as step-00000040, not {self.resume!r}",
        )
        _require(
            self.validation.max_frames is None or self.validation.max_frames >= self.model.task.least_frames,
            f"validation.max_frames is {self.validation.max_frames}, but {type(self.model.task).__name__} as "
            f"configured measures videos of at least {self.model.task.least_frames} frames",
        )
        self._check_features()
        self._check_segments()
        self._check_folds()
        _require(
            self.schedule.patience is None or self.evaluate_every > 0,
            "schedule.patience waits for a better validation, and evaluate_every is 0; set that to 1, or leave it out",
        )
        _require(self.accumulate >= 1, f"accumulate must be at least 1, not {self.accumulate}")
        _require(
            self.activation_checkpointing >= 0,
            f"activation_checkpointing must be 0 (off) or a number of chunks, not {self.activation_checkpointing}",
        )
        _require(
            self.schedule.name != "cosine" or self.schedule.min_lr <= self.optimizer.lr,
            f"schedule.min_lr ({self.schedule.min_lr}) must not be above optimizer.lr ({self.optimizer.lr})",
        )
        _require(
            self.processes is None or self.processes >= 1,
            f"processes must be at least 1 (or null for any), not {self.processes}",
        )
        _require(self.log_every >= 1, f"log_every must be at least 1, not {self.log_every}")
        _require(self.evaluate_every >= 0, f"evaluate_every must be 0 (never) or more, not {self.evaluate_every}")
        _require(self.ema is None or 0 < self.ema < 1, f"ema must lie between 0 and 1, not {self.ema}")
        _require(self.seed >= 0, f"seed must not be negative, not {self.seed}")
        _require(self.seed < 2**63, "seed must be below 2**63")

    def _check_features(self) -> None:
        """An encoder that reads features, in place of frames, is given no setting that changes frames."""
        views, data = self.model.encoder.views, self.data
        if not views:
            return
        changes = [name for name in data.augment.changes if name not in IN_TIME]
        _require(
            data.cache == "none",
            f"data.cache: {data.cache} keeps frames, which are not read where features are; leave it out",
        )
        _require(
            self.mix.cutmix == 0,
            "mix.cutmix cuts boxes out of frames, which are not read where features are; use mixup",
        )
        _require(
            not changes or views > 1,
            f"data.augment.{(changes or [''])[0]} changes frames, and features are read in their place; leave it "
            "out, or, with a cache, set model.encoder.cache_views to a number above 1 for so many fixed views (each "
            "costs as much time and room as the first)",
        )
        _require(
            bool(changes) or views == 1,
            f"model.encoder.cache_views is {views}, but data.augment changes nothing between them; set what it shall "
            "change, or leave cache_views out",
        )

    def _check_folds(self) -> None:
        if self.folds is None:
            return
        _require(self.folds >= 2, f"folds must be at least 2 (or null for one model), not {self.folds}")
        _require(self.data.fold is None, "folds trains on every fold and data.fold on one; leave out one of both")
        _require(self.evaluate_every > 0, "folds compares validations, and evaluate_every is 0; set that to 1 or more")
        _require(
            self.resume in (None, "auto"),
            f"resume is {self.resume!r}, a checkpoint of one run, and folds has several runs; give auto",
        )

    def _check_segments(self) -> None:
        """Films that are read in segments are known in length, and each row is one film."""
        if not self.training.segment_frames:
            return
        data, rule = self.data, parse_sampling(self.data.sampling)
        if not self.training.carries:
            _require(self.model.task.labelled, "training.detach_every: 0 serves Classification; use 1 for other tasks")
            return
        in_time = [name for name in data.augment.changes if name in IN_TIME]
        _require(
            not in_time,
            f"data.augment.{(in_time or [''])[0]} changes how long a film is, which training.segment_frames plans "
            "with; leave it out",
        )
        _require(
            isinstance(rule, Dense | Uniform),
            f"data.sampling: {data.sampling} draws frames anew each time, which does not go with "
            "training.segment_frames; use dense, fps=R or uniform=N",
        )
        _require(
            not (self.mix.mixup or self.mix.cutmix),
            "mix mixes clips, which does not go with the films of training.segment_frames; leave it out",
        )
        for name in ("buckets", "balance"):
            _require(
                getattr(data, name) == getattr(DataConfig, name),
                f"data.{name} does not go with training.segment_frames; leave it out",
            )
