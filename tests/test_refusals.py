"""What a model refuses: configurations that nothing of ours wrote, frames that are no pixels, weights that are no
numbers."""

import pytest
import torch

from tttvideo.pretrained import from_pretrained

from .evaluation.small import noise_video
from .test_model import SIZE, build


def deep(levels: int) -> str:
    return "[" * levels + "]" * levels


@pytest.mark.parametrize("levels", [100, 10_000, 1_000_000])
def test_a_configuration_nested_for_ever_is_one_sentence(tmp_path, levels):
    build().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"provenance": {}', f'"provenance": {deep(levels)}'))
    with pytest.raises(ValueError, match="nested"):
        from_pretrained(tmp_path)


BAD_FRAMES = {
    "NaN or infinite": lambda frames: frames.index_fill(3, torch.tensor(2), torch.nan),
    "got 0 to 255": lambda frames: (255 * frames).round(),
    "got -1": lambda frames: 2 * frames - 1,
    "got int64": lambda frames: (255 * frames).long(),
}


@pytest.mark.parametrize("words", BAD_FRAMES)
def test_frames_that_are_no_pixels_leave_a_stream_as_it_was(words):
    model = build().eval()
    frames = torch.rand(2, 6, 3, *SIZE)
    frames[0, 0, 0, 0, 0], frames[1, 3, 2, 1, 1] = 0.0, 1.0
    with torch.no_grad():
        _, state = model(frames[:, :2])
        expected, _ = model(frames[:, 2:], None, state)
        with pytest.raises(ValueError, match=words):
            model(BAD_FRAMES[words](frames)[:, 2:], None, state)
        again, _ = model(frames[:, 2:], None, state)
    assert torch.equal(again.logits, expected.logits)


def test_padding_may_hold_anything_and_rounding_is_no_fault():
    model = build().eval()
    frames = torch.rand(2, 4, 3, *SIZE) * 1.0005
    frames[1, 2:] = torch.nan
    output, _ = model(frames, torch.tensor([4, 2]))
    assert output.logits.isfinite().all()


def test_damaged_weights_are_no_answer(tmp_path):
    model = build().eval()
    noise_video(tmp_path / "clip.mp4", 4)
    with torch.no_grad():
        model.head.classifier.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="weights are damaged"):
        model.classify(tmp_path / "clip.mp4")
