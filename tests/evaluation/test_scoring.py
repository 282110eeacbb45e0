"""Scores must not depend on how the videos were read: segments, batches, workers, shared passes."""

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from tests.evaluation.small import noise_video, small_model
from tttvideo.evaluation.scoring import score_videos
from tttvideo.evaluation.settings import Setting
from tttvideo.mixers import TTT, Bidirectional
from tttvideo.ttt import Whole
from tttvideo.video.index import Video
from tttvideo.video.sampling import Dense, Uniform
from tttvideo.video.segments import read_segments
from tttvideo.video.transforms import Preprocessing

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "videos"


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    lengths = (5, 23, 12)
    return [Video(str(noise_video(folder / f"{n}.mp4", n, seed=n)), 0, None, None, None) for n in lengths]


def table(scores) -> dict[tuple[int, int], torch.Tensor]:
    return {(score.video, score.setting): torch.tensor(score.row) for score in scores.answers}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for key in one:
        torch.testing.assert_close(one[key], other[key], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tubelets", [False, True])
def test_dense_cuts_of_one_pass_equal_videos_that_end_there(videos, tubelets):
    model = small_model(tubelets=tubelets)
    settings = [Setting(cut, Dense()) for cut in (2, 6, 11, None, 64)]
    together = score_videos(model, videos, settings, segment=4, batch_size=3)
    assert len(together.costs) == (2 if tubelets else 1)
    for position, setting in enumerate(settings):
        alone = score_videos(model, videos, [setting], segment=32, batch_size=1)
        assert_same(
            {k: v for k, v in table(together).items() if k[1] == position},
            {(video, position): logits for (video, _), logits in table(alone).items()},
        )
    frames = {(score.video, score.setting): score.frames for score in together.answers}
    assert [frames[1, s] for s in range(5)] == [2, 6, 11, 23, 23]
    assert [frames[0, s] for s in range(5)] == [2, 5, 5, 5, 5]


def test_cuts_of_a_model_that_does_not_stream_have_a_pass_each(videos):
    """Its outputs at frame n of a longer video have seen more than n frames."""
    model = small_model(mixer=Bidirectional(TTT()))
    settings = [Setting(cut, Dense()) for cut in (4, 12, None)]
    together = score_videos(model, videos, settings, batch_size=3)
    assert len(together.costs) == 3
    frames = table(score_videos(model, [videos[2]], settings, batch_size=1))
    with torch.no_grad():
        whole = model.score_segments([(read_whole(videos[2].path), torch.tensor([12]))])
        start = model.score_segments([(read_whole(videos[2].path)[:, :4], torch.tensor([4]))])
    torch.testing.assert_close(frames[0, 2], whole.logits[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(frames[0, 0], start.logits[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(table(together)[2, 0], start.logits[0], rtol=1e-4, atol=1e-4)
    assert (whole.timeline[0, 3] - start.logits[0]).abs().max() > 1e-3
    probabilities = dict(model.classify(videos[2].path))
    expected = dict(zip(model.labels, whole.logits[0].softmax(-1).tolist(), strict=True))
    assert all(abs(p - expected[label]) <= 1e-4 for label, p in probabilities.items())
    with pytest.raises(ValueError, match="reads each video whole"):
        score_videos(model, videos, settings, segment=8)


def read_whole(path):
    (piece,) = read_segments([path], Preprocessing(size=(32, 32)), segment=10**9)
    return piece.frames


def test_cuts_inside_chunks_that_see_ahead_have_a_pass_of_their_own(videos):
    model = small_model(mixer=TTT(chunk=Whole(4)))
    settings = [Setting(cut, Dense()) for cut in (4, 6, 8, None)]
    together = score_videos(model, videos, settings)
    assert len(together.costs) == 2
    for position, setting in enumerate(settings):
        assert_same(
            {k: v for k, v in table(together).items() if k[1] == position},
            {(v, position): x for (v, _), x in table(score_videos(model, videos, [setting], segment=8)).items()},
        )


def test_reading_workers_change_nothing(videos):
    model = small_model()
    settings = [Setting(None, Dense()), Setting(20, Uniform(4))]
    here = score_videos(model, videos, settings, segment=8, batch_size=1, workers=0)
    there = score_videos(model, videos, settings, segment=8, batch_size=1, workers=2)
    assert_same(table(here), table(there))
    assert [cost.frames for cost in here.costs] == [cost.frames for cost in there.costs] == [40, 12]


def test_a_span_is_cut_before_the_frames_are(videos):
    model = small_model()
    span = videos[1]._replace(start=0.4, end=0.6)  # frames 10 to 14 of 25 per second
    settings = [Setting(None, Dense()), Setting(2, Dense())]
    scores = score_videos(model, [span], settings)
    assert sorted(score.frames for score in scores.answers) == [2, 5]


def test_failures_have_reasons_and_harm_no_other_row(videos, tmp_path):
    model = small_model()
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video")
    mixed = [videos[0], videos[0]._replace(path=str(broken)), videos[2]]
    settings = [Setting(4, Dense()), Setting(None, Uniform(3))]
    scores = score_videos(model, mixed, settings, batch_size=3)
    failed = [score for score in scores.answers if score.row is None]
    assert [(score.video, score.frames) for score in failed] == [(1, 0), (1, 0)]
    assert all(score.failure and "broken.mp4" not in score.failure for score in failed)
    clean = score_videos(model, [videos[0], videos[2]], settings, batch_size=1)
    assert_same(
        {k: v for k, v in table(scores._replace(answers=[s for s in scores.answers if s.row])).items()},
        {(2 * video, setting): logits for (video, setting), logits in table(clean).items()},
    )


def test_logits_that_are_not_finite_are_failures(videos):
    model = small_model()
    with torch.no_grad():
        model.head.classifier.bias[0] = torch.nan
    (score,) = score_videos(model, videos[:1], [Setting(None, Dense())]).answers
    assert score.row is None
    assert "not finite" in score.failure


def test_segments_must_fit_the_encoder(videos):
    with pytest.raises(ValueError, match="--segment must be a multiple of 2 frames"):
        score_videos(small_model(tubelets=True), videos, [Setting(None, Dense())], segment=3)
    with pytest.raises(ValueError, match="--batch-size"):
        score_videos(small_model(), videos, [Setting(None, Dense())], batch_size=0)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_decodes_in_part_is_used_and_named_once(workers, capfd):
    file = SHARED / "odd" / "35_truncated_50pct.avi"
    if not file.exists():
        pytest.skip("the real videos of the checks are not here")
    video = Video(str(file), 0, None, None, None)
    settings = [Setting(None, Dense()), Setting(7, Dense(fps=2.0))]
    with warnings.catch_warnings(record=True) as shown:
        scores = score_videos(small_model(), [video], settings, workers=workers)
    assert [score.failure for score in scores.answers] == ["", ""]
    (named,) = scores.warnings
    assert "35_truncated_50pct.avi" in named
    assert shown == []
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length_of_a_video(tmp_path):
    code = """
import resource, sys
from tests.evaluation.small import small_model
from tttvideo.evaluation.scoring import score_videos
from tttvideo.evaluation.settings import Setting
from tttvideo.video.index import Video
from tttvideo.video.sampling import Dense
videos = [Video(sys.argv[1], 0, None, None, None)]
scores = score_videos(small_model(), videos, [Setting(64, Dense()), Setting(None, Dense())])
assert [score.frames for score in scores.answers] == [64, int(sys.argv[2])], scores.answers
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
    peaks = {}
    for frames in (300, 15_000):
        file = noise_video(tmp_path / f"{frames}.mp4", frames)
        done = subprocess.run(
            [sys.executable, "-c", code, str(file), str(frames)], capture_output=True, text=True, check=True
        )
        peaks[frames] = float(done.stdout)
    # 15,000 frames of 32 x 32 are 46 MB as bytes and thousands as activations.
    assert peaks[15_000] - peaks[300] < 40, peaks


def test_a_first_batch_without_a_readable_video(videos, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video")
    mixed = [videos[0]._replace(path=str(broken)), videos[2]]
    settings = [Setting(4, Dense()), Setting(None, Uniform(3))]
    scores = score_videos(small_model(), mixed, settings, batch_size=1)
    assert {(score.video, score.row is None, bool(score.failure)) for score in scores.answers} == {
        (0, True, True),
        (1, False, False),
    }
