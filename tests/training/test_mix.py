import numpy as np
import pytest
import torch

from tttvideo.training.config import MixConfig
from tttvideo.training.mix import ClipMix


def batch(B: int, F: int = 3, size: int = 8):
    """Clip i is filled with the value 10 * i and has the label i."""
    frames = (torch.arange(B) * 10).view(B, 1, 1, 1, 1).expand(B, F, 3, size, size).to(torch.uint8).contiguous()
    return frames, torch.arange(1, B + 1).clamp(max=F), torch.arange(B)


@pytest.mark.parametrize("B", [2, 5, 6])
def test_mixup_weights_of_pixels_and_labels_agree(B):
    frames, lengths, labels = batch(B)
    mixed, longer, targets = ClipMix(MixConfig(mixup=1.0), n_classes=B)(frames, lengths, labels, seed=3)
    assert targets.sum(1).tolist() == pytest.approx([1.0] * B)
    values = torch.arange(B) * 10 / 255
    assert mixed[:, 0, 0, 0, 0].tolist() == pytest.approx((targets @ values).tolist(), abs=1e-6)
    assert torch.equal(longer, torch.maximum(lengths, lengths.flip(0)))
    if B % 2:  # the middle clip has no partner
        assert targets[B // 2, B // 2] == 1.0


def test_cutmix_cuts_the_same_box_from_all_frames_and_weighs_it_by_area():
    frames, lengths, labels = batch(4)
    mixed, _, targets = ClipMix(MixConfig(cutmix=1.0), n_classes=4)(frames, lengths, labels, seed=2)
    assert (mixed == mixed[:, :1, :1]).all()
    own = mixed[0, 0, 0] == frames[0, 0, 0] / 255
    assert 0 < own.float().mean() < 1
    assert targets[0, 0].item() == pytest.approx(own.float().mean().item(), abs=1e-6)


def test_the_seed_decides_and_the_global_generator_stays_untouched():
    frames, lengths, labels = batch(4)
    mix = ClipMix(MixConfig(mixup=0.8, cutmix=1.0), n_classes=4)
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first = mix(frames, lengths, labels, seed=5)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
    np.random.seed(99)  # noqa: NPY002
    again = mix(frames, lengths, labels, seed=5)
    other = mix(frames, lengths, labels, seed=6)
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert not torch.equal(first[0], other[0])


def test_unmixed_batches_keep_their_lengths():
    frames, lengths, labels = batch(4)
    mix = ClipMix(MixConfig(mixup=1.0, probability=1e-9), n_classes=4)
    mixed, same, targets = mix(frames, lengths, labels, seed=0)
    assert torch.equal(same, lengths)
    assert torch.equal(targets, torch.eye(4))
    assert torch.equal(mixed, frames / 255)


def test_several_labels_and_a_single_clip():
    frames, lengths, _ = batch(2)
    labels = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    _, _, targets = ClipMix(MixConfig(mixup=1.0), n_classes=3)(frames, lengths, labels, seed=0)
    assert targets[:, 1].tolist() == pytest.approx([1.0, 1.0])
    assert (targets[0, 0] + targets[1, 0]).item() == pytest.approx(1.0)
    one = ClipMix(MixConfig(mixup=1.0), n_classes=2)(frames[:1], lengths[:1], torch.tensor([1]), seed=0)
    assert one[2].tolist() == [[0.0, 1.0]]


def test_inactive_by_default():
    assert not ClipMix(MixConfig(), 2).active
    assert ClipMix(MixConfig(cutmix=1.0), 2).active
