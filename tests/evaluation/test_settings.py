import pytest

from tttvideo.evaluation.settings import (
    Setting,
    all_settings,
    parse_controls,
    parse_frames,
    parse_samplings,
    passes,
)
from tttvideo.video.sampling import Dense, Uniform
from tttvideo.video.views import Spans, Whole


def test_frames_are_read_in_order_and_once():
    assert parse_frames("16, 64,all,16") == [16, 64, None]


@pytest.mark.parametrize("text", ["", "0", "-4", "16,,64", "some", "1.5"])
def test_frames_that_are_no_numbers_are_refused(text):
    with pytest.raises(ValueError, match="--frames takes positive numbers and 'all'"):
        parse_frames(text)


def test_samplings_come_from_several_words_or_commas():
    assert parse_samplings(["dense,fps=1", "uniform=16", "dense"]) == [Dense(), Dense(fps=1.0), Uniform(16)]


def test_every_combination_is_a_row():
    settings = all_settings([16, None], [Dense(), Uniform(4)])
    assert [str(setting) for setting in settings] == [
        "16 frames, dense",
        "all frames, dense",
        "16 frames, uniform=4",
        "all frames, uniform=4",
    ]
    assert [setting.frames_name for setting in settings[:2]] == [16, "all"]


def test_dense_cuts_at_whole_encoder_steps_share_a_pass():
    settings = all_settings([4, 5, None], [Dense(), Dense(fps=1.0)])
    assert passes(settings, 1) == [[0, 1, 2], [3], [4], [5]]
    assert passes(settings, 2) == [[0, 2], [1], [3], [4], [5]]
    assert passes([Setting(8, Uniform(4))], 1) == [[0]]


def test_lengths_can_be_counted_in_training_clips():
    assert parse_frames("1x,2x,8x,all", trained=32) == [32, 64, 256, None]
    with pytest.raises(ValueError, match="--frames 2x counts in lengths of training clips"):
        parse_frames("2x")


def test_views_and_controls_have_rows_and_passes_of_their_own():
    settings = all_settings([8, None], [Dense()], [Whole(), Spans(60, 30)], ["reset"])
    assert [str(setting) for setting in settings[2:5]] == [
        "8 frames, dense, spans=60:30",
        "all frames, dense, spans=60:30",
        "8 frames, dense, reset",
    ]
    assert len(settings) == 6
    assert passes(settings, 1) == [[0, 1], [2], [3], [4], [5]]
    assert parse_controls(["reset,shuffled"], []) == ["reset", "shuffled"]
    assert parse_controls(["all"], ["reset"]) == ["reset"]
