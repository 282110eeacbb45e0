"""Predictions side by side: the figures are those of the evaluations, intervals are over videos and seeds."""

import json
import shutil

import numpy as np
import pytest

from tests.evaluation.small import evaluate, small_model, small_run, undrawn
from tests.evaluation.test_forecasting import predictor
from tests.evaluation.test_revealing import SUITE, copier
from tttvideo.cli import main
from tttvideo.evaluation import write_report
from tttvideo.evaluation.bootstrap import Bootstrap, Samples
from tttvideo.evaluation.samples import evenly
from tttvideo.video.synthetic import make


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make(SUITE, tmp_path_factory.mktemp("sets") / "revisit", workers=1).out


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, data):
    """Two models, two contexts; of the first also without writing, and a second seed of it."""
    base = tmp_path_factory.mktemp("predictions")
    for name, model in {"a": predictor(), "b": copier()}.items():
        run = small_run(base / name, model)
        for context in (4, 6):
            found = evaluate(run, data, context=context, horizon=4 if name == "a" else 3)
            with undrawn():
                write_report(found, base / "eval" / name / str(context))
    found = evaluate(base / "a", data, context=4, horizon=4, write="context")
    with undrawn():
        write_report(found, base / "eval" / "a" / "kept")
    seed = base / "eval" / "a-seed1" / "4"
    shutil.copytree(base / "eval" / "a" / "4", seed)
    metrics = json.loads((seed / "metrics.json").read_text())
    (seed / "metrics.json").write_text(json.dumps(metrics | {"weights_sha256": "another seed's"}))
    arrays = dict(np.load(seed / "per_video.npz"))
    arrays["mse"] = np.where(np.arange(4)[:, None] == 0, arrays["mse"] / 2, arrays["mse"])  # of the model alone
    np.savez_compressed(seed / "per_video.npz", **arrays)
    return base / "eval"


def read(folder):
    return json.loads((folder / "metrics.json").read_text())


def compared(*words, out):
    assert main(["compare", *map(str, words), "--out", str(out)]) == 0
    return json.loads((out / "compare.json").read_text())["protocols"]


def test_every_protocol_has_the_figures_of_the_evaluations(evaluated, tmp_path, capsys):
    found = compared(evaluated / "a", f"B={evaluated / 'b'}", out=tmp_path)
    assert list(found) == ["horizon, context 4", "horizon, context 6", "context", "by lap"]
    metrics = {name: read(evaluated / name / "4") for name in ("a", "b")}
    horizon = found["horizon, context 4"]
    assert horizon["x"] == [1, 2, 3, 4]
    assert list(horizon["series"]) == ["a", "a, write=context", "B", "copy last", "mean frame", "linear"]
    for name, run in (("a", "a"), ("B", "b")):
        line = horizon["series"][name]
        known = metrics[run]["per_horizon"]["model"]["mse"]
        assert line["mean"][: len(known)] == pytest.approx(known, rel=1e-5)
        assert line["mean"][len(known) :] == [None] * (4 - len(known))
        assert all(low <= mean <= high for low, mean, high in zip(line["low"][:3], line["mean"], line["high"]))
        assert (line["n"][:3], line["seeds"]) == ([3] * 3, 1)
    difference = horizon["series"]["B"]["difference"]
    expected = [b - a for a, b in zip(*(metrics[r]["per_horizon"]["model"]["mse"] for r in "ab"))]
    assert (difference["to"], difference["mean"][:3]) == ("a", pytest.approx(expected, rel=1e-4))
    copies = horizon["series"]["copy last"]
    assert copies["mean"] == pytest.approx(metrics["a"]["per_horizon"]["copy_last"]["mse"], rel=1e-5)
    assert copies["baseline"]
    context = found["context"]
    assert context["x"] == [4, 6]
    wanted = [np.mean(read(evaluated / "a" / c)["per_horizon"]["model"]["mse"][:3]) for c in "46"]
    assert context["series"]["a"]["mean"] == pytest.approx(wanted, rel=1e-5)
    assert context["series"]["a, write=context"]["mean"][1] is None
    laps = found["by lap"]
    assert laps["x"] == [0, 1, 2, 3]
    assert laps["series"]["B"]["mean"] == pytest.approx(metrics["b"]["revealed"]["mse"]["model"], rel=1e-4)
    assert laps["ceiling"] == [metrics["b"]["revealed"]["bounds"]["codec"]] * 4
    assert set(laps["bounds"]) == {"no_memory", "copy_last"}
    for name in ("horizon_context_4", "context", "by_lap"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "compare.md").read_text()
    assert "| B - a |" in text
    assert "| codec's error |" in text
    assert "newly revealed pixels" in capsys.readouterr().out


def test_seeds_are_averaged_and_resampled(evaluated, tmp_path):
    one = compared(f"A={evaluated / 'a' / '4'}", out=tmp_path / "1")["horizon"]["series"]
    two = compared(f"A={evaluated / 'a' / '4'},{evaluated / 'a-seed1'}", out=tmp_path / "2")["horizon"]["series"]
    assert (one["A"]["seeds"], two["A"]["seeds"]) == (1, 2)
    assert two["A"]["mean"] == pytest.approx([0.75 * mean for mean in one["A"]["mean"]], rel=1e-5)
    assert all(low < 0.55 * mean for low, mean in zip(two["A"]["low"], one["A"]["mean"]))  # both drawn the second seed
    assert two["copy last"]["mean"] == one["copy last"]["mean"]


def test_mistakes_are_one_sentence(evaluated, data, tmp_path, capsys):
    def error(*words):
        capsys.readouterr()
        assert main(["compare", *map(str, words), "--out", str(tmp_path / "out")]) == 2
        shown = capsys.readouterr().err
        assert shown.count("\n") == 1
        return shown

    classifier = small_run(tmp_path / "classifier", small_model())
    write_report(evaluate(classifier, make_flashes(tmp_path)), tmp_path / "classified")
    said = error(evaluated / "a", tmp_path / "classified")
    assert "a was measured in Prediction and classified in Classification (" in said
    assert "; compare runs of one task" in said
    shutil.copytree(tmp_path / "classified", tmp_path / "both" / "c")
    shutil.copytree(evaluated / "a" / "4", tmp_path / "both" / "p")
    assert "both holds evaluations of Classification and of Prediction" in error(tmp_path / "both")
    other = evaluate(small_run(tmp_path / "small", copier(size=16)), data, context=4, horizon=3)
    write_report(other, tmp_path / "other")
    assert "were measured on other frames of revisit" in error(evaluated / "a", tmp_path / "other")
    grey = tmp_path / "grey"
    shutil.copytree(evaluated / "a" / "4", grey)
    (grey / "metrics.json").write_text(json.dumps(read(grey) | {"grey": True}))
    assert "in different units on revisit" in error(evaluated / "a", grey)
    (grey / "per_video.npz").write_bytes(b"PK rubbish")
    assert "per_video.npz is damaged" in error(grey)
    (grey / "per_video.npz").unlink()
    assert "has no per_video.npz beside it; run `tttvideo evaluate` once more" in error(grey)


def make_flashes(tmp_path):
    from tests.evaluation.small import small_set

    return small_set(tmp_path / "flashes", count=2, frames=6)


def test_intervals_of_sums_weigh_videos_by_what_they_hold():
    counts = np.array([[[10.0, 0.0], [30.0, 0.0]]])
    interval = Bootstrap(300).interval(Samples(counts * [[[1.0], [2.0]]], counts))
    assert interval.mean[0] == pytest.approx(1.75)
    assert (interval.low[0], interval.high[0]) == (1.0, 2.0)
    assert np.isnan(interval.mean[1])
    some = Samples.known(np.array([[[1.0, np.nan], [3.0, 5.0]]]))
    assert Bootstrap(300).interval(some).mean.tolist() == [2.0, 5.0]


def test_videos_to_look_at_are_of_every_difficulty_and_the_worst():
    assert evenly(12, 4) == ([0, 2, 5, 7], [11, 10, 9, 8])
    assert evenly(3, 4) == ([0, 1], [2])
    assert evenly(1, 4) == ([0], [])
    assert evenly(0, 4) == ([], [])
