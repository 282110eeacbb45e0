"""What a step descends: the mean over all that counts in it, however it is divided; nothing where nothing counts."""

import math
from signal import SIGTERM, SIGUSR1

import pytest
import torch

from tests.training.steps import ASKED, KINDS, LENGTHS, NONE, batch_of, divided, model_of, step
from tttvideo.tasks.base import Loss
from tttvideo.training.signals import STOP_SIGNALS

WHOLE = list(range(8))
SPLITS = {
    "5 + 3": [WHOLE[:5], WHOLE[5:]],
    "7 + 1": [WHOLE[:7], WHOLE[7:]],
    "4 x 2": [WHOLE[i : i + 2] for i in range(0, 8, 2)],
    "8 x 1": [[i] for i in WHOLE],
    "unreadable ones between": [[0, 1, NONE, 2], [NONE, NONE], [3, 4, 5, 6], [NONE, 7]],
}


def by_hand(kind):
    """Loss and gradients of the mean over all eight clips in one batch, by autograd alone."""
    model, batch = model_of(kind).train(), batch_of(kind, WHOLE)
    if kind == "rollout":
        model.head.own_steps = 2
    output, _ = model(batch.frames, batch.lengths)
    loss = model.loss(output, model.config.task.target(batch.frames, batch.lengths, batch.labels))
    loss.backward()
    return float(loss.detach()), {name: p.grad for name, p in model.named_parameters()}


def difference(one, other) -> float:
    assert one.keys() == other.keys()
    assert max(float(g.abs().max()) for g in one.values()) > 1e-3
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_do_not_depend_on_how_a_step_is_divided(kind):
    loss, gradients = by_hand(kind)
    whole, found, _ = step(kind, [WHOLE])
    assert difference(found, gradients) < 1e-12
    assert whole.loss == pytest.approx(loss, rel=1e-12)  # what is logged is what is descended
    for name, batches in SPLITS.items():
        result, found, _ = step(kind, batches)
        assert difference(found, gradients) < 1e-12, name
        assert result.loss == pytest.approx(loss, rel=1e-12)
        assert result.grad_norm == pytest.approx(whole.grad_norm, rel=1e-12)
        assert result.figures == pytest.approx(whole.figures, rel=1e-6)
        assert result.progress.totals["counted"] == whole.progress.totals["counted"]


def test_what_counts():
    """Videos; for prediction, the frames after the context: a film of twice as many weighs twice as much."""
    for kind, expected in {
        "one label": 8,
        "several labels": 8,
        "prediction": sum(max(0, n - 3) for n in LENGTHS),
    }.items():
        result, _, _ = step(kind, SPLITS["5 + 3"])
        assert result.progress.totals["counted"] == expected
        assert result.progress.totals["frames"] == sum(LENGTHS)


@pytest.mark.parametrize("kind", ["one label", "prediction"])
def test_a_step_in_which_nothing_counts_moves_nothing(kind):
    """Neither weight decay nor momentum, and no division by zero."""
    nothing = [[NONE], [NONE, NONE]] if kind == "one label" else [[2], [NONE, 4], [6]]  # too short
    result, gradients, weights = step(kind, nothing, weight_decay=0.1, clip_grad=1.0)
    assert all(gradient is None for gradient in gradients.values())
    before = dict(model_of(kind).named_parameters())
    assert all(torch.equal(weights[name], before[name]) for name in before)
    assert math.isnan(result.loss)
    assert result.grad_norm == 0
    assert result.progress.step == 1
    assert result.progress.batch == len(nothing)


def test_the_mean_is_clipped_and_not_the_sum():
    free, gradients, _ = step("one label", SPLITS["5 + 3"])
    above, kept, _ = step("one label", SPLITS["5 + 3"], clip_grad=2 * free.grad_norm)
    assert difference(kept, gradients) < 1e-12
    below, cut, _ = step("one label", SPLITS["5 + 3"], clip_grad=free.grad_norm / 2)
    assert above.grad_norm == below.grad_norm == free.grad_norm
    assert torch.stack([g.norm() for g in cut.values()]).norm() == pytest.approx(free.grad_norm / 2, rel=1e-5)


def test_fp16_unscales_then_divides_then_clips():
    """With a loss scale the same gradients, once; an infinite gradient skips the step and lowers the scale."""
    from accelerate.utils import AutocastKwargs

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)

    def scaled(accelerator):
        accelerator.scaler, accelerator.native_amp = scaler, True
        accelerator.state._mixed_precision = "fp16"  # its scaler is for GPUs, and it refuses fp16 without one
        accelerator.autocast_handler = AutocastKwargs(enabled=False)

    plain, gradients, _ = step("one label", SPLITS["5 + 3"])
    result, found, _ = step("one label", SPLITS["5 + 3"], prepare=scaled)
    assert difference(found, gradients) < 1e-12
    assert result.grad_norm == pytest.approx(plain.grad_norm, rel=1e-12)
    clip = plain.grad_norm / 2
    _, cut, _ = step("one label", SPLITS["5 + 3"], prepare=scaled, clip_grad=clip)
    assert torch.stack([g.norm() for g in cut.values()]).norm() == pytest.approx(clip, rel=1e-5)

    _, found, weights = step("one label", [[NONE]], prepare=scaled)  # nothing counts: the scaler goes on, too
    before = dict(model_of("one label").named_parameters())
    assert all(torch.equal(weights[name], before[name]) for name in before)

    def overflowing(accelerator):
        scaled(accelerator)
        back = accelerator.backward
        accelerator.backward = lambda loss: back(loss * 1e308 * 1e308)

    scale = scaler.get_scale()
    result, found, weights = step("one label", SPLITS["5 + 3"], prepare=overflowing)
    assert not math.isfinite(result.grad_norm)
    assert found == {}  # the optimizer was not asked
    assert all(torch.equal(weights[name], before[name]) for name in before)
    assert scaler.get_scale() == scale / 2


def test_a_signal_is_told_after_the_step():
    assert step("one label", [[0]])[0].signal == 0
    for number in STOP_SIGNALS:
        assert step("one label", [[0]], signal=number)[0].signal == number


def test_a_users_head_that_returns_a_mean_is_told(monkeypatch):
    model = model_of("one label")
    batch = batch_of("one label", [0, 1])
    output, _ = model(batch.frames, batch.lengths)
    monkeypatch.setattr(model.head, "loss", lambda output, target: torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"Expected a tasks\.Loss\(total, count\) of ClassificationHead\.loss"):
        model.summed_loss(output, batch.labels)
    with pytest.raises(ValueError, match=r"tasks\.Loss"):
        model.loss(output, batch.labels)


def test_the_mean_of_nothing_is_nothing():
    assert Loss(torch.tensor(0.0), torch.tensor(0)).mean() == 0


RANK = """
import sys
sys.path.insert(0, {root!r})
import torch
from tests.training.steps import main
torch.set_num_threads(1)
main(sys.argv[1])
"""


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_gradients_do_not_depend_on_the_number_of_processes(count, run_script, tmp_path):
    done = run_script(RANK, [str(tmp_path)], ranks=count)
    assert done.codes == [0] * count, done.stderr
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(count)]
    for kind in KINDS:
        loss, gradients = by_hand(kind)
        for name, parts in divided(kind, count).items():
            failed = sum(batch.count(NONE) for batches in parts.values() for batch in batches)
            for rank in ranks:
                its_loss, norm, failures, found = rank["found"][f"{kind}, {name}"]
                assert difference(found, gradients) < 1e-12, (kind, name)
                assert its_loss == pytest.approx(loss, rel=1e-12)
                assert norm == ranks[0]["found"][f"{kind}, {name}"][1]
                assert failures == failed
    # all processes learn of a signal in the same step, and of the same one
    assert ASKED[1][1] == SIGUSR1
    assert all(rank["signals"] == [0, SIGUSR1, SIGTERM] for rank in ranks)
