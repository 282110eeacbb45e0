"""Samples and batches: what is in them, the same in every process and after every restart, each video
once."""

import os
import time
import warnings
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch

import tttvideo.video.dataset as dataset_module
import tttvideo.video.loader as loader_module
from tttvideo.video.cache import Clip, DiskCache, MemoryCache
from tttvideo.video.dataset import DataConfig, Failure, Sample, VideoDataset
from tttvideo.video.index import DataError, Index, Video
from tttvideo.video.loader import EpochSampler, preload, train_loader, val_loader
from tttvideo.video.reader import PartialVideoWarning
from tttvideo.video.reading import catch_damage
from tttvideo.video.transforms import Augmentation

ODD = Path(__file__).resolve().parents[2] / ".." / "shared" / "videos" / "odd"
FPS = 10
AUGMENT = Augmentation(speed=(0.7, 1.4), drop=0.1, scale=(0.5, 1.0), flip=0.5, brightness=0.3, erase=0.3)


def make_video(path: Path, frames: int, size: int = 16, shade: int = 0) -> str:
    """Lossless; frame i is grey of value 5 i + shade, so that a frame says which one it is."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=FPS, options={"crf": "0", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = size * 3 // 2, size, "yuv444p"
        for i in range(frames):
            picture = np.full((size, size * 3 // 2, 3), 5 * i + shade, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """13 videos of 4 to 16 frames and one that is no video, in two classes; seven in val."""
    root = tmp_path_factory.mktemp("data")
    for split, count in (("train", 13), ("val", 7)):
        for i in range(count):
            place = root / split / "ab"[i % 2]
            place.mkdir(parents=True, exist_ok=True)
            make_video(place / f"{i:02}.mp4", 4 + i, shade=i)
    (root / "train/b/broken.mp4").write_bytes(b"\0" * 3000)
    return root


def config(folder: Path, **changes) -> DataConfig:
    base = DataConfig(root=str(folder), size=(16, 16), batch_size=4, workers=0, augment=AUGMENT)
    return replace(base, **changes)


def shades(frames: torch.Tensor) -> list[int]:
    return [round(float(f.float().mean())) for f in frames]


def batches(loader) -> list:
    """Everything that a batch holds, comparable."""
    return [
        (
            b.indices.tolist(),
            b.lengths.tolist(),
            b.labels.tolist(),
            [f.index for f in b.failures],
            b.frames.numpy().tobytes(),
        )
        for b in loader
    ]


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
    assert not list(tmp_path.rglob("*.part"))

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
    file.write_bytes(file.read_bytes()[:100])
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


# The order of an epoch


@pytest.mark.parametrize("buckets", [1, 3])
@pytest.mark.parametrize(("n", "world"), [(37, 1), (37, 2), (5, 4), (64, 3)])
def test_training_order(n, world, buckets):
    lengths = [(i * 7919) % 101 for i in range(n)]
    ranks = [EpochSampler(n, 4, seed=3, rank=r, world=world, lengths=lengths, buckets=buckets) for r in range(world)]
    epochs = []
    for epoch in (0, 1):
        for sampler in ranks:
            sampler.set_epoch(epoch)
        per_rank = [list(s) for s in ranks]
        assert {len(b) for b in per_rank} == {len(ranks[0])}
        for step in zip(*per_rank):  # equal sizes on all ranks, so that averaged gradients are right
            assert len({len(batch) for batch in step}) == 1
            assert 1 <= len(step[0]) <= 4
        flat = [item for batches in per_rank for batch in batches for item in batch]
        assert {e for e, _ in flat} == {epoch}
        assert len({i for _, i in flat}) == len(flat) == n - n % world
        epochs.append([i for _, i in flat])
    assert n == 5 or epochs[0] != epochs[1]
    ranks[0].set_epoch(0)
    assert [i for b in ranks[0] for _, i in b] == epochs[0][: len(epochs[0]) // world]


def test_buckets_save_padding():
    lengths = [(i * 7919) % 1009 for i in range(400)]

    def padding(buckets):
        sampler = EpochSampler(400, 8, lengths=lengths, buckets=buckets)
        groups = [[lengths[i] for _, i in batch] for batch in sampler]
        return sum(max(g) * len(g) - sum(g) for g in groups)

    assert padding(8) < 0.25 * padding(1)
    order = [max(lengths[i] for _, i in b) for b in EpochSampler(400, 8, lengths=lengths, buckets=8)]
    assert order != sorted(order)


@pytest.mark.parametrize(("n", "world"), [(36, 2), (37, 2), (3, 4), (1, 3)])
def test_validation_order_has_every_video_once(n, world):
    ranks = [EpochSampler(n, 4, shuffle=False, rank=r, world=world) for r in range(world)]
    per_rank = [list(s) for s in ranks]
    assert {len(b) for b in per_rank} == {len(ranks[0])}
    assert sorted(i for batches in per_rank for batch in batches for _, i in batch) == list(range(n))


def test_skip_is_for_one_pass():
    sampler = EpochSampler(20, 3, seed=1)
    sampler.set_epoch(4)
    whole = list(sampler)
    sampler.skip(2)
    assert list(sampler) == whole[2:]
    assert list(sampler) == whole
    assert len(sampler) == 7
    sampler.skip(3)
    sampler.set_epoch(4)
    assert list(sampler) == whole
    with pytest.raises(DataError, match="2 videos for 3 processes"):
        EpochSampler(2, 1, world=3)


# Loaders


def test_training_is_the_same_with_workers_after_resuming_and_without_the_global_generator(folder):
    setup = config(folder, max_frames=8)
    index = setup.index("train")
    plain = train_loader(setup, index, seed=5)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    epochs = []
    for epoch in (0, 1):
        plain.batch_sampler.set_epoch(epoch)
        epochs.append(batches(plain))
    assert torch.equal(torch.get_rng_state(), state)
    assert epochs[0] != epochs[1]
    assert sum(len(b[0]) for b in epochs[0]) == 13
    assert [f for b in epochs[0] for f in b[3]] == [i for i, v in enumerate(index.videos) if "broken" in v.path]
    parallel = train_loader(replace(setup, workers=2), index, seed=5)
    for epoch in (1, 0):  # the workers stay, the epoch changes
        parallel.batch_sampler.set_epoch(epoch)
        assert batches(parallel) == epochs[epoch]
    parallel.batch_sampler.set_epoch(0)
    for _ in parallel:  # left in the middle, as a run that stops
        break
    for loader in (plain, parallel):
        loader.batch_sampler.set_epoch(1)
        loader.batch_sampler.skip(2)
        assert batches(loader) == epochs[1][2:]
    assert torch.equal(torch.get_rng_state(), state)
    assert batches(train_loader(setup, index, seed=6)) != epochs[0]


@pytest.mark.parametrize("cache", ["none", "memory", "disk"])
def test_caches_and_buckets_change_nothing(folder, tmp_path, cache):
    setup = config(folder, workers=1, cache=cache, cache_dir=str(tmp_path), buckets=2)
    index = setup.index("train")
    expected = batches(train_loader(replace(setup, workers=0, cache="none"), index))
    loader = train_loader(setup, index)
    for _ in range(2):
        assert batches(loader) == expected
    assert len([f for b in expected for f in b[3]]) == 1


def test_spawned_workers_share_the_memory_cache(folder, monkeypatch):
    def in_this_process(dataset, cache, options):  # starting processes is what takes long here
        preload(dataset, cache, {})

    monkeypatch.setattr(loader_module, "preload", in_this_process)
    setup = config(folder, workers=1, cache="memory")
    index = setup.index("train")
    expected = batches(train_loader(replace(setup, workers=0, cache="none"), index))
    loader = train_loader(setup, index, start_method="spawn")
    for _ in range(2):
        assert batches(loader) == expected


def test_two_ranks_validate_every_video_once(folder):
    setup = config(folder)
    index = setup.index("val")
    seen = [b for rank in (0, 1) for b in val_loader(setup, index, rank=rank, world=2)]
    assert sorted(i for b in seen for i in b.indices.tolist()) == list(range(7))
    for batch in seen:
        for row, length in zip(batch.frames, batch.lengths):
            assert not row[length:].any()  # padding is zero and at the end
        assert batch.frames.shape[1] == max(batch.lengths)


def test_batches_of_nothing(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.mp4").write_bytes(b"")
    rows = "".join(f"{i}.mp4,{'xy'[i % 2]}\n" for i in range(3))
    (tmp_path / "l.csv").write_text(rows)
    setup = DataConfig(list=str(tmp_path / "l.csv"), size=(8, 8), batch_size=2, workers=0)
    (first, second) = list(val_loader(setup, setup.index("all")))
    assert first.frames.shape == (0, 1, 3, 8, 8)
    assert first.lengths.shape == first.labels.shape == first.indices.shape == (0,)
    assert (len(first.failures), len(second.failures)) == (2, 1)
    assert "empty" in first.failures[0].reason
    multi = list(val_loader(setup, setup.index("all", multi_label=True)))
    assert multi[0].labels.shape == (0, 2)
    assert multi[0].labels.dtype == torch.float32


@pytest.mark.slow  # timed: it wants idle cores
def test_second_epoch_of_small_cached_videos_is_fast(folder):
    setup = config(folder, cache="memory", augment=Augmentation(flip=0.5), batch_size=13)
    loader = train_loader(setup, setup.index("train"))
    start = time.perf_counter()
    for epoch in range(20):
        loader.batch_sampler.set_epoch(epoch)
        list(loader)
    assert (time.perf_counter() - start) / (20 * 13) < 0.01  # seconds per video; decoding takes more than that


# Damaged and unusual files


@pytest.mark.skipif(not ODD.is_dir(), reason="the real videos are not beside the repository")
def test_damaged_files_warn_once_and_refused_ones_are_counted():
    setup = DataConfig(list=str(ODD / "odd.csv"), size=(16, 16), batch_size=4, workers=1)
    index = setup.index("all")
    wanted = [i for i, v in enumerate(index.videos) if Path(v.path).name[:2] in ("14", "16", "25", "26", "28", "33")]
    index = index._replace(videos=[index.videos[i] for i in wanted])
    loader = val_loader(setup, index)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        seen = [b for _ in range(2) for b in loader]
    partial = [str(w.message) for w in caught if issubclass(w.category, PartialVideoWarning)]
    assert len(partial) == 2
    assert any("28" in text for text in partial)
    assert any("136" in text for text in partial)
    assert sum(len(b.paths) for b in seen) == 2 * 4
    lengths = {Path(p).name[:2]: int(n) for b in seen for p, n in zip(b.paths, b.lengths)}
    assert lengths == {"14": 28, "16": 1, "25": 136, "33": 40}
    assert sorted(Path(f.path).name[:2] for b in seen for f in b.failures) == ["26", "26", "28", "28"]


def test_other_warnings_are_shown_and_damaged_ones_are_collected():
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with catch_damage() as notes:
            warnings.warn(PartialVideoWarning("damaged"), stacklevel=1)
            warnings.warn("something else", stacklevel=1)
        warnings.warn("later", stacklevel=1)
    assert notes == ["damaged"]
    assert [str(w.message) for w in shown] == ["something else", "later"]
