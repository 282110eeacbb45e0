"""Videos read as features: what a frozen encoder made of them and a cache keeps, or files that people already have.

To everything that reads videos they are frames of another shape: [F, channels, rows, columns] in place of uint8
[F, 3, H, W], with the same numbers and times.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..files import map_array
from .kinds import FEATURES, features_of
from .listfile import DataError
from .probe import identity
from .reader import PartialVideoWarning, Reader, VideoError, VideoInfo, VideoWarning
from .rows import BLOCK, DamagedRows, Rows
from .sampling import Dense, Uniform, parse_sampling
from .transforms import Augmentation, Preprocessing, Span, sample_generator
from .workers import DataNote

Part = tuple[float | None, float | None, int | None]
"""What is read of a video: start and end in seconds, and frames that this is cut to before the sampling rule."""
PATH = "{path}"
"""Stands for the path of a video in what is kept of it."""
IN_TIME = ("speed", "drop")
"""What an ``Augmentation`` changes without changing a frame."""


@dataclass(frozen=True)
class FeaturePreprocessing(Preprocessing):
    """How videos become features for a model; a model saves the plain ``Preprocessing``.

    Attributes:
        shape: (channels, rows, columns) of a frame's features.
    """

    shape: tuple[int, int, int] = (1, 1, 1)

    @property
    def frame(self) -> tuple[tuple[int, int, int], torch.dtype]:
        return self.shape, torch.float32

    def apply(self, frames: Tensor, crop: float = 0.5) -> Tensor:
        """Features are what the model reads already."""
        return frames

    @abstractmethod
    def open(self, path: str, margin: float = 1.0) -> Reader: ...


@dataclass(frozen=True)
class CachedFeatures(FeaturePreprocessing):
    """Features in a folder of ``Rows``: one folder below it for each encoder and way of reading (``key``), one file in
    that for each video.

    Attributes:
        folder: of the cache.
        encoder: plain data that says what the encoder computes; with a digest of its weights.
        kind: how the numbers are kept.
        views: how often each video is kept: as it is (view 0), then with changes that are drawn once and for all.
        augment: what draws them.
        view: which of them is read.
        window: frames that the encoder sees together: a row is kept for so many sampled frames from the beginning of a
            video on, and read for each of them.
    """

    folder: str = ""
    encoder: dict[str, Any] = field(default_factory=dict, hash=False)
    kind: Literal["fp16", "bf16"] = "fp16"
    views: int = 1
    augment: Augmentation = field(default_factory=Augmentation)
    view: int = 0
    window: int = 1  # pyright: ignore[reportIncompatibleVariableOverride]

    @property
    def dtype(self) -> torch.dtype:
        return torch.float16 if self.kind == "fp16" else torch.bfloat16

    @property
    def frame(self) -> tuple[tuple[int, int, int], torch.dtype]:
        return self.shape, torch.float16 if self.kind == "fp16" else torch.float32

    @property
    def pixels(self) -> Preprocessing:
        """How the frames are read that the encoder sees."""
        return Preprocessing(**{f.name: getattr(self, f.name) for f in fields(Preprocessing)})

    @property
    def margin(self) -> float:
        """How much larger than the model's frames a view is decoded."""
        return self.augment.margin if self.view else 1.0

    @property
    def description(self) -> dict[str, Any]:
        """All that decides what the features of a video are, but the video."""
        said = {"encoder": self.encoder, "size": list(self.size), "fit": self.fit, "stream": self.stream}
        said |= {"kept": self.kind, "shape": list(self.shape), "format": 1}
        if self.window > 1:  # which depend on what frames there are before
            said |= {"window": self.window, "sampling": self.sampling}
        if self.view:
            changes = {f.name: getattr(self.augment, f.name) for f in fields(Augmentation) if f.name not in IN_TIME}
            said |= {"view": self.view, "changes": changes}
        return json.loads(json.dumps(said))

    @property
    def key(self) -> Path:
        """The folder of what ``description`` says."""
        text = json.dumps(self.description, sort_keys=True)
        return Path(self.folder).expanduser() / hashlib.sha256(text.encode()).hexdigest()[:16]

    def file(self, path: str) -> Path:
        name = hashlib.sha256(os.path.abspath(path).encode()).hexdigest()[:32]
        return self.key / name[:2] / f"{name}.safetensors"

    def drawn(self, generator: torch.Generator) -> CachedFeatures:
        if self.views == 1:
            return self
        return replace(self, view=int(torch.randint(self.views, (), generator=generator)))

    def changed(self, frames: Tensor, path: str) -> Tensor:
        """Decoded frames as the encoder sees them: those of a view with its changes, which are the same for all frames
        of a video, however they are divided."""
        if not self.view:
            return self.pixels.apply(frames)
        seed = int.from_bytes(hashlib.sha256(self.file(path).name.encode()).digest()[:4], "big")
        return self.augment.apply(frames, self.pixels, sample_generator(seed, self.view, 0))

    def serving(
        self, paths: Sequence[str], spans: Sequence[Span] | None = None, first: int | None = None
    ) -> Preprocessing:
        """Pixels, if the cache does not hold all of it as it was written."""
        spans = spans or [(None, None)] * len(paths)
        damaged = [path for path in dict.fromkeys(paths) if self._remove_if_damaged(path)]
        if damaged:
            warnings.warn(
                f"the cache {self.folder} holds damaged features of {len(damaged)} of these videos (first: "
                f"{damaged[0]}), which are removed; frames are decoded in their place, until `tttvideo cache` computes "
                "them anew",
                DataNote,
                stacklevel=2,
            )
            return self.pixels
        held = all(self.holds(path, [(*span, first)]) for path, span in zip(paths, spans, strict=True))
        return self if held else self.pixels

    def _remove_if_damaged(self, path: str) -> bool:
        """Whether what is kept of a video is not as it was written; it is removed then."""
        try:
            rows = Rows(self.file(path))
            for places in torch.arange(len(rows)).split(BLOCK):
                rows.take(places)
        except FileNotFoundError:
            return False
        except DamagedRows:
            with suppress(OSError):  # so that it is made again
                self.file(path).unlink()
            return True
        return False

    def open(self, path: str, margin: float = 1.0) -> FeatureReader:
        """Raises VideoError if the video cannot be read, or nothing is kept of it as it is now."""
        rows = self.kept(path)
        if rows is not None and "refused" in rows.about:
            raise VideoError(rows.about["refused"].replace(PATH, path))
        if rows is None:
            raise VideoError(f"{path}: its features are not in {self.folder}; add them by `tttvideo cache`")
        return FeatureReader(path, rows, self.shape, self.window)

    def kept(self, path: str) -> Rows | None:
        """What is kept of a video, if it is of this video as it is now. Raises VideoError if there is none."""
        marks = marks_of(path)
        try:
            rows = Rows(self.file(path))
        except (FileNotFoundError, DamagedRows):
            return None
        same = rows.about.get("video") == marks and rows.shape == (self.shape[1] * self.shape[2], self.shape[0])
        return rows if same else None

    def wanted(self, reader: Reader, parts: Sequence[Part]) -> Tensor:
        """Numbers of the frames of a video that reading its parts can ask for: with a rule that chooses the same frames
        every time only those. Of windows those of the longest part, which the others begin (see ``holds``)."""
        parts = parts if self.window == 1 else [(None, None, longest(parts))]
        return torch.unique(torch.cat([self._chosen(reader, part) for part in parts]))

    def _chosen(self, reader: Reader, part: Part) -> Tensor:
        from .reading import within

        (start, end, first), rule = part, parse_sampling(self.sampling)
        inside = within(reader, start, end)[:first]
        times = reader.times[inside]
        return inside[rule.indices(times - times[0], None)] if isinstance(rule, Dense | Uniform) else inside

    def check_windows(self, parts: Sequence[Part]) -> None:
        """Raises DataError for parts of a video whose windows one file cannot keep: they begin late, their frames
        change, or one does not begin the other."""
        if self.window == 1:
            return
        start = f"the encoder's cache keeps windows of {self.window} frames"
        if not isinstance(parse_sampling(self.sampling), Dense | Uniform):
            raise DataError(f"{start}, which data.sampling: {self.sampling} draws anew; use dense, fps=R or uniform=N")
        if any(part[:2] != (None, None) for part in parts):
            raise DataError(f"{start} of whole videos; leave start and end out, or set encoder.cache: null")
        firsts = {first for _, _, first in parts}
        if len(firsts) > 1 and (self.sampling != "dense" or any((first or 0) % self.window for first in firsts)):
            raise DataError(
                f"{start}, and data.sampling: {self.sampling} chooses others in a whole video than in its first frames "
                f"({', '.join(str(first) for first in firsts if first)}), which are read, too; set max_frames: null"
            )

    def holds(self, path: str, parts: Sequence[Part]) -> bool:
        """Whether exactly that is kept that reading parts of a video asks for: nothing, of one that cannot be read."""
        try:
            rows = self.kept(path)
            if rows is None:
                return False
            if rows.about.get("opened") is False:  # its disk was away, or rights were missing; not in old files
                with suppress(VideoError, OSError), self.pixels.open(path, self.margin):
                    return False
            if "refused" in rows.about:
                return True
            reader = FeatureReader(path, rows, self.shape)
            if self.window > 1:
                return self._holds_windows(rows, reader, parts)
            if len(rows) == len(rows.times):
                return True
            wanted = self.wanted(reader, parts)
        except VideoError:
            return True
        if rows.about["cut"]:
            wanted = wanted[wanted <= rows.numbers[-1]]
        return bool(torch.isin(wanted, rows.numbers).all())

    def _holds_windows(self, rows: Rows, reader: Reader, parts: Sequence[Part]) -> bool:
        """Whether the windows of each part are the first of those kept: its frames begin the frames that were encoded,
        and end with a window or with them."""
        if "first" not in rows.about:  # written before it was kept
            return False
        try:
            self.check_windows(parts)
        except DataError:
            return False
        last = rows.about["end"] if rows.about["cut"] else len(rows.times)
        encoded, *chosen = (
            numbers[numbers <= last]
            for numbers in (self._chosen(reader, part) for part in [(None, None, rows.about["first"]), *parts])
        )
        return all(
            torch.equal(numbers, encoded[: len(numbers)])
            and (len(numbers) % self.window == 0 or len(numbers) == len(encoded))
            for numbers in chosen
        )


@dataclass(frozen=True)
class FeatureFiles(FeaturePreprocessing):
    """Features in .npy files, one for each video: [T, D], or [D, T].

    Attributes:
        folder: where those of videos lie, under the same name; None: paths are those of the files.
        rate: time steps a second.
    """

    folder: str | None = None
    rate: float = 1.0
    layout: Literal["TD", "DT"] = "TD"

    def locate(self, path: str) -> str:
        """The file of a video's features."""
        if self.folder is None or path.endswith(FEATURES):
            return path
        return str(Path(self.folder).expanduser() / features_of(os.path.basename(path)))

    def shape_of(self, path: str) -> tuple[int, int] | None:
        """Of a file; None if it cannot be read."""
        with suppress(VideoError):
            return self._mapped(path).shape
        return None

    def open(self, path: str, margin: float = 1.0) -> Reader:
        array = self._mapped(path)
        features = array if self.layout == "TD" else array.T
        if features.shape[1] != self.shape[0]:
            raise VideoError(
                f"{self.locate(path)}: holds {array.shape[0]} x {array.shape[1]} numbers, but the model reads "
                f"{self.shape[0]} features a time step ({self.layout})"
            )
        return FileReader(path, features, self.rate, self.shape)

    def _mapped(self, path: str) -> np.ndarray:
        file = self.locate(path)
        try:
            array = map_array(Path(file))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is no .npy file of numbers, or damaged"
            raise VideoError(f"{file}: {reason}") from error
        if array.ndim != 2 or array.dtype.kind not in "fiu" or not array.size:
            what = " x ".join(map(str, array.shape)) or "one"
            raise VideoError(f"{file}: expected numbers [T, D] or [D, T], got {what} of {array.dtype}")
        return array


class _OfFeatures(Reader):
    """What gives features as frames of ``_shape`` (channels, rows, columns)."""

    _shape: tuple[int, int, int]

    @property
    def size(self) -> tuple[int, int]:
        return self._shape[1:]

    def read(self, indices: Sequence[int] | Tensor | None = None) -> Tensor:
        batches = list(self.stream(indices, batch=1024))
        return torch.cat(batches) if batches else torch.empty(0, *self._shape)

    def close(self) -> None:
        pass


class FileReader(_OfFeatures):
    """Features [T, D] as frames [n, D, 1, 1]."""

    def __init__(self, path: str, features: np.ndarray, rate: float, shape: tuple[int, int, int]) -> None:
        count = len(features)
        info = VideoInfo(path, "npy", 1, 1, count, rate, count / rate, "features")
        super().__init__(info, torch.arange(count, dtype=torch.float64) / rate, announced=count)
        self._features, self._shape = features, shape

    def _stream(self, wanted: Sequence[int], batch: int) -> Iterator[Tensor]:
        for start in range(0, len(wanted), batch):
            with np.errstate(over="ignore"):  # to infinity, which is refused below
                rows = torch.from_numpy(self._features[list(wanted[start : start + batch])].astype(np.float32))
            if not bool(rows.isfinite().all()):
                raise VideoError(f"{self.info.path}: features from {wanted[start]} on are not finite in float32")
            yield rows.view(-1, *self._shape)


def longest(parts: Sequence[Part]) -> int | None:
    """Frames that the longest of some parts is cut to, which all begin a video."""
    firsts = [first for _, _, first in parts if first is not None]
    return max(firsts) if len(firsts) == len(parts) else None


def marks_of(path: str) -> list[Any]:
    """Size and time of change of a video as it is now; of a folder of images, of each of them. Raises VideoError."""
    _, size, modified = identity(path)
    if not os.path.isdir(path):
        return [size, modified]
    images = sorted((e.name, e.stat().st_size, e.stat().st_mtime_ns) for e in os.scandir(path))
    return [hashlib.sha256(repr(images).encode()).hexdigest()]


class FeatureReader(_OfFeatures):
    """Features of a video that ``Rows`` hold, as frames [n, channels, rows, columns]."""

    def __init__(self, path: str, rows: Rows, shape: tuple[int, int, int], window: int = 1) -> None:
        about = rows.about
        info = VideoInfo(path=path, frames=len(rows.times), reader="features", **about["info"])
        super().__init__(info, rows.times, announced=about["announced"], offset=about["offset"])
        self._rows, self._shape, self._warnings, self._window = rows, shape, about["warnings"], window

    def _stream(self, wanted: Sequence[int], batch: int) -> Iterator[Tensor]:
        for sentence, partial in self._warnings:
            self._tell(sentence, sentence, PartialVideoWarning if partial else VideoWarning)
        numbers = torch.as_tensor(list(wanted), dtype=torch.int64)
        if self._rows.about["cut"]:  # as the damaged video itself: what comes after its end is not given
            numbers = numbers[numbers <= self._rows.about.get("end", self._rows.numbers[-1])]
        # of a window the number of its first frame is kept
        places = torch.searchsorted(self._rows.numbers, numbers, right=True) - 1
        first = slice(None, None, self._window)
        if not torch.equal(self._rows.numbers[places[first]], numbers[first]):
            raise VideoError(
                f"{self.info.path}: the cache keeps other frames of it than are asked for (in {self._rows.path}); "
                "remove that file, so that it is computed anew, or set encoder.cache: null"
            )
        for part in places.split(batch):
            needed, repeated = torch.unique(part, return_inverse=True)
            try:
                rows = self._rows.take(needed)[repeated]
            except DamagedRows as error:
                with suppress(OSError):  # so that it is made again
                    self._rows.path.unlink()
                raise VideoError(
                    f"{self.info.path}: its features in the cache are damaged ({error}) and were removed; they are "
                    "computed anew when the run is started again, or by `tttvideo cache`"
                ) from error
            maps = rows.mT.unflatten(-1, self._shape[1:])
            yield maps.float() if maps.dtype == torch.bfloat16 else maps  # which numpy, between processes, lacks
