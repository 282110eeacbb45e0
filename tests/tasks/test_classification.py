"""Pooling over time."""

import pytest
import torch

from tttvideo.tasks.base import Sizes
from tttvideo.tasks.classification import Classification


def head(**options):
    torch.manual_seed(0)
    fields = {"width": 8, "classes": 3, "multi_label": False}
    known = {name: None for name in Sizes._fields} | fields
    return Classification(**options).build(Sizes(**known)).double()


@pytest.mark.parametrize("half_life", [0.5, 16.0, 1000.0])
def test_ema_is_a_moving_average(half_life):
    """Over more steps than one block of decays, in one call and in two."""
    pooling = head(pooling="ema", half_life=half_life)
    x = torch.randn(2, 150, 4, 8, dtype=torch.float64)
    _, timeline, _ = pooling.pool(x, None, pooling.init_state(2))
    for last in (0, 63, 64, 149):
        weight = 0.5 ** ((last - torch.arange(last + 1, dtype=torch.float64)) / half_life)
        mean = (weight[:, None] * x[:, : last + 1].mean(2)).sum(1) / weight.sum()
        torch.testing.assert_close(timeline[:, last], pooling.classifier(mean), rtol=1e-10, atol=1e-10)
    _, first, state = pooling.pool(x[:, :70], None, pooling.init_state(2))
    _, second, _ = pooling.pool(x[:, 70:], None, state)
    torch.testing.assert_close(torch.cat([first, second], 1), timeline, rtol=1e-10, atol=1e-10)


def test_padding_does_not_decay():
    """A short video beside one so long that its weights would vanish."""
    pooling = head(pooling="ema", half_life=0.5).float()
    x = torch.randn(2, 400, 1, 8)
    valid = torch.arange(400) < torch.tensor([[400], [5]])
    logits, _, _ = pooling.pool(x, valid, pooling.init_state(2))
    alone, _, _ = pooling.pool(x[1:, :5], None, pooling.init_state(1))
    torch.testing.assert_close(logits[1:], alone)


@pytest.mark.parametrize("half_life", [0, -1, float("inf"), float("nan")])
def test_half_lives_that_cannot_be(half_life):
    with pytest.raises(ValueError, match="half_life"):
        Classification(pooling="ema", half_life=half_life)


def test_a_half_life_of_nothing():
    with pytest.raises(ValueError, match="half_life is of pooling ema, not of mean"):
        Classification(half_life=16)
