"""Is a stream the same as the whole clip? Measured on real videos, with the model that is being evaluated."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..model import VideoModel
from ..ttt.interface import state_bytes
from ..video.index import Video
from ..video.reader import VideoError
from ..video.reading import open_sized, within

MOST = 2048
"""Frames of a video that are compared, at most: reading it whole holds all of their activations."""


@torch.no_grad()
def compare_streaming(model: VideoModel, videos: Sequence[Video], segment: int | None = None) -> dict[str, Any]:
    """Reads each video in one call, and again segment by segment with the state carried on.

    Args:
        segment: frames of a segment; None: the shortest the model can be cut at.

    Returns:
        number of ``videos`` that could be read, frames of a ``segment``, the largest difference of a probability,
        how many videos have the ``same_class``, and bytes of the carried state after the first segment and the last.

    Raises:
        ValueError: for a model that does not stream.
    """
    if not model.streams:
        raise ValueError("--check-streaming does not go with this model, which reads each video whole; leave it out")
    if not model.head.has_timeline:
        raise ValueError("--check-streaming does not go with this model's task; leave it out")
    segment = segment or model.frame_multiple
    device = next(model.parameters()).device
    differences, same, sizes = [], 0, []
    for video in videos:
        try:
            frames = _read(video, model).to(device)
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


def _read(video: Video, model: VideoModel) -> Tensor:
    """The first frames of a video, uint8 [1, F, 3, H, W]."""
    span = (video.start, video.end)
    reading = model.reading_of([video.path], [span], model.preprocessing.sampling, MOST)
    with open_sized(video.path, reading) as reader:
        inside = within(reader, video.start, video.end)[:MOST]
        return reading.apply(reader.read(inside))[None]
