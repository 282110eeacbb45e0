"""Errors on what only a memory can know: the pixels that a suite says are newly revealed, frame by frame."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tttvideo.model import VideoModel
from tttvideo.tasks.prediction import in_unit
from tttvideo.tasks.trivial import TRIVIAL, History
from tttvideo.video.index import Index
from tttvideo.video.segments import read_segments
from tttvideo.video.synthetic import PredictionSuite, SuiteError
from tttvideo.video.synthetic.prediction import Revealed

METHODS = ("model", *TRIVIAL)


class RevealedErrors:
    """Squared errors of revealed pixels, each frame predicted from all true frames before it.

    ``squared`` [V, methods, groups] and ``values`` [V, groups] are sums over each video, in the order of adding: of the
    errors, and of how many values (pixels times colours) were compared.
    """

    def __init__(self, groups: int):
        self.squared = torch.zeros(0, len(METHODS), groups, dtype=torch.float64)
        self.values = torch.zeros(0, groups, dtype=torch.float64)

    @torch.no_grad()
    def add(self, model: VideoModel, segments: Iterable[tuple[Tensor, Tensor]], told: Sequence[Revealed]) -> None:
        """Videos side by side, in segments (frames [B, F, 3, H, W], valid frames [B]), and what is revealed in each."""
        device, stride = next(model.parameters()).device, model.encoder.stride
        mask = torch.stack([torch.from_numpy(t.mask) for t in told])  # [B, F, H, W]
        group = torch.stack([torch.from_numpy(t.group) for t in told])  # [B, F]
        self.squared = torch.cat([self.squared, self.squared.new_zeros(len(told), *self.squared.shape[1:])])
        self.values = torch.cat([self.values, self.values.new_zeros(len(told), self.values.shape[1])])
        history, pending, at = None, None, 0
        for frames, lengths, output in model.outputs(segments):
            pixels = in_unit(frames)
            history = History(len(told), pixels) if history is None else history
            for step in range(pixels.shape[1] // stride):
                truth = pixels[:, step * stride : (step + 1) * stride]
                valid = (step + 1) * stride <= lengths
                here = slice(at, at + stride)
                if pending is not None:
                    counted = (mask[:, here] & valid[:, None, None, None]).to(device)
                    found = [
                        _sums(made.clamp(0, 1) - truth, counted)
                        for made in (pending, *history.guesses(stride).values())
                    ]
                    self._count(torch.stack(found).cpu(), counted.flatten(2).sum(2).cpu(), group[:, here])
                history.add(truth, valid.to(device))
                pending = output.timeline[:, step].to(pixels.dtype) if step < output.timeline.shape[1] else None
                at += stride

    def _count(self, squared: Tensor, pixels: Tensor, group: Tensor) -> None:
        """Sums [methods, B, p] and numbers of pixels [B, p] under the groups [B, p], of the videos added last."""
        video, frame = ((pixels > 0) & (group >= 0)).nonzero(as_tuple=True)
        under = (len(self.values) - len(group) + video, group[video, frame])
        self.squared.transpose(1, 2).index_put_(under, squared[:, video, frame].T, accumulate=True)
        self.values.index_put_(under, 3.0 * pixels[video, frame].double(), accumulate=True)

    def summary(self, suite: PredictionSuite, bounds: dict[str, float]) -> dict[str, Any]:
        """What metrics.json says of it; None for groups that no frame fell under."""
        values = self.values.sum(0)
        means = (self.squared.sum(0) / values).tolist()
        rows = {name: [None if x != x else round(x, 6) for x in row] for name, row in zip(METHODS, means, strict=True)}
        return {"by": suite.grouped, "mse": rows, "values": [int(n) for n in values.tolist()], "bounds": bounds}


def _sums(error: Tensor, mask: Tensor) -> Tensor:
    """Errors [B, p, 3, H, W] -> sums of their squares where the mask [B, p, H, W] holds, float64 [B, p]."""
    return (error.square().sum(2) * mask).flatten(2).sum(2).double()


def told_of(index: Index, suite: PredictionSuite, root: Path) -> dict[int, Revealed]:
    """What is revealed in each video of a generated set, by its place in the index.

    Args:
        root: the set's folder.

    Raises:
        SuiteError: if meta.csv is missing or damaged.
    """
    file, found = root / "meta.csv", {}
    try:
        with file.open(newline="", encoding="utf-8") as opened:
            rows = {str((root / row["path"]).resolve()): row for row in csv.DictReader(opened)}
        for place, video in enumerate(index.videos):
            row = rows.get(str(Path(video.path).resolve()))
            told = None if row is None else suite.revealed(row)
            if told is not None:
                found[place] = told
    except OSError as error:
        raise SuiteError(f"{file} cannot be read ({error.strerror})") from None
    except (KeyError, ValueError, TypeError) as error:
        raise SuiteError(f"{file} is damaged ({type(error).__name__}: {error})") from None
    return found


def measure_revealed(
    model: VideoModel,
    index: Index,
    suite: PredictionSuite,
    known: dict[int, Revealed],
    bounds: dict[str, float],
    *,
    batch_size: int,
    segment: int | None = None,
) -> tuple[dict[str, Any], Tensor, Tensor]:
    """Errors on the revealed pixels of a generated set, whole videos, by group.

    Returns what metrics.json says of them, and ``squared`` and ``values`` of ``RevealedErrors`` for every video of the
    index; zero for those of which nothing is known.

    Args:
        index: videos of the set; one that cannot be read to the end counts as far as it can.
        known: what is revealed in them (``told_of``).
        bounds: what the set's suite.json says of observers that are not perfect.
    """
    found = RevealedErrors(1 + max((int(told.group.max()) for told in known.values()), default=0))
    for start in range(0, len(known), batch_size):
        places = list(known)[start : start + batch_size]
        paths, told = [index.videos[place].path for place in places], [known[place] for place in places]
        pieces = read_segments(paths, model.preprocessing, segment=model.segment_frames(segment or 64))
        found.add(model, ((piece.frames, piece.lengths) for piece in pieces), told)
    squared = found.squared.new_zeros(len(index.videos), *found.squared.shape[1:])
    values = found.values.new_zeros(len(index.videos), found.values.shape[1])
    squared[list(known)], values[list(known)] = found.squared, found.values
    return found.summary(suite, bounds), squared, values
