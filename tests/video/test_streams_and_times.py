"""Which stream of a file is read, and when its frames are shown."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest

from tests.video.clips import numbered, numbers, read, remux, write, write_picture
from tttvideo.video import clock, probe, reader
from tttvideo.video.dataset import DataConfig
from tttvideo.video.decode import VideoError, open_video
from tttvideo.video.library import look
from tttvideo.video.reading import within
from tttvideo.video.transforms import Preprocessing


@pytest.fixture(autouse=True)
def nothing_remembered():
    reader._already_warned.clear()
    probe.forget()


def picture_bytes(folder, codec, size=48):
    return write_picture(folder / f"cover.{codec}", numbered(1, size, size)[0], codec).read_bytes()


def atoms(data):
    at = 0
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        yield kind, data[at : at + length]
        at += length


def with_cover(path, folder, first=False):
    """An MP4 with an iTunes cover picture; `first`: before the tracks, so that it becomes stream 0."""
    picture = picture_bytes(folder, "mjpeg")

    def atom(kind, body):
        return struct.pack(">I4s", len(body) + 8, kind) + body

    value = atom(b"data", struct.pack(">II", 13, 0) + picture)
    handler = atom(b"hdlr", struct.pack(">II4s4sIIB", 0, 0, b"mdir", b"appl", 0, 0, 0))
    cover = atom(b"udta", atom(b"meta", bytes(4) + handler + atom(b"ilst", atom(b"covr", value))))
    out = b""
    for kind, data in atoms(path.read_bytes()):
        if kind == b"moov":  # behind mdat: no offset changes
            header, *rest = [body for _, body in atoms(data[8:])]
            kids = [header, cover, *rest] if first else [header, *rest, cover]
            data = atom(b"moov", b"".join(kids))
        out += data
    path = path.with_name(f"covered_{first}_{path.name}")
    path.write_bytes(out)
    return path


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
@pytest.mark.parametrize("first", [True, False])
def test_a_cover_picture_is_not_the_film(tmp_path, first, codec):
    film = with_cover(write(tmp_path / "film.mp4", numbered(30), codec, options={"bf": "2"}), tmp_path, first)
    with av.open(str(film)) as container:
        assert len(container.streams.video) == 2
    frames, opened, notes = read(film)
    assert numbers(frames) == list(range(30))
    assert opened.info[1:5] == ("h264" if codec == "libx264" else "mpeg4", 64, 160, 30)
    assert notes == []


def test_sound_with_a_cover_is_audio_only(tmp_path):
    sound = tmp_path / "song.m4a"
    with av.open(str(sound), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        for i in range(20):
            frame = av.AudioFrame(format="fltp", layout="mono", samples=1024)
            frame.sample_rate, frame.pts, frame.time_base = 8000, 1024 * i, Fraction(1, 8000)
            for plane in frame.planes:
                plane.update(bytes(plane.buffer_size))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(VideoError, match="audio only"):
        open_video(with_cover(sound, tmp_path))


def two_tracks(path, default=None):
    """A small film of frames 500.. and a large one of frames 0.., in this order."""
    from av.stream import Disposition

    films = [numbered(20, 32, 80, first=500), numbered(20)]
    with av.open(str(path), "w") as container:
        streams = []
        for i, frames in enumerate(films):
            stream = container.add_stream("libx264", rate=25)
            stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
            if default is not None:
                stream.disposition = Disposition.default if i == default else Disposition(0)
            streams.append(stream)
        for i in range(20):
            for stream, frames in zip(streams, films):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frames[i], format="rgb24")))
        for stream in streams:
            container.mux(stream.encode())
    return path


@pytest.mark.parametrize(("name", "default", "first"), [("a.mkv", 1, 0), ("b.mkv", 0, 500), ("c.ts", None, 0)])
def test_the_default_stream_is_read_and_any_can_be_chosen(tmp_path, name, default, first):
    path = two_tracks(tmp_path / name, default)
    frames, _, notes = read(path)
    assert numbers(frames) == list(range(first, first + 20))
    assert len(notes) == 1
    assert "2 video streams, 0 (80x32), 1 (160x64)" in notes[0]
    assert "data.stream" in notes[0]
    assert read(path)[2] == []  # said once
    for number, start in ((0, 500), (1, 0)):
        assert numbers(read(path, stream=number)[0]) == list(range(start, start + 20))
    with pytest.raises(VideoError, match="no video stream 2; the file has video streams 0 to 1"):
        open_video(path, stream=2)


def test_data_stream_reaches_the_reader(tmp_path):
    path = two_tracks(tmp_path / "a.mkv", 1)
    from tttvideo.video.reading import open_sized

    config = DataConfig(root=str(tmp_path), size=(32, 80), stream=0)
    assert config.preprocessing.stream == 0
    with open_sized(str(path), config.preprocessing) as opened:
        assert opened.info.height == 32
    with pytest.raises(ValueError, match="stream is -1"):
        Preprocessing(stream=-1)


def test_one_repeated_stamp_does_not_throw_all_away(tmp_path):
    """25 frames a second, then 5; two frames share a stamp."""
    pts = [40 * i for i in range(30)] + [1200 + 200 * i for i in range(30)]
    write(tmp_path / "even.mkv", numbered(60), "mjpeg")
    pts[29] = pts[28]
    film = tmp_path / "a.mkv"
    with av.open(str(tmp_path / "even.mkv")) as old, av.open(str(film), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet, stamp in zip(old.demux(video=0), pts):
            packet.pts = packet.dts = stamp
            packet.stream, packet.time_base = stream, Fraction(1, 1000)
            new.mux(packet)
    frames, opened, _ = read(film)
    assert numbers(frames) == list(range(60))
    times = opened.times
    assert (times.diff() > 0).all()
    assert times[30:].tolist() == pytest.approx([1.2 + 0.2 * i for i in range(30)], abs=2e-3)
    assert times[28:30].tolist() == pytest.approx([1.12, 1.16], abs=2e-3)  # parted up to the next stamp
    assert within(opened, 3.0, 4.0).tolist() == [39, 40, 41, 42, 43]


def test_recordings_joined_in_a_transport_stream(tmp_path):
    first = write(tmp_path / "a.ts", numbered(100), "mpeg2video")
    write(tmp_path / "b.mp4", numbered(100, first=100), "mpeg2video")
    later = remux(tmp_path / "b.mp4", tmp_path / "b.ts", shift=90000)
    joined = tmp_path / "joined.ts"
    joined.write_bytes(first.read_bytes() + later.read_bytes())
    frames, opened, notes = read(joined)
    assert numbers(frames) == list(range(200))
    assert opened.info.fps == pytest.approx(25, rel=0.01)
    assert opened.info.duration == pytest.approx(8, abs=0.1)
    assert any("jump by" in note and "at frame 100" in note for note in notes)


def test_spans_count_on_the_clock_of_the_file(tmp_path):
    """Sound begins at 0, the film at 1.5 s: a player shows frame 13 at 2.02 s."""
    path = tmp_path / "late.mkv"
    with av.open(str(path), "w") as container:
        film, sound = container.add_stream("libx264", rate=25), container.add_stream("aac", rate=8000)
        film.height, film.width, film.pix_fmt = 64, 160, "yuv420p"
        film.codec_context.time_base = Fraction(1, 1000)
        for i in range(20):
            frame = av.AudioFrame(format="fltp", layout="mono", samples=1024)
            frame.sample_rate, frame.pts, frame.time_base = 8000, 1024 * i, Fraction(1, 8000)
            for plane in frame.planes:
                plane.update(bytes(plane.buffer_size))
            container.mux(sound.encode(frame))
        container.mux(sound.encode())
        for i, picture in enumerate(numbered(50)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = 1500 + 40 * i, Fraction(1, 1000)
            container.mux(film.encode(frame))
        container.mux(film.encode())
    opened = read(path)[1]
    assert opened.times[0] == 0
    start = opened.offset - 1.5  # the encoder's delay, before which sound begins
    assert 0 <= start < 0.3
    assert within(opened, 2.0 + start, 2.5 + start).tolist() == list(range(13, 25))
    with pytest.raises(VideoError, match="lasts from 1"):
        within(opened, None, 1.0)


@pytest.mark.parametrize("rate", [Fraction(30000, 1001), Fraction(24000, 1001), 60, Fraction(60000, 1001)])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_spans_rounded_to_milliseconds_keep_their_frames(tmp_path, rate, name):
    even = {"rate": rate, "pts": range(40), "base": 1 / Fraction(rate)}
    opened = read(write(tmp_path / name, numbered(40, 16, 32), "mjpeg", **even))[1]
    for first in range(38):
        start, end = round(float(first / rate), 3), round(float((first + 1) / rate), 3)
        assert within(opened, start, end).tolist() == [first]
    assert within(opened, round(float(5 / rate), 3), None)[0] == 5


def test_latin_text_in_a_file_is_no_reason_to_refuse_it(tmp_path):
    path = tmp_path / "a.avi"
    write(path, numbered(5), "mjpeg")
    data = path.read_bytes()
    at = data.index(b"ISFT") + 8
    path.write_bytes(data[:at] + b"\xe9\xe8" + data[at + 2 :])
    assert len(read(path)[0]) == 5


def test_a_hole_in_even_stamps_is_told_and_a_variable_rate_is_not(tmp_path):
    whole = write(tmp_path / "whole.mkv", numbered(200, 16, 32), "mjpeg")
    lost = remux(whole, tmp_path / "lost.mkv", keep=lambda i: not 90 <= i < 97)
    frames, _, notes = read(lost)
    assert len(frames) == 193
    assert len(notes) == 1
    assert "7 frames seem to be missing" in notes[0]
    sparse = remux(whole, tmp_path / "sparse.mkv", keep=lambda i: i % 20)  # one in twenty is left out
    assert read(sparse)[2] == []
    assert read(whole)[2] == []


def test_stamps_that_were_guessed_wrongly_lie_evenly():
    """FFmpeg's of an MPEG-1 program stream, at the border of two groups: two frames too early, then two left out."""
    stamps = 3600 * np.arange(200, dtype=np.int64)
    stamps[150:170] -= 2 * 3600
    times, jumps = clock.seconds(stamps, 1 / 90000, 25.0, True)
    assert jumps == []
    assert times.tolist() == pytest.approx((np.arange(200) / 25).tolist(), abs=1e-9)
    assert clock.holes(stamps) == 0
    assert clock.holes(np.delete(stamps, [100, 101])) == 2
    lost = clock.seconds(np.delete(np.arange(200) * 3600, [100, 101]), 1 / 90000, 25.0, True)[0]
    assert lost[100] == pytest.approx(102 / 25)  # without repeated stamps a gap is a gap


def test_what_is_no_sign_of_data_that_were_passed_over():
    shown = np.array([i for i in range(300) if i % 7 or i % 3], np.int64) * 40  # a variable rate
    headers = np.where(np.arange(len(shown)) % 25, 7, 60)
    assert clock.passed_over(shown, headers, 2500.0) == 0
    pause = np.concatenate([np.arange(100), np.arange(400, 500)]) * 40
    assert clock.passed_over(pause, np.full(200, 7), 2500.0) == 0
    junk = np.full(200, 7)
    junk[50] = 10**6  # where no frame is missing
    assert clock.passed_over(pause, junk, 2500.0) == 0
    junk[100] = 10**7
    assert clock.passed_over(pause, junk, 2500.0) == 300


def test_an_edit_list_that_hides_most_frames_is_told(tmp_path):
    path = write(tmp_path / "a.mp4", numbered(60), options={"bf": "2", "g": "10"})
    data = path.read_bytes()
    at = data.index(b"elst") + 16  # behind version, count and duration: where the film begins, in its own unit
    begin, step = int.from_bytes(data[at : at + 4], "big"), 512
    for hidden, told in ((10, 0), (40, 1)):
        cut = tmp_path / f"{hidden}.mp4"
        cut.write_bytes(data[:at] + (begin + hidden * step).to_bytes(4, "big") + data[at + 4 :])
        frames, _, said = read(cut)
        assert numbers(frames) == list(range(hidden, 60))
        assert len(said) == told
        assert all("its header counts 60 frames and shows 20 (an edit list hides the others, or a" in w for w in said)
        assert [kind for kind, _ in look(probe.probe(str(cut)), fresh=True).problems] == ["edit lists"] * told


@pytest.mark.parametrize(
    ("box", "at", "value", "frames", "words"),
    [
        (
            b"mdhd",
            16,
            0,
            1,
            "its header makes one frame in 512 s, by which 1 of 30 frames are shown; its time scale is",
        ),
        (b"mdhd", 16, 2**31 - 1, 30, "its header makes 4,194,304 frames a second; its time scale is damaged"),
        (b"stts", 12, 2**31 - 1, 30, "counts 2,147,483,647 frames, more than the file has bytes; 30 are there"),
    ],
)
def test_headers_that_no_recording_has_are_not_laid_to_an_edit_list(tmp_path, box, at, value, frames, words):
    path = write(tmp_path / "a.mp4", numbered(30))
    data = path.read_bytes()
    place = data.index(box) + at
    path.write_bytes(data[:place] + value.to_bytes(4, "big") + data[place + 4 :])
    read_frames, _, said = read(path)
    assert len(read_frames) == frames
    assert len(said) == 1
    assert words in said[0]
    assert [kind for kind, _ in look(probe.probe(str(path)), fresh=True).problems] == ["odd headers"]
