import contextlib
import csv
import pickle
import socket
import warnings
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from tests.video.clips import cut, remux, write, write_picture
from tttvideo.video import decode, probe, pyav_reader, reader
from tttvideo.video.decode import PartialVideoWarning, VideoError, open_video

ROOT = Path(__file__).resolve().parents[2]
VIDEOS = ROOT / ".." / "shared" / "videos"
ODD = VIDEOS / "odd"
ODD_FILES = list(csv.DictReader((ODD / "odd.csv").open())) if (ODD / "odd.csv").exists() else []


def odd_files():
    """Large files without damage are `slow`."""
    for row in ODD_FILES:
        large = row["verdict"] == "ok" and (ODD / row["path"]).stat().st_size > 60_000
        yield pytest.param(row, marks=pytest.mark.slow if large else ())


@pytest.fixture(autouse=True)
def nothing_remembered():
    reader._already_warned.clear()
    probe.forget()


def pictures(frames, height=48, width=64, seed=0):
    """Smooth moving pictures uint8 [F,H,W,3], every one different."""
    f, y, x = np.ogrid[:frames, :height, :width]
    phase = np.random.default_rng(seed).uniform(0, 6, 3)
    channels = [128 + 100 * np.sin(0.1 * x + 0.07 * k * y + 0.35 * f + phase[k]) for k in range(3)]
    return np.stack(np.broadcast_arrays(*channels), -1).astype(np.uint8)


def by_pyav(path):
    """Plain sequential decoding up to the first error: the definition of what a file holds."""
    frames = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "SLICE"
        with contextlib.suppress(av.error.FFmpegError):
            frames.extend(
                np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                for frame in container.decode(stream)
            )
    return frames


def read_all(path, size=None, batch=64):
    """Frames, info, times and warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with open_video(path, size) as video:
            frames = torch.cat(list(video.stream(batch=batch)))
            damage = [w for w in caught if issubclass(w.category, PartialVideoWarning)]
            return frames, video.info, video.times, [str(w.message) for w in damage]


@pytest.mark.skipif(not ODD_FILES, reason="shared/videos/odd is not here")
@pytest.mark.parametrize("row", odd_files(), ids=lambda row: row["path"])
def test_odd_files_decode_as_their_table_says(row):
    path = str(ODD / row["path"])
    if row["verdict"] == "refused":
        with pytest.raises(VideoError, match=r"empty|git-lfs|text file|audio only|moov|not a video") as caught:
            open_video(path)
        assert str(caught.value).startswith(path)
        assert "\n" not in str(caught.value)
        return
    frames, info, times, warned = read_all(path)
    expected = by_pyav(path)
    assert len(frames) == int(row["frames"]) == len(expected)
    assert len(times) == info.frames >= len(frames)
    assert times[0] == 0
    assert (times.diff() > 0).all()
    # More than 8 bits: the colour planes are brought to full size with another filter than to_ndarray's.
    tolerance = 3 if "10bit" in path else 0
    for picture, truth in zip(frames, expected):
        if truth.shape[:2] == tuple(picture.shape[1:]):  # one file changes its resolution
            difference = picture.permute(1, 2, 0).numpy().astype(int) - truth
            assert np.abs(difference).mean() <= tolerance
    if row["verdict"] == "partial":
        assert len(warned) == 1
        assert f" {row['frames']} of " in warned[0]
        assert read_all(path)[3] == []  # once per file
    else:
        assert warned == []


@pytest.mark.skipif(not ODD_FILES, reason="shared/videos/odd is not here")
def test_partial_files_tell_both_counts():
    announced = {"14_corrupted_midstream_720p.mp4": 50, "25_truncated_60pct_moov_first.mp4": 250}
    announced |= {"27_bitflips_midstream.mp4": 250, "35_truncated_50pct.avi": 110}
    for name, count in announced.items():
        with pytest.warns(PartialVideoWarning, match=f"of {count} frames"):
            open_video(ODD / name).read()


@pytest.mark.skipif(not ODD_FILES, reason="shared/videos/odd is not here")
def test_frames_behind_the_damage_are_refused_and_those_before_it_given():
    with open_video(ODD / "27_bitflips_midstream.mp4") as video:
        with pytest.warns(PartialVideoWarning):
            before = video.read([100, 105, 110, 120])
        assert len(before) == 2
        with pytest.raises(VideoError, match="none of the 2 frames"):
            video.read([200, 249])


@pytest.mark.skipif(not ODD_FILES, reason="shared/videos is not here")
@pytest.mark.parametrize(
    "pattern",
    [
        "fightpair2/val/*/*.mp4",
        *(pytest.param(p, marks=pytest.mark.slow) for p in ("ut6/train/*/*.avi", "order3/train/*/*.mp4")),
    ],
)
def test_real_clips_are_exact(pattern):
    for path in sorted(VIDEOS.glob(pattern))[::15][:3]:
        frames, info, _, warned = read_all(path)
        assert warned == []
        assert info.frames == len(frames)
        assert np.array_equal(frames.permute(0, 2, 3, 1).numpy(), np.stack(by_pyav(path)))


CONTAINERS = [
    ("a.mp4", "libx264", {}),
    ("b.mp4", "libx264", {"bf": "3", "x264-params": "open-gop=1"}),
    ("c.avi", "mpeg4", {"bf": "2"}),
    ("d.ts", "mpeg2video", {"bf": "2"}),
    ("e.ts", "libx264", {}),
    ("f.mkv", "libx264", {}),
    ("g.webm", "libvpx", {"auto-alt-ref": "1", "lag-in-frames": "16"}),
    ("h.webm", "libvpx-vp9", {"auto-alt-ref": "1", "lag-in-frames": "16"}),
    ("i.mp4", "libx265", {"x265-params": "log-level=none"}),
    ("j.avi", "mjpeg", {}),
    ("k.mp4", "libx264", {"intra-refresh": "1"}),
]


@pytest.mark.parametrize(("name", "codec", "options"), CONTAINERS, ids=[f"{c[0]}-{c[1]}" for c in CONTAINERS])
def test_every_selection_equals_sequential_decoding(tmp_path, monkeypatch, name, codec, options):
    path = write(tmp_path / name, pictures(70), codec, options=options)
    truth = torch.from_numpy(np.stack(by_pyav(path))).permute(0, 3, 1, 2)
    assert len(truth) == 70
    frames, info, times, warned = read_all(path, batch=16)
    assert info.frames == 70
    assert warned == []
    assert torch.equal(frames, truth)
    assert times.tolist() == pytest.approx([i / 25 for i in range(70)], abs=2e-3)
    monkeypatch.setattr(pyav_reader, "SHORTEST_JUMP", 1)  # seek wherever the packets allow it
    with open_video(path) as video:
        for wanted in ([69], [0], [3, 40, 41, 66], range(30, 50), range(0, 70, 2), range(13), [68, 69]):
            assert torch.equal(video.read(list(wanted)), truth[list(wanted)]), wanted
        assert torch.equal(torch.cat(list(video.stream(batch=1))), truth)


def test_decord_is_used_for_plain_files_and_pyav_gives_the_same_pixels(tmp_path, monkeypatch):
    pytest.importorskip("decord")
    path = write(tmp_path / "plain.mp4", pictures(50, 120, 90))
    for size in (None, (40, 31)):
        decorded, info, _, _ = read_all(path, size)
        assert info.reader == "decord"
        assert info[2:5] == (120, 90, 50)
        with monkeypatch.context() as patch:
            patch.setattr(decode, "_decord_is_exact", lambda found: False)
            pyaved, info, _, _ = read_all(path, size)
        assert info.reader == "pyav"
        assert decorded.shape == (50, 3, *(size or (120, 90)))
        assert torch.equal(decorded, pyaved)


class Failing:
    """A decord that gives up after the first batch."""

    def __init__(self, reader, error):
        self.reader, self.error, self.calls = reader, error, 0

    def get_batch(self, indices):
        self.calls += 1
        if self.calls > 1:
            raise self.error
        return self.reader.get_batch(indices)

    def seek(self, number):
        self.reader.seek(number)


def test_pyav_takes_over_where_decord_fails_midway_or_at_opening(tmp_path, monkeypatch):
    decord = pytest.importorskip("decord")
    path = write(tmp_path / "plain.mp4", pictures(40))
    truth = open_video(path).read()
    for error in (RuntimeError("broken"), decord.DECORDError("broken")):
        video = open_video(path)
        monkeypatch.setattr(video, "_decord", Failing(video._open(), error))
        assert torch.equal(torch.cat(list(video.stream(batch=16))), truth)

    def refuse(*args, **kwargs):
        raise decord.DECORDError("cannot open")

    monkeypatch.setattr(decord, "VideoReader", refuse)
    assert torch.equal(open_video(path).read(), truth)


def test_variable_frame_rate_times_come_from_the_stamps(tmp_path):
    times = [0, 0.04, 0.08, 0.5, 0.54, 2.0, 2.1, 2.15]
    path = write(tmp_path / "vfr.mkv", pictures(8), pts=[round(1000 * t) + 3000 for t in times], base=Fraction(1, 1000))
    _, info, found, _ = read_all(path)
    assert found.tolist() == pytest.approx(times, abs=2e-3)
    assert info.fps == pytest.approx(7 / 2.15, rel=0.01)


def test_cut_files_give_what_is_left_and_warn(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (60, 48, 64, 3), dtype=np.uint8)
    for name, options in (("a.mp4", {"movflags": "faststart"}), ("b.mkv", {}), ("c.avi", {})):
        whole = write(tmp_path / name, noise, "mpeg4" if name == "c.avi" else "libx264")
        if name == "a.mp4":
            whole = remux(whole, tmp_path / "fast.mp4", options=options)
        half = cut(whole, 0.6)
        frames, _, _, warned = read_all(half)
        assert len(frames) == len(by_pyav(half)) < 45
        assert len(warned) == 1
        assert f"only the first {len(frames)} of 60 frames" in warned[0]


def test_a_file_that_starts_between_keyframes_is_counted_by_decoding(tmp_path):
    whole = write(tmp_path / "whole.mkv", pictures(60), options={"bf": "2", "sc_threshold": "0"}, gop=20)
    late = remux(whole, tmp_path / "late.mkv", keep=lambda i: i >= 7)
    frames, info, _, warned = read_all(late)
    assert len(frames) == info.frames == len(by_pyav(late))
    assert info.reader == "pyav"
    assert warned == []


def test_folder_of_images_in_natural_order(tmp_path):
    frames = pictures(12)
    for i, picture in enumerate(frames):
        write_picture(tmp_path / f"frame_{i}.png", picture)
    (tmp_path / "notes.txt").write_text("no image")
    with open_video(tmp_path) as video:
        assert video.info[1:] == ("png", 48, 64, 12, 25.0, 12 / 25, "images")
        assert video.times.tolist() == [i / 25 for i in range(12)]
        assert np.array_equal(video.read().permute(0, 2, 3, 1).numpy(), frames)
        assert np.array_equal(video.read([1, 10]).permute(0, 2, 3, 1).numpy(), frames[[1, 10]])
    assert open_video(tmp_path, size=(24, 20)).read([3]).shape == (1, 3, 24, 20)
    (tmp_path / "frame_7.png").write_bytes(b"broken")
    with pytest.warns(PartialVideoWarning, match="first 7 of 12"):
        assert len(open_video(tmp_path).read()) == 7


def test_what_is_no_video_is_refused_with_the_reason(tmp_path):
    (tmp_path / "empty folder").mkdir()
    (tmp_path / "long.txt").write_text("words, only words\n" * 500)
    for name, reason in (
        ("missing.mp4", "No such file"),
        ("empty folder", "no frame images"),
        ("long.txt", "text"),
    ):
        with pytest.raises(VideoError, match=reason):
            open_video(tmp_path / name)
    path = write(tmp_path / "a.mp4", pictures(5))
    with pytest.raises(ValueError, match="at least 1"):
        open_video(path, size=(0, 10))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("concat.mp4", "ffconcat version 1.0\nfile film.mp4\n"),
        ("list.m3u8", "#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:4,\nfilm.ts\n#EXT-X-ENDLIST\n"),
        ("address.m3u8", "#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:4,\nhttp://127.0.0.1:{port}/film.ts\n#EXT-X-ENDLIST\n"),
        ("stream.sdp", "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5000 RTP/AVP 96\n"),
    ],
)
def test_a_file_that_names_other_files_or_addresses_is_no_video(tmp_path, name, text):
    for film in ("film.mp4", "film.ts"):
        write(tmp_path / film, pictures(10))
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        (tmp_path / name).write_text(text.format(port=server.getsockname()[1]))
        with pytest.raises(VideoError, match=r"is a text file, not a video$"):
            open_video(tmp_path / name)
        (tmp_path / "images").mkdir()
        (tmp_path / name).rename(tmp_path / "images" / "1.jpg")
        with pytest.raises(VideoError, match=r"its first image, 1\.jpg, cannot be decoded"):
            open_video(tmp_path / "images")
        with pytest.raises(TimeoutError):
            server.accept()


def test_a_late_frame_of_a_long_video_is_reached_by_seeking(tmp_path, monkeypatch):
    path = write(tmp_path / "long.mp4", pictures(1300, 16, 16), gop=100)
    with open_video(path) as video:
        expected = video.read()[[1250, 1299]]
        frames = []
        real = pyav_reader.decoded

        def counted(*arguments):
            for frame in real(*arguments):
                frames.append(frame.pts)
                yield frame

        monkeypatch.setattr(pyav_reader, "decoded", counted)
        assert torch.equal(video.read([1250, 1299]), expected)
        assert len(frames) <= 100
        # A seek that lands elsewhere is noticed by the stamps, and the sequence decides.
        monkeypatch.setattr(video._pyav, "probe", replace(video._pyav.probe, entries=np.array([0, 1207], np.int32)))
        assert torch.equal(video.read([1250, 1299]), expected)


def test_wrong_indices_and_pickling_are_refused(tmp_path):
    with open_video(write(tmp_path / "a.mp4", pictures(5))) as video:
        for wrong in ([3, 2], [1, 1], [-1, 2], [4, 5]):
            with pytest.raises(ValueError, match="indices"):
                video.read(wrong)
        assert video.read([]).shape == (0, 3, 48, 64)
        assert video.read(torch.tensor([1, 4])).shape == (2, 3, 48, 64)
        with pytest.raises(TypeError, match="send the path"):
            pickle.dumps(video)


def test_a_name_that_looks_like_a_protocol_is_a_file(tmp_path, monkeypatch):
    write(tmp_path / "a.mp4", pictures(5)).rename(tmp_path / "concat:b.mp4")
    monkeypatch.chdir(tmp_path)
    assert len(open_video("concat:b.mp4").read()) == 5
