"""Preprocessing is deterministic and works piece by piece; augmentation is the same for all frames and
repeatable."""

import random

import numpy as np
import pytest
import torch

from tttvideo.video.transforms import Augmentation, Preprocessing, sample_generator

EVERYTHING = Augmentation(
    speed=(0.5, 2.0),
    drop=0.2,
    scale=(0.4, 1.0),
    ratio=(0.8, 1.25),
    flip=0.5,
    translate=(0.1, 0.2),
    rotate=10,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1,
    grayscale=0.2,
    auto="trivial",
    erase=0.5,
)


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("shape", [(48, 32), (32, 32), (17, 90), (200, 31), (5, 5)])
def test_preprocessing(fit, shape):
    pre = Preprocessing((24, 32), fit)
    frames = noise(7, 3, *shape)
    out = pre.apply(frames)
    assert out.shape == (7, 3, 24, 32)
    assert out.dtype == torch.uint8
    pieces = torch.cat([pre.apply(frames[:1]), pre.apply(frames[1:5]), pre.apply(frames[5:])])
    assert torch.equal(out, pieces)
    h, w = pre.decode_size(*shape)
    if fit == "crop":
        assert min(h - 24, w - 32) == 0
    elif fit == "pad":
        assert max(h - 24, w - 32) == 0
    else:
        assert (h, w) == (24, 32)
    # frames that come at the decode size are only cut or padded: no pixel is resampled twice
    decoded = noise(2, 3, h, w)
    fitted = pre.apply(decoded)
    assert set(fitted.unique().tolist()) <= {*decoded.unique().tolist(), 0}
    large = pre.decode_size(*shape, margin=1.5)
    assert large[0] >= 1.4 * h or large[1] >= 1.4 * w


def test_preprocessing_keeps_shapes_unless_stretched():
    square = torch.zeros(1, 3, 40, 80, dtype=torch.uint8)
    square[..., 10:30, 30:50] = 255  # 20 x 20 in the middle
    for fit, scale in (("crop", 1.0), ("pad", 0.5)):
        out = Preprocessing((40, 40), fit).apply(square)[0, 0] > 127
        assert out.any(0).sum() == out.any(1).sum() == 20 * scale
    stretched = Preprocessing((40, 40), "stretch").apply(square)[0, 0] > 127
    assert (stretched.any(0).sum(), stretched.any(1).sum()) == (10, 20)


def test_wrong_settings_are_one_sentence():
    for kwargs, match in [
        ({"size": (0, 4)}, "height and width"),
        ({"size": (4,)}, "height and width"),
        ({"fit": "zoom"}, "crop, pad or stretch"),
        ({"sampling": "fps=1 uniform=4"}, "exactly one"),
    ]:
        with pytest.raises(ValueError, match=match):
            Preprocessing(**kwargs)
    for kwargs, match in [
        ({"flip": 1.5}, "augment.flip is 1.5"),
        ({"speed": (0, 1)}, "augment.speed"),
        ({"scale": (0.5, 2)}, "augment.scale"),
        ({"drop": 1}, "leaves no frames"),
        ({"auto": "best"}, "augment.auto"),
        ({"hue": 0.7}, "augment.hue"),
    ]:
        with pytest.raises(ValueError, match=match):
            Augmentation(**kwargs)
    assert Preprocessing([8, 9]).size == (8, 9)  # as JSON gives it


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("auto", ["none", "trivial", "rand"])
def test_the_same_parameters_for_all_frames(fit, auto):
    """A clip of equal frames stays a clip of equal frames under everything that happens in space and
    colour."""
    from dataclasses import replace

    augment, pre = replace(EVERYTHING, auto=auto), Preprocessing((24, 32), fit)
    frames = noise(1, 3, 40, 60).expand(5, -1, -1, -1)
    outs = [augment.apply(frames, pre, sample_generator(0, 0, i)) for i in range(15)]
    for out in outs:
        assert out.shape == (5, 3, 24, 32)
        assert out.dtype == torch.uint8
        assert (out == out[:1]).all()
    assert len({out.numpy().tobytes() for out in outs}) == 15


def test_repeatable_and_the_global_generators_are_untouched():
    frames, pre = noise(4, 3, 40, 60), Preprocessing((24, 32))
    torch.manual_seed(5), np.random.seed(5), random.seed(5)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    a = EVERYTHING.apply(frames, pre, sample_generator(1, 2, 3))
    torch.rand(10)
    b = EVERYTHING.apply(frames, pre, sample_generator(1, 2, 3))
    torch.set_rng_state(before[0])
    EVERYTHING.apply(frames, pre, sample_generator(1, 2, 4))
    assert torch.equal(a, b)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert random.getstate() == before[2]


def test_off_by_default():
    frames, pre = noise(4, 3, 24, 40), Preprocessing((24, 32))
    generator = sample_generator(0, 0, 0)
    assert torch.equal(Augmentation().apply(frames, pre, generator), pre.apply(frames))
    assert torch.equal(Augmentation().resample(9, generator), torch.arange(9))


def test_random_crops_reach_the_whole_frame():
    """Every column of a wide frame is seen by some crop, and no crop leaves the range of areas."""
    columns = torch.arange(64, dtype=torch.uint8).mul(4).expand(1, 3, 16, 64)
    augment, pre = Augmentation(scale=(0.25, 1.0)), Preprocessing((16, 16))
    low, high = 255, 0
    for i in range(60):
        row = augment.apply(columns, pre, sample_generator(0, 0, i))[0, 0, 8].int()
        low, high = min(low, int(row.min())), max(high, int(row.max()))
        assert 7 * 4 - 8 <= row.max() - row.min() <= 15 * 4  # widths of 8 to 16 columns
    assert low <= 8
    assert high >= 55 * 4


def test_resampling_in_time():
    def draws(**kwargs):
        augment = Augmentation(**kwargs)
        return [augment.resample(40, sample_generator(0, 0, i)) for i in range(50)]

    for keep in [*draws(speed=(0.5, 2.0)), *draws(drop=0.5), *draws(speed=(0.5, 2.0), drop=0.5)]:
        assert len(keep) >= 1
        assert (keep.diff() >= 0).all()
        assert set(keep.tolist()) <= set(range(40))
    lengths = [len(k) for k in draws(speed=(0.5, 2.0))]
    assert min(lengths) < 25
    assert max(lengths) > 65
    assert all(torch.equal(k, torch.arange(0, 40, 2)) for k in draws(speed=(2.0, 2.0)))
    assert all(torch.equal(k, torch.arange(80) // 2) for k in draws(speed=(0.5, 0.5)))
    assert Augmentation(drop=0.99).resample(2, sample_generator(0, 0, 0)).numel() >= 1


def test_sample_generator_depends_on_all_three():
    draws = {
        float(torch.rand((), generator=sample_generator(*key), dtype=torch.float64))
        for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 11, 1), (0, 1, 11)]
    }
    assert len(draws) == 6
