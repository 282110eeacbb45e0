import math

import pytest
import torch
from torch import nn

from tttvideo.training.config import ConfigError, OptimizerConfig, ScheduleConfig
from tttvideo.training.optimizer import Schedule, build_optimizer, in_epochs


class Layered(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(3, 3)
        self.blocks = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))
        self.head = nn.Linear(3, 2)

    def group_matcher(self, coarse=False):
        return {"stem": r"^encoder", "blocks": [(r"^blocks\.(\d+)", None), (r"^head", (99999,))]}

    def no_weight_decay(self):
        return {"head.weight"}


def rates(schedule: Schedule, steps: int) -> list[float]:
    return [schedule.set(step) for step in range(steps)]


def test_cosine_with_warmup_follows_its_formula():
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=1.0)
    config = ScheduleConfig(epochs=4, warmup=1.0, warmup_lr=0.1, min_lr=0.0)
    lr = rates(Schedule(optimizer, config, steps_per_epoch=5), 20)
    assert lr[:5] == pytest.approx([0.1 + 0.9 * t / 5 for t in range(5)])
    assert lr[5:] == pytest.approx([0.5 * (1 + math.cos(math.pi * t / 20)) for t in range(5, 20)])


def test_step_schedule_and_fractional_warmup():
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=1.0)
    config = ScheduleConfig(epochs=3, name="step", warmup=0.5, warmup_lr=0.5, decay_epochs=1.0, decay_rate=0.1)
    lr = rates(Schedule(optimizer, config, steps_per_epoch=4), 12)
    assert lr == pytest.approx([0.5, 0.75, 1, 1] + [0.1] * 4 + [0.01] * 4)


def test_schedule_is_a_function_of_the_step_alone():
    config = ScheduleConfig(epochs=3, warmup=1.0)
    whole = rates(Schedule(torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.3), config, 7), 21)
    resumed = Schedule(torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.3), config, 7)
    assert [resumed.set(step) for step in (20, 3, 11)] == [whole[20], whole[3], whole[11]]


def test_inner_rates_rise_from_a_tenth():
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=1.0)
    schedule = Schedule(optimizer, ScheduleConfig(epochs=2, inner_warmup=0.5), steps_per_epoch=8)
    assert [schedule.inner_scale(t) for t in (0, 2, 4, 15)] == pytest.approx([0.1, 0.55, 1.0, 1.0])
    without = Schedule(optimizer, ScheduleConfig(epochs=2), steps_per_epoch=8)
    assert without.inner_scale(0) == 1.0


def test_a_warm_up_longer_than_the_run_shrinks_with_a_note():
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=1.0)
    schedule = Schedule(optimizer, ScheduleConfig(epochs=1, warmup=2.0, inner_warmup=3.0), steps_per_epoch=8)
    half = ScheduleConfig(epochs=1, warmup=0.5, inner_warmup=0.5)
    same = Schedule(torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=1.0), half, steps_per_epoch=8)
    assert rates(schedule, 8) == rates(same, 8)
    assert [schedule.inner_scale(t) for t in range(8)] == [same.inner_scale(t) for t in range(8)]
    assert schedule.notes == [
        "schedule.inner_warmup is 3 epochs and the run 1: shortened to 0.5",
        "schedule.warmup is 2 epochs and the run 1: shortened to 0.5",
    ]
    in_steps = in_epochs(ScheduleConfig(epochs=1, warmup_steps=20), 8)
    assert Schedule(optimizer, in_steps, 8).notes == ["schedule.warmup_steps is 20 steps and the run 8: shortened to 4"]
    fits = Schedule(optimizer, ScheduleConfig(epochs=2, warmup=2.0), steps_per_epoch=8)
    assert fits.notes == same.notes == []


def test_layer_decay_and_weight_decay_exemptions():
    model = Layered()
    optimizer = build_optimizer(model, OptimizerConfig(lr=1.0, weight_decay=0.1, layer_decay=0.5))
    Schedule(optimizer, ScheduleConfig(epochs=1), steps_per_epoch=10).set(0)
    of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert of[id(model.head.bias)]["lr"] == pytest.approx(1.0)
    assert of[id(model.blocks[0].weight)]["lr"] == pytest.approx(0.5)
    assert of[id(model.encoder.weight)]["lr"] == pytest.approx(0.25)
    assert of[id(model.blocks[0].weight)]["weight_decay"] == 0.1
    assert of[id(model.blocks[0].bias)]["weight_decay"] == 0.0  # one-dimensional
    assert of[id(model.head.weight)]["weight_decay"] == 0.0  # no_weight_decay()


def test_unknown_optimizer_names_the_nearest():
    with pytest.raises(ConfigError, match=r"no optimizer 'adamww'; did you mean 'adamw'\?"):
        build_optimizer(Layered(), OptimizerConfig(name="adamww"))


def test_setting_the_optimizer_does_not_take():
    with pytest.raises(ConfigError, match="sgd has none"):
        build_optimizer(Layered(), OptimizerConfig(name="sgd", betas=(0.9, 0.99)))
