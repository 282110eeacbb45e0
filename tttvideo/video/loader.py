"""Batches of videos: the order of an epoch, sharding by rank, length buckets, padding, workers, resume.

The loaders are sharded already and keep their own generators: do not pass them to `accelerator.prepare`.
"""

import logging
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from .cache import Clip, DiskCache, MemoryCache
from .dataset import DataConfig, Failure, FilmPart, FilmSegment, Sample, VideoDataset
from .index import DataError, Index
from .reader import PartialVideoWarning, VideoError
from .reading import catch_damage
from .segments import SegmentedBatches
from .transforms import Preprocessing, sample_generator
from .workers import WorkerLoader

_log = logging.getLogger(__name__)
_ORDER, _BUCKETS = -1, -2  # stand for an example's number where the whole epoch draws


class Batch(NamedTuple):
    """Clips padded with zero frames at the end to the longest. B is 0 if none could be read, and then F is
    1."""

    frames: Tensor  # uint8 [B, F, 3, H, W]
    lengths: Tensor  # int64 [B], frames that are not padding
    labels: Tensor  # int64 [B], or float32 [B, n_classes] if multi-label
    indices: Tensor  # int64 [B], places in the index
    paths: list[str]
    failures: list[Failure]
    notes: list[str]  # warnings of readers


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """The batches of one rank, as lists of (epoch, index).

    The order is a permutation drawn from (seed, epoch). All ranks get equally many batches of equal size; if the number
    of videos is not divisible by `world`, the last fewer than `world` of the permutation are left out in that epoch.

    Args:
        n: number of videos.
        batch_size: per rank.
        lengths: frames per video; needed for `buckets` > 1, where a batch takes videos of similar length.
        classes: of each video, where all classes are to come equally often: an epoch then takes some videos several
            times and leaves out others, other ones each time.

    Raises:
        DataError: fewer videos than ranks.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        lengths: Sequence[int] | None = None,
        buckets: int = 1,
        classes: Sequence[int] | None = None,
    ) -> None:
        if n < world:
            raise DataError(f"there are {n} videos for {world} processes; use fewer processes")
        self.n, self.batch_size, self.seed = n, batch_size, seed
        self.rank, self.world, self.lengths = rank, world, lengths
        self.buckets = buckets if lengths is not None else 1
        self.classes = classes
        self.epoch = 0
        self.first = 0

    def start_at(self, epoch: int, batch: int = 0) -> None:
        """Every pass from now on is through this epoch, from this batch on, without reading those before.

        Iterating consumes nothing: a DataLoader with workers calls ``iter`` twice for one pass.
        """
        self.epoch, self.first = epoch, batch

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank."""
        whole = self.batch_size * self.world
        rest = self.n % whole
        return self.n // whole + (rest >= self.world)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter([[(self.epoch, i) for i in batch] for batch in self._batches(self.epoch)[self.first :]])

    def _batches(self, epoch: int) -> list[list[int]]:
        whole = self.batch_size * self.world
        order = self._permutation(epoch)
        chunks = [order[at : at + whole] for at in range(0, len(order), whole)]
        if self.buckets > 1:  # else all short videos would come first
            draw = torch.randperm(len(chunks), generator=sample_generator(self.seed, epoch, _BUCKETS))
            chunks = [chunks[i] for i in draw.tolist()]
        return [chunk[self.rank :: self.world] for chunk in chunks]

    def _balanced(self, order: list[int]) -> list[int]:
        """As many videos, those of all classes in turn: a class begins again where it has no more."""
        assert self.classes is not None
        members: dict[int, list[int]] = {}
        for i in order:
            members.setdefault(self.classes[i], []).append(i)
        turns = list(members.values())
        return [turns[k % len(turns)][k // len(turns) % len(turns[k % len(turns)])] for k in range(len(order))]

    def _permutation(self, epoch: int) -> list[int]:
        """With buckets: whole batches of one bucket each, then what is left of the buckets, short to long."""
        order = torch.randperm(self.n, generator=sample_generator(self.seed, epoch, _ORDER)).tolist()
        if self.classes is not None:
            order = self._balanced(order)
        order = order[: self.n - self.n % self.world]
        if self.buckets == 1 or self.lengths is None:
            return order
        whole = self.batch_size * self.world
        ranked = torch.tensor(self.lengths).argsort(stable=True).tolist()
        bucket_of = {i: rank * self.buckets // self.n for rank, i in enumerate(ranked)}
        members: list[list[int]] = [[] for _ in range(self.buckets)]
        for i in order:
            members[bucket_of[i]].append(i)
        cut = [len(m) - len(m) % whole for m in members]
        return [i for m, at in zip(members, cut) for i in m[:at]] + [i for m, at in zip(members, cut) for i in m[at:]]


class Collate:
    """Samples and failures to a Batch; needs shape and type of a frame because there may be no sample at all."""

    def __init__(
        self,
        frame: tuple[tuple[int, int, int], torch.dtype],
        label_shape: tuple[int, ...],
        label_type: torch.dtype,
    ) -> None:
        self.frame, self.label_shape, self.label_type = frame, label_shape, label_type

    def __call__(self, items: Sequence[Sample | Failure]) -> Batch:
        samples = [item for item in items if isinstance(item, Sample)]
        lengths = [len(s.frames) for s in samples]
        frames = torch.zeros(len(samples), max(lengths, default=1), *self.frame[0], dtype=self.frame[1])
        for row, sample in zip(frames, samples):
            row[: len(sample.frames)] = sample.frames
        labels = torch.empty(len(samples), *self.label_shape, dtype=self.label_type)
        for i, sample in enumerate(samples):
            labels[i] = sample.label
        return Batch(
            frames,
            torch.tensor(lengths, dtype=torch.int64),
            labels,
            torch.tensor([s.index for s in samples], dtype=torch.int64),
            [s.path for s in samples],
            [item for item in items if isinstance(item, Failure)],
            [s.note for s in samples if s.note],
        )


class SegmentBatch(NamedTuple):
    """The next segments of films that are read side by side; a row whose film cannot be read has length 0."""

    frames: Tensor  # as in `Batch`, a row for each film
    lengths: Tensor
    labels: Tensor  # of a row that could not be read: 0
    films: Tensor  # int64 [B, 2]: pass over all films, place in the index
    paths: list[str]
    failures: list[Failure]
    notes: list[str]


class SegmentCollate(Collate):
    """Parts of films to a SegmentBatch."""

    def __call__(self, items: Sequence[FilmSegment]) -> SegmentBatch:  # type: ignore[override]
        answers = [item.answer for item in items]
        lengths = [len(a.frames) if isinstance(a, Sample) else 0 for a in answers]
        frames = torch.zeros(len(items), max([1, *lengths]), *self.frame[0], dtype=self.frame[1])
        labels = torch.zeros(len(items), *self.label_shape, dtype=self.label_type)
        for row, answer in enumerate(answers):
            if isinstance(answer, Sample):
                frames[row, : lengths[row]] = answer.frames
                labels[row] = answer.label
        return SegmentBatch(
            frames,
            torch.tensor(lengths, dtype=torch.int64),
            labels,
            torch.tensor([item.part[:2] for item in items], dtype=torch.int64),
            [a.path for a in answers if isinstance(a, Sample)],
            [a for a in answers if isinstance(a, Failure)],
            [a.note for a in answers if isinstance(a, Sample) and a.note],
        )


class Loader(WorkerLoader):
    """Gives `Batch`es (or `Piece`s); warnings of readers in the workers are issued here, once per video.

    `loader.batch_sampler` is the EpochSampler: `start_at(epoch, batch)` before every epoch.
    """

    _issued: set[str] | None = None

    def __iter__(self) -> Any:
        return self._with_warnings(super().__iter__())

    def _with_warnings(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        self._issued = self._issued if self._issued is not None else set()
        for batch in batches:
            for note in batch.notes:
                if note not in self._issued:
                    self._issued.add(note)
                    warnings.warn(note, PartialVideoWarning, stacklevel=3)
            yield batch


def train_loader(
    config: DataConfig,
    index: Index,
    *,
    seed: int = 0,
    rank: int = 0,
    world: int = 1,
    start_method: str | None = None,
    reading: Preprocessing | None = None,
) -> Loader:
    """Shuffled, augmented batches of one rank.

    Fills the memory cache before it returns, if there is one (one log line; every rank keeps all videos).

    Args:
        start_method: of the worker processes: fork, forkserver or spawn; None: Python's default.
        reading: how the model's encoder has videos read; None: as frames.
    """
    if config.balance and (index.multi_label or not index.labels or config.buckets > 1):
        raise DataError(
            "data.balance takes all classes equally often, which needs videos of one class each and no data.buckets; "
            "leave it out"
        )
    options = _options(config, start_method)
    reading = reading or config.preprocessing
    how: dict[str, Any] = {"augment": config.augment, "seed": seed, "max_frames": config.max_frames}
    dataset = _dataset(config, index, options, reading, schedule=config.length_schedule, **how)
    lengths = None
    if config.buckets > 1:
        opening = {} if isinstance(dataset.cache, MemoryCache) else options  # nothing to open then
        lengths = list(WorkerLoader(_Lengths(dataset), batch_size=None, **opening))
    sampler = EpochSampler(
        len(dataset),
        config.batch_size,
        seed=seed,
        rank=rank,
        world=world,
        lengths=lengths,
        buckets=config.buckets,
        classes=[cast(int, video.label) for video in index.videos] if config.balance else None,
    )
    n_classes = len(index.labels)
    multi = index.multi_label
    return Loader(
        dataset,
        batch_sampler=sampler,
        collate=Collate(reading.frame, (n_classes,) if multi else (), torch.float32 if multi else torch.int64),
        pin_memory=torch.cuda.is_available(),
        persistent_workers=True,
        **options,
    )


def film_lengths(config: DataConfig, index: Index, reading: Preprocessing) -> list[int]:
    """Frames of each video after sampling; 0 of one that cannot be read."""
    dataset = VideoDataset(index, reading)
    return list(WorkerLoader(_Lengths(dataset), batch_size=None, **_options(config, None)))


def segment_loader(
    config: DataConfig, index: Index, sampler: Sampler[list[FilmPart]], *, seed: int, reading: Preprocessing
) -> Loader:
    """Training videos in segments, as a sampler of one rank says."""
    options = _options(config, None)
    how: dict[str, Any] = {"augment": config.augment, "seed": seed, "max_frames": config.max_frames}
    dataset = _dataset(config, index, options, reading, schedule=config.length_schedule, **how)
    labels = ((len(index.labels),), torch.float32) if index.multi_label else ((), torch.int64)
    return Loader(
        dataset,
        batch_sampler=sampler,
        collate=SegmentCollate(reading.frame, *labels),
        pin_memory=torch.cuda.is_available(),
        persistent_workers=True,
        **options,
    )


def val_loader(
    config: DataConfig,
    index: Index,
    *,
    segment: int,
    first: int | None = None,
    rank: int = 0,
    world: int = 1,
    start_method: str | None = None,
    reading: Preprocessing | None = None,
) -> tuple[Loader, list[list[int]]]:
    """Whole videos in batches, each read in pieces of `segment` frames; the same every time, each video once over all
    ranks.

    Args:
        first: frames that each video is cut to; None: none is.
        reading: how the model's encoder has videos read; None: as frames.

    Returns:
        a loader of `segments.Piece`, and the places in the index of the videos of each batch.
    """
    options = _options(config, start_method)
    reading = reading or config.preprocessing
    dataset = _dataset(config, index, options, reading, first=first)
    mine = list(range(rank, len(dataset), world))
    batches = [mine[start : start + config.batch_size] for start in range(0, len(mine), config.batch_size)]
    options["workers"] = min(config.workers, len(batches))
    loader = Loader(
        SegmentedBatches(batches, partial(dataset.pieces, segment), reading.frame, dataset.path),
        batch_size=None,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=True,
        **options,
    )
    return loader, batches


def _options(config: DataConfig, start_method: str | None) -> dict[str, Any]:
    return {
        "workers": config.workers,
        "multiprocessing_context": start_method,
        "time_limit": config.time_limit,
    }


def _dataset(
    config: DataConfig, index: Index, options: dict[str, Any], reading: Preprocessing, **how: Any
) -> VideoDataset:
    """The videos, with their cache, which is filled if it is in memory."""
    cache = {"none": lambda: None, "memory": MemoryCache, "disk": lambda: DiskCache(config.cache_dir)}[config.cache]()
    dataset = VideoDataset(index, reading, cache=cache, **how)
    if isinstance(cache, MemoryCache):
        preload(dataset, cache, options)
    return dataset


def preload(dataset: VideoDataset, cache: MemoryCache, options: dict[str, Any]) -> None:
    """Decodes every video into the cache: in short-lived workers if there are any, because a process that has
    used decord should not be forked."""
    loader = WorkerLoader(_Clips(dataset), batch_size=None, **options)
    for i, (clip, reason, note) in enumerate(loader):
        if clip is None:
            cache.failures[i] = reason
        else:
            cache.store(i, clip)
        if note:
            warnings.warn(note, PartialVideoWarning, stacklevel=4)
    size = sum(c.frames.numel() for c in map(cache.load, range(len(dataset))) if c is not None)
    _log.info("%d videos kept in memory: %.1f MB", len(dataset) - len(cache.failures), size / 1e6)


class _Each(Dataset):
    """Something of each video of a dataset, by its number."""

    def __init__(self, dataset: VideoDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def name(self, i: int) -> str:
        return self.dataset.path(i)


class _Clips(_Each):
    """(clip or None, why not, warning)."""

    def __getitem__(self, i: int) -> tuple[Clip | None, str, str]:
        with catch_damage() as notes:
            try:
                clip, reason = self.dataset.decode(i), ""
            except (VideoError, OSError) as error:
                clip, reason = None, str(error)
        return clip, reason, "; ".join(notes)


class _Lengths(_Each):
    def __getitem__(self, i: int) -> int:
        return self.dataset.length(i)
