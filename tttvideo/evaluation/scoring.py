"""Many videos of any length read with carried state: bounded memory, whatever their length; and whether a stream is
read as the whole clip is."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ..model import VideoModel
from ..tasks import TaskHead
from ..ttt.interface import state_bytes
from ..video.index import Video
from ..video.reader import VideoError
from ..video.reading import open_sized, within
from ..video.sampling import Sampling
from ..video.segments import Piece, SegmentedBatches, video_pieces
from ..video.transforms import Preprocessing
from ..video.views import View, Whole, expand
from ..video.workers import WorkerLoader
from .controls import without
from .settings import Setting, passes

NOT_FINITE = "the model's output is not finite"
"""An ``Answer.failure``."""
COMPARED = 2048
"""Frames of a video that are compared, at most: reading it whole holds all of their activations."""


class Answer(NamedTuple):
    """What the model said of one video in one setting: the row of its head's ``examiner``."""

    video: int  # position in the list given to score_videos
    setting: int
    row: list[float] | None  # logits, of a classifier; None where the video could not be scored
    frames: int  # frames the model saw, in all views together
    failure: str  # why there is no row; "" where there is


class Cost(NamedTuple):
    """What one reading of all videos took. Settings that share a reading share its cost."""

    settings: list[int]
    frames: int
    seconds: float


class Answers(NamedTuple):
    answers: list[Answer]
    costs: list[Cost]
    warnings: list[str]  # e.g. files that were decoded in part, each once


@dataclass(frozen=True)
class _Reading:
    """How the pieces of a view are read."""

    preprocessing: Preprocessing
    segment: int
    max_frames: int | None
    sampling: Sampling
    shuffled: bool

    def __call__(self, view: View) -> Iterator[torch.Tensor]:
        path, start, end = view.source.path, view.source.start, view.source.end
        how = (self.preprocessing, self.segment, self.max_frames, self.sampling)
        return video_pieces(path, *how, start, end, view.crop, self.shuffled)


def _read_as(model: VideoModel, views: Sequence[View], rule: Sampling, first: int | None) -> Preprocessing:
    """How the videos are read: as features, where the model's encoder has a cache that holds all of them."""
    if any(view.crop != 0.5 for view in views):
        return model.preprocessing
    sources = [view.source for view in views]
    spans = [(source.start, source.end) for source in sources]
    return model.reading_of([source.path for source in sources], spans, rule, first)


def _path(view: View) -> str:
    return view.source.path


class _Rows:
    """The rows of one batch of videos as they are read: at each cut on the way, and at the end."""

    def __init__(self, head: TaskHead, videos: int, cuts: list[int | None]):
        self.head, self.examiner = head, head.examiner()
        self.read = torch.zeros(videos, dtype=torch.int64)
        self.cuts = cuts
        self.at_cuts: list[dict[int, torch.Tensor]] = [{} for _ in cuts]
        self.failures: dict[int, str] = {}
        self.final: torch.Tensor | None = None

    def add(self, piece: Piece, output: Any, stride: int) -> None:
        """Take over the output of one segment, whose time steps are `stride` frames long."""
        self.failures.update(piece.failures)
        self.examiner.add(piece.lengths, output)
        timeline = self.head.timeline(output) if any(self.cuts) else None  # [B, S, columns]
        if timeline is not None:
            timeline = timeline.float().cpu()
            for cut, rows in zip(self.cuts, self.at_cuts):
                inside = (self.read < (cut or 0)) & ((cut or 0) <= self.read + piece.lengths)
                for row in inside.nonzero().flatten().tolist():
                    rows[row] = timeline[row, ((cut or 0) - int(self.read[row])) // stride - 1]
        self.read += piece.lengths
        if piece.last:
            self.final = self.examiner.rows().float().cpu()

    def skip(self, piece: Piece) -> None:
        """A segment of which nothing could be read."""
        self.failures.update(piece.failures)
        if piece.last and bool(self.read.any()):
            self.final = self.examiner.rows().float().cpu()

    def results(self) -> Iterator[tuple[int, int, torch.Tensor | None, int, str]]:
        """(row, cut's position, values [columns] or None, frames read, failure) of every row and cut."""
        for row, read in enumerate(self.read.tolist()):
            failure = self.failures.get(row, "" if read else "no frame could be read")
            for position, (cut, rows) in enumerate(zip(self.cuts, self.at_cuts)):
                if failure or self.final is None:
                    yield row, position, None, 0, failure or "no frame could be read"
                    continue
                values = rows.get(row, self.final[row])
                if not bool(values.isfinite().all()):
                    yield row, position, None, 0, NOT_FINITE
                else:
                    yield row, position, values, min(read, cut or read), ""


def score_videos(
    model: VideoModel,
    videos: Sequence[Video],
    settings: Sequence[Setting],
    *,
    batch_size: int = 8,
    segment: int | None = None,
    workers: int = 0,
    device: torch.device | str = "cpu",
    progress: Callable[[float], None] | None = None,
) -> Answers:
    """Score every video in every setting.

    `batch_size` videos are read side by side, `segment` frames of each at a time (default: 64, rounded down to
    where the model lets a stream be cut), with the model's state carried from segment to segment: memory depends
    on neither the videos' length nor their number. A model that does not stream holds all frames of a batch, and
    takes no `segment`. `workers` processes read ahead, each its own batches (0: read here). `progress` is called
    with the number of scores that were added. Raises ValueError for a segment at whose end the model cannot be
    stopped; unreadable videos are results, not errors.
    """
    multiple: int = model.frame_multiple
    segment = segment_of(model, segment)
    if batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {batch_size}")
    answers: list[Answer] = []
    costs: list[Cost] = []
    notes: dict[str, None] = {}  # ordered, without repetitions: later passes meet the same files
    for group in passes(settings, multiple, model.streams and model.head.has_timeline):
        cut, rule, ways, control = settings[group[0]]
        if ways == Whole():
            views = [View(number, video) for number, video in enumerate(videos)]
            cuts: list[int | None] = [settings[position].frames for position in group]
        else:  # what is divided is cut already
            views = expand(videos, ways, cut, model.preprocessing.stream)
            cuts = [None]
        longest = None if None in cuts else max(cut for cut in cuts if cut is not None)
        batches = [views[start : start + batch_size] for start in range(0, len(views), batch_size)]
        preprocessing = _read_as(model, views, rule, longest)
        reading = _Reading(preprocessing, segment, longest, rule, control == "shuffled")
        pieces = SegmentedBatches(batches, reading, preprocessing.frame, _path)
        loader = WorkerLoader(pieces, batch_size=None, workers=min(workers, len(batches)))
        begun, read = time.perf_counter(), 0
        of_views: dict[tuple[int, int], list[Answer]] = {}  # of each video and setting
        with without(model, control):
            for batch, rows, messages in _run(model, loader, batches, cuts, torch.device(device)):
                notes.update(dict.fromkeys(messages))
                if rows is None:
                    continue
                for row, cut, values, frames, failure in rows.results():
                    view, position = batches[batch][row], group[cut]
                    # the path stands beside the reason wherever it is shown
                    reason = failure.removeprefix(f"{view.source.path}: ")
                    answer = Answer(view.video, position, None if values is None else values.tolist(), frames, reason)
                    of_views.setdefault((view.video, position), []).append(answer)
                read += int(rows.read.sum())
                if progress is not None:
                    progress(len(batches[batch]) * len(group) * len(videos) / len(views))
        answers += [_average(model, views) for views in of_views.values()]
        costs.append(Cost(group, read, time.perf_counter() - begun))
    return Answers(answers, costs, list(notes))


def segment_of(model: VideoModel, segment: int | None) -> int:
    """Frames read at a time; None: 64, rounded down to where the model lets a stream be cut, but
    one step at least.

    Raises:
        ValueError: if the model cannot be stopped there.
    """
    multiple: int = model.frame_multiple
    if segment is None:
        return model.segment_frames(64)
    if not model.streams:
        raise ValueError("--segment does not go with this model, which reads each video whole; leave it out")
    if segment < 1 or segment % multiple:
        raise ValueError(f"--segment must be a multiple of {multiple} frames, the model's step; got {segment}")
    return segment


def _average(model: VideoModel, views: list[Answer]) -> Answer:
    """One answer from those of a video's views; a video of which a view cannot be scored is a failure."""
    if len(views) == 1:
        return views[0]
    failed = next((answer for answer in views if answer.row is None), None)
    if failed is not None:
        return failed
    row = model.config.task.average(torch.tensor([answer.row for answer in views]), model.multi_label)
    return views[0]._replace(row=row.tolist(), frames=sum(answer.frames for answer in views))


def _run(
    model: VideoModel,
    loader: WorkerLoader,
    batches: list[list[View]],
    cuts: list[int | None],
    device: torch.device,
) -> Iterator[tuple[int, _Rows | None, list[str]]]:
    """After each segment: the number of its batch, the rows of that batch if it was the last one (else None), and
    warnings. Segments of several batches alternate."""
    model = model.to(device).eval()
    open_batches: dict[int, _Rows] = {}
    for piece, output in model.outputs_of_batches(loader):
        rows = open_batches.pop(piece.batch, None) or _Rows(model.head, len(batches[piece.batch]), cuts)
        if output is not None:
            rows.add(piece, output, model.encoder.stride)
        else:  # nothing of this piece could be read
            rows.skip(piece)
        if not piece.last:
            open_batches[piece.batch] = rows
        yield piece.batch, rows if piece.last else None, piece.notes


def check_comparable(model: VideoModel) -> None:
    """Raises ValueError for a model that does not stream, or whose answers are no probabilities."""
    if not model.streams:
        raise ValueError("--check-streaming does not go with this model, which reads each video whole; leave it out")
    if not model.config.task.classifies:
        task = type(model.config.task).__name__
        raise ValueError(f"--check-streaming does not go with {task}, which gives no probabilities; leave it out")


@torch.no_grad()
def compare_streaming(model: VideoModel, videos: Sequence[Video], segment: int | None = None) -> dict[str, Any]:
    """Is a stream the same as the whole clip? Each video is read in one call, and again segment by segment with the
    state carried on.

    Args:
        segment: frames of a segment; None: the shortest the model can be cut at.

    Returns:
        number of ``videos`` that could be read, frames of a ``segment``, the largest difference of a probability,
        how many videos have the ``same_class``, and bytes of the carried state after the first segment and the last.

    Raises:
        ValueError: as ``check_comparable``.
    """
    check_comparable(model)
    segment = segment or model.frame_multiple
    device = next(model.parameters()).device
    differences, same, sizes = [], 0, []
    for video in videos:
        try:
            frames = _first_frames(video, model).to(device)
        except (VideoError, OSError):
            continue
        whole, _ = model(frames)
        state, output, first = None, whole, 0
        for piece in frames.split(segment, dim=1):
            output, state = model(piece, None, state)
            first = first or state_bytes(state)
        probabilities = [model.probabilities(result.logits[0].float()) for result in (whole, output)]
        differences.append(float((probabilities[0] - probabilities[1]).abs().max()))
        same += int(probabilities[0].argmax() == probabilities[1].argmax())
        sizes.append((first, state_bytes(state)))
    return {
        "videos": len(differences),
        "segment": segment,
        "max_probability_difference": max(differences, default=None),
        "same_class": same,
        "state_bytes_first": max((size for size, _ in sizes), default=None),
        "state_bytes_last": max((size for _, size in sizes), default=None),
    }


def _first_frames(video: Video, model: VideoModel) -> torch.Tensor:
    """The first frames of a video, uint8 [1, F, 3, H, W]."""
    span = (video.start, video.end)
    reading = model.reading_of([video.path], [span], model.preprocessing.sampling, COMPARED)
    with open_sized(video.path, reading) as reader:
        inside = within(reader, video.start, video.end)[:COMPARED]
        return reading.apply(reader.read(inside))[None]
