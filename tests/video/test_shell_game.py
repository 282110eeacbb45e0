"""shell-game: the files show the discs where meta.csv says, and the tracker needs every frame."""

from collections import Counter

import numpy as np
import pytest

from tests.video.suites import decoded, oracle_accuracy, rows_of
from tttvideo.video.synthetic import ShellGame, SuiteError, find_suite, make
from tttvideo.video.synthetic.shell_game import RED, YELLOW

SMALL = ShellGame(split="val=6", frames=64, swaps=4)


def test_discs_are_seen_where_the_plan_says_in_the_file(tmp_path):
    make(SMALL, tmp_path / "set")
    rows = rows_of(tmp_path / "set")
    assert len(rows) == 6
    corners, radius = SMALL.geometry()
    for row in rows:
        frames, path = decoded(tmp_path / "set" / row["path"]), SMALL.paths(row)
        for t in range(64):
            for disc in range(3):
                x, y = (path[t, disc] - 0.5).round().astype(int)
                expected = RED if disc == 0 and t < SMALL.mark else YELLOW
                assert np.abs(frames[t, y, x] - np.array(expected)).max() < 60, (t, disc)
            # and no other place is coloured; the codec halves the resolution of colours
            rows_at, columns = np.nonzero(frames[t].max(-1) - frames[t].min(-1) > 60)
            away = np.linalg.norm(np.stack([columns, rows_at], 1)[:, None] + 0.5 - path[t], axis=-1).min(1)
            assert away.max() < radius + 2.5
        end = np.linalg.norm(corners - path[-1, 0], axis=1).argmin()
        assert SMALL.classes[end] == row["label"]
        assert np.linalg.norm(corners - path[0, 0], axis=1).argmin() + 1 == int(row["start"])


@pytest.mark.parametrize("discs", [3, 4, 6])
def test_discs_never_touch_and_move_smoothly(discs):
    suite = ShellGame(discs=discs, size=48, frames=160)
    for index in range(20):
        path = suite.paths(suite.plan("val", index).cause)
        apart = np.linalg.norm(path[:, :, None] - path[:, None], axis=-1) + 1e9 * np.eye(discs)
        assert apart.min() > 2 * suite.radius
        assert np.linalg.norm(np.diff(path, axis=0), axis=-1).max() < apart.min()  # dense: the nearest is the same
        assert path.min() > suite.radius
        assert path.max() < 48 - suite.radius


def test_the_tracker_needs_every_second_frame_and_the_mark():
    suite = ShellGame()
    found = {rule: suite.ceiling_under(rule) for rule in ("dense", "fps=15", "fps=7.5", "last=64")}
    assert found["dense"] == found["fps=15"] == 1
    assert abs(found["fps=7.5"] - 1 / 3) < 0.06  # chance; one standard error of 1,200 clips is 0.014
    assert found["last=64"] == pytest.approx(1 / 3)
    assert suite.ceiling_under("dense", 128) < 0.8  # the swaps of the second half are not seen
    assert "1200 drawn clips" in suite.describe()["ceilings_are"]


@pytest.mark.parametrize("sampling", ["dense", "fps=15", "fps=7.5"])
def test_the_oracle_is_the_tracker(sampling):
    suite, n = ShellGame(frames=96, swaps=6), 400
    indices = suite.sampled(sampling)
    ceiling, accuracy = suite.ceiling(indices), oracle_accuracy(suite, indices, n)
    assert abs(accuracy - ceiling) <= 3.5 * (ceiling * (1 - ceiling) * (1 / n + 1 / 1200)) ** 0.5


def test_the_start_says_nothing_about_the_end():
    suite = ShellGame(frames=128)
    plans = [suite.plan("train", i) for i in range(1800)]
    counts = Counter((plan.label, plan.cause["start"]) for plan in plans)
    assert len(counts) == 9
    assert sum((n - 200) ** 2 / 200 for n in counts.values()) < 23  # 4 to 8 degrees of freedom
    for plan in plans[:50]:
        onsets = [plan.cause[f"onset_{i}"] for i in range(1, 13)]
        assert onsets[0] >= suite.mark
        assert onsets[-1] + suite.duration <= 128 - suite.rest
        assert min(np.diff(onsets)) >= suite.duration


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"discs": 2}, "at least three discs"),
        ({"discs": 20}, "smaller than 3 pixels"),
        ({"frames": 100}, "need at least 112 frames"),
        ({"swaps": 0}, "at least one swap"),
        ({"rest": 0}, "at least one frame"),
    ],
)
def test_wrong_settings(parameters, sentence):
    with pytest.raises(SuiteError, match=sentence):
        ShellGame(**parameters)


def test_it_is_a_suite_by_name():
    assert find_suite("shell-game") is ShellGame
