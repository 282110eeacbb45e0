"""Runs side by side: the figures are those of the evaluations, intervals cover, mistakes are one sentence."""

import csv
import json
import shutil

import numpy as np
import pytest

from tests.evaluation.small import evaluate, small_model, small_run, small_set, undrawn
from tttvideo.cli import main
from tttvideo.evaluation import CompareConfig, bootstrap, compare, write_report
from tttvideo.evaluation.bootstrap import Bootstrap, Samples
from tttvideo.evaluation.plots import _apart, plot_lines
from tttvideo.evaluation.protocols import Statistics
from tttvideo.evaluation.table import Condition, Table
from tttvideo.measuring import parse_runs
from tttvideo.mixers import LSTM


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Two models, two data sets, and a third folder that is another seed of the first model."""
    base = tmp_path_factory.mktemp("compare")
    sets = {frames: small_set(base / f"set{frames}", count=6, frames=frames) for frames in (10, 20)}
    models = {"ttt": small_model(), "lstm": small_model(mixer=LSTM())}
    for name, model in models.items():
        run = small_run(base / name, model)
        for frames, data in sets.items():
            long = frames == 20
            found = evaluate(
                run,
                data,
                workers=0,
                frames="8,all" if long else "all",
                sampling=["dense", "uniform=4", "last=4"] if long else ["dense"],
                controls=["all"] if long else [],
                by=["first_colour"] if long else None,
            )
            with undrawn():
                write_report(found, base / "eval" / name / str(frames))
    other = base / "eval" / "ttt-seed1"
    shutil.copytree(base / "eval" / "ttt", other)
    file = other / "20" / "predictions.csv"
    for metrics in other.glob("*/metrics.json"):
        metrics.write_text(json.dumps(json.loads(metrics.read_text()) | {"weights_sha256": "another seed's"}))
    rows = list(csv.DictReader(file.open(newline="")))
    for row in rows:
        row["correct"] = "1"
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return base / "eval"


def compared(*runs, resamples: int = 400):
    return compare(CompareConfig(tuple(map(str, runs)), "", resamples))


def hits(seeds, videos) -> Samples:
    return Samples(np.array([[[seed[video]] for video in videos] for seed in seeds], dtype=np.float64))


def test_strata_are_those_of_the_evaluation(tmp_path):
    """Many equal values: fewer strata than bins, which must not be divided anew."""
    data = small_set(tmp_path / "set", count=24, frames=10)
    rows = list(csv.DictReader((data / "meta.csv").open(newline="")))
    with (tmp_path / "list.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "label", "tie"])
        writer.writerows([data / row["path"], row["label"], max(0, i - 11)] for i, row in enumerate(rows))
    found = evaluate(small_run(tmp_path / "run", small_model()), tmp_path / "list.csv", by=["tie"], split="all")
    with undrawn():
        write_report(found, tmp_path / "eval")
    protocols = compared(str(tmp_path / "eval"))
    stated = [stratum["value"] for stratum in found.metrics["results"][0]["by"]["tie"]]
    assert len(stated) == 3
    assert protocols["protocols"]["by tie"]["x"] == stated


def test_sets_of_other_classes_have_no_common_axis(evaluated, tmp_path):
    copy = tmp_path / "eval"
    shutil.copytree(evaluated / "ttt", copy)
    file = copy / "10" / "metrics.json"
    metrics = json.loads(file.read_text())
    file.write_text(json.dumps(metrics | {"labels": [f"other {name}" for name in metrics["labels"]]}))
    assert "length" in compared(str(evaluated / "ttt"))["protocols"]
    assert "length" not in compared(str(copy))["protocols"]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: data[: len(data) // 2], "is cut off"),
        (lambda data: data[: data[:-2].rindex(b"\n") + 1], "is cut off"),
        (lambda data: b"\xff\xfe" + data, "is damaged"),
        (lambda data: data.replace(b",correct,", b",right,"), "has no column 'correct'"),
    ],
    ids=["in a row", "after a row", "not text", "no column"],
)
def test_damaged_predictions_are_named(evaluated, tmp_path, capsys, damage, said):
    copy = tmp_path / "eval"
    shutil.copytree(evaluated / "lstm", copy)
    file = copy / "20" / "predictions.csv"
    file.write_bytes(damage(file.read_bytes()))
    assert main(["compare", str(copy), "--out", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr().err
    assert f"predictions.csv {said}" in shown
    assert "once more" in shown
    file.unlink()
    assert main(["compare", str(copy), "--out", str(tmp_path / "out")]) == 2
    assert "has no predictions.csv beside it; run `tttvideo evaluate` once more" in capsys.readouterr().err
    assert main(["compare", str(evaluated / "lstm"), "--seed", "-1", "--out", str(tmp_path / "out")]) == 2
    assert "--seed must be 0 or more" in capsys.readouterr().err


def test_every_protocol_has_the_figures_of_the_evaluations(evaluated, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["compare", str(evaluated / "ttt"), f"LSTM={evaluated / 'lstm'}", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    found = json.loads((out / "compare.json").read_text())
    names = ["length", "frames, set20", "sampling, set20", "tokens, set20", "by first_colour, set20", "controls, set20"]
    assert list(found["protocols"]) == names
    metrics = {
        name: json.loads((evaluated / name / "20" / "metrics.json").read_text())["results"] for name in ("ttt", "lstm")
    }

    def top1(name, **wanted):
        wanted = {"frames": "all", "sampling": "dense", "control": ""} | wanted
        (row,) = [row for row in metrics[name] if all(row[key] == value for key, value in wanted.items())]
        return row

    frames = found["protocols"]["frames, set20"]
    assert frames["x"] == [8.0, 20.0]
    assert frames["ceiling"] == [top1("ttt", frames=8)["ceiling"], 1.0]
    assert set(frames["series"]) == {
        *("ttt", "ttt, inner-rate-0", "ttt, reset", "ttt, shuffled", "LSTM", "LSTM, reset", "LSTM, shuffled")
    }
    for series, name, control in (("ttt", "ttt", ""), ("LSTM, reset", "lstm", "reset")):
        line = frames["series"][series]
        expected = [top1(name, frames=n, control=control)["top1"] for n in (8, "all")]
        assert line["mean"] == pytest.approx(expected)
        assert all(low <= mean <= high for low, mean, high in zip(line["low"], line["mean"], line["high"]))
        assert line["n"] == [6, 6]
    assert found["protocols"]["length"]["x"] == [10.0, 20.0]
    assert found["protocols"]["sampling, set20"]["x"] == ["dense", "uniform=4", "last=4"]
    tokens = found["protocols"]["tokens, set20"]
    assert (tokens["x"], tokens["point_names"]) == ([16, 16, 80], ["last=4", "uniform=4", "dense"])
    assert tokens["series"]["ttt"]["mean"][2] == pytest.approx(top1("ttt")["top1"])
    strata = found["protocols"]["by first_colour, set20"]
    assert strata["x"] == ["blue", "green", "red"]
    assert strata["series"]["LSTM"]["mean"] == pytest.approx([s["top1"] for s in top1("lstm")["by"]["first_colour"]])
    controls = found["protocols"]["controls, set20"]
    assert controls["x"] == ["nothing", "inner-rate-0", "reset", "shuffled"]
    assert controls["series"]["LSTM"]["mean"][1] is None
    for name in ("length", "frames_set20", "tokens_set20", "by_first_colour_set20", "controls_set20"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert frames["series"]["LSTM"]["difference"]["mean"] == pytest.approx(
        [top1("lstm", frames=n)["top1"] - top1("ttt", frames=n)["top1"] for n in (8, "all")]
    )
    text = (out / "compare.md").read_text()
    assert "| ceiling |" in text
    assert "| LSTM - ttt |" in text
    assert "set20: which frames" in shown


def test_runs_need_not_have_measured_the_same(evaluated, tmp_path):
    """One run has a data set, strata and rules that the other lacks."""
    shutil.copytree(evaluated / "lstm" / "10", tmp_path / "lstm")
    found = compared(str(evaluated / "ttt"), str(tmp_path / "lstm"))["protocols"]
    assert found["length"]["series"]["lstm"]["mean"][1] is None
    assert found["by first_colour, set20"]["series"]["lstm"]["mean"] == [None] * 3
    assert found["length"]["series"]["ttt"]["n"] == [6, 6]


def test_without_dense_rows_the_first_rule_is_the_main_one(tmp_path):
    data = small_set(tmp_path / "set", count=6)
    run = small_run(tmp_path / "run", small_model())
    found = evaluate(run, data, frames="8,all", sampling=["uniform=4"], by=["first_colour"])
    write_report(found, run)
    protocols = compared(str(run))["protocols"]
    assert list(protocols) == ["frames", "by first_colour"]
    assert protocols["frames"]["title"] == "set: accuracy against the number of frames, uniform=4"


def test_seeds_are_averaged_and_resampled(evaluated):
    one = compared(f"TTT={evaluated / 'ttt'}")
    two = compared(f"TTT={evaluated / 'ttt'},{evaluated / 'ttt-seed1'}")
    lines = [found["protocols"]["frames, set20"]["series"]["TTT"] for found in (one, two)]
    assert [line["seeds"] for line in lines] == [1, 2]
    assert lines[1]["mean"] == pytest.approx([(mean + 1) / 2 for mean in lines[0]["mean"]])
    assert lines[1]["high"][1] == 1.0  # both drawn seeds the perfect one
    assert lines[1]["low"][1] < lines[1]["mean"][1] - 0.2  # or both the other
    assert one == compared(f"TTT={evaluated / 'ttt'}")  # seeded


def test_intervals_cover_the_truth():
    """Of 200 samples of 60 videos with known accuracy, about 95 % of the intervals hold it."""
    rng = np.random.default_rng(0)
    drawn = Bootstrap(400)
    held = 0
    for _ in range(200):
        right = {("v", str(i), ""): bool(hit) for i, hit in enumerate(rng.random(60) < 0.7)}
        (mean,), (low,), (high,) = drawn.interval(hits([right], list(right)))
        assert mean == pytest.approx(sum(right.values()) / 60)
        held += low <= 0.7 <= high
    assert 178 <= held <= 200


def test_differences_are_paired():
    """Two runs that fail on nearly the same videos differ by less than their own intervals are wide."""
    rng = np.random.default_rng(0)
    first = {("v", str(i), ""): bool(hit) for i, hit in enumerate(rng.random(200) < 0.5)}
    flipped = [video for video, hit in first.items() if not hit][:8]
    second = first | dict.fromkeys(flipped, True)
    tables = []
    for seed in (first, second):
        values = np.array([[float(hit)] for hit in seed.values()])
        tables.append(Table(Condition("set"), "", [None], list(seed), {"model": values}, np.ones_like(values), {}, {}))
    interval, _ = Statistics(Bootstrap(1000)).difference([tables[1]], [tables[0]])
    assert interval.mean.tolist() == [pytest.approx(0.04)]
    assert 0.005 < interval.low[0] < 0.04 < interval.high[0] < 0.08
    assert Statistics(Bootstrap(10)).difference([tables[1]], []) is None
    _, low, high = Bootstrap(1000).interval(hits([first], list(first)))
    assert high - low > 0.1


@pytest.mark.parametrize("count", [7, 40, 120, 300])
def test_a_model_without_a_mistake_can_be_drawn(count, tmp_path):
    """Rounding must not put its mean beside its interval: bars would have a negative length."""
    seed = {("v", str(i), ""): True for i in range(count)}
    assert Bootstrap(100).interval(hits([seed, seed, seed], list(seed))) == (1.0, 1.0, 1.0)
    assert Bootstrap(100).difference(*[hits([seed], list(seed))] * 2) == (0.0, 0.0, 0.0)
    line = dict(
        zip(("mean", "low", "high"), ([float(x[0])] for x in Bootstrap(100).interval(hits([seed], list(seed)))))
    )
    protocol = {"title": "", "x_label": "", "x": [8], "numeric": True, "joined": True, "ceiling": [1.0], "chance": 0.1}
    plot_lines(tmp_path / "all.png", protocol | {"series": {"a": line | {"run": "a", "control": ""}}})
    assert (tmp_path / "all.png").read_bytes().startswith(b"\x89PNG")


def test_values_that_are_all_the_same_lie_in_their_interval():
    for value in np.random.default_rng(0).random(50):
        mean, low, high = Bootstrap(50).interval(Samples(np.full((3, 31, 1), value)))
        assert low <= mean <= high


def test_evaluations_of_one_checkpoint_are_no_seeds(evaluated):
    with pytest.raises(ValueError, match=r"A: .*10 and .*20 hold evaluations of the same weights, not of two seeds"):
        compared(f"A={evaluated / 'ttt' / '10'},{evaluated / 'ttt' / '20'}")


def test_figures_of_an_earlier_comparison_do_not_stay(evaluated, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.png").write_bytes(b"somebody's own")
    assert main(["compare", str(evaluated / "ttt"), "--out", str(out)]) == 0
    before = {file.name for file in out.glob("*.png")}
    assert main(["compare", f"a={evaluated / 'ttt' / '20'}", "--out", str(out)]) == 0
    left = {file.name for file in out.glob("*.png")}
    assert "length.png" in before - left
    assert left == {"mine.png", "frames.png", "sampling.png", "tokens.png", "by_first_colour.png", "controls.png"}


def test_points_at_one_place_are_named_apart():
    assert _apart([16, 64, 80])
    assert not _apart([16, 16, 80])
    assert not _apart([60, 64])


def test_large_sets_are_resampled_in_parts(monkeypatch):
    right = {("v", str(i), ""): i % 3 == 0 for i in range(50)}
    samples = hits([right], list(right))
    whole = Bootstrap(300, seed=1).interval(samples)
    monkeypatch.setattr(bootstrap, "LARGEST", 1000)
    assert Bootstrap(300, seed=1).interval(samples) == whole


def test_names():
    with pytest.raises(ValueError, match="there is no folder nowhere"):
        parse_runs(["a=nowhere"])
    assert [run.name for run in parse_runs(["tests/evaluation", "tests/video", "x=tests/ttt"])] == [
        "evaluation",
        "video",
        "x",
    ]
    assert [run.name for run in parse_runs(["tests/video", "tttvideo/video"])] == ["tests/video", "tttvideo/video"]
    with pytest.raises(ValueError, match="two runs are called 'a'"):
        parse_runs(["a=tests", "a=tttvideo"])
    with pytest.raises(ValueError, match="names no run"):
        parse_runs(["a="])


def test_mistakes_are_one_sentence(evaluated, tmp_path, capsys):
    def error(*words):
        assert main(["compare", *map(str, words)]) == 2
        shown = capsys.readouterr().err
        assert shown.count("\n") == 1
        return shown

    out = ["--out", tmp_path / "out"]
    (tmp_path / "empty").mkdir()
    assert "holds no evaluation" in error(tmp_path / "empty", *out)
    assert "there is no folder" in error(tmp_path / "missing", *out)
    assert "--resamples must be at least 1" in error(evaluated / "ttt", *out, "--resamples", 0)
    damaged = tmp_path / "damaged"
    shutil.copytree(evaluated / "ttt" / "10", damaged)
    (damaged / "predictions.csv").write_text("")
    assert "nothing in common" not in error(damaged, *out)
    shutil.copy(evaluated / "ttt" / "10" / "predictions.csv", damaged)
    whole = json.loads((damaged / "metrics.json").read_text())
    first = whole["results"][0]
    for key, value in (
        ("checkpoint", None),
        ("data", []),
        ("results", "\x1b[31m"),
        ("results", [first | {"control": True}]),
        ("results", [first | {"sampling": 5}]),
        ("score", {"column": "correct", "figure": "top1", "title": True, "lower": False, "share": True}),
    ):
        (damaged / "metrics.json").write_text(json.dumps(whole | {key: value}))
        assert "metrics.json is damaged (" in error(damaged, *out), (key, value)
    curve = {"data": whole["data"], "unit": "x", "series": {"run": {"frames": [1, 2]}}}
    np.savez(damaged / "position.npz", losses_0=np.zeros((1, 3, 2)), videos_0=np.full((3, 3), "a"))
    (damaged / "metrics.json").unlink()
    for key, value in (("unit", 5), ("series", []), ("series", {"run": {"frames": [1, []]}}), ("series", {"run": 5})):
        (damaged / "position.json").write_text(json.dumps(curve | {key: value}))
        assert "position.json" in error(damaged, *out), (key, value)
    (damaged / "metrics.json").write_text("{")
    assert "metrics.json is damaged" in error(damaged, *out)
    alone = tmp_path / "alone"
    shutil.copytree(evaluated / "ttt" / "10", alone)
    assert "vary nothing" in error(alone, *out)
    shutil.copytree(evaluated / "ttt" / "10", alone / "again")
    assert "there are two evaluations of" in error(alone, *out)
