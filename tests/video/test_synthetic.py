"""Generated suites: the files say what meta.csv says, and the stated ceilings are the truth."""

import csv
import itertools
import json
import math
from collections import Counter

import av
import numpy as np
import pytest

from tests.video.suites import oracle_accuracy
from tttvideo.video.decode import open_video
from tttvideo.video.mp4 import write_mp4
from tttvideo.video.sampling import parse_sampling
from tttvideo.video.synthetic import FlashOrder, SuiteError, ceiling_for, find_suite, make, suite_from
from tttvideo.video.synthetic.flash_order import COLOURS

SMALL = FlashOrder(split="train=12,val=7", frames=16)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    out = tmp_path_factory.mktemp("sets") / "flash-order"
    made = make(SMALL, out)
    assert (made.written, made.kept) == (19, 0)
    return out


def rows_of(out):
    with (out / "meta.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def decode(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        times = [float(frame.pts * stream.time_base) for frame in frames]
        return np.stack([frame.to_ndarray(format="rgb24") for frame in frames]), np.array(times)


def files_under(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def brute_force_ceiling(suite, indices):
    """Straight from the definition: enumerate every onset pair and every class, collect what is seen, answer
    the likeliest class for each view."""
    seen_as: dict[tuple, Counter] = {}
    for first, second in itertools.product(range(suite.frames - suite.duration + 1), repeat=2):
        if second < first + suite.duration:
            continue
        for label in suite.classes:
            colour_one, colour_two = label.split("-")
            view = tuple(
                colour_one
                if first <= t < first + suite.duration
                else colour_two
                if second <= t < second + suite.duration
                else ""
                for t in indices
            )
            seen_as.setdefault(view, Counter())[label] += 1
    right = sum(max(counts.values()) for counts in seen_as.values())
    return right / sum(sum(counts.values()) for counts in seen_as.values())


# --- the files ------------------------------------------------------------------------------------


def test_layout(small):
    rows = rows_of(small)
    assert [row["split"] for row in rows].count("train") == 12
    assert {row["path"] for row in rows} == {p.relative_to(small).as_posix() for p in small.rglob("*.mp4")}
    assert all(row["path"].split("/")[:2] == [row["split"], row["label"]] for row in rows)
    suite = json.loads((small / "suite.json").read_text())
    assert suite["name"] == "flash-order"
    assert suite["splits"] == {"train": 12, "val": 7}
    assert suite["chance"] == pytest.approx(1 / 6)
    assert suite["parameters"]["frames"] == 16
    assert len(suite["classes"]) == 6
    assert {c["sampling"] for c in suite["ceilings"]} >= {"dense", "fps=1", "uniform=16"}
    assert sorted(path.name for path in small.iterdir()) == ["meta.csv", "suite.json", "train", "val"]


def test_flashes_survive_the_codec(small):
    """Every decoded frame shows the colour that meta.csv announces, where it announces it, and no other
    colour."""
    for row in rows_of(small):
        frames, times = decode(small / row["path"])
        assert frames.shape == (16, 32, 32, 3)
        np.testing.assert_allclose(times, np.arange(16) / 30, atol=1e-3)
        shown = dict.fromkeys(range(16), None)
        for which in ("first", "second"):
            onset = int(row[f"{which}_onset"])
            for frame in range(onset, onset + int(row["duration"])):
                assert shown[frame] is None, "the flashes overlap"
                shown[frame] = which
        for index, which in shown.items():
            saturation = frames[index].max(-1).astype(int) - frames[index].min(-1)
            if which is None:
                assert saturation.max() < 12  # grey: the codec left no trace of a flash
                continue
            x, y = int(row[f"{which}_x"]), int(row[f"{which}_y"])
            side = SMALL.flash_size
            inside = frames[index, y + 2 : y + side - 2, x + 2 : x + side - 2].astype(int)
            assert np.abs(inside - np.array(COLOURS[row[f"{which}_colour"]])).max() < 24


def test_both_readers_agree(small):
    decord = pytest.importorskip("decord")
    path = small / rows_of(small)[0]["path"]
    frames, times = decode(path)
    reader = decord.VideoReader(str(path))
    assert len(reader) == 16
    np.testing.assert_array_equal(reader.get_batch([15, 3, 8]).asnumpy(), frames[[15, 3, 8]])
    np.testing.assert_allclose(reader.get_frame_timestamp(range(16))[:, 0], times, atol=1e-3)


def test_a_frame_tells_nothing_about_other_frames(tmp_path):
    """Two videos that differ in their flashes only decode to the same pixels wherever neither flashes: what
    is seen between flashes cannot betray them, or a model could beat the ceiling."""
    plan = SMALL.plan("train", 0)
    decoded = []
    for number, (first, second) in enumerate([(2, 9), (5, 12)]):
        moved = plan._replace(cause=plan.cause | {"first_onset": first, "second_onset": second})
        write_mp4(tmp_path / f"{number}.mp4", SMALL.draw(moved, SMALL.rng("drawing", "train", 0)), 30)
        decoded.append(decode(tmp_path / f"{number}.mp4")[0])
    quiet = [t for t in range(16) if t not in (2, 3, 9, 10, 5, 6, 12, 13)]
    np.testing.assert_array_equal(decoded[0][quiet], decoded[1][quiet])
    assert not np.array_equal(decoded[0][2], decoded[1][2])


def test_more_videos_start_with_the_same_ones(small, tmp_path):
    make(FlashOrder(split="train=18", frames=16), tmp_path / "more")
    fewer, more = files_under(small / "train"), files_under(tmp_path / "more" / "train")
    assert len(more) == 18
    assert all(more[name] == content for name, content in fewer.items())


def test_seed_and_split_give_other_videos():
    frames = [FlashOrder(seed=seed).draw_video(split, 0).tobytes() for seed in (0, 1) for split in ("train", "val")]
    assert len(set(frames)) == 4


@pytest.mark.parametrize("suite", [SMALL, FlashOrder(split="a=600", seed=3)])
def test_balance(suite):
    for split, size in suite.splits.items():
        counts = Counter(suite.plan(split, i).label for i in range(size))
        assert max(counts.values()) - min(counts[c] for c in suite.classes) <= 1


def test_onsets_are_uniform():
    suite = FlashOrder(frames=9, duration=2)
    plans = [suite.plan("train", i).cause for i in range(6300)]
    counts = Counter((plan["first_onset"], plan["second_onset"]) for plan in plans)
    admissible = {(a, b) for a in range(8) for b in range(8) if b >= a + 2}
    assert set(counts) == admissible
    expected = len(plans) / len(admissible)
    chi_square = sum((n - expected) ** 2 / expected for n in counts.values())
    assert chi_square < 47  # 20 degrees of freedom: exceeded by chance in less than 1 of 1,000


def test_worker_processes_write_the_same(small, tmp_path):
    steps = []
    made = make(SMALL, tmp_path / "set", workers=2, progress=lambda done, total: steps.append((done, total)))
    assert made.written == 19
    assert steps[-1] == (19, 19)
    assert files_under(tmp_path / "set") == files_under(small)


# --- the ceilings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("frames", "duration"), [(4, 2), (7, 1), (12, 2), (13, 3)])
def test_ceiling_is_that_of_the_definition(frames, duration):
    suite = FlashOrder(frames=frames, duration=duration)
    rng = np.random.default_rng(0)
    choices = [
        [],
        [0],
        [frames - 1],
        list(range(frames)),
        list(range(0, frames, 2)),
        list(range(frames // 2)),
    ]
    choices += [sorted(rng.choice(frames, size, replace=False).tolist()) for size in range(1, frames)]
    for indices in choices:
        assert suite.ceiling(indices) == pytest.approx(brute_force_ceiling(suite, indices), abs=1e-12), indices


def test_ceiling_agrees_with_the_approximate_formula_on_long_videos():
    """p^2 + 2p(1-p) 3/8 + (1-p)^2/6 when flashes are short, frames regular and onsets uniform."""
    suite = FlashOrder(frames=3000, duration=5)
    p = 5 / 10
    expected = p**2 + 2 * p * (1 - p) * 3 / 8 + (1 - p) ** 2 / 6
    assert suite.ceiling(range(0, 3000, 10)) == pytest.approx(expected, abs=0.003)


@pytest.mark.parametrize("fps", [30.0, 25.0, 29.97, 12.5])
def test_ceilings_are_for_the_frames_that_evaluation_will_see(fps, tmp_path):
    """The rules pick the same frames by the times in the file as by the times that the ceilings assume."""
    suite = FlashOrder(split="val=1", frames=100, fps=fps)
    make(suite, tmp_path / "set")
    with open_video(tmp_path / "set" / rows_of(tmp_path / "set")[0]["path"]) as reader:
        times = reader.times
    for sampling in (
        "dense",
        "fps=1",
        "fps=7",
        "uniform=16",
        "uniform=7",
        "segments=8",
        "segments=9",
        "window=1",
    ):
        for cut in (None, 64, 31):
            picked = parse_sampling(sampling).indices(times[:cut], None).tolist()
            assert picked == suite.sampled(sampling, cut), (sampling, cut)


@pytest.mark.parametrize("sampling", ["dense", "fps=1", "fps=10", "uniform=16", "uniform=8", "segments=5"])
@pytest.mark.parametrize("cut", [None, 20])
def test_oracle_reaches_the_ceiling(sampling, cut):
    suite, n = FlashOrder(), 3000
    ceiling = suite.ceiling_under(sampling, cut)
    accuracy = oracle_accuracy(suite, suite.sampled(sampling, cut), n)
    assert abs(accuracy - ceiling) <= 3.5 * math.sqrt(ceiling * (1 - ceiling) / n)


def test_stated_ceilings(small):
    suite = json.loads((small / "suite.json").read_text())
    for row in suite["ceilings"]:
        assert row["top1"] == ceiling_for(suite, row["sampling"])
    assert ceiling_for(suite, "dense") == 1
    assert ceiling_for(suite, "dense", 16) == ceiling_for(suite, "dense", 999) == 1
    assert 1 / 6 < ceiling_for(suite, "dense", 4) < ceiling_for(suite, "dense", 8) < 1
    assert ceiling_for(FlashOrder().describe(), "fps=1") < 0.25  # nearly blind at 1 frame per second
    assert suite_from(suite) == SMALL


# --- what is refused, and what is kept ------------------------------------------------------------


def test_a_complete_set_is_kept_and_a_damaged_one_repaired(small, tmp_path):
    out = tmp_path / "set"
    make(SMALL, out)
    before = files_under(out)
    made = make(SMALL, out)
    assert (made.written, made.kept) == (0, 19)
    (out / "suite.json").rename(out / "suite.unfinished.json")  # as after a kill before the end
    (out / "meta.csv").unlink()
    next((out / "train").rglob("*.mp4")).unlink()
    made = make(SMALL, out)
    assert (made.written, made.kept) == (1, 18)
    assert files_under(out) == before


def test_other_content_is_never_touched(small, tmp_path):
    before = files_under(small)
    with pytest.raises(SuiteError, match=r"already holds a set made with split=train=12,val=7, seed=0; choose"):
        make(FlashOrder(split="train=6", frames=16, seed=1), small)
    assert files_under(small) == before
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(SuiteError, match=r"is not empty \(it holds 'thesis.txt'\)"):
        make(SMALL, tmp_path)
    with pytest.raises(SuiteError, match="is a file; name a folder"):
        make(SMALL, tmp_path / "thesis.txt")
    (tmp_path / "suite.json").write_text("[]")
    with pytest.raises(SuiteError, match="not a suite of this program"):
        make(SMALL, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"frames": 3}, "frames=3: two flashes of 2 frames need at least 4 frames"),
        ({"duration": 0}, "at least one frame"),
        ({"size": 31}, "even number of pixels"),
        ({"fps": 0.0}, "frame rate"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"distractors": -1}, "cannot be negative"),
        ({"split": "train"}, "'train' is not NAME=NUMBER"),
        ({"split": "train=0"}, "is not NAME=NUMBER"),
        ({"split": "../up=3"}, "is not NAME=NUMBER"),
        ({"split": "a=1,a=2"}, "named twice"),
        ({"count": 1}, "each of the 2 splits needs at least one video"),
    ],
)
def test_wrong_settings(settings, sentence):
    with pytest.raises(SuiteError, match=sentence) as caught:
        FlashOrder(**settings)
    assert "\n" not in str(caught.value)


def test_count_is_shared_in_the_proportions_of_the_split():
    assert FlashOrder(count=330).splits == {"train": 300, "val": 30}
    assert FlashOrder(count=2).splits == {"train": 1, "val": 1}
    for count in range(3, 60):
        sizes = FlashOrder(count=count, split="a=5,b=3,c=1").splits
        assert sum(sizes.values()) == count
        assert sizes["a"] >= sizes["b"] >= sizes["c"] >= 1


def test_unknown_suite():
    assert find_suite("flash-order") is FlashOrder
    with pytest.raises(SuiteError, match=r"no suite 'flash-ordr'; did you mean flash-order\?"):
        find_suite("flash-ordr")
    with pytest.raises(SuiteError, match="There is no suite 'xyz'; there are: flash-order"):
        find_suite("xyz")
    with pytest.raises(SuiteError, match="was not written by this version"):
        suite_from({"name": "flash-order", "parameters": {"colour": 1}})
