"""Features that people have: files in place of videos, in both orders of their sides."""

import json

import numpy as np
import pytest
import torch

from tests.training.test_cached_features import losses
from tttvideo.cli import main as command
from tttvideo.encoder import Features
from tttvideo.pretrained import from_pretrained
from tttvideo.training.run import main
from tttvideo.video.reader import VideoError
from tttvideo.video.transforms import Preprocessing


@pytest.fixture
def features(tmp_path):
    """Folder/<class>/*.npy [T, 6], of 5 to 9 time steps, whose classes differ in their mean."""
    generator = np.random.default_rng(0)
    for name, level in (("a", -1.0), ("b", 1.0)):
        for i in range(8):
            file = tmp_path / "features" / name / f"{name}{i}.npy"
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, (level + generator.normal(size=(5 + i % 5, 6))).astype(np.float32))
    return tmp_path / "features"


@pytest.fixture
def words(arguments, features):
    def build(*extra, out="run", **settings):
        values = {
            "model.encoder": "Features",
            "data.root": features,
            "mix.cutmix": 0.0,
            "data.augment.flip": 0.0,
            "data.augment.brightness": 0.0,
            **settings,
        }
        found = arguments(out=out)
        del found[found.index("--model.encoder.patch") : found.index("--model.encoder.patch") + 2]
        return [*found, *(word for key, value in values.items() for word in (f"--{key}", str(value))), *extra]

    return build


@pytest.mark.slow
def test_files_are_learned_from_evaluated_and_exported(words, features, tmp_path, capfd):
    assert main(words()) == 0
    run = tmp_path / "run"
    capfd.readouterr()
    assert command(["evaluate", str(run), "--data", str(features), "--split", "all", "--check-streaming", "2"]) == 0
    assert json.loads((run / "metrics.json").read_text())["n_failed"] == 0
    assert command(["export", str(run), "--out", str(tmp_path / "exported")]) == 0
    model, copy = from_pretrained(run), from_pretrained(tmp_path / "exported")
    path = str(features / "a" / "a3.npy")
    assert copy.classify(path) == model.classify(path)
    frames = torch.from_numpy(np.load(path))[None, :, :, None, None]
    with torch.no_grad():
        probabilities = model.probabilities(model(frames)[0].logits)[0]
    assert dict(model.classify(path))["a"] == pytest.approx(float(probabilities[model.labels.index("a")]), abs=1e-5)


def test_both_orders_give_one_run(words, features, tmp_path, capfd):
    """In lists, whose names have another extension or none."""
    rows = []
    for file in sorted(features.rglob("*.npy")):
        for name, array in (("DT", np.load(file).T), ("TD", np.load(file))):
            (tmp_path / name).mkdir(exist_ok=True)
            np.save(tmp_path / name / file.name, array)
        split = "train" if int(file.stem[1]) % 4 else "val"
        rows.append(f"{file.stem}{['.txt', '', '.mp4'][len(rows) % 3]},{file.parent.name},{split}")
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
    for name in ("DT", "TD"):
        listed = {"data.root": "null", "data.list": tmp_path / "list.csv", "model.encoder.folder": tmp_path / name}
        assert main(words(out=f"run-{name}", **listed)) == 0
        described = json.loads(next((tmp_path / f"run-{name}" / "checkpoints").glob("step-*/config.json")).read_text())
        encoder = described["model"]["init_args"]["encoder"]["init_args"]
        assert (encoder["layout"], encoder["channels"]) == (name, 6)
    assert losses(tmp_path / "run-TD") == losses(tmp_path / "run-DT")


@pytest.mark.parametrize(
    ("change", "settings", "sentence"),
    [
        (lambda a: a[:5], {}, "set encoder.layout to TD (time first) or DT (features first)"),
        (lambda a: a.T if a[0, 0] < -1 else a, {}, "share no side that could be the features"),
        (lambda a: a, {"model.encoder.channels": 7}, "share no side of 7"),
        (lambda a: a[0], {}, "None of the"),
        (lambda a: a.astype(str), {}, "None of the"),
        (lambda a: a, {"data.augment.flip": 0.5}, "data.augment.flip changes frames, and features are read"),
        (lambda a: a, {"model.encoder.rate": 0}, "give the features a second"),
        (lambda a: a, {"model.encoder.channels": -1, "model.encoder.layout": "TD"}, "encoder.channels is -1"),
        (lambda a: a.T, {"model.encoder.layout": "TD"}, "a0.npy is 6 x 5); set encoder.layout: DT"),
    ],
)
def test_what_cannot_be_read_is_refused(words, features, capfd, change, settings, sentence):
    for file in features.rglob("*.npy"):
        np.save(file, change(np.load(file)))
    assert main(words(**settings)) == 2
    assert sentence in capfd.readouterr().err


def test_the_files_that_disagree_are_named_with_what_skips_them(tmp_path):
    for i, rows in enumerate((20, 21, 22, 20, 21)):
        np.save(tmp_path / f"{i}.npy", np.zeros((rows, 13 if i == 3 else 12), np.float32))
    paths = [str(tmp_path / f"{i}.npy") for i in range(5)]
    for given in ({}, {"channels": 12}, {"layout": "TD"}):
        with pytest.raises(ValueError, match=r": 4 of 5 have 12 \(TD\), but \S*3\.npy is 20 x 13; mend such files, or"):
            Features(**given).resolved(paths)
    skipping = Features(layout="TD", channels=12)
    assert skipping.resolved(paths) is skipping
    assert Features().resolved(paths[:3]) == skipping


def test_bad_files_are_skipped_with_their_reason(words, features, tmp_path):
    np.save(features / "a" / "a1.npy", np.zeros((5, 4), np.float32))
    np.save(features / "b" / "b1.npy", np.full((5, 6), np.nan, np.float32))
    (features / "a" / "a2.npy").write_bytes(b"nothing")
    one_byte = (features / "b" / "b2.npy").read_bytes().replace(b"}", b"(", 1)
    (features / "b" / "b2.npy").write_bytes(one_byte)
    given = {"model.encoder.channels": 6, "model.encoder.layout": "TD", "schedule.epochs": 1, "data.val_fraction": 0.1}
    assert main(words(**given)) == 0
    said = (tmp_path / "run" / "skipped.csv").read_text()
    for sentence in (
        "holds 5 x 4 numbers, but the model reads 6",
        "from 0 on are not finite",
        "no .npy file",
        "b2.npy",
    ):
        assert sentence in said


@pytest.mark.parametrize("other", ["train/b/a3", "val/a/a3"])
def test_videos_that_share_a_file_are_refused(words, features, tmp_path, capfd, other):
    """Of two classes, or of two splits."""
    for name in ("train/a/a1", "train/a/a3", "train/b/b1", "val/a/a5", "val/b/b5", other):
        video = tmp_path / "videos" / f"{name}.mp4"
        video.parent.mkdir(parents=True, exist_ok=True)
        video.write_bytes(b"a video")
    assert main(words(**{"data.root": tmp_path / "videos", "model.encoder.folder": features / "a"})) == 2
    said = capfd.readouterr().err
    assert f"{other}.mp4 have the same name, and so one file of features, {features / 'a' / 'a3.npy'};" in said
    assert not (tmp_path / "run").exists()


def test_names_with_dots_are_whole():
    reading = Features(folder="f").reading(Preprocessing())
    for path in ("v/P01.cam1", "P01.cam1.MP4", "x/P01.cam1.txt"):
        assert reading.locate(path) == "f/P01.cam1.npy"


def test_numbers_beyond_float32_are_not_finite(tmp_path):
    file = tmp_path / "a.npy"
    np.save(file, np.full((5, 6), 1e300))
    reading = Features(channels=6, layout="TD").reading(Preprocessing())
    with reading.open(str(file)) as reader, pytest.raises(VideoError, match="from 0 on are not finite in float32"):
        reader.read()


def test_rate_counts_time(features):
    path = str(features / "a" / "a4.npy")
    reading = Features(rate=2.0, channels=6).reading(Preprocessing())
    with reading.open(path) as reader:
        assert reader.times.tolist() == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0]
        assert torch.equal(reader.read([1, 3])[:, :, 0, 0], torch.from_numpy(np.load(path)[[1, 3]]))
