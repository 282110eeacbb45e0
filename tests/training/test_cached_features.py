"""What a frozen encoder makes of videos is computed once, kept, and read in place of frames."""

import json
import os
import re
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from tests.training.conftest import write_video
from tttvideo.cli import main as command
from tttvideo.encoder import filling
from tttvideo.pretrained import from_pretrained
from tttvideo.training.arguments import parse
from tttvideo.training.run import main
from tttvideo.video.features import CachedFeatures
from tttvideo.video.rows import Rows
from tttvideo.video.transforms import Preprocessing
from tttvideo.video.workers import DataNote

NET = "test_resnet"


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("weights") / "net.safetensors"
    torch.manual_seed(3)
    save_file(timm.create_model(NET).state_dict(), file)
    return file


@pytest.fixture
def words(arguments, weights, tmp_path):
    """Arguments of a short run with a cache, and without what changes frames."""

    def build(*extra: str, out: str = "run", **settings):
        values = {
            "model.encoder": json.dumps({"class_path": "Timm", "init_args": {"name": NET, "grid": [1, 1]}}),
            "model.encoder.pretrained": weights,
            "model.encoder.cache": tmp_path / "cache",
            "data.size": "[32,32]",
            "mix.cutmix": 0.0,
            "data.augment.flip": 0.0,
            "data.augment.brightness": 0.0,
            **settings,
        }
        found = arguments(out=out)
        del found[found.index("--model.encoder.patch") : found.index("--model.encoder.patch") + 2]
        return [*found, *(word for key, value in values.items() for word in (f"--{key}", str(value))), *extra]

    return build


@pytest.fixture
def films(videos, tmp_path) -> Path:
    """Six of the videos, 26 frames."""
    names = [f"{split}/{i}.mp4" for split in ("train/bright", "train/dark") for i in (0, 1)]
    for name in (*names, "val/bright/0.mp4", "val/dark/0.mp4"):
        (tmp_path / "films" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(videos / name, tmp_path / "films" / name)
    return tmp_path / "films"


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "steps.jsonl").read_text().splitlines()]


def metrics(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k.startswith(("train", "val"))} for row in rows]


def files(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.safetensors"))


def test_a_run_encodes_each_video_once_and_learns_the_same(words, films, tmp_path, capfd, monkeypatch):
    data = {"data.root": films, "mix.mixup": 0}
    assert main(words("--model.encoder.cache", "null", out="plain", **data)) == 0
    capfd.readouterr()
    assert main(words(out="cold", **data)) == 0
    said = capfd.readouterr().err
    assert "cache  6 videos, 26 frames to encode into" in said
    assert "MB" in said
    assert "frames/s" in said
    assert len(files(tmp_path / "cache")) == 6

    def refuse(*_):
        raise AssertionError("a video was opened")

    with monkeypatch.context() as patch:
        patch.setattr("tttvideo.training.run.usual_length", lambda *_: None)  # of the checkpoint's card
        patch.setattr("tttvideo.training.run.usual_rate", lambda *_: None)
        patch.setattr(Preprocessing, "open", refuse)
        assert main(words(out="warm", **data)) == 0
    assert losses(tmp_path / "cold") == losses(tmp_path / "warm")
    assert metrics(tmp_path / "cold") == metrics(tmp_path / "warm")
    assert losses(tmp_path / "cold") == pytest.approx(losses(tmp_path / "plain"), rel=2e-3)


def reading_of(words: list[str]) -> CachedFeatures:
    """How a run with these settings reads videos."""
    config, _ = parse(words)
    encoder = config.model.encoder.build(config.data.size, config.model.backbone.width)
    reading = encoder.reading(config.data.preprocessing)
    assert isinstance(reading, CachedFeatures)
    return reading


def test_what_does_not_match_is_computed_anew_and_said(words, films, weights, tmp_path, capfd):
    data = {"data.root": films}
    assert command(["cache", *words(**data)]) == 0
    captured = capfd.readouterr()
    assert "6 of 6 videos" in captured.out
    assert "cache  6 videos" in captured.err
    assert command(["cache", *words(**data)]) == 0
    assert capfd.readouterr().err == ""  # nothing to do, and nothing to say

    changed = films / "train" / "bright" / "0.mp4"
    write_video(changed, 90, frames=5)
    damaged = reading_of(words(**data)).file(str(films / "train" / "dark" / "1.mp4"))
    damaged.write_bytes(damaged.read_bytes()[:-3])
    assert command(["cache", *words(**data)]) == 0
    said = capfd.readouterr().err
    assert "2 files of the cache are damaged, or of videos that have changed" in said
    assert "cache  2 videos, 10 frames" in said
    assert "(4 are there)" in said

    other = tmp_path / "other.safetensors"
    torch.manual_seed(4)
    save_file(timm.create_model(NET).state_dict(), other)
    for settings, what in (
        ({"model.encoder.pretrained": other}, "encoder.weights"),
        ({"data.size": "[64,32]"}, "size [32, 32], now [64, 32]"),
        ({"data.fit": "pad"}, "fit crop, now pad"),
        ({"model.encoder.cache_dtype": "bf16"}, "kept fp16, now bf16"),
    ):
        assert command(["cache", *words(**data, **settings)]) == 0
        said = capfd.readouterr().err
        assert "cache  6 videos" in said
        assert f"holds features of other settings ({what}" in said
    assert command(["cache", *words(**data)]) == 0
    assert capfd.readouterr().err == ""  # the first are still there


@pytest.mark.slow
def test_a_sparse_rule_keeps_what_it_reads_and_parts_add_up(words, tmp_path, videos, capfd):
    film = tmp_path / "long.mp4"
    write_video(film, 60, frames=40)  # 10 a second
    rows = [
        f"{film},{label},{start},{start + 1},{split}"
        for label, start, split in (("a", 0, "train"), ("b", 1, "train"), ("a", 3, "val"), ("b", 2, "val"))
    ]
    (tmp_path / "list.csv").write_text("path,label,start,end,split\n" + "\n".join(rows) + "\n")
    data = {"data.list": tmp_path / "list.csv", "data.root": "null", "data.sampling": "fps=5"}
    assert command(["cache", *words(**data)]) == 0
    reading = reading_of(words(**data))
    kept = reading.kept(str(film))
    assert len(kept) == 20
    assert len(kept.times) == 40
    assert reading.holds(str(film), [(1.0, 2.0, None)])
    assert not reading.holds(str(film), [(0.5, 1.5, None)])
    with reading.pixels.open(str(film)) as video, reading.open(str(film)) as features:
        assert torch.equal(video.times, features.times)
        assert features.offset == video.offset
    data["data.sampling"] = "dense"
    assert command(["cache", *words(**data)]) == 0
    assert len(reading.kept(str(film))) == 40


def test_features_are_those_of_the_encoder(words, videos):
    argv = words()
    assert command(["cache", *argv]) == 0
    config, _ = parse(argv)
    encoder = config.model.encoder.build((32, 32), 16).eval()
    reading, path = encoder.reading(config.data.preprocessing), str(videos / "train" / "dark" / "2.mp4")
    with reading.pixels.open(path) as video, reading.open(path) as kept:
        frames = reading.pixels.apply(video.read())
        found = kept.read([1, 3])
    expected = encoder.features(frames[None], None)[0, [1, 3]]
    assert found.dtype == torch.float16
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 2e-3 * expected.abs().max()


@pytest.mark.slow
def test_views_are_drawn_and_fixed(words, videos, tmp_path):
    argv = words(**{"model.encoder.cache_views": 3, "data.augment.flip": 0.5, "data.augment.scale": "[0.3,1.0]"})
    assert main(argv) == 0
    assert len(files(tmp_path / "cache")) == 3 * 14 + 5  # validation reads them as they are
    config, _ = parse(argv)
    reading = reading_of(argv)
    path = str(videos / "train" / "dark" / "2.mp4")

    def view(number):
        return replace(reading, augment=config.data.augment, view=number).open(path).read()

    assert not torch.equal(view(0), view(1))
    assert not torch.equal(view(1), view(2))
    drawn = {reading_views(replace(reading, augment=config.data.augment), seed) for seed in range(30)}
    assert drawn == {0, 1, 2}


def reading_views(reading: CachedFeatures, seed: int) -> int:
    return reading.drawn(torch.Generator().manual_seed(seed)).view


def test_a_view_is_changed_alike_however_it_is_divided(words, videos):
    argv = words(
        **{
            "model.encoder.cache_views": 2,
            "data.augment.scale": "[0.3,0.6]",
            "data.augment.hue": 0.3,
            "data.augment.erase": 1.0,
            "data.augment.auto": "rand",
            "data.augment.rotate": 20,
        }
    )
    config, _ = parse(argv)
    reading = replace(reading_of(argv), augment=config.data.augment, view=1)
    frames = torch.randint(0, 256, (6, 3, 40, 48), dtype=torch.uint8)
    parts = torch.cat([reading.changed(part, "film.mp4") for part in frames.split(4)])
    assert torch.equal(parts, reading.changed(frames, "film.mp4"))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"model.encoder.frozen": "false"}, "set encoder.frozen: true and encoder.trainable: 0, or"),
        ({"data.augment.flip": 0.5}, "set model.encoder.cache_views to a number above 1"),
        ({"data.augment.hue": 0.1}, "data.augment.hue changes frames"),
        ({"model.encoder.cache_views": 2}, "data.augment changes nothing between them"),
        ({"model.encoder.cache_views": 0}, "must be at least 1"),
        ({"data.cache": "memory"}, "data.cache: memory keeps frames"),
        ({"mix.cutmix": 1.0}, "mix.cutmix cuts boxes out of frames"),
        ({"model.task": "Prediction", "mix.mixup": 0}, "set task.space: features, or encoder.cache: null"),
    ],
)
def test_what_a_cache_cannot_hold_is_refused(words, settings, sentence, capfd):
    assert main(words(**settings)) == 2
    assert sentence in capfd.readouterr().err


@pytest.mark.slow
def test_speed_stays_free(words):
    assert main(words(**{"data.augment.speed": "[0.5,2.0]", "data.augment.drop": 0.1, "schedule.epochs": 1})) == 0


def forked(work) -> int:
    """The exit code of a process like this one that does some work."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        os._exit(work())
    finally:
        os._exit(99)


@pytest.mark.slow
def test_a_killed_filler_costs_the_file_in_hand(words, tmp_path, monkeypatch, capfd):
    encode, count = filling._encoded, iter(range(100))

    def dying(*given):
        if next(count) == 6:  # the first is of the trial
            os.kill(os.getpid(), signal.SIGKILL)
        return encode(*given)

    monkeypatch.setattr(filling, "_encoded", dying)
    assert forked(lambda: command(["cache", *words()])) == -signal.SIGKILL
    assert len(files(tmp_path / "cache")) == 5
    assert list((tmp_path / "cache").rglob("*.part"))
    monkeypatch.setattr(filling, "_encoded", encode)
    assert command(["cache", *words()]) == 0
    assert "(5 are there)" in capfd.readouterr().err
    assert len(files(tmp_path / "cache")) == 19
    reading = reading_of(words())
    for file in files(tmp_path / "cache"):
        rows = Rows(file)
        assert len(rows.take(torch.arange(len(rows)))) == len(rows.times)
    assert reading.key.is_dir()


@pytest.mark.slow
def test_two_fillers_share_the_work(words, tmp_path, monkeypatch):
    write = filling._write

    def logged(writer, encoder, reading, job):
        with (tmp_path / "log").open("a") as log:
            log.write(f"{os.getpid()} {job.path}\n")
        time.sleep(0.05)
        return write(writer, encoder, reading, job)

    monkeypatch.setattr(filling, "_write", logged)
    pids = []
    for _ in range(2):
        pid = os.fork()
        if not pid:
            try:
                os._exit(command(["cache", *words()]))
            finally:
                os._exit(99)
        pids.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0, 0]
    done = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert len(done) == len({path for _, path in done}) == 19
    assert len({pid for pid, _ in done}) == 2


@pytest.mark.slow
def test_bad_videos_are_listed_every_time_and_damaged_ones_warn(words, videos, tmp_path, capfd):
    root = tmp_path / "films"
    shutil.copytree(videos, root)
    (root / "train" / "dark" / "0.mp4").write_bytes(b"no video at all" * 100)
    for _ in range(2):
        assert command(["cache", *words(**{"data.root": root})]) == 1
        out = capfd.readouterr().out
        assert "18 of 19 videos" in out
        assert f"  {root / 'train' / 'dark' / '0.mp4'}: " in out
    assert main(words(**{"data.root": root})) == 0
    assert "0.mp4" in (tmp_path / "run" / "skipped.csv").read_text()


@pytest.mark.slow
def test_damage_found_in_training_is_said_and_mended_by_the_next_start(words, videos, tmp_path, capfd):
    assert command(["cache", *words()]) == 0
    file = reading_of(words()).file(str(videos / "train" / "dark" / "0.mp4"))
    whole = bytearray(file.read_bytes())
    whole[2**14 + 11] ^= 4  # in the first row
    file.write_bytes(whole)
    assert main(words()) == 0
    assert "its features in the cache are damaged" in (tmp_path / "run" / "skipped.csv").read_text()
    capfd.readouterr()
    assert main(words(out="again")) == 0
    assert "cache  1 videos" in capfd.readouterr().err
    assert not (tmp_path / "again" / "skipped.csv").exists()


def test_a_cache_that_cannot_be_written_is_a_sentence(words, tmp_path, capfd):
    (tmp_path / "file").write_text("")
    assert command(["cache", *words(**{"model.encoder.cache": tmp_path / "file"})]) == 2
    assert "cannot be written" in capfd.readouterr().err
    assert command(["cache", *words(**{"model.encoder.cache": "null"})]) == 2
    assert "set model.encoder.cache to a folder" in capfd.readouterr().err


@pytest.mark.slow
def test_evaluation_and_classification_use_it_where_it_matches(words, videos, tmp_path, monkeypatch, capfd):
    assert main(words()) == 0
    run, opened = tmp_path / "run", []
    path = str(videos / "val" / "dark" / "1.mp4")
    open_ = Preprocessing.open

    def counted(self, path, margin=1.0):
        opened.append(path)
        return open_(self, path, margin)

    def answers():
        opened.clear()
        found = from_pretrained(run).classify(path)
        return [(label, round(p, 3)) for label, p in found], len(opened)

    monkeypatch.setattr(Preprocessing, "open", counted)
    cached, times = answers()
    assert times == 0
    assert command(["evaluate", str(run), "--data", str(videos), "--frames", "2,all", "--workers", "0"]) == 0
    read = json.loads((run / "metrics.json").read_text())
    opened.clear()
    for file in files(tmp_path / "cache"):
        whole = bytearray(file.read_bytes())
        whole[2**14 + 1] ^= 4  # in the first row
        file.write_bytes(whole)
    with pytest.warns(DataNote, match="damaged features of 1 of these videos"):
        uncached, times = answers()
    assert times == 1
    assert uncached == cached
    capfd.readouterr()
    assert command(["evaluate", str(run), "--data", str(videos), "--frames", "2,all", "--workers", "0"]) == 0
    assert re.search(r"note: .* damaged features of [45] of these videos", capfd.readouterr().err)
    anew = json.loads((run / "metrics.json").read_text())
    assert [row["n_failed"] for row in anew["results"]] == [0] * len(read["results"])
    assert [row["top1"] for row in read["results"]] == [row["top1"] for row in anew["results"]]
