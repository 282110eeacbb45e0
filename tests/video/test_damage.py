"""What of a damaged file is used, and what is said of it; and that healthy files are not called damaged."""

import random
import time
from fractions import Fraction

import av
import numpy as np
import pytest

from tests.video.clips import cut, numbered, numbers, read, write
from tttvideo.video import probe, reader
from tttvideo.video.decode import VideoError, open_video


@pytest.fixture(autouse=True)
def nothing_remembered():
    reader._already_warned.clear()
    probe.forget()


def moving(count):
    """Pictures that need many bytes, so that half of a file is half of its frames."""
    frames = numbered(count)
    frames[:, 32:] = np.random.default_rng(0).integers(0, 255, frames[:, 32:].shape, np.uint8)
    return frames


HALVES = [
    ("a.ts", "libx264", {}),
    ("b.ts", "mpeg2video", {}),
    ("c.wmv", "wmv2", {}),
    ("d.ogv", "libvpx", {}),
    ("e.flv", "libx264", {}),
    ("f.mkv", "libx264", {}),
    ("g.webm", "libvpx", {}),
    ("h.avi", "mpeg4", {}),
]


@pytest.mark.parametrize(("name", "codec", "options"), HALVES, ids=[half[0] for half in HALVES])
def test_a_half_is_noticed_whatever_the_container(tmp_path, name, codec, options):
    whole = write(tmp_path / name, moving(60), codec, options=options)
    frames, _, notes = read(whole)
    assert len(frames) == 60
    assert notes == []
    half = cut(whole, to=whole.stat().st_size // 2 // 188 * 188 + 100)
    frames, _, notes = read(half)
    assert 10 < len(frames) < 50
    assert numbers(frames)[:-1] == list(range(len(frames) - 1))  # the last one can be half a picture
    assert len(notes) == 1, notes
    assert f"{len(frames)} " in notes[0]
    assert read(half)[2] == []  # once


def test_bytes_that_look_like_another_stream_swallow_no_frame(tmp_path):
    """A few missing bytes of an FLV file made one tag of all that follows: a stream of another codec, weeks later."""
    whole = write(tmp_path / "a.flv", moving(60), "libx264")
    data, at, tags = bytearray(whole.read_bytes()), 13, []
    while at < len(data):
        tags.append(at)
        at += 11 + int.from_bytes(data[at + 1 : at + 4], "big") + 4
    at = tags[len(tags) // 2]
    assert data[at] == 9, "a tag of pictures"
    size = len(data) - at - 15
    data[at + 1 : at + 4], data[-4:] = size.to_bytes(3, "big"), (size + 11).to_bytes(4, "big")
    data[at + 4 : at + 8] = bytes([0x86, 0x1A, 0x9C, 0xDD])  # the time, in milliseconds
    data[at + 11] = 0x12  # a key frame of Sorenson's codec
    damaged = tmp_path / "b.flv"
    damaged.write_bytes(data)
    with av.open(str(damaged)) as container:
        packets = [packet for packet in container.demux() if packet.size]
    ends = {packet.stream_index: float(packet.pts * packet.time_base) for packet in packets}
    assert sorted(ends) == [0, 1]
    assert ends[1] > 1e6
    frames, _, notes = read(damaged)
    assert 20 < len(frames) < 40
    assert len(notes) == 2, "a second stream, and that frames are missing"
    assert f"only the first {len(frames)} of 6" in notes[1]


def test_a_transport_stream_cut_between_two_of_its_packets(tmp_path):
    """Nothing is cut through; but pictures that others refer to come before those that are shown earlier."""
    whole = write(tmp_path / "a.ts", moving(60), options={"bf": "3", "b-adapt": "0"}, gop=60)
    noticed = 0
    for part in range(20, 40, 2):
        half = tmp_path / f"{part}.ts"
        half.write_bytes(whole.read_bytes()[: whole.stat().st_size * part // 60 // 188 * 188])
        noticed += bool(read(half)[2])
    assert noticed >= 5


def test_a_variable_rate_is_no_damage(tmp_path):
    draw = random.Random(0)
    shown = [i for i in range(300) if draw.random() > 0.4 or i == 299]
    for name in ("a.mkv", "b.mp4", "c.webm"):
        codec = "libvpx-vp9" if name == "c.webm" else "libx264"
        pts = [40 * i for i in shown]
        path = write(tmp_path / name, numbered(len(shown)), codec, pts=pts, base=Fraction(1, 1000))
        frames, opened, notes = read(path)
        assert notes == []
        assert numbers(frames) == list(range(len(shown)))
        assert opened.times.tolist() == pytest.approx([(i - shown[0]) / 25 for i in shown], abs=2e-3)


def avi_header(path, change):
    """The same AVI with other frame counts in its headers."""
    data = bytearray(path.read_bytes())
    for name, place in ((b"avih", 24), (b"strh", 40)):
        at = data.index(name) + place
        count = int.from_bytes(data[at : at + 4], "little")
        data[at : at + 4] = change(count).to_bytes(4, "little")
    path.write_bytes(data)
    return path


def test_avi_headers_that_count_too_many(tmp_path):
    two = avi_header(write(tmp_path / "a.avi", numbered(60), "mpeg4"), lambda count: count + 2)
    frames, _, notes = read(two)
    assert (len(frames), notes) == (60, [])
    # Two slots for every picture: 50 a second, every second one empty.
    slots = write(tmp_path / "b.avi", numbered(60), "libx264", rate=50, pts=range(0, 120, 2), base=Fraction(1, 50))
    with av.open(str(slots)) as container:
        assert container.streams.video[0].frames > 100
    frames, opened, notes = read(slots)
    assert (len(frames), notes) == (60, [])
    assert opened.info.fps == pytest.approx(25, rel=0.05)


def flipped(path, seed, count, start=0.3, index=True):
    """A copy with flipped bits, from ``start`` of the file on. ``index``: of an MP4's index, at its end, too."""
    draw, data = random.Random(seed), bytearray(path.read_bytes())
    end = len(data) if index or b"moov" not in data else data.rindex(b"moov") - 4
    for _ in range(count):
        data[draw.randrange(int(len(data) * start), end)] ^= 1 << draw.randrange(8)
    path = path.with_name(f"flipped_{seed}_{path.name}")
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(("name", "codec"), [("a.ts", "libx264"), ("b.mpg", "mpeg2video"), ("c.mp4", "libx264")])
def test_pictures_that_the_decoder_marks_as_corrupt_are_counted_and_told_once(tmp_path, name, codec):
    whole = write(tmp_path / name, moving(60), codec)
    told = 0
    for seed in range(6):
        broken = flipped(whole, seed, 10, index=False)  # without which there may be no stream
        with av.open(str(broken)) as container:
            container.streams.video[0].thread_count = 1  # concealment differs with several
            corrupt = 0
            try:
                for frame in container.decode(video=0):
                    corrupt += frame.is_corrupt
            except av.error.FFmpegError:
                continue
        if not corrupt:
            continue
        told += 1
        notes = read(broken)[2]
        assert len(notes) == 1
        assert f"{corrupt} of " in notes[0]
        assert "damaged" in notes[0]
        reader._already_warned.clear()
        assert len(read(broken)[2]) == 1  # known by now, and said before the frames are seen
    assert told >= 2


class Failing:
    """A container whose demuxer gives up with an error that is not FFmpeg's."""

    def __init__(self, container, error, after):
        self._container, self._error, self._after = container, error, after

    def __getattr__(self, name):
        return getattr(self._container, name)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._container.close()

    def demux(self, *streams):
        for number, packet in enumerate(self._container.demux(*streams)):
            if number == self._after:
                raise self._error
            yield packet


@pytest.mark.parametrize("error", [IndexError("list index out of range"), ValueError("x"), MemoryError(), KeyError(7)])
def test_whatever_a_demuxer_raises_is_damage(tmp_path, monkeypatch, error):
    path = write(tmp_path / "a.ts", numbered(40), "mpeg2video")
    real = av.open
    monkeypatch.setattr(av, "open", lambda *a, **k: Failing(real(*a, **k), error, 25))
    frames, _, notes = read(path)
    assert numbers(frames) == list(range(len(frames)))
    assert 15 < len(frames) <= 25
    assert len(notes) == 1
    probe.forget()
    monkeypatch.setattr(av, "open", lambda *a, **k: Failing(real(*a, **k), error, 0))
    with pytest.raises(VideoError, match="no frame of it can be decoded"):
        open_video(path)

    def refuse(*a, **k):
        raise error

    probe.forget()
    monkeypatch.setattr(av, "open", refuse)
    with pytest.raises(VideoError, match=r"a\.ts"):
        open_video(path)


class FailingOnce(Failing):
    """The same for the next ``left`` containers that are opened; those after them are sound."""

    left = 0

    def __init__(self, container, error, after):
        FailingOnce.left -= 1
        super().__init__(container, error, after if FailingOnce.left >= 0 else -1)


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("b.ts", "mpeg2video"), ("c.avi", "mpeg4")])
def test_a_read_error_that_passes_is_not_kept_as_damage(tmp_path, monkeypatch, name, codec):
    monkeypatch.setenv("TTTVIDEO_INDEX", str(tmp_path / "index"))
    path, real, error = write(tmp_path / name, numbered(40), codec), av.open, OSError(5, "Input/output error")
    monkeypatch.setattr(av, "open", lambda *a, **k: FailingOnce(real(*a, **k), error, 25))
    FailingOnce.left = 1  # the disk fails during the scan
    frames, _, notes = read(path)
    assert (numbers(frames), notes) == (list(range(40)), [])
    probe.forget()
    assert probe.probe(str(path)).decoded == 40
    for entry in (tmp_path / "index").rglob("*.safetensors"):
        entry.unlink()
    probe.forget()
    open_video(path)
    FailingOnce.left = 1  # ... or while frames are read
    frames, _, notes = read(path)
    assert len(frames) < 40
    assert len(notes) == 1
    probe.forget()
    reader._already_warned.clear()
    frames, _, notes = read(path)
    assert (numbers(frames), notes) == (list(range(40)), [])


@pytest.mark.parametrize("share", [0.2, 0.5])
@pytest.mark.parametrize(
    ("name", "codec"), [("a.mkv", "libx264"), ("b.webm", "libvpx"), ("c.wmv", "wmv2"), ("d.ogv", "libvpx")]
)
def test_what_a_demuxer_passes_over_is_counted(tmp_path, name, codec, share):
    """A part of a file that is no more than zeros: a demuxer goes on behind it and says nothing."""
    whole = write(tmp_path / name, moving(60), codec)
    assert read(whole)[2] == []
    data = bytearray(whole.read_bytes())
    first = int(len(data) * share)
    data[first : first + len(data) // 4] = bytes(len(data) // 4)
    whole.write_bytes(data)
    frames, _, notes = read(whole)
    assert len(frames) < 55
    assert "frames seem to be missing" in notes[0]


def test_recordings_that_were_joined_hold_no_damaged_packets(tmp_path):
    small = write(tmp_path / "a.ts", numbered(30), "mpeg2video")
    large = write(tmp_path / "b.ts", numbered(30, 96, 160), "mpeg2video")
    joined = tmp_path / "c.ts"
    joined.write_bytes(small.read_bytes() + large.read_bytes())
    with av.open(str(joined)) as container:
        assert sum(packet.is_corrupt for packet in container.demux(video=0)) == 1
    assert probe.probe(str(joined)).broken == 0
    frames, _, notes = read(joined)
    assert len(frames) in (59, 60)  # FFmpeg drops a picture where the size changes
    assert notes == []


MKV = b"\x1a\x45\xdf\xa3\x8b\x42\x82\x84webm\x42\x87\x81\x04\x18\x53\x80\x67\x01\0\0\x02\x80\0\0\0"
AVI = b"RIFF\xff\xff\xff\xffAVI LIST\xff\xff\xff\x7fhdrlavih8\0\0\0"


@pytest.mark.parametrize(("name", "head"), [("a.mkv", MKV), ("a.avi", AVI)])
def test_a_header_of_gigabytes_is_given_up(tmp_path, monkeypatch, name, head):
    """FFmpeg looks through ten gigabytes of zeros for the next mark: minutes."""
    monkeypatch.setattr("tttvideo.video.container.LONGEST_OPENING", 0.3)
    with (tmp_path / name).open("wb") as file:
        file.write(head)
        file.truncate(10 * 2**30)  # no room is taken on the disk
    begun = time.monotonic()
    with pytest.raises(VideoError, match=rf"{name}: cannot be opened within 0\.3 s"):
        open_video(tmp_path / name)
    assert time.monotonic() - begun < 30
