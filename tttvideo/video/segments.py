"""Long videos in pieces: several videos side by side, in memory that does not grow with their length.

The pieces joined are what a dataset would give for the whole video; a model with carried state scores one
piece after the other.
"""

import queue
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from .reader import VideoError
from .reading import catch_damage, open_sized, within
from .sampling import Sampling, parse_sampling
from .transforms import Preprocessing


class Segment(NamedTuple):
    """The next piece of every video."""

    frames: Tensor  # uint8 [B, S, 3, H, W]; S is the longest piece, so at most `segment`, and at least 1
    lengths: Tensor  # int64 [B]: frames of each row that are not padding; 0 once a video has ended
    failures: dict[int, str]  # rows that could not be read (to the end), and why; so far


class Piece(NamedTuple):
    """The next segment of one of several batches."""

    batch: int
    frames: Tensor  # as in `Segment`
    lengths: Tensor
    failures: dict[int, str]
    notes: list[str]  # warnings of readers
    last: bool  # of this batch


class SegmentedBatches(IterableDataset):
    """Batches of videos in pieces, for a DataLoader: worker w of n takes the batches w, w + n, ..., so that pieces of
    n batches alternate.

    Args:
        batches: the videos of each.
        pieces: of a video, uint8 [S, 3, H, W], in order; each but the last as long as a segment. Closed when no more
            are wanted. Raises VideoError or OSError when it cannot be read.
        frame: shape and type of a frame.
        path: of a video, for messages.
    """

    def __init__(
        self,
        batches: Sequence[Sequence[Any]],
        pieces: Callable[[Any], Iterator[Tensor]],
        frame: tuple[tuple[int, int, int], torch.dtype],
        path: Callable[[Any], str],
    ) -> None:
        self.batches, self.pieces, self.frame, self.path = batches, pieces, frame, path
        self.reading: Callable[[str], None] | None = None  # in a worker: told what is read next

    def __iter__(self) -> Iterator[Piece]:
        worker = get_worker_info()
        start, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for batch in range(start, len(self.batches), step):
            yield from self._read(batch)

    def _read(self, batch: int) -> Iterator[Piece]:
        # One segment is read ahead, because the receiver must know which is the last, to let go of the state.
        segments = _lockstep([self._named_pieces(video) for video in self.batches[batch]], self.frame)
        waiting = None
        while True:
            with catch_damage() as notes:  # what is warned of in a worker would be lost: it travels with the frames
                segment = next(segments, None)
            if segment is None:
                break
            if waiting is not None:
                yield waiting
            waiting = Piece(batch, *segment, notes=list(notes), last=False)
            notes = []
        assert waiting is not None  # at least one segment comes
        yield waiting._replace(last=True, notes=[*waiting.notes, *notes])

    def _named_pieces(self, video: Any) -> Iterator[Tensor]:
        with closing(self.pieces(video)) as pieces:  # type: ignore[type-var]  # generators
            while True:
                if self.reading:
                    self.reading(self.path(video))
                piece = next(pieces, None)
                if piece is None:
                    return
                yield piece


def read_segments(
    paths: Sequence[str],
    preprocessing: Preprocessing,
    *,
    segment: int,
    max_frames: int | None = None,
    sampling: Sampling | None = None,
    spans: Sequence[tuple[float | None, float | None]] | None = None,
    crops: Sequence[float] | None = None,
    shuffled: bool = False,
    prefetch: bool = True,
) -> Iterator[Segment]:
    """Reads B videos in lockstep, `segment` frames at a time, until all have ended; at least one Segment
    comes.

    A video is cut to its span, then to its first `max_frames` frames, and then the sampling rule is applied.
    All pieces of a row have exactly `segment` frames except its last. One piece is decoded ahead by a thread,
    which ends with the iterator, also when that is closed early.

    Args:
        sampling: by default the preprocessing's rule.
        spans: per video (start, end) in seconds; None: from the beginning, to the end.
        crops: per video, as in ``Preprocessing.apply``; by default the centre.
        shuffled: give the frames of each video in a random order, always the same one for a file name; holds whole
            videos.
        prefetch: False: decode when asked, in the calling thread.
    """
    if segment < 1 or (max_frames is not None and max_frames < 1):
        raise ValueError(f"segment ({segment}) and max_frames ({max_frames}) must be at least 1")
    rule = sampling if sampling is not None else parse_sampling(preprocessing.sampling)
    spans = spans or [(None, None)] * len(paths)
    crops = crops or [0.5] * len(paths)
    rows = [
        video_pieces(path, preprocessing, segment, max_frames, rule, *span, crop, shuffled)
        for path, span, crop in zip(paths, spans, crops, strict=True)
    ]
    segments = _lockstep(rows, preprocessing.frame)
    return ahead(segments) if prefetch else segments


def video_pieces(
    path: str,
    preprocessing: Preprocessing,
    segment: int,
    max_frames: int | None,
    rule: Sampling,
    start: float | None,
    end: float | None,
    crop: float = 0.5,
    shuffled: bool = False,
) -> Iterator[Tensor]:
    """Pieces uint8 [<=segment, 3, H, W] of one video, as `read_segments` has them. Raises VideoError or OSError when it
    cannot be read."""
    with open_sized(path, preprocessing) as reader:
        inside = within(reader, start, end)[:max_frames]
        times = reader.times[inside]
        wanted = inside[rule.indices(times - times[0], None)]
        if shuffled:
            whole = preprocessing.apply(reader.read(wanted), crop)
            own = torch.Generator().manual_seed(zlib.crc32(Path(path).name.encode()))
            yield from whole[torch.randperm(len(whole), generator=own)].split(segment)
            return
        held: list[Tensor] = []
        count = 0
        for frames in reader.stream(wanted, batch=min(segment, 64)):
            held.append(preprocessing.apply(frames, crop))
            count += len(frames)
            if count >= segment:  # once at most, as no more than a segment comes at a time
                whole = torch.cat(held)
                yield whole[:segment]
                held, count = [whole[segment:]], count - segment
        if count:
            yield torch.cat(held)


def _lockstep(rows: Sequence[Iterator[Tensor]], frame: tuple[tuple[int, int, int], torch.dtype]) -> Iterator[Segment]:
    failures: dict[int, str] = {}
    running = dict(enumerate(rows))
    first = True
    try:
        while True:
            pieces: dict[int, Tensor] = {}
            for i in list(running):
                try:
                    piece = next(running[i], None)
                except (VideoError, OSError) as error:
                    failures[i], piece = str(error), None
                if piece is None:
                    del running[i]
                else:
                    pieces[i] = piece
            if not pieces and not first:
                return
            lengths = [len(pieces[i]) if i in pieces else 0 for i in range(len(rows))]
            frames = torch.zeros(len(rows), max([1, *lengths]), *frame[0], dtype=frame[1])
            for i, piece in pieces.items():
                frames[i, : len(piece)] = piece
            yield Segment(frames, torch.tensor(lengths), dict(failures))
            first = False
    finally:
        for row in running.values():
            row.close()  # type: ignore[attr-defined]  # generators: closes the readers


def ahead(segments: Iterator[Any]) -> Iterator[Any]:
    """The same items, each prepared by a thread while its predecessor is used. Readers are opened, used and closed
    in that thread."""
    ready: queue.Queue = queue.Queue(maxsize=1)
    stop = threading.Event()

    def put(item: object) -> None:
        while not stop.is_set():
            with suppress(queue.Full):
                ready.put(item, timeout=0.1)
                return

    def work() -> None:
        try:
            for segment in segments:
                put(segment)
                if stop.is_set():
                    break
            put(None)
        except BaseException as error:  # carried over to the caller's thread
            put(error)
        finally:
            segments.close()  # type: ignore[attr-defined]

    thread = threading.Thread(target=work, name="read_segments", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()
