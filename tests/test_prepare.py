"""Data prepared in published protocols: the scripts of data/*/, on small files made here."""

import csv
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.video.test_prediction_suites import mnist
from tttvideo.evaluation.generating import read_clip
from tttvideo.video.decode import open_video
from tttvideo.video.index import build_index
from tttvideo.video.transforms import Preprocessing

DATA = Path(__file__).resolve().parents[1] / "data"


def script(name):
    spec = importlib.util.spec_from_file_location(f"prepare_{name.replace('-', '_')}", DATA / name / "prepare.py")
    module = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


def test_moving_mnist(tmp_path, capsys):
    test = np.random.default_rng(0).integers(0, 256, (20, 3, 64, 64), np.uint8)
    np.save(tmp_path / "mnist_test_seq.npy", test)
    words = ["--mnist", mnist(tmp_path / "mnist"), "--out", str(tmp_path / "videos"), "--train", "2", "--val", "1"]
    for written in (3, 0):
        assert script("moving-mnist").main([*words, "--test", str(tmp_path / "mnist_test_seq.npy")]) == 0
        assert f"test: {written} videos written" in capsys.readouterr().out
    for split, count in (("train", 2), ("val", 1), ("test", 3)):
        assert len(build_index(tmp_path / "videos", split, labelled=False).videos) == count
    with open_video(str(tmp_path / "videos" / "test" / "00001.mp4")) as reader:
        frames = reader.read().permute(0, 2, 3, 1).numpy().astype(int)
    assert abs(frames - test[:, 1, ..., None]).max() <= 2
    np.save(tmp_path / "of_others.npy", test[:, ::-1])
    assert script("moving-mnist").main([*words, "--test", str(tmp_path / "of_others.npy")]) == 2
    assert "holds another test set (00000.mp4 differs)" in capsys.readouterr().err
    np.save(tmp_path / "other.npy", test[:10])
    assert script("moving-mnist").main([*words, "--test", str(tmp_path / "other.npy")]) == 2
    assert "not uint8 (20, videos, 64, 64)" in capsys.readouterr().err


def recording(folder, numbers):
    folder.mkdir(parents=True)
    for number in numbers:
        Image.new("RGB", (16, 12), (number, number, number)).save(folder / f"image_{number:04d}.png")


def test_kth(tmp_path, capsys):
    recording(tmp_path / "boxing" / "person01_boxing_d1_uncomp", [*range(1, 66), *range(100, 131)])
    recording(tmp_path / "running" / "person17_running_d2_uncomp", range(1, 40))
    recording(tmp_path / "walking" / "person15_walking_d1_uncomp", range(1, 30))  # too short
    assert script("kth").main([str(tmp_path)]) == 0
    (tmp_path / "kth.csv").write_text(capsys.readouterr().out)
    rows = list(csv.DictReader((tmp_path / "kth.csv").open()))
    found = {"train": [6, 36, 101], "test": [1, 4, 7, 10]}  # numbers of the first frames
    preprocessing = Preprocessing(size=(12, 16))
    for split, first in found.items():
        videos = build_index(tmp_path / "kth.csv", split, labelled=False).videos
        assert len(videos) == len(first) == sum(row["split"] == split for row in rows)
        seen = []
        for video in videos:
            clip = read_clip(video.path, preprocessing, 99, span=(video.start, video.end))
            assert [int(frame.float().mean().round()) for frame in clip] == list(
                range(int(clip[0, 0, 0, 0]), int(clip[0, 0, 0, 0]) + 30)
            )
            seen.append(int(clip[0, 0, 0, 0]))
        assert sorted(seen) == first
    recording(tmp_path / "walking" / "person_walking", [1])
    assert script("kth").main([str(tmp_path)]) == 0
    assert "person_walking is left out" in capsys.readouterr().err
    assert script("kth").main([str(tmp_path / "nowhere")]) == 2
    assert "has no window of 30 frames" in capsys.readouterr().err


def save_archive(file, video):
    np.savez(file, video=video)
    return file.read_bytes()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda file, video: b"", "it is no .npz archive"),
        (
            lambda file, video: (np.save(file.with_suffix(".npy"), video), file.with_suffix(".npy").read_bytes())[1],
            "no .npz",
        ),
        (lambda file, video: save_archive(file, video[:, :, :15]), "of 16 x 15 are no H.264 video"),
        (lambda file, video: save_archive(file, video[:0]), "0 frames of 16 x 16"),
        (lambda file, video: save_archive(file, video)[:-100], "zip"),
    ],
    ids=["empty", "array", "odd", "no frames", "cut off"],
)
def test_teco_leaves_damaged_files_out(tmp_path, capsys, damage, said):
    video = np.zeros((4, 16, 16, 3), np.uint8)
    (tmp_path / "npz").mkdir()
    (tmp_path / "npz" / "bad.npz").write_bytes(damage(tmp_path / "scratch.npz", video))
    words = [str(tmp_path / "npz"), "--out", str(tmp_path / "mp4")]
    assert script("teco").main(words) == 2  # nothing is left
    shown = capsys.readouterr().err
    assert "bad.npz is left out: " in shown
    assert said in shown
    save_archive(tmp_path / "npz" / "good.npz", video)
    assert script("teco").main(words) == 0
    assert "1 videos written, 0 were there, 1 left out" in capsys.readouterr().out
    assert [file.name for file in (tmp_path / "mp4").iterdir()] == ["good.mp4"]
    for wrong in (["--quantiser", "99"], ["--out", str(tmp_path / "mp4" / "good.mp4")]):
        with pytest.raises(SystemExit):
            script("teco").main([*words, *wrong])


def test_teco(tmp_path, capsys):
    video = np.random.default_rng(0).integers(100, 150, (5, 16, 16, 3), np.uint8)
    for name in ("train/0/a.npz", "test/1/b.npz"):
        (tmp_path / "npz" / name).parent.mkdir(parents=True)
        np.savez(tmp_path / "npz" / name, video=video, actions=np.zeros(5))
    np.savez(tmp_path / "npz" / "train" / "0" / "wrong.npz", video=video[..., 0])
    (tmp_path / "npz" / "train" / "0" / "damaged.npz").write_bytes(b"no archive")
    words = [str(tmp_path / "npz"), "--out", str(tmp_path / "mp4")]
    assert script("teco").main(words) == 0
    said = capsys.readouterr()
    assert "2 videos written, 0 were there, 2 left out" in said.out
    assert said.err.count("is left out") == 2
    assert script("teco").main(words) == 0
    assert "0 videos written, 2 were there, 2 left out" in capsys.readouterr().out
    (read,) = build_index(tmp_path / "mp4", "test", labelled=False).videos
    with open_video(read.path) as reader:
        assert len(reader.read()) == 5
    assert script("teco").main([str(tmp_path / "mp4"), "--out", str(tmp_path / "x")]) == 2
    assert "holds no .npz files" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["moving-mnist", "kth", "teco"])
def test_readmes_name_commands_and_configurations_that_exist(name):
    text = (DATA / name / "README.md").read_text()
    for line in text.splitlines():
        if line.startswith("    python train.py"):
            config = line.split("--config ")[1].split()[0]
            assert (DATA.parent / config).is_file()
        if line.startswith("    python data/"):
            assert (DATA.parent / line.split()[1]).is_file()
