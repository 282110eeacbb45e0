"""Samples of a data set: what is in them, and what is cached of them."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

import tttvideo.video.dataset as dataset_module
from tests.video.small import AUGMENT, config, make_video, shades
from tttvideo.video.cache import Clip, DiskCache, MemoryCache
from tttvideo.video.dataset import DataConfig, Failure, Sample, VideoDataset
from tttvideo.video.index import DataError, Index, Video
from tttvideo.video.transforms import Augmentation

# Configuration


def test_config_is_checked(folder):
    for changes, match in [
        ({"batch_size": 0}, "data.batch_size is 0"),
        ({"workers": -1}, "data.workers is -1"),
        ({"max_frames": 0}, "data.max_frames is 0"),
        ({"cache": "ram"}, "data.cache is 'ram'"),
        ({"size": (0, 1)}, "size is"),
        ({"sampling": "dense,fps=1"}, "exactly one"),
    ]:
        with pytest.raises(ValueError, match=match):
            config(folder, **changes)
    with pytest.raises(DataError, match="no data given"):
        _ = DataConfig().source
    with pytest.raises(DataError, match="is not a folder"):
        config(folder / "train/b/broken.mp4", list="x.csv").index("train")
    with pytest.raises(DataError, match=r"give a list file as data\.list"):
        config(folder / "train/b/broken.mp4").index("train")
    assert config(folder).index("train").labels == ["a", "b"]


def test_config_from_the_command_line():
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--data", type=DataConfig, default=DataConfig())
    text = [
        "--data.root",
        "x",
        "--data.size",
        "[8, 9]",
        "--data.augment.flip",
        "0.5",
        "--data.augment.scale=[0.5,1]",
    ]
    made = parser.instantiate(parser.parse_args(text)).data
    assert made == DataConfig(root="x", size=(8, 9), augment=Augmentation(flip=0.5, scale=(0.5, 1.0)))


# Samples


def test_evaluation_samples(folder):
    index = config(folder).index("val")
    data = VideoDataset(index, config(folder).preprocessing)
    sample = data[0, 2]
    assert isinstance(sample, Sample)
    assert sample.frames.shape == (8, 3, 16, 16)
    assert sample.frames.dtype == torch.uint8
    assert shades(sample.frames) == pytest.approx([5 * i + 4 for i in range(8)], abs=2)  # a/04.mp4
    assert (int(sample.label), sample.index, Path(sample.path).name) == (0, 2, "04.mp4")
    assert torch.equal(sample.frames, data[7, 2].frames)


def test_parts_of_a_video_and_multi_label(tmp_path):
    path = make_video(tmp_path / "v.mp4", 30)
    spans = [(None, None), (1.0, 2.0), (2.5, None), (None, 0.25), (9.0, None)]
    videos = [Video(path, (0, 2), None, *span) for span in spans]
    index = Index(videos, ["x", "y", "z"], True, "all", "")
    for cache in (None, DiskCache(tmp_path / "cache"), MemoryCache()):
        data = VideoDataset(index, DataConfig(size=(16, 16)).preprocessing, cache=cache)
        samples = [data[0, i] for i in range(5)]
        numbers = [[round(s / 5) for s in shades(x.frames)] for x in samples[:4]]
        assert numbers == [list(range(30)), list(range(10, 20)), list(range(25, 30)), [0, 1, 2]]
        assert samples[0].label.tolist() == [1, 0, 1]
        assert isinstance(samples[4], Failure)
        assert "no frame between 9 s and the end" in samples[4].reason
    data = VideoDataset(index, DataConfig(size=(16, 16), sampling="fps=2").preprocessing)
    assert [round(s / 5) for s in shades(data[0, 1].frames)] == [10, 15]


@pytest.mark.parametrize("sampling", ["dense", "uniform=6", "segments=5", "window=0.8"])
def test_samples_depend_on_seed_epoch_index_and_not_on_the_cache(folder, tmp_path, sampling):
    setup = config(folder, sampling=sampling, max_frames=7)
    index = setup.index("train")

    def all_samples(seed, epoch, cache):
        data = VideoDataset(index, setup.preprocessing, augment=AUGMENT, seed=seed, max_frames=7, cache=cache)
        return [data[epoch, i] for i in range(13)]

    plain = all_samples(0, 0, None)
    for cache in (DiskCache(tmp_path), DiskCache(tmp_path), MemoryCache()):
        assert all(
            torch.equal(a.frames, b.frames)
            for a, b in zip(plain, all_samples(0, 0, cache))
            if a.index < 13 and isinstance(a, Sample)
        )
    assert max(len(s.frames) for s in plain if isinstance(s, Sample)) <= 7
    for other in (all_samples(1, 0, None), all_samples(0, 1, None)):
        same = [
            a.frames.shape == b.frames.shape and torch.equal(a.frames, b.frames)
            for a, b in zip(plain, other)
            if isinstance(a, Sample)
        ]
        assert sum(same) <= 3


def test_windows_are_contiguous_and_reach_everywhere(tmp_path):
    path = make_video(tmp_path / "v.mp4", 40)
    index = Index([Video(path, 0, None, None, None)], ["x", "y"], False, "all", "")
    data = VideoDataset(index, DataConfig(size=(16, 16)).preprocessing, augment=Augmentation(), max_frames=10)
    starts = set()
    for epoch in range(60):
        numbers = [round(s / 5) for s in shades(data[epoch, 0].frames)]
        assert numbers == list(range(numbers[0], numbers[0] + 10))
        starts.add(numbers[0])
    assert min(starts) <= 2
    assert max(starts) >= 28


# Caches


def test_cached_epochs_decode_nothing(folder, tmp_path, monkeypatch):
    index = config(folder).index("train")
    caches = {"disk": DiskCache(tmp_path), "memory": MemoryCache()}
    first = {}
    for name, cache in caches.items():
        data = VideoDataset(index, config(folder).preprocessing, cache=cache)
        first[name] = [data[0, i] for i in range(14)]
    assert not list(tmp_path.rglob(".unfinished-*"))

    def refuse(*args):
        raise AssertionError("opened a video that is cached")

    monkeypatch.setattr(dataset_module, "open_sized", refuse)
    for name, cache in caches.items():
        data = VideoDataset(index, config(folder).preprocessing, cache=cache)
        good = [i for i, s in enumerate(first[name]) if isinstance(s, Sample)]
        assert len(good) == 13
        assert all(torch.equal(data[1, i].frames, first[name][i].frames) for i in good)


def test_disk_cache_notices_changes_and_survives_damage(tmp_path):
    path = make_video(tmp_path / "v.mp4", 5)
    cache = DiskCache(tmp_path / "cache")
    file = cache.file(path, "dense")
    assert cache.load(file) is None
    clip = Clip(torch.arange(5 * 3 * 2 * 2, dtype=torch.uint8).view(5, 3, 2, 2), torch.arange(5) / 10.0)
    cache.store(file, Clip(clip.frames, clip.times.double()))
    frames, times = cache.load(file)
    assert np.array_equal(frames, clip.frames)
    assert torch.equal(times, clip.times.double())
    assert cache.file(path, "fps=1") != file
    whole = file.read_bytes()
    for place in range(len(whole) - len(clip.frames) * (8 + 12)):  # of the header
        for byte in {whole[place] ^ 1, whole[place] ^ 8, ord("("), ord(" ")}:
            file.write_bytes(whole[:place] + bytes([byte]) + whole[place + 1 :])
            loaded = cache.load(file)
            assert loaded is None or np.array_equal(loaded[0], clip.frames), (place, byte)
    file.write_bytes(whole[:100])
    assert cache.load(file) is None  # decoded again
    os.utime(path, (1, 1))
    assert cache.file(path, "dense") != file
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames/0.jpg").write_bytes(b"1")
    before = cache.file(str(tmp_path / "frames"))
    folder_time = os.stat(tmp_path / "frames").st_mtime_ns
    (tmp_path / "frames/0.jpg").write_bytes(b"22")
    os.utime(tmp_path / "frames", ns=(folder_time, folder_time))
    assert cache.file(str(tmp_path / "frames")) != before
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        DiskCache(tmp_path / "file" / "x").store(tmp_path / "file" / "x" / "y.npy", clip)


def test_memory_cache_blocks():
    cache = MemoryCache(block_bytes=100)
    clips = [Clip(torch.full((n, 3, 2, 2), n, dtype=torch.uint8), torch.arange(n).double()) for n in (3, 5, 20, 1)]
    for i, clip in enumerate(clips):
        cache.store(i, clip)
    for i, clip in enumerate(clips):
        assert torch.equal(cache.load(i).frames, clip.frames)
        assert torch.equal(cache.load(i).times, clip.times)
    assert cache.load(4) is None
