"""Views: which parts of a video they are, and that their answers are averaged as probabilities."""

import csv
import json

import pytest
import torch

from tests.evaluation.small import noise_video, small_model, small_run, small_set, undrawn
from tttvideo.evaluation.scoring import score_videos
from tttvideo.evaluation.settings import Setting, check_lengths
from tttvideo.tasks import Classification
from tttvideo.video.index import Index, Video
from tttvideo.video.reading import usual_length
from tttvideo.video.sampling import Dense, parse_sampling
from tttvideo.video.transforms import Preprocessing
from tttvideo.video.views import Clips, Spans, View, Whole, expand, parse_views

TIMES = torch.arange(100, dtype=torch.float64) / 25  # 4 s


def test_clips_are_evenly_spaced_from_end_to_end():
    assert Clips(3, 1, 10).parts(TIMES) == [(0, 10), (45, 55), (90, 100)]
    assert Clips(1, 1, 10).parts(TIMES) == [(45, 55)]
    assert Clips(4, 1, 200).parts(TIMES) == [(0, 100)]  # a short video is one clip
    assert Clips(2, 3, 8).crops == (0.0, 0.5, 1.0)


def test_spans_slide_and_end_with_the_video():
    assert Spans(2, 1).parts(TIMES) == [(0, 50), (25, 75), (50, 100)]
    assert Spans(3, 2).parts(TIMES) == [(0, 75), (25, 100)]
    assert Spans(60, 30).parts(TIMES) == [(0, 100)]


@pytest.mark.parametrize("text", ["whole", "clips=4x3:64", "clips=2x1", "spans=60:30"])
def test_rules_say_what_they_read(text):
    assert str(parse_views(text)) == text
    assert str(parse_views("spans=60")) == "spans=60:30"
    assert parse_views("clips=5") == Clips(5, 1, None)


@pytest.mark.parametrize("text", ["", "clips", "clips=0x3", "clips=3x0", "clips=3:0", "spans=0", "spans=3:0", "all"])
def test_other_rules_are_refused(text):
    with pytest.raises(ValueError, match="--views takes whole, clips="):
        parse_views(text)


def test_probabilities_are_averaged_not_logits():
    logits = torch.tensor([[10.0, 0.0, -5.0], [0.0, 1.0, 2.0]])
    torch.testing.assert_close(Classification().average(logits, False).softmax(0), logits.softmax(1).mean(0))
    torch.testing.assert_close(Classification().average(logits, True).sigmoid(), logits.sigmoid().mean(0))


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return [Video(str(noise_video(folder / f"{n}.mp4", n, seed=n)), 0, None, None, None) for n in (23, 12)]


def test_views_are_cut_in_the_file_as_planned(videos):
    found = expand(videos, Clips(2, 1, 10), 20)
    assert [view.video for view in found] == [0, 0, 1, 1]
    assert [view.source.start for view in found] == pytest.approx([0, 0.4, 0, 0.08])
    assert [view.source.end for view in found] == [pytest.approx(0.4), pytest.approx(0.8), pytest.approx(0.4), None]


def test_scores_of_views_are_the_mean_of_theirs(videos):
    model, setting = small_model(), Setting(None, Dense(), Clips(3, 1, 8))
    scores = {score.video: score for score in score_videos(model, videos, [setting], batch_size=2).answers}
    for number in (0, 1):
        parts = [view.source for view in expand([videos[number]], setting.views, None)]
        alone = score_videos(model, parts, [Setting(None, Dense())]).answers
        expected = torch.tensor([score.row for score in alone]).softmax(1).mean(0)
        torch.testing.assert_close(torch.tensor(scores[number].row).softmax(0), expected, rtol=1e-4, atol=1e-4)
        assert scores[number].frames == 24
    one = score_videos(model, videos, [Setting(None, Dense(), Spans(60, 30)), Setting(None, Dense())]).answers
    by_setting = {(score.video, score.setting): torch.tensor(score.row) for score in one}
    for number in (0, 1):  # a video shorter than a span is read as it is
        shifted = by_setting[number, 0] - by_setting[number, 1]
        torch.testing.assert_close(shifted, shifted.mean().expand_as(shifted), rtol=0, atol=1e-4)


def test_an_unreadable_video_is_one_failure(videos, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video")
    mixed = [videos[0], videos[1]._replace(path=str(broken))]
    assert expand(mixed, Clips(3, 1, 8), None)[-1] == View(1, mixed[1])
    scores = score_videos(small_model(), mixed, [Setting(None, Dense(), Clips(3, 1, 8))]).answers
    assert {score.video: score.row is None for score in scores} == {0: False, 1: True}


def test_crops_lie_along_the_longer_side():
    frames = torch.arange(12, dtype=torch.uint8).expand(1, 3, 4, 12)
    model_size = Preprocessing(size=(4, 4))
    columns = [model_size.apply(frames, crop)[0, 0, 0].tolist() for crop in (0.0, 0.5, 1.0)]
    assert columns == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_evaluation_with_views_controls_strata_and_streaming(tmp_path, capsys):
    from tttvideo.cli import main

    data = small_set(tmp_path / "set", count=6)
    run = small_run(tmp_path / "run", small_model())
    words = ["evaluate", str(run), "--data", str(data), "--workers", "0", "--views", "whole", "clips=2x3:8"]
    with undrawn():
        assert main([*words, "--controls", "all", "--by", "first_colour", "--check-streaming", "2"]) == 0
    shown = capsys.readouterr().out
    metrics = json.loads((run / "metrics.json").read_text())
    rows = {(row["views"], row["control"]): row for row in metrics["results"]}
    controls = ("", "inner-rate-0", "reset", "shuffled")
    assert set(rows) == {("clips=2x3:8", ""), *(("whole", control) for control in controls)}
    assert rows["clips=2x3:8", ""]["mean_frames_used"] == 48
    assert rows["whole", ""]["mean_tokens_used"] == 80  # 20 frames of 2 x 2 tokens
    assert rows["clips=2x3:8", ""]["ceiling"] is None
    strata = rows["whole", ""]["by"]["first_colour"]
    assert [(s["value"], s["n"], s["ceiling"]) for s in strata] == [
        ("blue", 2, 1.0),
        ("green", 2, 1.0),
        ("red", 2, 1.0),
    ]
    assert sum(s["top1"] * s["n"] for s in strata) == pytest.approx(6 * rows["whole", ""]["top1"])
    assert metrics["streaming"]["same_class"] == 2
    assert metrics["streaming"]["max_probability_difference"] < 1e-4
    assert metrics["streaming"]["state_bytes_first"] == metrics["streaming"]["state_bytes_last"] > 0
    assert "streaming: 2 of 2 videos get the class of the whole clip" in shown
    assert (run / "accuracy_by_first_colour.png").is_file()
    with (run / "predictions.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert {row["first_colour"] for row in table} == {"blue", "green", "red"}
    assert len(table) == 6 * 5

    def error(*more):
        assert main([*words[:6], *more]) == 2
        return capsys.readouterr().err

    assert "no control 'rate'" in error("--controls", "rate")
    assert "no column 'depth'; there are: duration, first_colour" in error("--by", "depth")
    assert "needs a length, as this checkpoint does not say" in error("--views", "clips=4x3")
    assert "--frames asks for the first 64 frames, but the longest video of split val has 20" in error(
        "--frames", "8,64"
    )
    assert "counts in lengths of training clips" in error("--frames", "2x")
    assert "--views takes whole" in error("--views", "spans=x")


def test_the_usual_length_is_that_after_sampling(videos, tmp_path):
    paths = [video.path for video in videos]
    assert usual_length(paths, Preprocessing()) == 23
    assert usual_length([*paths, paths[1]], Preprocessing()) == 12
    assert usual_length(paths, Preprocessing(sampling="uniform=6")) == 6
    assert usual_length([str(tmp_path / "missing.mp4")], Preprocessing()) is None


def test_whole_is_a_view():
    assert Whole().parts(TIMES) == [(0, 100)]


def test_lengths_that_no_video_has_are_told(tmp_path):
    paths = [str(noise_video(tmp_path / f"{n}.mp4", n)) for n in (6, 10)]
    index = Index([Video(path, None, None, None, None) for path in paths], [], False, "all", "")
    rules = [parse_sampling(text) for text in ("dense", "last=10", "last=11", "window=0.4", "window=0.6")]
    views = [parse_views(text) for text in ("whole", "clips=2x1:10", "clips=2x1:12", "spans=0.4", "spans=60")]
    told = check_lengths(index, [None, 10], rules, views)
    whole = "no video is so long (the longest has {}), so that all are read whole"
    assert told == [
        *(f"{name}: {whole.format('10 frames')}" for name in ("last=11", "clips=2x1:12")),
        *(f"{name}: {whole.format('0.4 s')}" for name in ("window=0.6", "spans=60:30")),
    ]
    with pytest.raises(ValueError, match="--frames asks for the first 11 frames, but the longest video of split all"):
        check_lengths(index, [11], rules, views)
