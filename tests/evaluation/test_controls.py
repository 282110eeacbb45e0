"""Controls take away what they say, and give it back."""

import pytest
import torch

from tests.evaluation.small import noise_video, small_model
from tttvideo.evaluation.controls import CONTROLS, Forgetful, applicable, chunk_frames, without
from tttvideo.evaluation.scoring import score_videos
from tttvideo.evaluation.settings import Setting
from tttvideo.mixers import LSTM, TTT, Attention
from tttvideo.ttt import FrameCausal, TokenCausal
from tttvideo.ttt.interface import Layout
from tttvideo.video.index import Video
from tttvideo.video.sampling import Dense


@pytest.mark.parametrize("mixer", [TTT(chunk=FrameCausal(2)), LSTM()], ids=["TTT", "LSTM"])
def test_forgetting_is_reading_in_pieces_within_each_rows_length(mixer):
    model = small_model(mixer=mixer).double()
    x = torch.randn(3, 7 * 4, 32, dtype=torch.float64)
    lengths = torch.tensor([28, 20, 12])
    with torch.no_grad():
        found, _ = Forgetful(model.backbone, 2)(x, model.backbone.init_state(3), Layout((2, 2), lengths))
        for row, length in enumerate(lengths.tolist()):
            pieces = [model.backbone(p, None, Layout((2, 2)))[0] for p in x[row : row + 1, :length].split(8, dim=1)]
            torch.testing.assert_close(found[row, :length], torch.cat(pieces, 1)[0], rtol=0, atol=1e-12)


def test_the_state_is_reset_after_a_chunk():
    assert chunk_frames(small_model(mixer=TTT(chunk=FrameCausal(3)))) == 3
    assert chunk_frames(small_model(mixer=TTT(chunk=TokenCausal(16)))) == 4  # of 2 x 2 tokens a frame
    assert chunk_frames(small_model(mixer=TTT(chunk=TokenCausal(2)))) == 1
    assert chunk_frames(small_model(mixer=Attention())) == 1


def test_the_model_is_whole_again_afterwards():
    model, frames = small_model(), torch.randint(0, 256, (1, 6, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        before = model(frames)[0].logits
        for control in ("inner-rate-0", "reset"):
            with without(model, control):
                assert (model(frames)[0].logits - before).abs().max() > 1e-6
            torch.testing.assert_close(model(frames)[0].logits, before, rtol=0, atol=0)


def test_controls_apply_where_there_is_something_to_take_away():
    assert applicable(small_model()) == list(CONTROLS)
    lstm = small_model(mixer=LSTM())
    assert applicable(lstm) == ["reset", "shuffled"]
    with pytest.raises(ValueError, match="needs TTT layers"), without(lstm, "inner-rate-0"):
        pass


def test_shuffled_frames_are_the_same_frames(tmp_path):
    """A model without memory of order gives the same answer; one with it another."""
    videos = [Video(str(noise_video(tmp_path / "a.mp4", 20, seed=4)), 0, None, None, None)]
    settings = [
        Setting(None, Dense()),
        Setting(None, Dense(), control="shuffled"),
        Setting(None, Dense(), control="reset"),
    ]
    orderless = small_model(mixer=TTT(base_rate=0.0))
    plain, shuffled, _ = (torch.tensor(score.row) for score in score_videos(orderless, videos, settings).answers)
    torch.testing.assert_close(plain, shuffled, rtol=1e-3, atol=1e-3)
    plain, shuffled, reset = (
        torch.tensor(s.row) for s in score_videos(small_model(), videos, settings, segment=4).answers
    )
    assert (plain - shuffled).abs().max() > 1e-3
    assert (plain - reset).abs().max() > 1e-3
