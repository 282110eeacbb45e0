"""Small data are learned, or it is said that they are not: steps, patience, balance, chance, a run without a recipe."""

import json
from collections import Counter

import pytest
import torch
from accelerate.utils import LoggerType

from tttvideo.tasks import Classification
from tttvideo.tasks.base import Sizes
from tttvideo.tasks.classification import Output
from tttvideo.training.arguments import parse
from tttvideo.training.config import ScheduleConfig
from tttvideo.training.optimizer import Schedule, in_epochs
from tttvideo.training.position import Progress
from tttvideo.training.record import Record
from tttvideo.training.run import main
from tttvideo.video.loader import EpochSampler


def test_steps_make_epochs():
    assert in_epochs(ScheduleConfig(steps=720), 9).epochs == 80
    assert in_epochs(ScheduleConfig(steps=720), 1000).epochs == 1
    assert in_epochs(ScheduleConfig(epochs=7), 9).epochs == 7


def test_warm_ups_are_given_in_steps_too():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    config = ScheduleConfig(steps=90, warmup=3, warmup_steps=4, inner_warmup_steps=20, warmup_lr=0.0)
    schedule = Schedule(optimizer, in_epochs(config, 9), 9)
    assert [schedule.set(step) for step in range(4)] == pytest.approx([0, 0.25, 0.5, 0.75])
    assert schedule.set(5) > 0.95
    assert (schedule.inner_scale(10), schedule.inner_scale(20)) == (pytest.approx(0.55), 1.0)
    same = in_epochs(ScheduleConfig(epochs=7, warmup=0.5), 9)
    assert (same.warmup, same.inner_warmup) == (0.5, 0.0)


def test_class_weights_make_classes_weigh_the_same_together():
    sizes = Sizes(4, (1, 1), 1, (8, 8), (0.5,) * 3, (0.5,) * 3, True, True, classes=3)
    head, plain = (Classification(class_weights=weights).build(sizes) for weights in ("balanced", None))
    for part in (head, plain):
        part.set_class_counts([6, 3, 0])  # of the third class there is no video
    targets = torch.tensor([0] * 6 + [1] * 3)
    output = Output(torch.zeros(9, 3), torch.zeros(9, 1, 3))
    each = torch.stack(
        [head.loss(Output(o[None], o[None, None]), t[None]).total for o, t in zip(output.logits, targets)]
    )
    assert each[:6].sum().item() == pytest.approx(each[6:].sum().item())
    assert head.loss(output, targets).total.item() == pytest.approx(plain.loss(output, targets).total.item())
    soft = torch.nn.functional.one_hot(targets, 3).float()
    assert torch.allclose(head.loss(output, soft).total, head.loss(output, targets).total)
    assert not any("class_weight" in name for name in head.state_dict())
    with pytest.raises(ValueError, match="one class each"):
        Classification(class_weights="balanced").build(sizes._replace(multi_label=True)).set_class_counts([1, 1, 1])


def test_patience_counts_epochs_since_the_best_checkpoint():
    def done(patience, **position):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        return Schedule(optimizer, ScheduleConfig(epochs=9, patience=patience), 10).done(Progress(**position))

    best = {"best": "step-00000020", "best_value": 0.5}
    assert not done(3, epoch=4, step=40, **best)
    assert done(3, epoch=5, step=50, **best)
    assert not done(3, epoch=5, step=50)
    assert not done(None, epoch=5, step=50, **best)
    assert done(None, epoch=9, step=90)


def test_balance_takes_classes_equally_often_and_all_videos_in_turn():
    classes = [0] * 90 + [1] * 8 + [2] * 2
    sampler = EpochSampler(100, 10, seed=1, classes=classes)
    videos = Counter()
    for epoch in range(6):
        sampler.start_at(epoch)
        drawn = [i for batch in sampler for _, i in batch]
        assert len(drawn) == 100
        counts = Counter(classes[i] for i in drawn)
        assert max(counts.values()) - min(counts.values()) <= 1
        videos.update(drawn)
    assert len(videos) > 90


class Said(Record):
    def __init__(self, chance, before):
        self.chance, self.logged, self.sentences, self._steps = chance, ("accuracy",), [], before

    def say(self, sentence):
        self.sentences.append(sentence)


@pytest.mark.parametrize(
    ("before", "step", "accuracy", "said"),
    [(297, 306, 0.18, True), (297, 306, 0.6, False), (288, 297, 0.18, False), (306, 315, 0.18, False)],
)
def test_a_training_at_chance_is_said_once(before, step, accuracy, said):
    record = Said(1 / 6, before)
    totals = {"loss": 1.0, "accuracy": accuracy * 72, "counted": 72.0}
    record.warn_of_chance(Progress(step=step, totals=totals))
    assert len(record.sentences) == said
    assert not said or "guessing reaches 0.17" in record.sentences[0]


def test_videos_alone_take_the_recipe_folder(videos, capfd):
    config, _ = parse(["--data.root", str(videos), "--schedule.steps", "10"])
    assert "the recipe `folder` is used" in capfd.readouterr().err
    assert (type(config.model.encoder).__name__, config.schedule.steps) == ("ConvStem", 10)
    for words in (["--seed", "1"], ["--data.root", "x", "--model.encoder", "Patches"]):
        parse(words)
        assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_a_run_with_patience_ends_and_stays_ended(arguments, tmp_path, capfd):
    given = {"schedule.epochs": 30, "schedule.patience": 2, "data.balance": "true", "optimizer.lr": 1e-6}
    words = arguments(**given)
    assert main(words) == 0
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert len(lines) < 30
    assert f"ended after epoch {len(lines)} of 30: 2 epochs without a better" in capfd.readouterr().out
    assert json.loads(lines[-1])["epoch"] == len(lines)
    assert main([*words, "--resume", "auto"]) == 0
    assert (tmp_path / "run" / "log.jsonl").read_text().splitlines() == lines


WANDB = """
import json, os
file = os.environ["STUB_WANDB"]

def _write(kind, values, **more):
    with open(file, "a") as stream:
        stream.write(json.dumps([kind, values, more]) + "\\n")

class config:
    update = staticmethod(lambda values, allow_val_change: _write("config", values))

class Run:
    log = staticmethod(lambda values, step: _write("log", values, step=step))
    finish = staticmethod(lambda: _write("finish", None))

def init(project, **settings):
    _write("init", settings, project=project)
    return Run
"""


def test_other_trackers_get_settings_and_points(arguments, tmp_path, monkeypatch):
    """A stub in place of wandb, through Accelerate's own tracker; TensorBoard beside it stays in its folder."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "wandb.py").write_text(WANDB)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr("accelerate.tracking._available_trackers", [LoggerType.WANDB, LoggerType.TENSORBOARD])
    monkeypatch.setenv("STUB_WANDB", str(tmp_path / "wandb.jsonl"))
    words = arguments(trackers="wandb,tensorboard", schedule__epochs=1, log_every=2)
    assert main(words) == 0
    lines = [json.loads(line) for line in (tmp_path / "wandb.jsonl").read_text().splitlines()]
    assert [kind for kind, _, _ in lines] == ["init", "config", "log", "log", "log", "finish"]
    assert lines[0][1:] == [{"name": "run", "group": "run"}, {"project": "tttvideo"}]
    settings = lines[1][1]
    assert (settings["optimizer.lr"], settings["model.backbone.width"]) == (0.003, 16)
    assert settings["model.encoder.class"] == "tttvideo.encoder.Patches"
    assert [more["step"] for _, _, more in lines[2:5]] == [2, 4, 4]
    steps = [json.loads(line) for line in (tmp_path / "run" / "steps.jsonl").read_text().splitlines()]
    for key in ("loss", "grad_norm"):
        assert lines[2][1][f"train/{key}"] == steps[1][key]
    # batches of 4 videos both
    assert lines[2][1]["train/mean_loss"] == pytest.approx((steps[0]["loss"] + steps[1]["loss"]) / 2)
    assert "epoch/val_top1" in lines[4][1]
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))


def test_what_a_run_says_is_kept_and_a_resumed_run_goes_on_below(arguments, tmp_path, capsys):
    assert main(arguments(schedule__epochs=1)) == 0
    said = capsys.readouterr().out.splitlines()

    def kept():
        lines = (tmp_path / "run" / "console.log").read_text().splitlines()
        return [line[21:] for line in lines]

    assert kept() == said
    assert main(arguments("--resume", "auto", "--data.time_limit", "100", out="run")) == 0  # to two epochs
    again = capsys.readouterr().out.splitlines()
    assert kept() == said + again
    assert any(line.startswith("resume step-") for line in again)
    whole = (tmp_path / "run" / "console.log").read_text()
    assert main(arguments("--resume", "auto", out="run")) == 0  # which is done
    assert (tmp_path / "run" / "console.log").read_text() == whole
