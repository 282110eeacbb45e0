"""Small data are learned, or it is said that they are not: steps, patience, balance, chance, a run without a recipe."""

import json
from collections import Counter

import pytest
import torch

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
def test_a_run_with_patience_ends_and_stays_ended(arguments, tmp_path):
    given = {"schedule.epochs": 30, "schedule.patience": 2, "data.balance": "true", "optimizer.lr": 1e-6}
    words = arguments(**given)
    assert main(words) == 0
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert len(lines) < 30
    assert json.loads(lines[-1])["epoch"] == len(lines)
    assert main([*words, "--resume", "auto"]) == 0
    assert (tmp_path / "run" / "log.jsonl").read_text().splitlines() == lines
