"""flash-recall: the files show what meta.csv says, keys cannot be confused, and the stated ceilings are the truth."""

import csv
import itertools
import math
from collections import Counter

import av
import numpy as np
import pytest

from tests.video.suites import oracle_accuracy
from tttvideo.video.synthetic import FlashRecall, SuiteError, ceiling_for, find_suite, make
from tttvideo.video.synthetic.flash_recall import COLOURS, KEYS, WHITE, commonest

SMALL = FlashRecall(split="val=8", frames=24, query=4, pairs=3, keys=5)
DENSE = FlashRecall(frames=60, query=10, pairs=16, gap=5)


def placements(suite):
    """All admissible onsets, one flash after the other."""
    last = suite.frames - suite.query - suite.gap - suite.duration
    for onsets in itertools.combinations(range(last + 1), suite.pairs):
        if all(b - a >= suite.duration for a, b in itertools.pairwise(onsets)):
            yield onsets


def brute_force_ceiling(suite, indices):
    """Straight from the definition: every placement, every assignment of values and every needle; what is seen is at
    each frame nothing, the query, or which flash (their keys differ) with its value. Answer the likeliest label."""
    seen_as: dict[tuple, Counter] = {}
    for onsets in placements(suite):
        for values in itertools.product(range(8), repeat=suite.pairs):
            for needle in range(suite.pairs):
                view = []
                for t in indices:
                    if t >= suite.frames - suite.query:
                        view.append(("query", needle))  # which key: it tells which of the flashes seen it was
                    view += [(i, values[i]) for i, s in enumerate(onsets) if s <= t < s + suite.duration]
                # A flash that is not seen leaves no name: rename flashes by the order in which they are seen.
                names = {i: n for n, i in enumerate(dict.fromkeys(i for i, _ in view if i != "query"))}
                shown = tuple((n, names.get(x)) if n == "query" else (names[n], x) for n, x in view)
                frames = tuple(t for t in indices if t < suite.frames - suite.query) if not names else ()
                seen_as.setdefault((shown, frames), Counter())[values[needle]] += 1
    right = sum(max(counts.values()) for counts in seen_as.values())
    return right / sum(sum(counts.values()) for counts in seen_as.values())


@pytest.mark.parametrize(
    "suite",
    [
        FlashRecall(frames=8, query=2, pairs=1),
        FlashRecall(frames=9, query=2, pairs=2),
        FlashRecall(frames=10, query=1, gap=2, pairs=2, duration=3),
        FlashRecall(frames=6, query=2, pairs=3, duration=1),
    ],
    ids=str,
)
def test_ceiling_is_that_of_the_definition(suite):
    rng = np.random.default_rng(0)
    frames = suite.frames
    choices = [[], [0], [frames - 1], list(range(frames)), list(range(0, frames, 2)), list(range(frames - suite.query))]
    choices += [sorted(rng.choice(frames, size, replace=False).tolist()) for size in (2, 3, 4, 5)]
    for indices in choices:
        assert suite.ceiling(indices) == pytest.approx(brute_force_ceiling(suite, indices), abs=1e-12), indices


@pytest.mark.parametrize(
    ("suite", "sampling", "cut"),
    [
        *((FlashRecall(), *rule) for rule in (("dense", None), ("fps=1", None), ("uniform=8", None), ("dense", 40))),
        (FlashRecall(pairs=1), "fps=1", None),
        (DENSE, "uniform=8", None),
        (SMALL, "uniform=8", None),
    ],
    ids=str,
)
def test_oracle_reaches_the_ceiling(suite, sampling, cut):
    n, ceiling = 2400, suite.ceiling_under(sampling, cut)
    accuracy = oracle_accuracy(suite, suite.sampled(sampling, cut), n)
    assert abs(accuracy - ceiling) <= 3.5 * math.sqrt(ceiling * (1 - ceiling) / n)


def test_ceilings_to_compare_with():
    suite = FlashRecall(frames=3000, duration=5, query=100, pairs=1)
    p = 5 / 10  # seen at stride s with probability d / s
    assert suite.ceiling(range(0, 3000, 10)) == pytest.approx(p + (1 - p) / 8, abs=0.003)
    assert suite.ceiling(range(2900, 3000)) == 1 / 8  # a last-W window that the query fills
    two = FlashRecall(frames=16, query=2, pairs=2)
    assert two.ceiling(range(16)) == 1
    assert two.ceiling(range(14)) == pytest.approx(9 / 16)  # values without the keys they belong to
    assert ceiling_for(FlashRecall().describe(), "dense") == 1


@pytest.mark.parametrize("m", range(5))
def test_commonest(m):
    draws = [max(Counter(draw).values(), default=0) for draw in itertools.product(range(3), repeat=m)]
    assert commonest(m, 3) == pytest.approx(sum(draws) / len(draws))


@pytest.mark.parametrize("frames", [96, 64, 300])
def test_every_rule_sees_the_query(frames):
    suite = FlashRecall(frames=frames)
    assert all(suite.query_seen(suite.sampled(rule)) for rule in suite.samplings)


def test_onsets_and_needles_are_uniform():
    suite = FlashRecall(frames=12, query=2, pairs=2, duration=2)
    plans = [suite.plan("train", i).cause for i in range(5600)]
    admissible = [(onsets, needle) for onsets in placements(suite) for needle in (1, 2)]
    counts = Counter(((plan["onset_1"], plan["onset_2"]), plan["needle"]) for plan in plans)
    assert set(counts) == set(admissible)
    expected = len(plans) / len(admissible)
    chi_square = sum((counts[case] - expected) ** 2 / expected for case in admissible)
    assert chi_square < 93  # 55 degrees of freedom: exceeded by chance in less than 1 of 1,000


def test_values_are_independent_and_keys_differ():
    suite = FlashRecall(keys=8)
    plans = [suite.plan("train", i) for i in range(2000)]
    for label, cause in plans:
        keys = [cause[f"key_{i}"] for i in range(1, 5)]
        assert len(set(keys)) == 4
        assert set(keys) <= set(range(8))
        assert cause[f"value_{cause['needle']}"] == label
        assert cause["depth"] == 96 - 32 - cause[f"onset_{cause['needle']}"] - 2 >= 0
    # the other three values equal the label as often as independent ones do
    others = [cause[f"value_{i}"] == label for label, cause in plans for i in range(1, 5) if i != cause["needle"]]
    assert abs(np.mean(others) - 1 / 8) < 3.5 * math.sqrt(7 / 64 / len(others))


def test_keys_cannot_be_confused():
    words = KEYS.reshape(30, 16)
    assert (words.sum(1) == 8).all()
    distance = (words[:, None] != words[None]).sum(-1)
    assert set(distance[~np.eye(30, dtype=bool)].tolist()) == {8, 16}
    colours = np.array([*COLOURS.values(), WHITE, (0, 0, 0)])
    apart = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
    assert apart[~np.eye(10, dtype=bool)].min() > 179


def test_flashes_survive_the_codec(tmp_path):
    """Every decoded frame shows the key and value that meta.csv announces, where it announces them; the rest is
    grey."""
    make(SMALL, tmp_path / "set")
    with (tmp_path / "set" / "meta.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    for row in rows:
        with av.open(str(tmp_path / "set" / row["path"])) as container:
            frames = [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)]
        assert len(frames) == 24
        shown = dict.fromkeys(range(24))
        for i in "123":
            for t in range(int(row[f"onset_{i}"]), int(row[f"onset_{i}"]) + int(row["duration"])):
                assert shown[t] is None, "flashes overlap"
                shown[t] = (int(row[f"key_{i}"]), COLOURS[row[f"value_{i}"]])
        for t in range(20, 24):
            assert shown[t] is None, "a flash during the query"
            shown[t] = (int(row[f"key_{row['needle']}"]), WHITE)
        for t, what in shown.items():
            if what is None:
                assert (frames[t].max(-1) - frames[t].min(-1)).max() < 12  # grey: the codec left no trace of a flash
                continue
            key, colour = what
            # The nearest of the 10 colours at the middle of each cell gives back pattern and value.
            middles = frames[t].reshape(4, 8, 4, 8, 3)[:, 2:6, :, 2:6].mean((1, 3))
            np.testing.assert_allclose(middles[KEYS[key]], np.broadcast_to(colour, (8, 3)), atol=24)
            np.testing.assert_allclose(middles[~KEYS[key]], 0, atol=24)


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"pairs": 0}, "pairs=0: a video shows at least one pair"),
        ({"pairs": "1,four"}, "several with commas, e.g. 1,4,16"),
        ({"pairs": 5, "keys": 4}, "no key twice \\(keys=4\\)"),
        ({"keys": 31}, "between 1 and 30"),
        ({"duration": 0}, "at least one frame"),
        ({"query": 0}, "at least one frame"),
        ({"gap": -1}, "neither can be negative"),
        ({"frames": 39}, "need at least 40 frames"),
        ({"size": 18}, "must divide by 4"),
    ],
)
def test_wrong_settings(parameters, sentence):
    with pytest.raises(SuiteError, match=sentence) as caught:
        FlashRecall(**parameters)
    assert "\n" not in str(caught.value)


def test_it_is_a_suite_by_name():
    assert find_suite("flash-recall") is FlashRecall


def test_several_numbers_of_pairs_are_shared_evenly(tmp_path):
    suite = FlashRecall(pairs="16,1,4", split="val=48", frames=80)
    assert suite.describe()["parameters"]["pairs"] == "1,4,16"
    plans = [suite.plan("val", i) for i in range(48)]
    assert set(Counter((plan.label, plan.cause["pairs"]) for plan in plans).values()) == {2}
    assert len({tuple(plan.cause) for plan in plans}) == 1  # the same columns
    one = [suite.plan("val", i).cause for i in range(48) if suite.pairs_of("val", i) == 1]
    assert {cause["key_2"] for cause in one} == {""}
    make(FlashRecall(pairs="1,2", split="val=16", frames=48), tmp_path / "set")
    with (tmp_path / "set" / "meta.csv").open(newline="", encoding="utf-8") as file:
        assert Counter(row["pairs"] for row in csv.DictReader(file)) == {"1": 8, "2": 8}


@pytest.mark.parametrize("sampling", ["fps=1", "uniform=8"])
def test_the_ceiling_of_a_mixture_is_that_of_its_parts(sampling):
    suite, n = FlashRecall(pairs="1,4"), 1600
    parts = [FlashRecall(pairs=k).ceiling_under(sampling) for k in (1, 4)]
    ceiling = suite.ceiling_under(sampling)
    assert ceiling == pytest.approx(sum(parts) / 2)
    accuracy = oracle_accuracy(suite, suite.sampled(sampling), n)
    assert abs(accuracy - ceiling) <= 3.5 * math.sqrt(ceiling * (1 - ceiling) / n)
