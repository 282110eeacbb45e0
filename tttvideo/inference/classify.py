"""Classifies many videos, and formats the answers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..model import WHOLE, VideoModel
from ..video.index import Video
from ..video.reader import VideoError
from ..video.sampling import parse_sampling
from ..video.views import Views, Whole, expand, parse_views, with_length
from .answers import Answer, Reading, Span, Timeline, in_order, read_answers
from .config import How, how_of, whole_number
from .frames import as_frames, is_picture

WINDOW = 16
"""Batches among which videos are sorted by the size of their files, so that those of a batch end together."""

BLOCK = 256
"""Videos that are divided into views at a time."""


def resolved(how: How, model: VideoModel) -> How:
    """With what a model fills in, so that two readings of one kind are equal."""
    views = with_length(parse_views(how.views), model.preprocessing, model.provenance.get("clip_frames"))
    multiple = model.frame_multiple
    if how.segment is not None and not model.streams:
        raise ValueError("--segment does not go with this model, which reads each video whole; leave it out")
    if how.segment is not None and how.segment % multiple:
        raise ValueError(f"--segment must be a multiple of {multiple} frames, the model's step; got {how.segment}")
    segment = how.segment or model.segment_frames(64)
    sampling = how.sampling or model.preprocessing.sampling
    return replace(how, sampling=sampling, views=str(views), segment=segment if model.streams else None)


class Classified(NamedTuple):
    """The answer for one video; ``probabilities`` [classes] is None where there is a ``failure``."""

    video: int  # place in the list
    probabilities: Tensor | None
    frames: int  # that the model read, in all views together
    failure: str  # begins with the video's path
    timeline: Timeline | None
    notes: list[str]


def classify_videos(
    model: VideoModel, videos: Sequence[Video | Tensor], how: How, *, timelines: bool = False
) -> Iterator[Classified]:
    """Every video's answer as soon as it is there; a video that cannot be read is an answer, not an error.

    Args:
        videos: of files, or frames uint8 [F, 3, h, w] in memory, of which all are used.

    Raises:
        ValueError: for a model of another task, and settings that do not fit it.
    """
    if not model.config.task.classifies:
        raise ValueError(f"This model was trained for {type(model.config.task).__name__} and knows no classes.")
    memory = any(isinstance(video, Tensor) for video in videos)
    if memory and how.sampling not in (None, "dense"):
        raise ValueError("frames in memory are all used, as they have no times; choose some yourself, or give files")
    how = resolved(how, model)
    views = parse_views(how.views)
    if views != Whole() and timelines:
        raise ValueError("a timeline is of a whole video; leave --views or --timeline out")
    if views != Whole() and memory:
        raise ValueError("frames in memory have no times to divide them by; give files, or leave views out")
    training = model.training
    model.eval()
    try:
        yield from _classified(model, videos, how, views, timelines)
    finally:
        model.train(training)


def _classified(
    model: VideoModel, videos: Sequence[Video | Tensor], how: How, views: Views, timelines: bool
) -> Iterator[Classified]:
    assert how.sampling is not None
    whole = views == Whole()
    cut = how.frames if whole else None
    reading = Reading(model.preprocessing, how.segment or WHOLE, parse_sampling(how.sampling), cut)
    order = _sorted(videos, how.batch_size * WINDOW)
    step = len(order) if whole else BLOCK
    for start in range(0, len(order), max(1, step)):
        block = order[start : start + step]
        if whole:
            items: list[Span | Tensor] = [
                v if isinstance(v, Tensor) else Span(v) for v in map(videos.__getitem__, block)
            ]
            owners = block
        else:
            crops = expand([videos[i] for i in block], views, how.frames, model.preprocessing.stream)  # type: ignore[misc]
            items, owners = [Span(view.source, view.crop) for view in crops], [block[view.video] for view in crops]
        expected = {video: owners.count(video) for video in block} if not whole else dict.fromkeys(block, 1)
        parts: dict[int, list[Answer]] = {}
        options = {"batch_size": how.batch_size, "workers": how.workers, "timelines": timelines}
        for answer in read_answers(model, items, reading, **options):
            video = owners[answer.item]
            parts.setdefault(video, []).append(answer)
            if len(parts[video]) == expected[video]:
                yield _joined(model, video, videos[video], parts.pop(video))


def _sorted(videos: Sequence[Video | Tensor], window: int) -> list[int]:
    """The videos' places, sorted by size within windows."""

    def size(number: int) -> int:
        video = videos[number]
        if isinstance(video, Tensor):
            return len(video)
        try:
            return os.stat(video.path).st_size
        except (OSError, ValueError):
            return 0

    places = range(len(videos))
    return [place for at in range(0, len(videos), window) for place in sorted(places[at : at + window], key=size)]


def _joined(model: VideoModel, video: int, source: Video | Tensor, answers: list[Answer]) -> Classified:
    """One answer from those of a video's views; where one of them failed, that is the answer."""
    notes = list(dict.fromkeys(note for answer in answers for note in answer.notes))
    path = "" if isinstance(source, Tensor) else f"{source.path}: "
    failure = next((answer.failure for answer in answers if answer.failure), "")
    if failure:
        return Classified(video, None, 0, failure if failure.startswith(path) else path + failure, None, notes)
    logits = torch.stack([answer.logits for answer in answers if answer.logits is not None])
    joined = logits[0] if len(logits) == 1 else model.config.task.average(logits, model.multi_label)
    frames = sum(answer.frames for answer in answers)
    return Classified(video, model.probabilities(joined), frames, "", answers[0].timeline, notes)


def ranked(model: VideoModel, probabilities: Tensor, topk: int) -> list[tuple[str, float]]:
    """Labels and probabilities, most probable first."""
    values, indices = probabilities.topk(min(topk, len(model.labels)))
    return [(model.labels[i], float(p)) for i, p in zip(indices.tolist(), values.tolist(), strict=True)]


def answers_of(model: VideoModel, source: Any, topk: int, how: How) -> Any:
    """``VideoModel.classify``."""
    topk = whole_number("topk", topk, 1)
    if isinstance(source, (list, tuple)):
        if len(source) > 1 and all(map(is_picture, source)):
            raise ValueError(
                "Expected a list of videos, got one of pictures; stack the frames of a video to one array [F, h, w, 3]."
            )
        return list(_each(model, source, topk, how))
    if isinstance(source, Iterator):
        return _blocks(model, source, topk, how)
    return next(_each(model, [source], topk, how))


def _blocks(model: VideoModel, sources: Iterator[Any], topk: int, how: How) -> Iterator[list[tuple[str, float]]]:
    while block := list(islice(sources, how.batch_size * max(1, how.workers))):
        yield from _each(model, block, topk, how)


def _each(model: VideoModel, sources: Iterable[Any], topk: int, how: How) -> Iterator[list[tuple[str, float]]]:
    videos = [_video(source) for source in sources]
    for answer in in_order(classify_videos(model, videos, how), lambda answer: answer.video):
        if answer.probabilities is None:
            text = answer.failure
            raise (ValueError if "not finite" in text else VideoError)(text)
        yield ranked(model, answer.probabilities, topk)


def _video(source: Any) -> Video | Tensor:
    if isinstance(source, Video):
        return source
    if isinstance(source, (str, Path)):
        if "://" in str(source):
            raise VideoError(f"{source} is an address; model.stream() and `tttvideo stream` read those")
        return Video(str(source), None, None, None, None)
    return as_frames(source)


class Pipeline:
    """``pipeline(...)(videos)``: answers in the form of transformers' ``pipeline("video-classification")``.

    Args:
        model: a ``VideoModel`` for classification, or where one is saved.
    """

    def __init__(self, model: VideoModel | str | Path, **how: Any):
        from ..pretrained import from_pretrained

        self.model = model if isinstance(model, VideoModel) else from_pretrained(model)
        self.how = how_of(**how)

    def __call__(self, videos: Any, top_k: int | None = 5) -> Any:
        """[{"score", "label"}, ...] of one video; a list of those for a list; a generator for an iterator. ``top_k``
        None: all labels."""
        top_k = len(self.model.labels) if top_k is None else top_k
        answers = answers_of(self.model, videos, top_k, self.how)
        if isinstance(videos, (list, tuple)):
            return [_as_pipeline(answer) for answer in answers]
        return map(_as_pipeline, answers) if isinstance(videos, Iterator) else _as_pipeline(answers)


def pipeline(task: str, model: VideoModel | str | Path | None = None, **how: Any) -> Pipeline:
    """``pipeline("video-classification", model=FOLDER)``, or ``pipeline(FOLDER)``.

    Raises:
        ValueError: for another task.
    """
    if model is not None and task != "video-classification":
        raise ValueError(f'Expected the task "video-classification", got {task!r}; `tttvideo predict` predicts frames.')
    return Pipeline(task if model is None else model, **how)


def _as_pipeline(answer: list[tuple[str, float]]) -> list[dict[str, Any]]:
    return [{"score": probability, "label": label} for label, probability in answer]
