"""Whole runs through `train.main` on small real videos."""

import contextlib
import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import train
from tttvideo.pretrained import from_pretrained
from tttvideo.training.loop import Trainer
from tttvideo.training.run import Run


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def curve(run: Path) -> list[dict]:
    """Everything in the logs that must repeat, number for number."""
    changing = ("frames_per_second", "seconds", "peak_memory_mb")
    epochs = [{k: v for k, v in line.items() if k not in changing} for line in lines(run / "log.jsonl")]
    return lines(run / "steps.jsonl") + epochs


class Killed(BaseException):
    """Stands for SIGKILL: nothing handles it."""


def kill_at(monkeypatch, count: int, owner: type, name: str) -> None:
    """Raise Killed at the `count`-th call of a method."""
    original = getattr(owner, name)
    calls = iter(range(1, 10_000))

    def method(*args, **kwargs):
        if next(calls) == count:
            raise Killed
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, method)


@pytest.fixture(scope="module")
def whole(videos, tmp_path_factory):
    """The uninterrupted run that others are compared with, made by the first test that asks."""
    return {"run": tmp_path_factory.mktemp("whole") / "run"}


def reference(whole, arguments) -> Path:
    """The finished run; what it printed stays in ``whole["said"]``, whichever test came first."""
    if not whole["run"].exists():
        with contextlib.redirect_stdout(io.StringIO()) as said:
            assert train.main(arguments(out=whole["run"])) == 0
        whole["said"] = said.getvalue()
    return whole["run"]


def test_a_run_leaves_what_it_promises(whole, arguments, videos):
    run = reference(whole, arguments)
    assert "highest val top1" in whole["said"]
    log = lines(run / "log.jsonl")
    assert [line["epoch"] for line in log] == [1, 2]
    # 14 videos in 7 batches of 2, two batches a step, the last step of an epoch of one batch
    assert [line["step"] for line in log] == [4, 8]
    expected = {
        "train_loss",
        "train_accuracy",
        "val_loss",
        "val_top1",
        "val_mean_class",
        "val_n",
        "val_failed",
    }
    expected |= {"frames_per_second", "seconds", "skipped", "lr", "peak_memory_mb"}
    assert expected <= set(log[0])
    assert (log[0]["val_n"], log[0]["skipped"]) == (5, 0)
    steps = lines(run / "steps.jsonl")
    assert [line["step"] for line in steps] == list(range(1, 9))
    assert {"loss", "accuracy", "lr", "grad_norm", "epoch"} <= set(steps[0])
    assert json.loads((run / "labels.json").read_text()) == ["bright", "dark"]
    index = json.loads((run / "checkpoints" / "index.json").read_text())
    assert (index["rule"], index["split"], index["last"]) == ("highest val top1", "val", "step-00000008")
    assert str(videos) in index["split_rule"]
    # the settings it leaves start the same run again
    again = run.parent / "again"
    assert train.main(["--config", str(run / "config.yaml"), "--out", str(again)]) == 0
    assert curve(again) == curve(run)


def test_the_saved_model_is_the_moving_average(whole, arguments, monkeypatch):
    run = reference(whole, arguments)
    last = run / "checkpoints" / "step-00000008"
    saved = from_pretrained(last).state_dict()
    trained = load_file(last / "training_state" / "model.safetensors")
    assert any(not torch.equal(saved[name], trained[name]) for name in saved)
    loaded = []
    load = Run._load

    def watch(self, checkpoint):
        load(self, checkpoint)
        loaded.append((self.ema.module.state_dict(), self.model.state_dict()))

    monkeypatch.setattr(Run, "_load", watch)
    assert train.main(arguments("--resume", "auto", out=run)) == 0
    ((average, weights),) = loaded
    assert all(torch.equal(saved[name], average[name]) and torch.equal(trained[name], weights[name]) for name in saved)
    # nothing in a run folder is unpickled freely, so no average may lie there as a pickle
    assert sorted(path.name for path in (last / "training_state").iterdir()) == ["model.safetensors", "optimizer.bin"]
    provenance = from_pretrained(run).provenance
    assert provenance["split"] == "val"
    assert 0 <= provenance["metrics"]["top1"] <= 1
    assert provenance["clip_frames"] == 5  # data.max_frames


@pytest.mark.parametrize(
    ("method", "count"),
    [
        ("run_folder.JsonLines.append", 1),  # before the first checkpoint
        ("run_folder.JsonLines.append", 4),  # a step after one in mid-epoch
        ("checkpoint.Checkpoints._write_index", 1),  # the checkpoint is there, the index not yet
        ("checkpoint.Checkpoints._prune", 2),  # at the end of the epoch, not yet validated
        pytest.param("run_folder.JsonLines.append", 5, marks=pytest.mark.slow),  # before the line of the epoch
        pytest.param("checkpoint.Checkpoints._prune", 3, marks=pytest.mark.slow),  # validated, the log has its line
        pytest.param("run_folder.JsonLines.append", 9, marks=pytest.mark.slow),  # late in the second epoch
    ],
)
def test_killed_and_resumed_is_the_same_run(whole, arguments, monkeypatch, capsys, method, count):
    expected = curve(reference(whole, arguments))
    module, owner, name = method.split(".")
    cls = getattr(__import__(f"tttvideo.training.{module}", fromlist=[owner]), owner)
    with monkeypatch.context() as patch:
        kill_at(patch, count, cls, name)
        with pytest.raises(Killed):
            train.main(arguments())
    torch.manual_seed(12345)  # another process has another global state
    capsys.readouterr()
    argv = arguments("--resume", "auto")
    assert train.main(argv) == 0
    said = capsys.readouterr().out
    assert ("starting afresh" in said) == (count == 1 and name == "append")
    run = Path(argv[argv.index("--out") + 1])
    assert curve(run) == expected
    assert not list((run / "checkpoints").glob(".*"))
    weights = [from_pretrained(r / "checkpoints" / "step-00000008").state_dict() for r in (run, whole["run"])]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_resume_of_a_finished_run_changes_nothing(whole, arguments):
    run = reference(whole, arguments)
    names = ("log.jsonl", "config.yaml")
    before = [(run / name).read_text() for name in names]
    assert train.main(arguments("--resume", "auto", "--data.workers", "1", out=run)) == 0
    assert [(run / name).read_text() for name in names] == before


def test_a_second_start_overwrites_nothing(whole, arguments, capsys):
    run = reference(whole, arguments)
    before = curve(run)
    assert train.main(arguments(out=run)) == 2
    assert "already holds a run: continue it with --resume auto" in capsys.readouterr().err
    assert curve(run) == before


def test_unreadable_videos_are_skipped_counted_and_listed_once(arguments, videos, tmp_path, capsys):
    root = tmp_path / "damaged"
    shutil.copytree(videos, root)
    for broken in ("train/dark/0.mp4", "train/dark/1.mp4", "val/bright/0.mp4"):
        (root / broken).write_bytes(b"not a video")
    argv = arguments(data__root=root, data__batch_size=1)  # a batch of one: some are empty
    assert train.main(argv) == 0
    run = Path(argv[argv.index("--out") + 1])
    log = lines(run / "log.jsonl")
    assert [line["skipped"] for line in log] == [2, 2]
    assert [(line["val_n"], line["val_failed"]) for line in log] == [(5, 1), (5, 1)]
    assert all(line["val_top1"] <= 0.8 for line in log)  # counted wrong
    listed = (run / "skipped.csv").read_text().splitlines()
    assert len(listed) == 4
    assert sum("0.mp4,train" in line for line in listed) == 1
    assert capsys.readouterr().out.count("skipped ") >= 3


def test_all_videos_unreadable_is_no_success(arguments, videos, tmp_path):
    root = tmp_path / "broken"
    shutil.copytree(videos, root)
    for path in (root / "train").rglob("*.mp4"):
        path.write_bytes(b"")
    assert train.main(arguments(data__root=root, evaluate_every=0, schedule__epochs=1)) == 2


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(arguments, monkeypatch, capsys):
    original = Trainer._forward

    def forward(self, batch, epoch, number):
        loss, figures = original(self, batch, epoch, number)
        if (epoch, number) == (1, 2):
            figures = figures.clone()
            figures[5] = 1.0
            loss = loss * float("nan")
        return loss, figures

    monkeypatch.setattr(Trainer, "_forward", forward)
    argv = arguments()
    assert train.main(argv) == 1
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert "the loss of step 6 is not finite" in said
    assert "a lower base_rate of the TTT layers (now 0.1)" in said
    assert said.count(".mp4") == 2  # the batch it was
    assert "step-00000004" in said
    run = Path(argv[argv.index("--out") + 1])
    assert [line["step"] for line in lines(run / "steps.jsonl")] == [1, 2, 3, 4, 5]


def test_several_labels(videos, tmp_path, arguments):
    rows = [
        f"{p},{'bright;any' if p.parent.name == 'bright' else 'dark'},{p.parent.parent.name}"
        for p in sorted(videos.rglob("*.mp4"))
    ]
    listing = tmp_path / "list.csv"
    listing.write_text("path,label,split\n" + "\n".join(rows) + "\n")
    argv = arguments("--data.list", str(listing))
    at = argv.index("--data.root")
    del argv[at : at + 2]
    assert train.main(argv) == 0
    run = tmp_path / "run"
    assert 0 < lines(run / "log.jsonl")[-1]["val_map"] <= 1
    assert json.loads((run / "checkpoints" / "index.json").read_text())["rule"] == "highest val map"


def test_bf16_with_activation_checkpointing(arguments, tmp_path):
    settings = dict(schedule__epochs=1, evaluate_every=0)
    assert train.main(arguments(precision="bf16", activation_checkpointing=2, out="a", **settings)) == 0
    loss = [line["loss"] for line in lines(tmp_path / "a" / "steps.jsonl")]
    assert all(0 < value < 5 for value in loss)


def test_tensorboard_gets_the_curves(arguments, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert train.main(arguments(trackers="[tensorboard]", schedule__epochs=1, log_every=2)) == 0
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [2, 4]
    assert len(events.Scalars("epoch/val_top1")) == 1


def test_accumulation_is_a_larger_batch(arguments, tmp_path):
    plain = {
        **{f"data__augment__{name}": 0 for name in ("flip", "brightness")},
        **dict(model__backbone__dropout=0, mix__probability=0, schedule__epochs=1, evaluate_every=0, ema="null"),
    }
    # 14 videos: the same three full groups of 4, then one of 2
    assert train.main(arguments(out="a", accumulate=1, data__batch_size=4, **plain)) == 0
    assert train.main(arguments(out="b", accumulate=2, data__batch_size=2, **plain)) == 0
    one, two = (lines(tmp_path / name / "steps.jsonl") for name in "ab")
    for key in ("loss", "grad_norm"):
        assert [s[key] for s in one] == pytest.approx([s[key] for s in two], rel=2e-3)
