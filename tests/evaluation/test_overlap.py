"""Training videos are known again, whatever the data is called when it is evaluated."""

import os
import shutil

import pytest

from tests.evaluation.small import evaluate, small_model, small_run, small_set
from tttvideo.evaluation import print_report
from tttvideo.export import export
from tttvideo.video.index import Fold, Video, build_index
from tttvideo.video.overlap import count_seen, mark_of, training_marks


@pytest.fixture(scope="module")
def undivided(tmp_path_factory):
    """A folder of class folders, without splits."""
    folder = tmp_path_factory.mktemp("data") / "undivided"
    shutil.copytree(small_set(folder.with_name("set")) / "val", folder)
    return folder


@pytest.fixture(scope="module")
def run(undivided, tmp_path_factory):
    trained = build_index(undivided, "train", val_fraction=0.5, seed=7)
    folder = tmp_path_factory.mktemp("runs") / "demo"
    return small_run(folder, small_model(), provenance={"trained_on": training_marks(trained.videos)})


def test_data_trained_on_is_known_under_any_name(run, undivided, tmp_path, monkeypatch):
    link = tmp_path / "link"
    link.symlink_to(undivided)
    listing = tmp_path / "list.csv"
    videos = sorted(undivided.glob("*/*.mp4"))
    listing.write_text("path,label\n" + "".join(f"{video},{video.parent.name}\n" for video in videos))
    monkeypatch.chdir(undivided)
    for data in (undivided, link, ".", listing):
        metrics = evaluate(run, data).metrics
        assert metrics["split"] == "val", data
        if data != listing:  # a list is drawn by its own paths
            assert metrics["notes"] == []


def test_measured_training_videos_are_named(run, undivided, capsys):
    evaluation = evaluate(run, undivided, split="all")
    sentence = "6 of the 12 measured videos were trained on"
    assert evaluation.metrics["notes"] == [sentence]
    print_report(evaluation)
    assert f"note: {sentence}" in capsys.readouterr().out


def test_exports_know_too(run, undivided, tmp_path):
    copy = tmp_path / "other"
    shutil.copytree(undivided, copy)
    assert evaluate(export(run, tmp_path / "export"), copy).metrics["split"] == "val"


def test_data_that_was_not_trained_on_is_measured_in_full(run, undivided, tmp_path):
    other = tmp_path / undivided.name
    shutil.copytree(undivided, other)
    for video in other.glob("*/*.mp4"):
        with video.open("ab") as file:  # still decodes, and is another file
            file.write(b"\0\0\0\x08free")
    metrics = evaluate(run, other).metrics
    assert (metrics["split"], metrics["notes"]) == ("all", [])


def test_a_fold_is_measured_on_what_it_kept(undivided, tmp_path):
    """The run, its export, and a copy of the data; other data are divided, or not, as ever."""
    learned, kept = (build_index(undivided, s, seed=7, fold=Fold(2, 3, "train", "val")) for s in ("train", "val"))
    run = small_run(tmp_path / "run", small_model(), provenance={"trained_on": training_marks(learned.videos)})
    (run / "config.yaml").write_text(f"data:\n  root: {undivided}\n  split_seed: 7\n  fold: [2, 3]\n")
    copy, other = tmp_path / "copy", tmp_path / "other"
    shutil.copytree(undivided, copy)
    for video in small_set(other, count=6).rglob("*.mp4"):
        video.write_bytes(video.read_bytes() + b"\0\0\0\x08free")  # still decodes, and is another file
    exported = export(run, tmp_path / "export")
    for source, data in ((run, undivided), (exported, undivided), (exported, copy)):
        metrics = evaluate(source, data).metrics
        assert metrics["n_videos"] == len(kept.videos) == 4
        assert (metrics["split"], metrics["notes"]) == ("val", [])
        assert metrics["split_rule"].startswith("val: fold 2 of 3, 4 of 12 videos")
    assert evaluate(run, undivided, split="train").metrics["notes"] == ["8 of the 8 measured videos were trained on"]
    assert evaluate(run, undivided, split="all").metrics["n_videos"] == 12
    assert evaluate(run, other).metrics["split_rule"].startswith(f"val: the folder {other / 'val'}, 6 videos")
    for fold in ("[2, 1]", "x", "[1, 2, 3]"):
        (run / "config.yaml").write_text(f"data:\n  fold: {fold}\n")
        with pytest.raises(ValueError, match=r"config\.yaml is damaged: videos cannot have been divided by"):
            evaluate(run, undivided)


def test_marks(tmp_path):
    video = tmp_path / "a.mp4"
    video.write_bytes(os.urandom(10_000))
    frames = tmp_path / "frames"
    frames.mkdir()
    (frames / "1.png").write_bytes(b"picture")
    whole = Video(str(video), 0, None, None, None)
    cut, images = whole._replace(start=1.0, end=2.0), whole._replace(path=str(frames))
    missing = whole._replace(path=str(tmp_path / "missing.mp4"))
    assert mark_of(missing) is None
    marks = training_marks([whole, images, missing])
    assert len(marks.split()) == 2
    assert count_seen([whole, cut, images, missing], marks) == 2
    assert count_seen([whole, missing], None) == 0
    assert training_marks([whole] * 20_001) is None
