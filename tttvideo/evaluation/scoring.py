"""Score many videos of any length with carried state: bounded memory, whatever their length."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from tttvideo.evaluation.controls import without
from tttvideo.evaluation.settings import Setting, passes
from tttvideo.evaluation.views import View, Whole, averaged, expand
from tttvideo.model import VideoModel
from tttvideo.video.index import Video
from tttvideo.video.sampling import Sampling
from tttvideo.video.segments import Piece, SegmentedBatches, video_pieces
from tttvideo.video.transforms import Preprocessing
from tttvideo.video.workers import WorkerLoader

NOT_FINITE = "the model's logits are not finite"
"""A ``Score.failure``."""


class Score(NamedTuple):
    """What the model said of one video in one setting; `logits` is None where it could not be scored."""

    video: int  # position in the list given to score_videos
    setting: int
    logits: list[float] | None
    frames: int  # frames the model saw, in all views together
    failure: str  # why there are no logits; "" where there are


class Pass(NamedTuple):
    """One reading of all videos: what it cost. Settings that share a pass share its cost."""

    settings: list[int]
    frames: int
    seconds: float


class Scores(NamedTuple):
    scores: list[Score]
    passes: list[Pass]
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
    """The logits of one batch of videos as they are read: at each cut on the way, and at the end."""

    def __init__(self, videos: int, cuts: list[int | None]):
        self.seen = torch.zeros(videos, dtype=torch.int64)
        self.cuts: list[dict[int, torch.Tensor]] = [{} for _ in cuts]
        self.wanted = cuts
        self.failures: dict[int, str] = {}
        self.final: torch.Tensor | None = None

    def add(self, piece: Piece, logits: torch.Tensor, timeline: torch.Tensor, stride: int) -> None:
        """Take over logits [B, n] and timeline [B, F', n] of one segment, both on the CPU, time steps being
        `stride` frames long."""
        self.failures.update(piece.failures)
        for cut, found in zip(self.wanted, self.cuts):
            if cut is None:
                continue
            inside = (self.seen < cut) & (cut <= self.seen + piece.lengths)
            for row in inside.nonzero().flatten().tolist():
                found[row] = timeline[row, (cut - int(self.seen[row])) // stride - 1]
        self.seen += piece.lengths
        self.final = logits

    def results(self) -> Iterator[tuple[int, int, torch.Tensor | None, int, str]]:
        """(row, cut's position, logits [n] or None, frames seen, failure) of every row and cut."""
        for row, seen in enumerate(self.seen.tolist()):
            failure = self.failures.get(row, "" if seen else "no frame could be read")
            for position, (cut, found) in enumerate(zip(self.wanted, self.cuts)):
                if failure or self.final is None:
                    yield row, position, None, 0, failure or "no frame could be read"
                    continue
                logits = found.get(row, self.final[row])
                if not bool(logits.isfinite().all()):
                    yield row, position, None, 0, NOT_FINITE
                else:
                    yield row, position, logits, min(seen, cut or seen), ""


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
) -> Scores:
    """Score every video in every setting.

    `batch_size` videos are read side by side, `segment` frames of each at a time (default: 64, rounded up to
    where the model lets a stream be cut), with the model's state carried from segment to segment: memory depends
    on neither the videos' length nor their number. A model that does not stream holds all frames of a batch, and
    takes no `segment`. `workers` processes read ahead, each its own batches (0: read here). `progress` is called
    with the number of scores that were added. Raises ValueError for a segment at whose end the model cannot be
    stopped; unreadable videos are results, not errors.
    """
    multiple: int = model.frame_multiple
    if segment is not None and not model.streams:
        raise ValueError("--segment does not go with this model, which reads each video whole; leave it out")
    if segment is None:
        segment = model.segment_frames(-(-64 // multiple) * multiple)
    if segment < 1 or (model.streams and segment % multiple):
        raise ValueError(f"--segment must be a multiple of {multiple} frames, the model's step; got {segment}")
    if batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {batch_size}")
    scores: list[Score] = []
    costs: list[Pass] = []
    notes: dict[str, None] = {}  # ordered, without repetitions: later passes meet the same files
    for group in passes(settings, multiple, model.streams):
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
        found: dict[tuple[int, int], list[Score]] = {}  # the views of each video and setting
        with without(model, control):
            for batch, rows, messages in _run(model, loader, batches, cuts, torch.device(device)):
                notes.update(dict.fromkeys(messages))
                if rows is None:
                    continue
                for row, place, logits, frames, failure in rows.results():
                    view, position = batches[batch][row], group[place]
                    # the path stands beside the reason wherever it is shown
                    reason = failure.removeprefix(f"{view.source.path}: ")
                    score = Score(view.video, position, None if logits is None else logits.tolist(), frames, reason)
                    found.setdefault((view.video, position), []).append(score)
                read += int(rows.seen.sum())
                if progress is not None:
                    progress(len(batches[batch]) * len(group) * len(videos) / len(views))
        scores += [_joined(own, model.multi_label) for own in found.values()]
        costs.append(Pass(group, read, time.perf_counter() - begun))
    return Scores(scores, costs, list(notes))


def _joined(views: list[Score], several: bool) -> Score:
    """One score from those of a video's views; a video of which a view cannot be scored is a failure."""
    if len(views) == 1:
        return views[0]
    failed = next((score for score in views if score.logits is None), None)
    if failed is not None:
        return failed
    logits = averaged(torch.tensor([score.logits for score in views]), several)
    return views[0]._replace(logits=logits.tolist(), frames=sum(score.frames for score in views))


def _run(
    model: VideoModel,
    loader: WorkerLoader,
    batches: list[list[View]],
    cuts: list[int | None],
    device: torch.device,
):
    """Yield (batch, its rows once complete or None, warnings) while segments of several batches alternate."""
    model = model.to(device).eval()
    open_batches: dict[int, _Rows] = {}
    for piece, output in model.outputs_of_batches(loader):
        rows = open_batches.pop(piece.batch, None) or _Rows(len(batches[piece.batch]), cuts)
        if output is not None:
            rows.add(piece, output.logits.float().cpu(), output.timeline.float().cpu(), model.encoder.stride)
        else:  # nothing of this batch could be read
            rows.failures.update(piece.failures)
        if not piece.last:
            open_batches[piece.batch] = rows
        yield piece.batch, rows if piece.last else None, piece.notes
