"""The index on disk: one scan in the life of a file, whoever reads it, whatever happens to the index."""

import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import safetensors.numpy as safetensors
import torch

from tests.video.clips import cut, numbered, read, write
from tttvideo.cli import main
from tttvideo.video import catalog, probe, scan
from tttvideo.video.decode import VideoError, open_video
from tttvideo.video.library import build
from tttvideo.video.loader import train_loader
from tttvideo.video.reading import open_sized, usual_length, usual_rate
from tttvideo.video.transforms import Preprocessing

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def own_index(tmp_path, monkeypatch):
    monkeypatch.setenv("TTTVIDEO_INDEX", str(tmp_path / "index"))
    probe.forget()


class Opened:
    """Counts what is opened."""

    def __init__(self, monkeypatch):
        self.files = []
        self.scans = 0
        real_open, real_scan = av.open, scan.scan

        def opening(file, *args, **settings):
            self.files.append(str(file))
            return real_open(file, *args, **settings)

        def scanning(*args, **settings):
            self.scans += 1
            return real_scan(*args, **settings)

        monkeypatch.setattr(av, "open", opening)
        monkeypatch.setattr(scan, "scan", scanning)


def entries(folder):
    return sorted(Path(folder).rglob("*.safetensors"))


def same(a, b):
    fields = ("codec", "height", "width", "rate", "announced", "damaged", "regular", "decoded", "corrupt", "streams")
    arrays = ("stamps", "entries", "checks", "keys")
    return all(getattr(a, name) == getattr(b, name) for name in fields) and all(
        np.array_equal(getattr(a, name), getattr(b, name)) and getattr(a, name).dtype == getattr(b, name).dtype
        for name in arrays
    )


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("b.ts", "mpeg2video"), ("c.avi", "mpeg4")])
def test_a_file_is_scanned_once_and_opened_once_for_each_reading(tmp_path, monkeypatch, name, codec):
    path = str(write(tmp_path / name, numbered(40), codec))
    opened = Opened(monkeypatch)
    with open_sized(path, Preprocessing((32, 32))) as video:
        whole = video.read()
    assert opened.scans == 1
    assert len(opened.files) <= 2  # the scan, the reading
    if name == "a.mp4":  # decord is compared with PyAV's first picture once
        read(path)
    for _ in range(3):
        probe.forget()  # as another process
        opened.files.clear()
        with open_sized(path, Preprocessing((32, 32))) as video:
            assert torch.equal(video.read(), whole)
            reader = video.info.reader
        assert len(opened.files) == (0 if reader == "decord" else 1)
    assert opened.scans == 1
    assert len(entries(tmp_path / "index")) == 1


def test_what_is_kept_is_what_was_scanned(tmp_path):
    for name, codec in (("a.mp4", "libx264"), ("b.avi", "mpeg4"), ("c.mkv", "libx264"), ("d.ts", "mpeg2video")):
        path = str(write(tmp_path / name, numbered(40), codec))
        known = probe.probe(path)
        assert same(catalog.load(known.file, None), known)
        assert torch.equal(catalog.load(known.file, None).times, known.times)
    large = np.array([3, 3 + 2**40, catalog.MISSING, 5], np.int64)
    for stamps in (large, np.arange(9) ** 3, np.arange(5) * 512 - 1024, np.array([7]), np.cumsum([0, 70000, 3])):
        stamps = np.asarray(stamps, np.int64)
        assert np.array_equal(catalog._restored(*catalog._compact(stamps)), stamps)


def test_entries_are_small(tmp_path):
    """Two hours of even stamps with a keyframe every ten seconds."""
    path = str(write(tmp_path / "a.mp4", numbered(5)))
    known = probe.probe(path)
    long = replace(known, stamps=np.arange(216_000, dtype=np.int64) * 512, entries=np.arange(0, 216_000, 300, np.int32))
    catalog.store(long)
    (entry,) = entries(tmp_path / "index")
    assert entry.stat().st_size < 6000


def test_damaged_entries_are_made_again(tmp_path, monkeypatch):
    path = str(write(tmp_path / "a.mp4", numbered(30)))
    truth = probe.probe(path)
    (entry,) = entries(tmp_path / "index")
    whole = entry.read_bytes()
    opened = Opened(monkeypatch)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for number, damage in enumerate((whole[:50], b"", b"\0" * len(whole), bytes(flipped), whole + b"x")):
        entry.write_bytes(damage)
        probe.forget()
        assert same(probe.probe(path), truth)
        assert opened.scans == number + 1
        assert entry.read_bytes() == whole


def test_a_changed_file_is_another_file(tmp_path):
    path = write(tmp_path / "a.mp4", numbered(30))
    assert open_video(path).info.frames == 30
    write(path, numbered(20))
    assert open_video(path).info.frames == 20
    data = path.read_bytes()
    path.write_bytes(data)
    os.utime(path, ns=(1, 10**18))
    assert open_video(path).info.frames == 20
    assert len(entries(path.parent / "index")) == 3


@pytest.mark.parametrize("index", ["off", "cannot be written"])
def test_without_an_index_all_works(tmp_path, monkeypatch, index):
    paths = [write(tmp_path / name, numbered(10)) for name in ("a.mp4", "b.mp4")]
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TTTVIDEO_INDEX", "off" if index == "off" else str(tmp_path / "file"))
    notes = []
    for path in paths:
        frames, _, said = read(path)
        assert len(frames) == 10
        notes += said
    assert entries(tmp_path) == []
    if index == "off":
        assert notes == []
    else:  # once, not for every video
        (note,) = notes
        assert note.startswith(f"{tmp_path / 'file'}: the index of videos cannot be kept here (Not a directory)")


def test_an_index_beside_the_data_that_cannot_be_written_is_told_once(tmp_path):
    (tmp_path / catalog.BESIDE).write_text("no folder")
    path = write(tmp_path / "a.mp4", numbered(10))
    assert read(path)[2] == []  # a file of that name is no index
    (tmp_path / catalog.BESIDE).unlink()
    (tmp_path / catalog.BESIDE).mkdir()
    entry = catalog.place_of(probe.identity(str(path)), None)
    entry.parent.write_text("in the way")
    probe.forget()
    assert [note.split(" (")[0] for note in read(path)[2]] == [
        f"{tmp_path / catalog.BESIDE}: the index of videos cannot be kept here"
    ]
    probe.forget()
    assert read(path)[2] == []


@pytest.mark.parametrize("more", [[], pytest.param(["--json"], marks=pytest.mark.slow)])
def test_a_pipe_that_is_closed_early_makes_no_noise(tmp_path, more):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "a.mp4", numbered(10))
    command = [sys.executable, "-m", "tttvideo", "check", str(tmp_path / "data"), "--jobs", "1", *more]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        process.stdout.close()  # as `| head` does
        assert process.stderr.read() == b""
        assert process.wait(120) == 128 + signal.SIGPIPE


def _read_many(paths):
    for path in paths:
        probe.forget()
        open_video(path).read()


def test_processes_that_write_at_once_leave_whole_entries(tmp_path):
    paths = [str(write(tmp_path / f"{i}.avi", numbered(8), "mpeg4")) for i in range(6)]
    context = multiprocessing.get_context("fork")
    readers = [context.Process(target=_read_many, args=(paths,)) for _ in range(3)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(60)
        assert reader.exitcode == 0
    assert len(entries(tmp_path / "index")) == 6
    assert not list((tmp_path / "index").rglob(".unfinished-*"))
    for path in paths:
        assert catalog.load(probe.identity(path), None).frames == 8


def test_beside_the_data_the_index_travels_with_them(tmp_path, monkeypatch, capsys):
    data = tmp_path / "data" / "deep"
    data.mkdir(parents=True)
    write(data / "a.avi", numbered(12), "mpeg4")
    assert main(["index", str(tmp_path / "data"), "--beside", "--jobs", "1"]) == 0
    assert len(entries(tmp_path / "data" / catalog.BESIDE)) == 1
    assert entries(tmp_path / "index") == []
    (tmp_path / "data").rename(tmp_path / "moved")
    opened = Opened(monkeypatch)
    assert open_video(tmp_path / "moved" / "deep" / "a.avi").info.frames == 12
    assert opened.files == []


def test_results_do_not_depend_on_what_the_index_knows(tmp_path):
    """A damaged file, before and after it was decoded whole: the same frames are expected, so that a resumed run
    draws the same windows."""
    path = write(tmp_path / "a.mp4", numbered(60))
    data = bytearray(path.read_bytes())
    at = data.index(b"mdat") + len(data) // 3
    data[at : at + 400] = bytes(400)
    path.write_bytes(data)
    before, times = open_video(path).info, open_video(path).times
    first = read(path, range(5))[0]
    read(path)
    probe.forget()
    after = open_video(path)
    assert after.info == before
    assert torch.equal(after.times, times)
    assert torch.equal(read(path, range(5))[0], first)
    build([str(path)], decode=True)
    assert open_video(path).info == before


def test_memory_is_bounded_in_bytes(tmp_path):
    path = str(write(tmp_path / "a.mp4", numbered(5)))
    known = probe.probe(path)
    for i in range(100):
        file = (f"{i}", 1, 1)
        probe._held.put((file, None), replace(known, file=file, stamps=np.zeros(200_000, np.int64)))
    held = sum(one.nbytes for one in probe._held.probes.values())
    assert held <= probe._HELD_BYTES
    assert len(probe._held.probes) <= probe._HELD_COUNT


def test_buckets_and_usual_lengths_start_from_the_index(tmp_path, monkeypatch):
    from tests.video.small import config

    for split in ("train", "val"):
        for label in "ab":
            (tmp_path / "data" / split / label).mkdir(parents=True)
            for i in range(3):
                write(tmp_path / "data" / split / label / f"{i}.mp4", numbered(4 + i, 16, 24), rate=10)
    assert main(["index", str(tmp_path / "data"), "--jobs", "1"]) == 0
    opened = Opened(monkeypatch)
    settings = config(tmp_path / "data", buckets=2)
    index = settings.index("train")
    loader = train_loader(settings, index)
    paths = [video.path for video in index.videos]
    assert sorted(loader.batch_sampler.lengths) == [4, 4, 5, 5, 6, 6]
    assert usual_length(paths, settings.preprocessing) == 5
    assert usual_rate(paths, settings.preprocessing) == 10
    assert opened.files == []


def test_index_and_check_from_the_command_line(tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    write(data / "good.mp4", numbered(30))
    cut(write(data / "half.mkv", numbered(60)))
    (data / "half.mkv").unlink()
    (data / "text.mp4").write_text("no video " * 100)
    (data / "frames").mkdir()
    assert main(["index", str(data), "--jobs", "2", "--decode"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("3 videos, ")
    assert "3 were read now" in said
    assert "cut: 1 of 3 videos" in said
    assert "unreadable: 1 of 3" in said
    assert main(["index", str(data)]) == 0
    assert "1 were read now" in capsys.readouterr().out  # what cannot be read is tried again
    assert main(["check", str(data), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    kinds = {Path(f["path"]).name: [p["kind"] for p in f["problems"]] for f in found["findings"]}
    assert kinds == {"cut_half.mkv": ["cut"], "good.mp4": [], "text.mp4": ["unreadable"]}
    assert {f["decoded"] for f in found["findings"] if f["frames"]} == {True}
    for name in ("cut_half.mkv", "text.mp4"):
        (data / name).unlink()
    assert main(["check", str(data)]) == 0
    assert "nothing is wrong with the 1 videos" in capsys.readouterr().out
    assert main(["check", str(tmp_path / "missing")]) == 2
    np.save(data / "features.npy", np.zeros((5, 6)))
    (data / "good.mp4").unlink()
    assert main(["check", str(data)]) == main(["index", str(data)]) == 2
    assert "names 1 files of features" in capsys.readouterr().err
    assert main(["index", str(data), "--jobs", "0"]) == 2


WORKER = """
import os, sys, time
from tttvideo.video import library, scan
real = library.scan
def scan_(file, *args, **settings):
    if "hangs" in file[0]:
        time.sleep(600)
    if "crashes" in file[0]:
        os.kill(os.getpid(), 11)
    if "memory" in file[0]:
        os.kill(os.getpid(), 9)
    return real(file, *args, **settings)
library.scan = scan_
if __name__ == "__main__":
    from tttvideo.cli import main
    sys.exit(main(sys.argv[1:]))
"""


def test_files_that_hang_or_crash_are_named_and_cost_their_process_only(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for name in ("a.mp4", "hangs.mp4", "crashes.mp4", "memory.mp4", "z.mp4"):
        write(data / name, numbered(10))
    script = tmp_path / "run.py"  # spawned workers run it again, and so get the same substitute
    script.write_text(WORKER)
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    command = [sys.executable, str(script), "index", str(data), "--jobs", "2", "--limit", "15"]
    begun = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=180)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - begun < 150
    assert "5 videos, 20 frames" in done.stdout
    assert "hung: 2 of 5 videos" in done.stdout
    assert "memory.mp4: was not indexed: its process was killed" in done.stdout
    assert "hangs.mp4: was not read through in 15 s" in done.stdout
    assert "crashes.mp4: ended its process" in done.stdout
    with pytest.raises(VideoError, match=r"hangs\.mp4: was not read through in 15 s"):
        open_video(data / "hangs.mp4")
    assert open_video(data / "z.mp4").info.frames == 10
    assert open_video(data / "memory.mp4").info.frames == 10  # not refused for ever: it was not the file's fault


@pytest.mark.parametrize(
    ("numbers", "arrays"),
    [
        ({"width": "x"}, {}),
        ({"height": -4}, {}),
        ({"turns": 7}, {}),
        ({"base": "a"}, {}),
        ({"rate": 0, "base": 0}, {}),
        ({"offset": float("nan")}, {}),
        ({"rule": [0, 512, 0]}, {}),
        ({"rule": [0, 512, 2 * 10**9]}, {}),  # 16 GB of stamps
        ({"decoded": -4}, {}),
        ({"decoded": "a"}, {}),
        ({"announced": "q"}, {}),
        ({}, {"entries": np.zeros((3, 3), np.int32)}),
        ({}, {"entries": np.array([0, 99999], np.int32)}),
        ({}, {"keys": np.array([-1], np.int32)}),
        ({"rule": None}, {"stamps": np.zeros((2, 2), np.int64)}),
    ],
)
def test_an_entry_of_another_hand_is_made_again_where_it_makes_no_sense(tmp_path, numbers, arrays):
    """Its digest is right: an index beside the data comes with them."""
    path = str(write(tmp_path / "a.mp4", numbered(40)))
    with open_video(path) as video:
        frames = video.read()
    place = catalog.place_of(probe.identity(path), None)
    body = place.read_bytes()[32:]
    header = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])["__metadata__"]["probe"]
    lie = safetensors.save({**safetensors.load(body), **arrays}, {"probe": json.dumps(json.loads(header) | numbers)})
    place.write_bytes(hashlib.sha256(lie).digest() + lie)
    probe.forget()
    with open_video(path) as video:
        assert torch.equal(video.read(), frames)


def test_names_that_act_on_a_terminal_or_are_not_utf8(tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    write(data / "red\x1b[31m\u202e.mp4", numbered(10))
    os.link(data / "red\x1b[31m\u202e.mp4", os.fsencode(data) + b"/bad\xff.mp4")
    assert main(["check", str(data), "--jobs", "1", "--json"]) == 1
    said = capsys.readouterr().out
    assert not any(character in said for character in "\x1b\u202e")
    kinds = [[p["kind"] for p in f["problems"]] for f in json.loads(said)["findings"]]
    assert sorted(kinds) == [[], ["unreadable"]]


def test_beside_data_that_are_not_there_makes_nothing(tmp_path):
    assert main(["index", str(tmp_path / "typo"), "--beside"]) == 2
    assert list(tmp_path.iterdir()) == []
