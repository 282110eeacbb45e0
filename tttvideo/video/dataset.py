"""Videos as training and validation examples: decoding, sampling, windows, augmentation, cache.

An item is asked for by (epoch, index), and its randomness comes from (seed, epoch, index) alone: no matter in
which process, in which order and after how many restarts it is read, it is the same.
"""

import math
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..printing import printable
from .cache import Clip, DiskCache, MemoryCache
from .index import DataError, Fold, Index, Video, build_index
from .reader import PartialVideoWarning, VideoError, VideoWarning
from .reading import Notes, catch_damage, open_sized, within
from .sampling import Dense, Uniform, parse_sampling
from .segments import video_pieces
from .transforms import Augmentation, Preprocessing, sample_generator
from .workers import TIME_LIMIT


@dataclass(frozen=True)
class DataConfig:
    """Which videos, and how they come into batches.

    Args:
        root: folder of class folders (root/train/<class>/*, or root/<class>/* which is then divided here); with a
            list beside it, the folder against which the list's relative paths are resolved.
        list: list file, `path,label[,start,end][,group][,split]`.
        split_train: the split to learn from.
        split_val: the split to measure on and to choose the best checkpoint by.
        val_fraction: share of the videos kept for `val` if the data have no splits of their own.
        split_seed: seed of that division; apart from the run's seed, so that runs with other seeds stay
            comparable.
        fold: [k, n]: the videos of split_train and split_val are divided into n folds; the k-th is measured on and the
            others are learned from. Folds are grouped and stratified by class (split_seed), or those of the list's
            column `fold`; null: no folds.
        size: height and width of the frames, in pixels.
        fit: crop, pad or stretch frames of another shape.
        sampling: which frames are used: dense, fps=R, uniform=N, segments=N, window=SECONDS or last=N.
        stream: which video stream of a file with several, counted from 0 (cover pictures do not count); null: the
            first that is marked as default, or else the largest.
        max_frames: train on a random window of at most this many consecutive (sampled) frames; null: whole
            videos.
        length_schedule: windows that grow: [[0, 64], [5, 256]] are 64 frames at most in five epochs, then 256;
            max_frames stays the most. Empty: max_frames from the start.
        batch_size: videos per process and step.
        workers: processes that decode, per training process; 0: decode in the training process.
        time_limit: seconds that a worker may take for one video; then the run stops and names it.
        buckets: sort the videos into this many groups by length and make batches within a group, which wastes
            less on padding; 1: no groups.
        balance: training takes all classes equally often, however many videos they have: an epoch is as long, but has
            some videos several times and others not at all, other ones each time.
        cache: keep decoded frames in `memory`, or on `disk` in cache_dir, or `none`.
        cache_dir: folder of the disk cache (default: the user's cache folder, ~/.cache/tttvideo/frames).
        augment: random changes of training videos.
    """

    root: str | None = None
    list: str | None = None
    split_train: str = "train"
    split_val: str = "val"
    val_fraction: float = 0.2
    split_seed: int = 0
    fold: tuple[int, int] | None = None
    size: tuple[int, int] = (64, 64)
    fit: Literal["crop", "pad", "stretch"] = "crop"
    sampling: str = "dense"
    stream: int | None = None
    max_frames: int | None = None
    length_schedule: tuple[tuple[int, int], ...] = ()
    batch_size: int = 8
    workers: int = 2
    time_limit: float = TIME_LIMIT
    buckets: int = 1
    balance: bool = False
    cache: Literal["none", "memory", "disk"] = "none"
    cache_dir: str | None = None
    augment: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("workers", 0), ("buckets", 1), ("max_frames", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise DataError(f"data.{name} is {value}; it must be at least {least}")
        epochs = [epoch for epoch, _ in self.length_schedule]
        if epochs != sorted(set(epochs)) or any(epoch < 0 or frames < 1 for epoch, frames in self.length_schedule):
            raise DataError(
                f"data.length_schedule is {[list(pair) for pair in self.length_schedule]}; it must be a list of "
                "[epoch, frames], epochs rising from 0, such as [[0, 64], [5, 256]]"
            )
        if self.fold is not None and not 1 <= self.fold[0] <= self.fold[1] >= 2:
            raise DataError(f"data.fold is {list(self.fold)}; it must be [k, n], k from 1 to n, n at least 2")
        if not 0 < self.time_limit < math.inf:
            raise DataError(f"data.time_limit is {self.time_limit:g}; it must be a positive number of seconds")
        if self.cache not in ("none", "memory", "disk"):
            raise DataError(f"data.cache is {self.cache!r}; it must be none, memory or disk")
        object.__setattr__(self, "size", self.preprocessing.size)  # checks size, fit and sampling too

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing(self.size, self.fit, self.sampling, self.stream)

    @property
    def source(self) -> str:
        """The list file, or else the folder. Raises DataError if neither is given."""
        if not (self.root or self.list):
            raise DataError("no data given; set data.root to a folder of class folders or data.list to a list file")
        if self.list and self.root and not os.path.isdir(self.root):
            raise DataError(f"data.root {self.root} is not a folder; give the folder of the list's paths")
        return str(self.list or self.root)

    def index(
        self,
        split: str,
        *,
        labels: Sequence[str] | None = None,
        multi_label: bool | None = None,
        labelled: bool = True,
    ) -> Index:
        """`build_index` of the source with this configuration's rule for making splits."""
        if self.root and not self.list and os.path.isfile(self.root):
            raise DataError(f"data.root {self.root} is a file; give a list file as data.list")
        parts = (self.split_train, self.split_val)
        fold = None if self.fold is None or split not in parts else Fold(*self.fold, *parts)
        return build_index(
            self.source,
            split,
            root=self.root if self.list else None,
            labels=labels,
            multi_label=multi_label,
            val_fraction=self.val_fraction,
            seed=self.split_seed,
            labelled=labelled,
            fold=fold,
        )


class Sample(NamedTuple):
    """One example as the model gets it."""

    frames: Tensor  # uint8 [F, 3, H, W], or features [F, channels, rows, columns]
    label: Tensor  # int64 [] (-1: not labelled), or float32 [n_classes] of 0 and 1 (multi-label)
    index: int
    path: str
    note: str | None = None  # what a reader warned of (a damaged file that is used in part)


class Failure(NamedTuple):
    """An example that cannot be read."""

    index: int
    path: str
    reason: str


class FilmPart(NamedTuple):
    """What is read of a training video where it is read in segments: those of its frames [start, stop) that sampling
    and the window have left. All parts of a video in one epoch are of the same window, changed in the same way."""

    epoch: int
    index: int
    start: int
    stop: int


class FilmSegment(NamedTuple):
    """A part that was read."""

    part: FilmPart
    answer: Sample | Failure


class VideoDataset(Dataset):
    """Samples by (epoch, index); what cannot be read comes as a `Failure` instead, never as another sample.

    Args:
        augment: training: random sampling within the rule, `max_frames` windows and these changes. None:
            evaluation, the same frames always.
        max_frames: training only.
        schedule: of shorter windows in early epochs, as `DataConfig.length_schedule`.
        first: evaluation only: each video is cut to so many frames, before the sampling rule; None: whole videos.
        cache: a DiskCache, or a MemoryCache that `preload` (loader.py) has filled; None decodes every time.
    """

    def __init__(
        self,
        index: Index,
        preprocessing: Preprocessing,
        *,
        augment: Augmentation | None = None,
        seed: int = 0,
        max_frames: int | None = None,
        first: int | None = None,
        cache: DiskCache | MemoryCache | None = None,
        schedule: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.index = index
        self.preprocessing = preprocessing
        self.augment = augment
        self.seed = seed
        self.max_frames = max_frames
        self.first = first
        self.schedule = schedule
        self.cache = cache
        self._rule = parse_sampling(preprocessing.sampling)
        # A rule without randomness is applied before frames are kept, any other one to the kept frames.
        self._rule_first = isinstance(self._rule, Dense | Uniform)
        self._margin = augment.margin if augment else 1.0
        if augment and augment.changes:
            import torchvision.transforms.v2  # noqa: F401  (here, and not by every worker)
        self._damaged: set[int] = set()

    def __len__(self) -> int:
        return len(self.index.videos)

    def __getitem__(self, item: tuple[int, int] | FilmPart) -> Sample | Failure | FilmSegment:
        if isinstance(item, FilmPart):
            return FilmSegment(item, self._sample(item.epoch, item.index, slice(item.start, item.stop)))
        return self._sample(*item, slice(None))

    def _sample(self, epoch: int, i: int, part: slice) -> Sample | Failure:
        video = self.index.videos[i]
        generator = sample_generator(self.seed, epoch, i) if self.augment else None
        with catch_damage() as notes:
            try:
                frames = self._frames(epoch, i, generator, notes, part)
            except (VideoError, OSError) as error:
                return Failure(i, printable(video.path), str(error))
        if self.augment and generator and frames.dtype == torch.uint8:
            frames = self.augment.apply(frames, self.preprocessing, generator)
        else:  # features of a changed view were changed when they were made
            frames = self.preprocessing.apply(frames)
        return Sample(frames, self._label(video), i, video.path, "; ".join(notes) or None)

    def longest(self, epoch: int) -> int | None:
        """Frames of a training window in an epoch; None: whole videos."""
        return longest(self.schedule, self.max_frames, epoch)

    def name(self, item: tuple[int, ...]) -> str:
        return self.path(item[1])

    def path(self, i: int) -> str:
        return self.index.videos[i].path

    def decode(self, i: int) -> Clip:
        """All frames of a video that training could ask for, at decode size.

        Raises:
            VideoError: the file cannot be read or has no frames between start and end.
        """
        video = self.index.videos[i]
        with open_sized(video.path, self.preprocessing, self._margin) as reader:
            inside = within(reader, video.start, video.end)[: self.first]
            times = reader.times[inside]
            if self._rule_first:
                keep = self._rule.indices(times - times[0], None)
                inside, times = inside[keep], times[keep]
            frames = reader.read(inside)
        return Clip(frames, times[: len(frames)])  # fewer than asked for where the file is damaged

    def pieces(self, segment: int, i: int) -> Iterator[Tensor]:
        """A video as evaluation sees it, uint8 [<= segment, 3, H, W] at a time. No more of it is held, unless it has to
        be decoded into a cache first.

        Raises:
            VideoError, OSError: the file cannot be read or has no frames between start and end.
        """
        video = self.index.videos[i]
        if self.cache is None:
            how = (self.preprocessing, segment, self.first, self._rule)
            yield from video_pieces(video.path, *how, video.start, video.end)
            return
        with catch_damage() as notes:
            frames, times = self._cached(i, notes)
        for note in notes:
            warnings.warn(note, PartialVideoWarning if notes.damage else VideoWarning, stacklevel=2)
        for keep in self._choose(times, self._rule_first, None).split(segment):
            yield self.preprocessing.apply(_take(frames, keep))

    def length(self, i: int) -> int:
        """Frames of a video after sampling and before augmentation, without decoding; 0 if it cannot be
        read."""
        video = self.index.videos[i]
        try:
            clip = self.cache.load(i) if isinstance(self.cache, MemoryCache) else None
            if clip is not None:
                times = clip.times
            else:
                with open_sized(video.path, self.preprocessing, self._margin) as reader:
                    times = reader.times[within(reader, video.start, video.end)]
        except (VideoError, OSError):
            return 0
        n = len(times) if clip is not None and self._rule_first else len(self._rule.indices(times - times[0], None))
        return min(n, self.max_frames) if self.max_frames and self.augment else n

    def drawn_length(self, epoch: int, i: int) -> int:
        """Frames that training reads of a video in an epoch, without decoding; 0 if it cannot be read."""
        video, generator = self.index.videos[i], sample_generator(self.seed, epoch, i)
        try:
            with open_sized(video.path, self.preprocessing.drawn(generator), self._margin) as reader:
                times = reader.times[within(reader, video.start, video.end)]
        except (VideoError, OSError):
            return 0
        return len(self._choose(times, False, generator, epoch))

    def _frames(self, epoch: int, i: int, generator: torch.Generator | None, notes: Notes, part: slice) -> Tensor:
        """uint8 [F, 3, h, w] at decode size, part of those chosen. `notes` grows when a file is damaged."""
        video = self.index.videos[i]
        if self.cache is not None:
            frames, times = self._cached(i, notes)
            return _take(frames, self._choose(times, self._rule_first, generator, epoch)[part])
        preprocessing = self.preprocessing.drawn(generator) if generator else self.preprocessing
        with open_sized(video.path, preprocessing, self._margin) as reader:
            inside = within(reader, video.start, video.end)[: self.first]
            keep = self._choose(reader.times[inside], False, generator, epoch)[part]
            wanted, inverse = torch.unique(inside[keep], return_inverse=True)  # slow motion repeats frames
            frames = reader.read(wanted)
        return frames[inverse[inverse < len(frames)]]

    def _cached(self, i: int, notes: Notes) -> tuple[Tensor | np.ndarray, Tensor]:
        """Frames [F, 3, h, w] that the cache keeps of a video, and their times; kept from now on if they were not."""
        video = self.index.videos[i]
        if isinstance(self.cache, MemoryCache):
            if i in self.cache.failures:
                raise VideoError(self.cache.failures[i])
            clip = self.cache.load(i)
            if clip is None:
                clip = self.decode(i)
                self.cache.store(i, clip)
            return clip.frames, clip.times
        assert self.cache is not None
        rule, pre = str(self._rule) if self._rule_first else "all", self.preprocessing
        what = [
            pre.size,
            pre.fit,
            pre.stream,
            self._margin,
            rule,
            video.start,
            video.end,
            *([self.first] if self.first else []),
        ]
        file = self.cache.file(video.path, *what)
        kept = self.cache.load(file)
        if kept is not None:
            return kept
        clip = self.decode(i)
        # Of a damaged file nothing is kept, so that a later run warns of it again.
        if notes.damage:
            self._damaged.add(i)
        if i not in self._damaged:
            self.cache.store(file, clip)
        return clip.frames, clip.times

    def _choose(self, times: Tensor, sampled: bool, generator: torch.Generator | None, epoch: int = 0) -> Tensor:
        """Positions of the frames to use: sampling rule, then speed and drops, then a window."""
        if sampled:
            keep = torch.arange(len(times))
        else:
            keep = self._rule.indices(times - times[0], None if self._rule_first else generator)
        if self.augment and generator:
            keep = keep[self.augment.resample(len(keep), generator)]
            most = self.longest(epoch)
            if most and len(keep) > most:
                unit = self.preprocessing.window
                start = unit * int(torch.randint((len(keep) - most) // unit + 1, (), generator=generator))
                keep = keep[start : start + most]
        return keep

    def _label(self, video: Video) -> Tensor:
        if isinstance(video.label, tuple):
            label = torch.zeros(len(self.index.labels))
            label[list(video.label)] = 1
            return label
        return torch.tensor(-1 if video.label is None else video.label)


def longest(schedule: Sequence[tuple[int, int]], max_frames: int | None, epoch: int) -> int | None:
    """Frames of a training window in an epoch (from 0): what the last entry says that has begun."""
    begun = [frames for start, frames in schedule if start <= epoch]
    return min(begun[-1], max_frames or begun[-1]) if begun else max_frames


def _take(frames: Tensor | np.ndarray, keep: Tensor) -> Tensor:
    """Frames by number; of a mapped file only these are read."""
    if isinstance(frames, Tensor):
        return frames[keep]
    return torch.from_numpy(np.ascontiguousarray(frames[keep.numpy()]))
