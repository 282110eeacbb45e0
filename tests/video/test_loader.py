"""Batches: the same in every process and after every restart, each video once."""

import itertools
import time
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tttvideo.video.loader as loader_module
from tests.video.small import batches, config
from tttvideo.video.dataset import DataConfig, VideoDataset
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


@pytest.mark.parametrize("world", [1, 2, 3, 9])
def test_ranks_validate_every_video_once(folder, world):
    setup = config(folder)
    index = setup.index("val")
    places = []
    for rank in range(world):
        loader, batches = val_loader(setup, index, segment=4, rank=rank, world=world)
        pieces = list(loader)
        assert [piece.batch for piece in pieces if piece.last] == list(range(len(batches)))
        places += [place for batch in batches for place in batch]
        for piece in pieces:
            for row, length in zip(piece.frames, piece.lengths):
                assert not row[length:].any()  # padding is zero and at the end
            assert piece.frames.shape[1] == max(piece.lengths)
    assert sorted(places) == list(range(7))


@pytest.mark.parametrize(
    ("sampling", "first", "cache"),
    [
        case if case[2] == "none" or case[:2] == ("fps=5", 5) else pytest.param(*case, marks=pytest.mark.slow)
        for case in itertools.product(("dense", "uniform=4", "fps=5"), (None, 5), ("none", "memory", "disk"))
    ],
)
def test_pieces_are_the_samples_of_evaluation(folder, tmp_path, cache, first, sampling):
    """Whether they come from the file, or from a cache on the second pass too."""
    setup = config(folder, sampling=sampling, cache=cache, cache_dir=str(tmp_path))
    index = setup.index("val")
    plain = VideoDataset(index, setup.preprocessing, first=first)
    loader, batches = val_loader(setup, index, segment=3, first=first)
    for _ in range(2):
        read = {place: [] for batch in batches for place in batch}
        for piece in loader:
            for row, place in enumerate(batches[piece.batch]):
                read[place].append(piece.frames[row, : piece.lengths[row]])
        for place, frames in read.items():
            expected = plain[0, place].frames
            assert torch.equal(torch.cat(frames), expected)
            assert first is None or len(expected) <= first


def test_batches_of_nothing(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.mp4").write_bytes(b"")
    rows = "".join(f"{i}.mp4,{'xy'[i % 2]}\n" for i in range(3))
    (tmp_path / "l.csv").write_text(rows)
    setup = DataConfig(list=str(tmp_path / "l.csv"), size=(8, 8), batch_size=2, workers=0)
    index = setup.index("all")
    pieces = list(val_loader(setup, index, segment=4)[0])
    assert [(piece.batch, piece.last, piece.lengths.tolist()) for piece in pieces] == [
        (0, True, [0, 0]),
        (1, True, [0]),
    ]
    assert "empty" in pieces[0].failures[1]
    (first, second) = list(train_loader(setup, index))
    assert first.frames.shape == (0, 1, 3, 8, 8)
    assert first.lengths.shape == first.labels.shape == first.indices.shape == (0,)
    assert (len(first.failures), len(second.failures)) == (2, 1)
    assert "empty" in first.failures[0].reason
    multi = list(train_loader(setup, setup.index("all", multi_label=True)))
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
    loader, batches = val_loader(setup, index, segment=50)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        seen = [piece for _ in range(2) for piece in loader]
    partial = [str(w.message) for w in caught if issubclass(w.category, PartialVideoWarning)]
    assert len(partial) == 2
    assert any("28" in text for text in partial)
    assert any("136" in text for text in partial)
    lengths, failed = Counter(), []
    for piece in seen:
        names = [Path(index.videos[place].path).name[:2] for place in batches[piece.batch]]
        lengths.update(dict(zip(names, piece.lengths.tolist())))
        failed += [names[row] for row in piece.failures if piece.last]
    assert {name: n for name, n in lengths.items() if n} == {"14": 2 * 28, "16": 2, "25": 2 * 136, "33": 2 * 40}
    assert sorted(failed) == ["26", "26", "28", "28"]


def test_other_warnings_are_shown_and_damaged_ones_are_collected():
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with catch_damage() as notes:
            warnings.warn(PartialVideoWarning("damaged"), stacklevel=1)
            warnings.warn("something else", stacklevel=1)
        warnings.warn("later", stacklevel=1)
    assert notes == ["damaged"]
    assert [str(w.message) for w in shown] == ["something else", "later"]
