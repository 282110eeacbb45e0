"""Windows late in a file are reached by seeking, and are to the bit what reading from the start gives."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.video.clips import numbered, numbers, read, remux, write
from tttvideo.video import probe, pyav_reader
from tttvideo.video.decode import open_video

X265 = "log-level=none:bframes=3:b-adapt=0"
KINDS = [
    ("a.mp4", "libx264", {"bf": "2"}),
    ("b.ts", "libx264", {"bf": "2"}),
    ("c.flv", "libx264", {"bf": "2"}),
    ("d.mp4", "libx265", {"x265-params": f"{X265}:open-gop=1:keyint=25:min-keyint=25"}),
    ("e.mkv", "libx265", {"x265-params": f"{X265}:open-gop=0:keyint=25:min-keyint=25"}),
    ("f.ts", "libx265", {"x265-params": f"{X265}:open-gop=1:keyint=25:min-keyint=25"}),
    ("g.mp4", "libsvtav1", {"preset": "12"}),
    ("h.webm", "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
    ("i.webm", "libvpx", {"deadline": "realtime", "cpu-used": "8", "auto-alt-ref": "1"}),
    ("j.ts", "mpeg2video", {"bf": "2"}),
    ("k.mpg", "mpeg2video", {"bf": "2"}),
    ("l.avi", "mpeg4", {"bf": "2"}),
    ("m.mp4", "mpeg4", {"bf": "2"}),
    ("n.wmv", "wmv2", {}),
    ("o.ogv", "libvpx", {"deadline": "realtime", "cpu-used": "8"}),
]


@pytest.fixture(autouse=True)
def nothing_remembered():
    probe.forget()


def clip(folder, name, codec, options, count=170):
    rate = None if codec == "libsvtav1" else 200_000
    return write(folder / name, numbered(count, 64, 80), codec, options=options, gop=25, bit_rate=rate)


class Counted:
    """How many frames the decoder gave."""

    def __init__(self, monkeypatch):
        self.frames = 0
        real = pyav_reader.decoded

        def counting(film):
            for frame in real(film):
                self.frames += 1
                yield frame

        monkeypatch.setattr(pyav_reader, "decoded", counting)


@pytest.mark.parametrize(("name", "codec", "options"), KINDS, ids=[f"{k[0]}-{k[1]}" for k in KINDS])
def test_a_late_window_is_exact_and_does_not_decode_the_file(tmp_path, monkeypatch, name, codec, options):
    monkeypatch.setattr(pyav_reader, "SHORTEST_JUMP", 40)
    path = clip(tmp_path, name, codec, options)
    counted = Counted(monkeypatch)
    with open_video(path) as video:  # before anything was read in full
        n = video.info.frames
        late = video.read(range(n - 30, n - 20))
    assert counted.frames < 80
    whole, _, notes = read(path)
    assert notes == []
    assert numbers(whole) == list(range(n))
    assert torch.equal(late, whole[n - 30 : n - 20])
    draw = random.Random(0)
    for start in [74, 75, 76, n - 1, *(draw.randrange(n) for _ in range(4))]:
        wanted = list(range(start, min(start + 7, n)))
        assert torch.equal(read(path, wanted)[0], whole[wanted]), start
    wanted = sorted(draw.sample(range(n), 9))
    assert torch.equal(read(path, wanted)[0], whole[wanted])


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.mp4", {"x264-params": "open-gop=1:bframes=3:b-adapt=0"}), ("b.mp4", {"intra-refresh": "1"})],
)
def test_where_the_standard_proves_nothing_only_checksums_do(tmp_path, monkeypatch, name, options):
    """Recovery points of H.264: the first late window reads from the start, says so, and proves the rest."""
    monkeypatch.setattr(pyav_reader, "SHORTEST_JUMP", 40)
    path = clip(tmp_path, name, "libx264", options, 280)
    counted = Counted(monkeypatch)
    first, _, notes = read(path, range(230, 240))
    assert counted.frames >= 230
    assert len(notes) == 1
    assert "tttvideo index --decode" in notes[0]
    whole = read(path)[0]
    assert torch.equal(first, whole[230:240])
    counted.frames = 0
    for start in (230, 201, 199, 126, 90, 260):
        assert torch.equal(read(path, range(start, start + 8))[0], whole[start : start + 8])
    if name == "a.mp4":
        counted.frames = 0
        assert torch.equal(read(path, range(230, 240))[0], whole[230:240])
        assert counted.frames < 80


def test_a_landing_that_lies_is_found_out(tmp_path, monkeypatch):
    """Flags and stamps that promise a key frame where there is none."""
    monkeypatch.setattr(pyav_reader, "SHORTEST_JUMP", 40)
    path = clip(tmp_path, "a.avi", "mpeg4", {"bf": "2"})
    whole = read(path)[0]
    known = probe.probe(str(path))
    probe.remember(replace(known, keys=np.array([0, 100, 143], np.int32)))
    assert torch.equal(read(path, range(145, 155))[0], whole[145:155])
    wrong = known.checks.copy()
    wrong[130:] ^= 1
    probe.remember(replace(known, checks=wrong))
    before = len(probe.probe(str(path)).keys)
    assert torch.equal(read(path, range(145, 155))[0], whole[145:155])
    assert len(probe.probe(str(path)).keys) < before  # does not lie twice


def test_stamps_that_repeat_are_no_landing(tmp_path, monkeypatch):
    monkeypatch.setattr(pyav_reader, "SHORTEST_JUMP", 40)
    once = write(tmp_path / "a.ts", numbered(130), "mpeg2video", gop=25)
    again = write(tmp_path / "b.ts", numbered(130, first=130), "mpeg2video", gop=25)
    both = tmp_path / "both.ts"
    both.write_bytes(once.read_bytes() + again.read_bytes())
    whole = read(both)[0]
    assert numbers(whole) == list(range(260))
    for start in (60, 120, 128, 200, 240):
        assert torch.equal(read(both, range(start, start + 8))[0], whole[start : start + 8])


def test_an_mp4_that_was_remuxed_from_the_middle(tmp_path, monkeypatch):
    """HEVC that begins at an open random access point, whose leading pictures cannot be decoded."""
    monkeypatch.setattr(pyav_reader, "SHORTEST_JUMP", 40)
    whole = clip(tmp_path, "a.mp4", "libx265", {"x265-params": f"{X265}:open-gop=1:keyint=25:min-keyint=25"}, 200)
    import av

    with av.open(str(whole)) as container:
        keys = [i for i, packet in enumerate(container.demux(video=0)) if packet.is_keyframe]
    for name in ("late.mkv", "late.ts"):
        late = remux(whole, tmp_path / name, keep=lambda i: i >= keys[2])
        frames, video, _ = read(late)
        n = len(frames)
        assert numbers(frames) == list(range(200 - n, 200))
        assert video.info.frames == n
        for start in (3, n - 30, n - 101):
            assert torch.equal(read(late, range(start, start + 8))[0], frames[start : start + 8])
