"""What the files of a feature cache hold, which parts of videos they serve, and what they refuse to keep."""

from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from tests.training.conftest import write_video
from tttvideo.encoder import filling
from tttvideo.video.features import CachedFeatures
from tttvideo.video.index import Index, Video
from tttvideo.video.listfile import DataError
from tttvideo.video.reader import VideoError
from tttvideo.video.rows import RowsWriter
from tttvideo.video.transforms import Preprocessing
from tttvideo.video.workers import DataNote


class Means:
    """Encodes windows of four frames by their mean."""

    mean = torch.zeros(1)

    def features(self, frames, lengths):  # [1, F, 3, H, W] -> [1, F, 1, 1, 1]
        levels = frames[0].float().mean((1, 2, 3)).split(4)
        return torch.cat([level.mean().expand(len(level)) for level in levels]).view(1, -1, 1, 1, 1)


def test_windows_are_kept_from_the_beginning_on_and_the_last_is_moved_back(tmp_path, monkeypatch):
    """Of an encoder that sees four frames together; also where a piece that is encoded at once ends in a window."""
    monkeypatch.setattr(filling, "PIECE", 8)

    reading = CachedFeatures(size=(32, 32), folder=str(tmp_path), encoder={"name": "means"}, window=4)
    last = {3: range(3), 8: range(4, 8), 14: range(10, 14)}
    for count in last:
        windows = [*(range(at, at + 4) for at in range(0, count - 4, 4)), last[count]]
        path = str(tmp_path / f"{count}.mp4")
        write_video(Path(path), 10 * count, frames=count, size=64)
        assert filling.fill(Means(), reading, [filling.Job(path, 0, ((None, None, None),), count)]) == []
        levels = reading.pixels.apply(reading.pixels.open(path).read()).float().mean((1, 2, 3))
        expected = torch.stack([levels[list(window)].mean() for window in windows]).repeat_interleave(4)[:count]
        assert torch.allclose(reading.open(path).read().flatten().float(), expected, rtol=1e-3)
        assert torch.allclose(reading.open(path).read(range(4, count)).flatten().float(), expected[4:], rtol=1e-3)
    assert reading.holds(path, [(None, None, 8)])
    assert not reading.holds(path, [(None, None, 6)]), "another last window"
    assert not reading.holds(path, [(0.2, None, None)])
    assert not replace(reading, sampling="fps=5").holds(path, [(None, None, None)])
    with pytest.raises(VideoError, match="keeps other frames"):
        reading.open(path).read(range(2, 8))


@pytest.mark.parametrize("sampling", ["dense", "fps=5", "uniform=9"])
def test_windows_of_first_frames_are_no_windows_of_the_whole(sampling, tmp_path):
    """What was kept of the first 16 frames does not serve the whole video, which is encoded when it is asked for."""
    path = str(tmp_path / "film.mp4")
    write_video(Path(path), 10, frames=30, size=64)  # 10 a second
    reading = CachedFeatures(
        size=(32, 32), folder=str(tmp_path), encoder={"name": "means"}, window=4, sampling=sampling
    )
    parts = {first: ((None, None, first),) for first in (8, 16, None)}
    fill = lambda first: filling.fill(Means(), reading, [filling.Job(path, 0, parts[first], 30)])  # noqa: E731
    assert fill(16) == []
    assert reading.serving([path], first=16) == reading
    assert reading.holds(path, parts[8]) == (sampling != "uniform=9"), "which chooses others of fewer frames"
    assert reading.serving([path]) == reading.pixels
    index = Index([Video(path, 0, None, None, None)], ["a"], False, "train", "")
    notes = filling.plan(reading, [(index, None, 1)]).notes
    assert notes == ["1 files of the cache hold other frames than are asked for now: computed anew"]
    assert reading.serving([path], [(0.2, None)]) == reading.pixels
    assert replace(reading, sampling="last=8").serving([path]).window == 1
    assert fill(None) == []
    assert reading.serving([path]) == reading
    assert reading.holds(path, parts[16]) == (sampling != "uniform=9")
    with reading.pixels.open(path) as video:
        numbers = reading.wanted(video, parts[None])
        levels = reading.pixels.apply(video.read(numbers)).float().mean((1, 2, 3))
    whole = reading.open(path).read(numbers).flatten().float()
    full = len(numbers) // 4 * 4
    assert torch.allclose(whole[:full], levels[:full].view(-1, 4).mean(1).repeat_interleave(4), rtol=1e-3)
    assert torch.allclose(whole[full:], levels[-4:].mean(), rtol=1e-3)


@pytest.mark.parametrize(
    ("sampling", "parts", "sentence"),
    [
        ("last=8", [(None, None, None)], "which data.sampling: last=8 draws anew"),
        ("dense", [(1.0, None, None)], "of whole videos; leave start and end out"),
        ("dense", [(None, None, 6), (None, None, None)], "set max_frames: null"),
        ("uniform=9", [(None, None, 8), (None, None, None)], "chooses others in a whole video than in its first"),
    ],
)
def test_windows_that_no_file_keeps_are_refused_by_the_filling_itself(sampling, parts, sentence, tmp_path):
    reading = CachedFeatures(folder=str(tmp_path / "cache"), encoder={"name": "means"}, window=4, sampling=sampling)
    with pytest.raises(DataError, match=sentence):
        filling.fill(Means(), reading, [filling.Job("film.mp4", 0, tuple(parts), 8)])
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("at", [2**14 + 1, 30])
def test_damaged_features_are_not_served_but_frames_with_a_note(at, tmp_path):
    path = str(tmp_path / "film.mp4")
    write_video(Path(path), 10, frames=9, size=64)
    for window in (1, 4):
        reading = CachedFeatures(
            size=(32, 32), folder=str(tmp_path / "cache"), encoder={"name": "means"}, window=window
        )
        job = filling.Job(path, 0, ((None, None, None),), 9)
        assert filling.fill(Means(), reading, [job]) == []
        assert reading.serving([path]) == reading
        whole = bytearray(reading.file(path).read_bytes())
        whole[at] ^= 4
        reading.file(path).write_bytes(whole)
        with pytest.warns(
            DataNote, match=r"damaged features of 1 of these videos .*film.mp4.* frames are decoded in their place"
        ):
            assert reading.serving([path]) == reading.pixels
        assert not reading.holds(path, job.parts), "removed, so that the next filling computes it anew"
        assert filling.fill(Means(), reading, [job]) == []
        assert reading.serving([path]) == reading


@pytest.mark.parametrize(("level", "sentence"), [(float("nan"), "are not finite: its"), (1e5, "set cache_dtype: bf16")])
def test_features_that_cannot_be_kept_are_said_with_the_video(level, sentence, tmp_path):
    path = str(tmp_path / "film.mp4")
    write_video(Path(path), 10, frames=4, size=64)
    reading = CachedFeatures(size=(32, 32), folder=str(tmp_path / "cache"), encoder={"name": "bad"})
    encoder = Mock(mean=torch.zeros(1), features=lambda frames, _: torch.full((1, frames.shape[1], 1, 1, 1), level))
    with pytest.raises(ValueError, match=rf"film\.mp4: the encoder's features .*{sentence}"):
        filling.fill(encoder, reading, [filling.Job(path, 0, ((None, None, None),), 4)])
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


@pytest.mark.parametrize("window", [1, 4])
def test_a_video_that_could_not_be_read_is_tried_again_once_it_opens(window, tmp_path, monkeypatch):
    """Rights are given without a new time of change; a file that is no video stays refused."""
    film, text = str(tmp_path / "film.mp4"), str(tmp_path / "text.mp4")
    write_video(Path(film), 10, frames=8, size=64)
    Path(text).write_text("no video")
    reading = CachedFeatures(size=(32, 32), folder=str(tmp_path / "cache"), encoder={"name": "means"}, window=window)
    index = Index([Video(path, 0, None, None, None) for path in (film, text)], ["a"], False, "train", "")

    def denied(*_):
        raise VideoError(f"{film}: permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Preprocessing, "open", denied)
        bad = filling.fill(Means(), reading, filling.plan(reading, [(index, None, 1)]).jobs)
        assert [reason for _, reason in bad] == ["permission denied", f"{film}: permission denied"]
        assert filling.plan(reading, [(index, None, 1)]).jobs == []
    lacking = filling.plan(reading, [(index, None, 1)])
    assert ([job.path for job in lacking.jobs], lacking.notes) == ([film], [])
    assert filling.fill(Means(), reading, lacking.jobs) == []
    assert reading.serving([film]) == reading


@pytest.mark.parametrize("old", [False, True])
def test_a_row_out_of_range_leaves_the_others_served_by_the_cache(old, tmp_path, monkeypatch):
    """The video opens, but is refused for good; so it is where a file does not say whether it opened."""
    good, bad = (str(tmp_path / f"{name}.mp4") for name in ("good", "bad"))
    for path in (good, bad):
        write_video(Path(path), 10, frames=8, size=64)  # 0.8 s
    reading = CachedFeatures(size=(32, 32), folder=str(tmp_path / "cache"), encoder={"name": "means"})
    index = Index([Video(good, 0, None, None, None), Video(bad, 0, None, 100.0, 110.0)], ["a"], False, "train", "")
    finish = RowsWriter.finish

    def without(writer, numbers, times, about):
        finish(writer, numbers, times, {key: value for key, value in about.items() if key != "opened"})

    with monkeypatch.context() as patch:
        if old:
            patch.setattr(RowsWriter, "finish", without)
        ((path, reason),) = filling.fill(Means(), reading, filling.plan(reading, [(index, None, 1)]).jobs)
    assert path == bad
    assert ("opened" in reading.kept(bad).about) != old
    again = filling.plan(reading, [(index, None, 1)])
    assert (again.jobs, again.bad, again.notes) == ([], [(bad, reason)], [])
    assert reading.serving([good, bad], [(None, None), (100.0, 110.0)]) == reading
    assert reading.serving([good, bad]) == reading
    with pytest.raises(VideoError, match="no frame between 100 s and 110 s"):
        reading.open(bad)
