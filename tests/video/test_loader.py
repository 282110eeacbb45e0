"""Batches: the same in every process and after every restart, each video once."""

import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tttvideo.video.loader as loader_module
from tests.video.small import batches, config
from tttvideo.video.dataset import DataConfig
from tttvideo.video.index import DataError
from tttvideo.video.loader import EpochSampler, preload, train_loader, val_loader
from tttvideo.video.reader import PartialVideoWarning
from tttvideo.video.reading import catch_damage
from tttvideo.video.transforms import Augmentation

ODD = Path(__file__).resolve().parents[2] / ".." / "shared" / "videos" / "odd"


# The order of an epoch


@pytest.mark.parametrize("buckets", [1, 3])
@pytest.mark.parametrize(("n", "world"), [(37, 1), (37, 2), (5, 4), (64, 3)])
def test_training_order(n, world, buckets):
    lengths = [(i * 7919) % 101 for i in range(n)]
    ranks = [EpochSampler(n, 4, seed=3, rank=r, world=world, lengths=lengths, buckets=buckets) for r in range(world)]
    epochs = []
    for epoch in (0, 1):
        for sampler in ranks:
            sampler.start_at(epoch)
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
    ranks[0].start_at(0)
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


def test_a_pass_starts_where_it_is_told_however_often_it_is_asked_for():
    sampler = EpochSampler(20, 3, seed=1)
    sampler.start_at(4)
    whole = list(sampler)
    sampler.start_at(4, 2)
    for _ in range(3):  # a DataLoader with workers asks twice
        assert list(sampler) == whole[2:]
    assert len(sampler) == 7
    sampler.start_at(4)
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
        plain.batch_sampler.start_at(epoch)
        epochs.append(batches(plain))
    assert torch.equal(torch.get_rng_state(), state)
    assert epochs[0] != epochs[1]
    assert sum(len(b[0]) for b in epochs[0]) == 13
    assert [f for b in epochs[0] for f in b[3]] == [i for i, v in enumerate(index.videos) if "broken" in v.path]
    parallel = train_loader(replace(setup, workers=2), index, seed=5)
    for epoch in (1, 0):  # the workers stay, the epoch changes
        parallel.batch_sampler.start_at(epoch)
        assert batches(parallel) == epochs[epoch]
    parallel.batch_sampler.start_at(0)
    for _ in parallel:  # left in the middle, as a run that stops
        break
    for loader in (plain, parallel):
        loader.batch_sampler.start_at(1, 2)
        assert batches(loader) == epochs[1][2:]
    afresh = train_loader(replace(setup, workers=2), index, seed=5)  # as a process that resumes
    afresh.batch_sampler.start_at(1, 2)
    assert batches(afresh) == epochs[1][2:]
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
        loader.batch_sampler.start_at(epoch)
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
