"""Videos to look at: frames of them, and what the model thought of the class as it read on."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from tttvideo.evaluation.settings import Setting
from tttvideo.model import VideoModel
from tttvideo.video.index import Index, Video
from tttvideo.video.reader import VideoError
from tttvideo.video.reading import open_sized, within
from tttvideo.video.segments import read_segments

LONGEST = 4096
"""Frames of a video that are read for a sample, at most."""
COLUMNS = 12
"""Frames of a sample that are shown."""
CLASSES = 4
"""Classes whose probability is shown: the true ones, and those that were likeliest at the end."""


class Sample(NamedTuple):
    """One video as the model saw it."""

    row: dict[str, Any]  # of predictions.csv
    total: int  # frames that were read
    at: list[int]  # numbers of the frames shown
    frames: np.ndarray  # uint8 [n, H, W, 3]
    steps: list[int]  # frames read at each point of the timeline; empty for a model that does not stream
    timeline: dict[str, list[float]]  # class -> its probability at each of them


def choose(predictions: Sequence[dict[str, Any]], count: int) -> tuple[list[int], list[int]]:
    """Positions of ``count`` videos to show at length, right and wrong in turn and of different classes as far as there
    are any, and of the wrong ones, the surest first."""
    scored = [i for i, row in enumerate(predictions) if not row["failure"]]
    wrong = sorted(
        (i for i in scored if not row_correct(predictions[i])), key=lambda i: -float(predictions[i]["probability"])
    )
    right = [i for i in scored if row_correct(predictions[i])]
    seen: set[str] = set()
    fresh = []
    for i in right:
        if predictions[i]["label"] not in seen:
            fresh.append(i)
            seen.add(predictions[i]["label"])
    right = fresh + [i for i in right if i not in fresh]
    shown = [i for pair in zip(right, wrong) for i in pair]
    shown += [i for i in right[len(wrong) :] + wrong[len(right) :]]
    return shown[:count], wrong


def row_correct(row: dict[str, Any]) -> bool:
    return str(row["correct"]) == "1"


@torch.no_grad()
def look_at(model: VideoModel, index: Index, video: Video, row: dict[str, Any], setting: Setting) -> Sample | None:
    """Reads a video again, to be shown; None if that fails."""
    try:
        with open_sized(video.path, model.preprocessing) as reader:
            times = reader.times[within(reader, video.start, video.end)][: setting.frames]
        total = min(LONGEST, len(setting.sampling.indices(times - times[0], None)))
        at = sorted({int((i + 0.5) * total / COLUMNS) for i in range(COLUMNS)})
        held, steps, probabilities, read = [], [], [], 0
        state = None
        device = next(model.parameters()).device
        segments = read_segments(
            [video.path],
            model.preprocessing,
            segment=model.segment_frames(64) if model.streams else LONGEST,
            max_frames=setting.frames,
            sampling=setting.sampling,
            spans=[(video.start, video.end)],
            prefetch=False,
        )
        for part in segments:
            if part.failures or read >= total:
                break
            frames = part.frames[:, : total - read]
            held += [frames[0, i - read] for i in at if read <= i < read + frames.shape[1]]
            if model.streams:
                output, state = model(frames.to(device), None, state)
                probabilities.append(model.probabilities(output.timeline[0].float()).cpu())
            read += frames.shape[1]
    except (VideoError, OSError):
        return None
    if not held:
        return None
    timeline: dict[str, list[float]] = {}
    if probabilities:
        table = torch.cat(probabilities)
        stride, multiple = model.encoder.stride, model.frame_multiple
        ends = [min((i + 1) * stride, read) for i in range(len(table))]
        kept = [i for i, end in enumerate(ends) if end % multiple == 0 or i == len(table) - 1]
        steps = [ends[i] for i in kept]
        true = [model.labels.index(name) for name in str(row["label"]).split(";") if name in model.labels]
        order = [*true, *(i for i in table[-1].argsort(descending=True).tolist() if i not in true)]
        timeline = {model.labels[i]: table[kept, i].tolist() for i in order[: max(CLASSES, len(true))]}
    pictures = torch.stack(held).permute(0, 2, 3, 1).numpy()
    return Sample(row, read, at[: len(held)], pictures, steps, timeline)


def collect(
    model: VideoModel,
    index: Index,
    predictions: Sequence[dict[str, Any]],
    setting: Setting,
    count: int,
    failures: int = 12,
) -> tuple[list[Sample], list[Sample]]:
    """Samples to show at length, and of up to ``failures`` wrong answers; ``predictions`` are the rows of ``setting``,
    in the order of the index."""
    shown, wrong = choose(predictions, count)

    def look(number: int) -> Sample | None:
        return look_at(model, index, index.videos[number], predictions[number], setting)

    samples = [sample for sample in map(look, shown) if sample]
    return samples, [sample for sample in map(look, wrong[:failures]) if sample]
