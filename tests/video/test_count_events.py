"""count-events: the files show as many events as the class says, and the stated ceilings are the truth."""

import itertools
import math
from collections import Counter, defaultdict
from math import comb

import numpy as np
import pytest

from tests.video.suites import decoded, oracle_accuracy, rows_of
from tttvideo.video.synthetic import CountEvents, SuiteError, ceiling_for, find_suite, make
from tttvideo.video.synthetic.count_events import COLOURS

SMALL = CountEvents(split="val=8", frames=32, most=4, spacing=8)


def brute_force_ceiling(suite, indices):
    """Straight from the definition: every count, choice of cells and first frames; answer the likeliest count for what
    is seen."""
    seen_as: dict[tuple, Counter] = defaultdict(Counter)
    for count in suite.counts:
        for cells in itertools.combinations(range(suite.cells), count):
            for starts in itertools.product(range(suite.starts), repeat=count):
                onsets = [cell * suite.spacing + start for cell, start in zip(cells, starts)]
                view = tuple(any(s <= t < s + suite.duration for s in onsets) for t in indices)
                seen_as[view][count] += 1 / (comb(suite.cells, count) * suite.starts**count)
    return sum(max(weights.values()) for weights in seen_as.values()) / len(suite.counts)


@pytest.mark.parametrize(
    "suite",
    [
        CountEvents(frames=12, most=2, spacing=4),
        CountEvents(frames=14, least=0, most=3, spacing=4, duration=1),
        CountEvents(frames=15, least=2, most=3, spacing=5, duration=3),
    ],
    ids=str,
)
def test_ceiling_is_that_of_the_definition(suite):
    rng = np.random.default_rng(0)
    frames = suite.frames
    choices = [[], [0], list(range(frames)), list(range(0, frames, 2)), list(range(0, frames, 3)), list(range(5))]
    choices += [sorted(rng.choice(frames, size, replace=False).tolist()) for size in (2, 4, 6, 9)]
    for indices in choices:
        assert suite.ceiling(indices) == pytest.approx(brute_force_ceiling(suite, indices), abs=1e-12), indices


@pytest.mark.parametrize(("sampling", "cut"), [("dense", None), ("fps=10", None), ("uniform=16", None), ("dense", 50)])
def test_oracle_reaches_the_ceiling(sampling, cut):
    suite, n = CountEvents(), 800
    ceiling = suite.ceiling_under(sampling, cut)
    accuracy = oracle_accuracy(suite, suite.sampled(sampling, cut), n)
    assert abs(accuracy - ceiling) <= 3.5 * math.sqrt(ceiling * (1 - ceiling) / n)


def test_ceilings_to_compare_with():
    suite = CountEvents()
    assert ceiling_for(suite.describe(), "dense") == 1
    assert suite.ceiling(range(0, 96, 2)) == 1  # an event of two frames is seen at every second one
    assert 1 / 8 < suite.ceiling_under("fps=1") < suite.ceiling_under("fps=10") < 1
    assert suite.ceiling([]) == suite.chance == 1 / 8


def test_events_have_cells_of_their_own():
    suite = CountEvents(frames=70, spacing=7, most=9)
    for index in range(90):
        label, cause = suite.plan("train", index)
        onsets = [cause[f"onset_{i}"] for i in range(1, 10) if cause[f"onset_{i}"] != ""]
        assert len(onsets) == cause["count"] == int(label)
        cells = [onset // 7 for onset in onsets]
        assert cells == sorted(set(cells))
        assert all(onset % 7 + suite.duration < 7 for onset in onsets)  # a quiet frame at the end of the cell


def test_events_survive_the_codec(tmp_path):
    make(SMALL, tmp_path / "set")
    rows = rows_of(tmp_path / "set")
    assert {row["label"] for row in rows} == {"1", "2", "3", "4"}
    for row in rows:
        frames = decoded(tmp_path / "set" / row["path"])
        shown = {}
        for i in range(1, int(row["count"]) + 1):
            shown |= {int(row[f"onset_{i}"]) + t: i for t in range(int(row["duration"]))}
        for t, frame in enumerate(frames):
            if t not in shown:
                assert (frame.max(-1) - frame.min(-1)).max() < 12  # grey: no trace of an event
                continue
            x, y = (int(row[f"{axis}_{shown[t]}"]) for axis in "xy")
            inside = frame[y + 2 : y + SMALL.event_size - 2, x + 2 : x + SMALL.event_size - 2]
            assert np.abs(inside - np.array(COLOURS[row[f"colour_{shown[t]}"]])).max() < 24
        # what a viewer counts: runs of coloured frames
        coloured = [bool((frame.max(-1) - frame.min(-1)).max() > 100) for frame in frames]
        assert sum(1 for lit, _ in itertools.groupby(coloured) if lit) == int(row["label"])


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"duration": 0}, "at least one frame"),
        ({"spacing": 2}, "needs at least 3 frames"),
        ({"least": 8}, "0 <= least < most"),
        ({"frames": 63}, "need at least 64 frames"),
        ({"distractors": -1}, "cannot be negative"),
    ],
)
def test_wrong_settings(parameters, sentence):
    with pytest.raises(SuiteError, match=sentence):
        CountEvents(**parameters)


def test_it_is_a_suite_by_name():
    assert find_suite("count-events") is CountEvents
