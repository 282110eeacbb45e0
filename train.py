"""Train a video model: the story of a run, top to bottom.

    python train.py --config configs/demo.yaml --data.root data/flash-order --out runs/demo
    accelerate launch train.py ...                                   # one or several GPUs
    ACCELERATE_USE_CPU=1 torchrun --nproc_per_node 2 train.py ...    # two processes on CPU
    # after an interruption: continues exactly
    python train.py ... --resume auto

`--print_config` shows every setting, `--a.b value` changes one.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from tttvideo.training.config import RunConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 stopped because the loss is not finite, 2 wrong input, 130 interrupted."""
    from tttvideo.cli import damaged_videos_named
    from tttvideo.training.arguments import parse
    from tttvideo.training.loop import NonFinite

    first = os.environ.get("RANK", "0") == "0"
    try:
        with damaged_videos_named():
            run(*parse(argv))
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


def run(config: RunConfig, yaml: str) -> None:
    """Train as configured; `yaml` is the configuration as text, for the run folder."""
    import torch
    from timm.utils import ModelEmaV3  # pyright: ignore

    from tttvideo.evaluation.overlap import training_marks
    from tttvideo.model import VideoModel
    from tttvideo.serialize import load_weights, resolve_checkpoint
    from tttvideo.training import launch, memory
    from tttvideo.training.checkpoint import Checkpoints, Progress, Rule, describe
    from tttvideo.training.loop import NonFinite, Trainer
    from tttvideo.training.mix import ClipMix
    from tttvideo.training.optimizer import Schedule, build_optimizer
    from tttvideo.training.progress import Display, clock
    from tttvideo.training.run_folder import RunFolder, Skipped, changed_settings, fingerprint
    from tttvideo.training.validation import score
    from tttvideo.video.index import save_labels
    from tttvideo.video.loader import EpochSampler, train_loader, val_loader
    from tttvideo.video.reading import usual_length, usual_rate

    # Wrong input is found before anything is written, and by every process alike.
    resume = config.resume == "auto"
    folder = RunFolder(config.out, resume=resume)
    accelerator = launch.start(config)
    rank, world, leader = accelerator.process_index, accelerator.num_processes, accelerator.is_main_process

    # The videos.
    task = config.model.task
    train = config.data.index(config.data.split_train, labelled=task.labelled)
    train_batches = train_loader(config.data, train, seed=config.seed, rank=rank, world=world)
    val = None
    if config.evaluate_every:
        known = {"labels": train.labels, "multi_label": train.multi_label, "labelled": task.labelled}
        val = config.data.index(config.data.split_val, **known)
    val_batches = val_loader(config.data, val, rank=rank, world=world) if val else None
    order = cast(EpochSampler, train_batches.batch_sampler)
    n_batches = len(train_batches)
    steps_per_epoch = -(-n_batches // config.accumulate)

    # Where the run stands: at its beginning, or at its last checkpoint.
    criterion = task.criterion(train.multi_label)
    rule = Rule(
        metric=criterion.metric if val else None,
        lower=criterion.lower,
        split=config.data.split_val,
        split_rule=val.rule if val else train.rule,
        videos=fingerprint(val or train),
    )
    marks = training_marks(train.videos) if leader else None  # by which evaluation knows them again
    paths = [video.path for video in train.videos] if leader else []
    rate, length = usual_rate(paths, config.data.preprocessing), usual_length(paths, config.data.preprocessing)
    if length and config.data.max_frames:
        length = min(length, config.data.max_frames)
    checkpoints = Checkpoints(
        folder.checkpoints,
        keep=config.checkpoint.keep,
        rule=rule,
        trained_on=marks,
        frame_rate=rate,
        clip_frames=length,
    )
    fixed = {
        "processes": world,
        "data.batch_size": config.data.batch_size,
        "accumulate": config.accumulate,
        "seed": config.seed,
        "batches per epoch": n_batches,
        "the training videos' fingerprint": fingerprint(train),
    }
    described = describe(config.model, config.data.preprocessing, train.labels, train.multi_label)
    last = checkpoints.last() if resume else None
    progress = checkpoints.read(last, fixed, described) if last else Progress(fixed=fixed)

    # The model, its moving average, the optimizer and the schedule.
    torch.manual_seed(config.seed)
    model = VideoModel(
        config.model,
        preprocessing=config.data.preprocessing,
        labels=train.labels,
        multi_label=train.multi_label,
        load=last is None and not config.init_from,  # pretrained weights are in the checkpoint already
    ).to(accelerator.device)
    if config.init_from and last is None:
        load_weights(model, resolve_checkpoint(config.init_from), parts=("encoder", "backbone"))
    if config.activation_checkpointing:
        model.set_checkpointing(config.activation_checkpointing)
    # before `prepare`: a copy of a prepared model would call the original's forward
    ema = ModelEmaV3(model, decay=config.ema, use_warmup=True) if config.ema else None
    optimizer = build_optimizer(model, config.optimizer)
    model, optimizer = accelerator.prepare(model, optimizer)
    if ema is not None:
        accelerator.register_for_checkpointing(ema)
    schedule = Schedule(optimizer, config.schedule, steps_per_epoch)
    trainer = Trainer(
        accelerator,
        model,
        optimizer,
        schedule,
        ClipMix(config.mix, len(train.labels)),
        ema=ema,
        accumulate=config.accumulate,
        clip_grad=config.optimizer.clip_grad,
        seed=config.seed,
    )

    if last:
        accelerator.load_state(str(last / "training_state"))
    accelerator.wait_for_everyone()  # all have looked before the first file is written
    epochs = config.schedule.epochs
    display = Display(main=leader, total_steps=schedule.total_steps, done_steps=progress.step)
    classes = f", {len(train.labels)} classes" if task.labelled else ""
    display.say(f"train  {len(train.videos)} videos{classes} ({train.rule})")
    if val:
        display.say(f"val    {len(val.videos)} videos ({val.rule}); best checkpoint: {rule}")
        if criterion.note:
            display.say(f"       {criterion.note}")
    display.say(
        f"model  {sum(p.numel() for p in trainer.bare.parameters()):,} parameters; {world} process"
        f"{'es' if world > 1 else ''} on {accelerator.device.type}, {config.precision}; "
        f"{steps_per_epoch} steps per epoch"
    )
    if source := getattr(trainer.bare.encoder, "source", None):
        display.say(f"encoder {source if last is None and not config.init_from else 'weights from the checkpoint'}")
    if config.init_from and last is None:
        display.say(f"start  encoder and backbone of {resolve_checkpoint(config.init_from)}")
    if last:
        display.say(f"resume {last.name}: epoch {progress.epoch + 1}, batch {progress.batch} of {n_batches}")
        for change in changed_settings(folder.path / "config.yaml", yaml):
            display.say(f"note: changed since the run was started, the curve will differ: {change}")
        if sentence := checkpoints.forgets():
            display.say(f"note: {sentence}")
    elif resume:
        display.say(f"note: {folder.path} holds no checkpoint yet: starting afresh")
    if leader and progress.epoch < epochs:  # a finished run stays as it is
        folder.begin(yaml, epoch=progress.epoch, step=progress.step)
        if task.labelled:
            save_labels(folder.path / "labels.json", train.labels)
        checkpoints.clean()
    if config.trackers:
        # hides from TensorBoard what the interrupted run drew beyond the checkpoint
        accelerator.init_trackers("tensorboard", init_kwargs={"tensorboard": {"purge_step": progress.step + 1}})

    def save(progress: Progress, metrics: dict[str, float] | None = None) -> Progress:
        """Checkpoint a position; all processes together."""
        folder.sync()
        return checkpoints.save(
            progress,
            metrics,
            save_model=trainer.evaluated_model.save_pretrained,
            save_state=lambda path: accelerator.save_state(str(path)),
            barrier=accelerator.wait_for_everyone,
            main=leader,
        )

    def skip(split: str, failures: list[Any]) -> None:
        """List videos that could not be read, each once."""
        videos = (train if split == train.split else val or train).videos
        found = [
            Skipped(f.path, f.reason.removeprefix(f"{f.path}: "), videos[f.index].start, videos[f.index].end)
            for f in failures
        ]
        if split == train.split:
            unreadable.extend(found[: not unreadable])
        for video in folder.skip(split, found) if leader and found else []:
            display.say(f"skipped {video.path}: {video.reason}")

    def validate() -> dict[str, float]:
        """Figures of the model that would be saved now, as it would be used: inner rates at full value."""
        assert val is not None
        assert val_batches is not None
        evaluated = trainer.evaluated_model
        evaluated.set_inner_rate(1.0)
        scores = score(evaluated, val_batches, val, accelerator)
        skip(val.split, scores.failures)
        return {**task.summary(scores.rows, scores.labels, scores.scored), "failed": len(scores.failures)}

    def means(totals: dict[str, float]) -> dict[str, float]:
        """Loss and the task's figures, per video (or predicted time step) so far."""
        return {name: totals[name] / max(totals["counted"], 1) for name in ("loss", *trainer.bare.head.logged)}

    # Training.
    unreadable: list[Skipped] = []  # the first training video that could not be read
    memory.reset(accelerator.device)
    try:
        while progress.epoch < epochs:
            number = progress.epoch + 1
            order.set_epoch(progress.epoch)
            order.skip(progress.batch)
            for result in trainer.epoch(train_batches, n_batches, progress):
                progress = result.progress
                totals = progress.totals
                skip(train.split, result.failures)
                figures = {"loss": result.loss, **result.figures, "lr": result.lr}
                if leader:
                    norm = {"grad_norm": result.grad_norm, "frames": result.frames}
                    folder.steps.append({"step": progress.step, "epoch": number, **figures, **norm})
                if progress.step % config.log_every == 0:
                    accelerator.log({f"train/{k}": v for k, v in figures.items()}, step=progress.step)
                display.step(
                    number,
                    epochs,
                    progress.step,
                    means(totals),
                    totals["frames"] / totals["seconds"],
                )
                every = config.checkpoint.every
                if every and progress.step % every == 0 and progress.batch < n_batches:
                    progress = save(progress)

            # The epoch's line, and its checkpoint: only after both is the epoch done.
            pause = time.monotonic()
            if not progress.totals["counted"]:
                if not unreadable:
                    raise ValueError(
                        f"each of the {len(train.videos)} training videos is too short to learn from: the task's "
                        f"settings need {task.least_frames} frames or more; change them, and add --resume auto"
                    )
                first = f" (first: {unreadable[0].path}: {unreadable[0].reason})"
                raise ValueError(f"none of the {len(train.videos)} training videos could be read{first}")
            final = number == epochs
            metrics = validate() if val and (final or number % config.evaluate_every == 0) else None
            totals = progress.totals
            line = {
                "epoch": number,
                "step": progress.step,
                **{f"train_{name}": value for name, value in means(totals).items()},
                **{f"val_{name}": value for name, value in (metrics or {}).items()},
                "frames_per_second": totals["frames"] / totals["seconds"],
                "seconds": totals["seconds"],
                "skipped": int(totals["failed"]),
                "lr": result.lr,
                "peak_memory_mb": memory.peak_mb(accelerator.device),
            }
            if leader:
                folder.log.append(line)
            accelerator.log({f"epoch/{k}": v for k, v in line.items() if k != "step"}, step=progress.step)
            speed = f"{line['frames_per_second']:,.0f} frames/s"
            measured = "  ".join(f"{name} {value:.4g}" for name, value in (metrics or {}).items())
            display.say(
                f"epoch {number}/{epochs}  "
                + "  ".join(f"{name} {value:.4f}" for name, value in means(totals).items())
                + f"  {speed}  {clock(totals['seconds'])}"
                + (f"  | {config.data.split_val}: {measured}" if metrics else "")
            )
            progress = replace(progress, epoch=number, batch=0, totals={})
            due = config.checkpoint.each_epoch or (
                config.checkpoint.every and progress.step % config.checkpoint.every == 0
            )
            if due or final or checkpoints.improves(progress, metrics):
                progress = save(progress, metrics)
            display.pause(time.monotonic() - pause)
    except NonFinite as error:
        good = checkpoints.last()
        raise NonFinite(f"{error}; the last good checkpoint is {good or 'none: none was written yet'}") from None
    finally:
        display.close()
        folder.close()
    accelerator.end_training()
    if leader and progress.best:
        value = "" if progress.best_value is None else f" = {progress.best_value:.4f}"
        print(f"done: best checkpoint {folder.checkpoints / progress.best} ({rule}{value}; {rule.split_rule})")


if __name__ == "__main__":
    sys.exit(main())
