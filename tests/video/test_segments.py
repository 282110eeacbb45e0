"""Videos read in pieces: the pieces joined are the whole, in memory that does not grow, and nothing stays
behind."""

import itertools
import shutil
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import tttvideo.video.segments as segments_module
from tests.video.clips import CountingReader, write
from tttvideo.video.dataset import VideoDataset
from tttvideo.video.index import Index, Video
from tttvideo.video.reader import PartialVideoWarning
from tttvideo.video.sampling import parse_sampling
from tttvideo.video.segments import read_segments
from tttvideo.video.transforms import Preprocessing

ODD = Path(__file__).resolve().parents[2] / ".." / "shared" / "videos" / "odd"


def make_video(path: Path, frames: int, height: int = 24, width: int = 36) -> str:
    pictures = np.random.default_rng(frames).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
    return str(write(path, pictures, rate=10, options={"crf": "10", "preset": "ultrafast"}))


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> list[str]:
    root = tmp_path_factory.mktemp("videos")
    (root / "broken.mp4").write_bytes(b"\0" * 999)
    made = [make_video(root / f"{n}.mp4", n) for n in (7, 1, 40, 16)]
    return [*made[:2], str(root / "broken.mp4"), *made[2:]]


def joined(pieces) -> list[torch.Tensor]:
    """The frames of every row, after checking what each piece promises."""
    rows: list[list[torch.Tensor]] = [[] for _ in range(pieces[0].frames.shape[0])]
    for before, after in itertools.pairwise(pieces):
        assert (after.lengths <= before.lengths).all()
    for piece in pieces:
        for row, frames, length in zip(rows, piece.frames, piece.lengths):
            row.append(frames[:length])
            assert not frames[length:].any()
    return [torch.cat(row) for row in rows]


@pytest.mark.parametrize("prefetch", [True, False])
@pytest.mark.parametrize("segment", [1, 5, 8, 64])
@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing((16, 16)),
        Preprocessing((16, 20), "pad", "fps=3"),
        Preprocessing((30, 10), "stretch", "uniform=11"),
        Preprocessing((16, 16), "crop", "segments=6"),
        Preprocessing((16, 16), "crop", "window=1.5"),
    ],
    ids=str,
)
def test_pieces_are_the_whole(paths, preprocessing, segment, prefetch):
    index = Index([Video(p, 0, None, None, None) for p in paths], ["a", "b"], False, "all", "")
    dataset = VideoDataset(index, preprocessing)
    pieces = list(read_segments(paths, preprocessing, segment=segment, prefetch=prefetch))
    rows = joined(pieces)
    for i in (0, 1, 3, 4):
        assert torch.equal(rows[i], dataset[0, i].frames)
    assert len(rows[2]) == 0
    assert all(set(piece.failures) == {2} for piece in pieces)
    assert "broken.mp4" in pieces[0].failures[2]
    lengths = torch.stack([piece.lengths for piece in pieces])
    assert (lengths <= segment).all()
    # only the last piece of a row is short
    assert ((lengths[:-1] == segment) | (lengths[1:] == 0)).all()
    assert all(piece.frames.shape[1] == piece.lengths.max() for piece in pieces)


def test_first_cut_then_sampled(paths):
    pre = Preprocessing((16, 16))
    whole = joined(list(read_segments(paths, pre, segment=8)))
    cut = joined(list(read_segments(paths, pre, segment=8, max_frames=10)))
    assert [len(r) for r in cut] == [7, 1, 0, 10, 10]
    assert all(torch.equal(c, w[: len(c)]) for c, w in zip(cut, whole))
    # two evenly spaced frames of the first ten are the first and the tenth
    two = joined(list(read_segments(paths, pre, segment=8, max_frames=10, sampling=parse_sampling("uniform=2"))))
    assert all(torch.equal(t, w[[0, 9]]) for t, w in zip(two[3:], whole[3:]))
    assert torch.equal(two[0], whole[0][[0, 6]])
    # and the ten are counted within the span
    spans = [(None, None)] * 3 + [(1.0, None), (0.5, 1.0)]
    part = joined(list(read_segments(paths, pre, segment=8, max_frames=10, spans=spans)))
    assert torch.equal(part[3], whole[3][10:20])
    assert torch.equal(part[4], whole[4][5:10])


def test_all_unreadable_still_reports(paths):
    for given in ([paths[2]], [paths[2], paths[2] + "x"]):
        (piece,) = read_segments(given, Preprocessing((8, 8)), segment=4)
        assert piece.frames.shape == (len(given), 1, 3, 8, 8)
        assert piece.lengths.tolist() == [0] * len(given)
        assert sorted(piece.failures) == list(range(len(given)))
    with pytest.raises(ValueError, match="at least 1"):
        read_segments(paths, Preprocessing(), segment=0)


def reading_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "read_segments"]


def test_stopping_early_closes_thread_and_readers(paths, monkeypatch):
    opened = []
    original = segments_module.open_sized

    def spy(*args):
        reader = original(*args)
        close = reader.close
        state = {"closed": False}

        def closing():
            state["closed"] = True
            close()

        reader.close = closing
        opened.append(state)
        return reader

    monkeypatch.setattr(segments_module, "open_sized", spy)
    reading = read_segments(paths, Preprocessing((16, 16)), segment=2)
    next(reading)
    next(reading)
    assert len(reading_threads()) == 1
    reading.close()
    assert not reading_threads()
    assert len(opened) == 4
    assert all(state["closed"] for state in opened)
    list(read_segments(paths, Preprocessing((16, 16)), segment=2))
    assert not reading_threads()
    assert all(state["closed"] for state in opened)


def test_a_mistake_in_the_thread_reaches_the_caller(paths, monkeypatch):
    class Odd(Preprocessing):
        def apply(self, frames, crop=0.5):
            raise ZeroDivisionError("here")

    with pytest.raises(ZeroDivisionError, match="here"):
        list(read_segments(paths, Odd((16, 16)), segment=4))
    assert not reading_threads()


def test_shuffled_frames_are_the_same_ones_in_the_same_random_order(paths):
    def whole(shuffled):
        parts = list(read_segments(paths[:1], Preprocessing((16, 16)), segment=4, shuffled=shuffled))
        return torch.cat([part.frames[0, : int(part.lengths[0])] for part in parts])

    plain, mixed = whole(False), whole(True)
    assert mixed.shape == plain.shape
    assert not torch.equal(mixed, plain)
    assert torch.equal(mixed, whole(True))
    assert sorted(frame.numpy().tobytes() for frame in mixed) == sorted(frame.numpy().tobytes() for frame in plain)


def test_every_file_is_shuffled_in_its_own_order(tmp_path):
    one = make_video(tmp_path / "one.mp4", 12)
    other = shutil.copy(one, tmp_path / "other.mp4")
    (both,) = read_segments([one, str(other)], Preprocessing((16, 16)), segment=12, shuffled=True)
    assert not torch.equal(both.frames[0], both.frames[1])


def test_never_more_than_three_pieces_ahead(monkeypatch):
    """One piece is with the caller, one waits, one is being made: so memory does not depend on the length."""
    segment, frames = 16, 2000
    films = {name: CountingReader(frames, 4) for name in ("0", "1")}
    monkeypatch.setattr(segments_module, "open_sized", lambda path, pre: films[path])
    monkeypatch.setattr(segments_module, "within", lambda reader, *span: torch.arange(len(reader.times)))
    given = 0
    for piece in read_segments(list(films), Preprocessing((4, 4)), segment=segment):
        time.sleep(0.001)  # the thread would run ahead now
        given += int(piece.lengths[0])
        assert max(film.pulled for film in films.values()) - given <= 3 * segment
    assert given == frames


@pytest.mark.skipif(not ODD.is_dir(), reason="the real videos are not beside the repository")
def test_damaged_real_files():
    names = [
        "25_truncated_60pct_moov_first.mp4",
        "26_truncated_60pct_moov_last_unopenable.mp4",
        "24_three_frames.mp4",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PartialVideoWarning)
        pieces = list(read_segments([str(ODD / n) for n in names], Preprocessing((16, 16)), segment=50))
    assert [len(r) for r in joined(pieces)] == [136, 0, 3]
    assert list(pieces[-1].failures) == [1]
