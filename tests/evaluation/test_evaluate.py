"""The whole evaluation on real files: what is written, splits, failures, several processes."""

import csv
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

from tests.evaluation.small import LABELS, evaluate, small_model, small_run, small_set, undrawn
from tttvideo.cli import main
from tttvideo.evaluation import print_report, write_report
from tttvideo.evaluation.plots import plot_confusion
from tttvideo.video.synthetic import FlashRecall, ceiling_for, make

SETTINGS = {"workers": 0, "frames": "8,all", "sampling": ["dense", "uniform=4"]}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return small_set(tmp_path_factory.mktemp("data") / "set")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return small_run(tmp_path_factory.mktemp("runs") / "demo", small_model())


@pytest.fixture(scope="module")
def damaged(data, tmp_path_factory) -> Path:
    """The same set with two files that are no videos."""
    copy = tmp_path_factory.mktemp("damaged") / "set"
    shutil.copytree(data, copy)
    for file in sorted(copy.glob("val/*/*.mp4"))[:2]:
        file.write_bytes(b"no video at all")
    return copy


def read(out: Path) -> tuple[dict, list[dict]]:
    with (out / "predictions.csv").open(newline="") as file:
        return json.loads((out / "metrics.json").read_text()), list(csv.DictReader(file))


def test_files_and_figures(run, data, tmp_path, capsys):
    evaluation = evaluate(run, data, **SETTINGS)
    write_report(evaluation, tmp_path)
    print_report(evaluation)
    metrics, predictions = read(tmp_path)

    keys = ["checkpoint", "data", "split", "n_videos", "n_failed", "chance", "results"]
    assert list(metrics)[:7] == keys
    assert (metrics["split"], metrics["n_videos"], metrics["n_failed"]) == ("val", 12, 0)
    assert metrics["chance"] == pytest.approx(1 / 6)
    assert metrics["selection"]["rule"] == "highest val top1"
    rows = metrics["results"]
    assert [(row["frames"], row["sampling"]) for row in rows] == [
        (8, "dense"),
        ("all", "dense"),
        (8, "uniform=4"),
        ("all", "uniform=4"),
    ]
    figures = {"frames", "sampling", "top1", "top5", "mean_class", "n", "frames_per_second", "ceiling", "per_class"}
    suite = json.loads((data / "suite.json").read_text())
    for row in rows:
        assert figures < set(row)
        assert row["n"] == 12
        assert row["frames_per_second"] > 0
        cut = None if row["frames"] == "all" else row["frames"]
        assert row["ceiling"] == ceiling_for(suite, row["sampling"], cut)
        assert sum(map(sum, row["confusion"])) == 12
    assert rows[1]["ceiling"] == 1.0 > rows[0]["ceiling"] > rows[2]["ceiling"]

    # predictions.csv says the same as metrics.json.
    assert len(predictions) == 48
    hits = Counter()
    for row in predictions:
        assert row["label"] == Path(row["path"]).parent.name
        assert row["correct"] == str(int(row["prediction"] == row["label"])) == str(int(row["rank"] == "1"))
        hits[row["frames"], row["sampling"]] += int(row["correct"])
    for row in rows:
        assert row["top1"] == pytest.approx(hits[str(row["frames"]), row["sampling"]] / 12)
    for name in ("confusion.png", "accuracy_vs_frames.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob(".*"))
    shown = capsys.readouterr().out
    assert "chosen by highest val top1 (0.25) on split val" in shown
    assert "ceiling" in shown


def test_where_no_video_can_be_read_there_are_no_figures(run, damaged, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(damaged, data)
    for video in data.rglob("*.mp4"):
        video.write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"none of the 12 videos of split val can be measured .the first"):
        evaluate(run, data, **SETTINGS)


def test_failures_count_as_wrong_and_are_listed(run, damaged, tmp_path, capsys):
    evaluation = evaluate(run, damaged, **SETTINGS)
    with undrawn():
        write_report(evaluation, tmp_path)
    print_report(evaluation)
    metrics, predictions = read(tmp_path)
    assert (metrics["n_videos"], metrics["n_failed"]) == (12, 2)
    failed = [row for row in predictions if row["failure"]]
    assert len(failed) == 8
    assert {(row["correct"], row["prediction"], row["frames_used"]) for row in failed} == {("0", "", "0")}
    assert len(metrics["failures"]) == 2
    shown = capsys.readouterr().out
    assert "2 of 12 videos failed and count as wrong" in shown
    for failure in metrics["failures"]:
        assert failure["path"] in shown
        assert failure["reason"]
    for row in metrics["results"]:
        assert row["n"] == 12
        assert row["top5"] <= 10 / 12
        assert sum(counts[-1] for counts in row["confusion"]) == 2


def test_the_checkpoints_own_sampling_is_the_default(run, data):
    metrics = evaluate(run, data).metrics
    assert [(row["frames"], row["sampling"]) for row in metrics["results"]] == [("all", "dense")]


def test_splits(run, data, tmp_path):
    with pytest.raises(ValueError, match=r"no split 'test'; it has val"):
        evaluate(run, data, split="test")
    listing = tmp_path / "list.csv"
    videos = sorted(data.glob("val/*/*.mp4"))
    listing.write_text("path,label\n" + "".join(f"{video},{video.parent.name}\n" for video in videos))
    assert evaluate(run, listing, split="all").metrics["n_videos"] == 12
    # The run kept half of its videos for validation, so that is the division here.
    part = evaluate(run, listing, split="val").metrics
    assert part["n_videos"] == 6
    assert "seed 7, 0.5 for val" in part["split_rule"]


def test_labels_are_matched_by_name(data, tmp_path):
    reversed_labels = small_model(LABELS[::-1])
    metrics = evaluate(small_run(tmp_path / "a", reversed_labels), data).metrics
    assert metrics["labels"] == LABELS[::-1]
    other = small_run(tmp_path / "b", small_model(["red-blue", "cat"]))
    with pytest.raises(ValueError, match=r"has the label '.*', which is not known"):
        evaluate(other, data)
    foreign = small_run(tmp_path / "c", small_model(["cat", "dog"]))
    common = "no class in common: the data have blue-green, .* and 2 more, the model knows cat, dog"
    with pytest.raises(ValueError, match=common):
        evaluate(foreign, data)


def test_several_labels(data, tmp_path):
    listing = tmp_path / "list.csv"
    videos = sorted(data.glob("val/*/*.mp4"))
    lines = [f"{video},{';'.join(video.parent.name.split('-'))}\n" for video in videos]
    listing.write_text("path,label\n" + "".join(lines))
    run = small_run(tmp_path / "run", small_model(["blue", "green", "red"], multi_label=True))
    evaluation = evaluate(run, listing, split="all", frames="8,all")
    with undrawn():
        write_report(evaluation, tmp_path / "out")
    metrics, predictions = read(tmp_path / "out")
    assert metrics["chance"] == pytest.approx(2 / 3)
    assert all(0 < row["map"] <= 1 for row in metrics["results"])
    assert {len(row["label"].split(";")) for row in predictions} == {2}
    single = small_run(tmp_path / "single", small_model(["blue", "green", "red"]))
    with pytest.raises(ValueError, match="several labels but the model gives one"):
        evaluate(single, listing, split="all")


def test_a_device_that_is_not_there_is_one_sentence(run, data):
    for name in ("cuda:77", "toaster"):
        with pytest.raises(ValueError, match=f"--device {name} cannot be used here"):
            evaluate(run, data, device=name)


COMMAND = """
import sys
sys.path.insert(0, {root!r})
from tttvideo.cli import main
sys.exit(main())
"""


def test_two_processes_count_every_video_once(run, damaged, run_script, tmp_path):
    words = ["evaluate", str(run), "--data", str(damaged), "--frames", "8,all", "--workers", "0", "--batch-size", "2"]
    done = run_script(COMMAND, [*words, "--out", str(tmp_path / "two")], ranks=2)
    assert done.codes == [0, 0], done.stderr
    two, predictions = read(tmp_path / "two")
    assert two["processes"] == 2
    assert (two["n_videos"], two["n_failed"], len(predictions)) == (12, 2, 24)
    assert len({(row["path"], row["frames"]) for row in predictions}) == 24
    one = evaluate(run, damaged, frames="8,all").metrics
    for here, there in zip(one["results"], two["results"]):
        assert (here["top1"], here["top5"], here["confusion"]) == (
            there["top1"],
            there["top5"],
            there["confusion"],
        )
    assert done.stdout.count("written to") == 1


def test_a_list_with_a_root(data, tmp_path):
    run = small_run(tmp_path / "run", small_model())
    listing = tmp_path / "list.csv"
    videos = sorted(data.glob("val/*/*.mp4"))
    listing.write_text("path,label\n" + "".join(f"{v.relative_to(data)},{v.parent.name}\n" for v in videos))
    assert evaluate(run, listing, split="all", root=data).metrics["n_videos"] == 12
    with pytest.raises(ValueError, match=r"list\.csv"):
        evaluate(run, listing, split="all")
    # The list that was trained with counts from where it did then.
    (run / "config.yaml").write_text(f"data:\n  list: {listing}\n  root: {data}\n  val_fraction: 0.5\n")
    assert evaluate(run, listing).metrics["n_videos"] == 6


def test_cuts_of_one_file_are_told_apart(run, data, tmp_path, capsys):
    good, broken = next(data.glob("val/*/*.mp4")), tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    rows = [f"{good},{good.parent.name},0,0.2", f"{good},{good.parent.name},0.2,0.4", f"{broken},{LABELS[0]},1,2.5"]
    listing = tmp_path / "list.csv"
    listing.write_text("path,label,start,end\n" + "\n".join(rows) + "\n")
    evaluation = evaluate(run, listing, split="all")
    with undrawn():
        write_report(evaluation, tmp_path / "out")
    print_report(evaluation)
    metrics, predictions = read(tmp_path / "out")
    assert [(row["start"], row["end"]) for row in predictions] == [("0.0", "0.2"), ("0.2", "0.4"), ("1.0", "2.5")]
    assert [(f["start"], f["end"]) for f in metrics["failures"]] == [(1.0, 2.5)]
    assert "broken.mp4 from 1 s to 2.5 s: " in capsys.readouterr().out


def test_the_ceiling_is_only_that_of_the_sets_own_videos(run, data, tmp_path):
    copy = tmp_path / "set"
    shutil.copytree(data, copy)
    assert evaluate(run, copy / "meta.csv").metrics["results"][0]["ceiling"] is not None
    video = next(copy.glob("val/*/*.mp4"))
    for header, more in (("path,label", ""), ("path,label,start,end", ",0,0.2")):
        for name in ("own.csv", "meta.csv"):
            if name == "own.csv" or more:
                (copy / name).write_text(f"{header}\n{video},{video.parent.name}{more}\n")
                assert evaluate(run, copy / name, split="all").metrics["results"][0]["ceiling"] is None


def test_class_names_are_no_mathematics(tmp_path, recwarn):
    counts = [[1, 2, 0], [0, 1, 1]]
    plot_confusion(tmp_path / "a.png", counts, ["$x^", "a$\\frac$ 猫"], "split $v$_")
    assert (tmp_path / "a.png").is_file()
    assert not [w for w in recwarn if "Glyph" in str(w.message)]


def test_the_figures_are_written_last(run, data, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no plot")

    monkeypatch.setattr("tttvideo.evaluation.figures.plot_lines", broken)
    evaluation = evaluate(run, data)
    with pytest.raises(RuntimeError, match="no plot"):
        write_report(evaluation, tmp_path)
    assert read(tmp_path)[0]["n_videos"] == 12


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("checkpoints/step-00000010/config.json", "[1, 2]"),
        ("checkpoints/step-00000010/config.json", "no JSON"),
        ("checkpoints/index.json", "no JSON"),
        ("config.yaml", "data: [1"),
    ],
)
def test_damaged_descriptions_are_one_sentence(data, tmp_path, name, text):
    run = small_run(tmp_path / "run", small_model())
    (run / name).write_text(text)
    with pytest.raises(ValueError, match=Path(name).name):
        evaluate(run / "checkpoints" / "step-00000010", data)


def test_the_columns_of_predictions_are_reserved(run, data, tmp_path):
    _, rows = _written(run, data, tmp_path)
    every = {"path", "start", "end", "frames", "sampling", "views", "control", "frames_used", "failure"}
    of_task = {"label", "prediction", "correct", "probability", "label_probability", "rank", "top5"}
    assert set(rows[0]) == every | of_task | {"first_onset"}
    videos = sorted(data.glob("val/*/*.mp4"))
    (tmp_path / "list.csv").write_text("path,label,rank\n" + "".join(f"{v},{v.parent.name},1\n" for v in videos))
    with pytest.raises(ValueError, match=r"predictions\.csv has a column 'rank' of its own; rename"):
        evaluate(run, tmp_path / "list.csv", split="all", by=["rank"])


def test_frames_in_a_random_order_have_no_ceiling(run, data, tmp_path):
    metrics, _ = _written(run, data, tmp_path, controls=["all"])
    for row in metrics["results"]:
        ceilings = [row["ceiling"], *(stratum["ceiling"] for stratum in row["by"]["first_onset"])]
        assert all((ceiling is None) == (row["control"] == "shuffled") for ceiling in ceilings)


def _written(run, data, out, **options):
    found = evaluate(run, data, by=["first_onset:3"], workers=0, **options)
    with undrawn():
        write_report(found, out)
    return read(out)


def test_a_model_of_damaged_weights_is_no_result(data, tmp_path, capsys):
    model = small_model()
    with torch.no_grad():
        next(model.head.parameters()).fill_(torch.nan)
    damaged = small_run(tmp_path / "damaged", model)
    assert main(["evaluate", str(damaged), "--data", str(data), "--out", str(tmp_path / "out")]) == 2
    assert "the model answers no video with numbers" in capsys.readouterr().err
    whole = small_run(tmp_path / "whole", small_model())
    words = [f"W={whole}", f"D={damaged}", "--data", str(data), "--out", str(tmp_path / "position")]
    assert main(["position", *words]) == 2
    assert "D has no finite loss on any video" in capsys.readouterr().err


def test_what_a_list_of_causes_lacks_is_told(tmp_path):
    data = tmp_path / "set"
    suite = FlashRecall(split="val=6", pairs="1", frames=16, query=4)
    make(suite, data, workers=1)
    run = small_run(tmp_path / "run", small_model(list(suite.classes)))
    metrics = evaluate(run, data).metrics
    assert metrics["notes"] == []
    assert list(metrics["results"][0]["by"]) == ["pairs", "depth"]
    file = data / "meta.csv"
    rows = list(csv.DictReader(file.open(newline="")))

    def write(rows, *without):
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, [name for name in rows[0] if name not in without], extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)

    write(rows[:4])
    notes = evaluate(run, data).metrics["notes"]
    assert "2 of the 6 videos have no value of depth and are in no stratum" in notes
    assert "meta.csv does not name 2 of the 6 videos: strata have no ceilings" in notes
    write(rows, "depth")
    assert any("meta.csv has no column 'depth'" in note for note in evaluate(run, data).metrics["notes"])
    write([*rows[:-1], rows[-1] | {"onset_1": "soon"}])
    (note,) = evaluate(run, data).metrics["notes"]
    assert note.startswith(f"meta.csv is damaged in the row of {rows[-1]['path']}")
    file.unlink()
    found = evaluate(run, data).metrics["notes"]
    assert found == ["no meta.csv beside suite.json tells of these videos: there are no strata"]


@pytest.mark.parametrize(
    ("frames", "said"),
    [(999, "ceilings are those of videos of 999 frames"), (0, "there are no ceilings, as suite.json")],
)
def test_a_description_of_other_videos_is_told(run, data, tmp_path, frames, said):
    copy = tmp_path / "set"
    shutil.copytree(data, copy)
    description = json.loads((copy / "suite.json").read_text())
    description["parameters"]["frames"] = frames
    (copy / "suite.json").write_text(json.dumps(description))
    notes = evaluate(run, copy).metrics["notes"]
    assert any(said in note for note in notes)
