"""What a page shows of a model while it reads a video: answers so far, lines over time, frames."""

from __future__ import annotations

import io
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..evaluation.plots import COLOURS
from ..model import VideoModel
from ..tasks.forecast_errors import Following
from ..tasks.prediction import in_unit
from ..tasks.rollout import generate
from ..ttt.interface import state_bytes
from ..video.index import Video
from ..video.reader import VideoError
from ..video.reading import catch_damage
from ..video.sampling import parse_sampling
from ..video.segments import video_pieces
from ..video.strips import LAST, strip_png
from .answers import Growing
from .timeline import SHOWN, frame_times

SEGMENT = 16
"""Frames that a model reads at a time, about."""

HORIZON = 24
"""Frames at the end of a video that a model which predicts generates, at most."""

RECENT = 8
"""Frames in a strip."""


POINTS = 400
"""Points of a line, at most."""


class Answer(NamedTuple):
    """A class; ``share`` in 0..1; ``colour`` of its line."""

    label: str
    share: float
    colour: str


class Chart(NamedTuple):
    """Lines over time: colour, and points "x,y x,y ..." in 0..100."""

    title: str
    lines: list[tuple[str, str]]
    top: str
    first: str
    last: str


class Panel(ABC):
    """One model beside one video.

    Args:
        longest: seconds of a video that are read.

    Attributes:
        answers: classes, most probable first.
        now: time of the last frame that was read, in seconds.

    Raises:
        VideoError: for what is no video, or lasts longer.
    """

    answers: Sequence[Answer] = ()

    def __init__(self, name: str, model: VideoModel, path: str, longest: float):
        self.name, self.model, self.path = name, model, path
        video, rule = Video(path, None, None, None, None), model.preprocessing.sampling
        self.times = frame_times(video, model.preprocessing, rule, None)
        self.now, end = float(self.times[0]), float(self.times[-1])
        if end - self.now > longest:
            raise VideoError(f"{path} lasts {end - self.now:.0f} s, and up to {longest:g} s are read here; cut it")
        self.frames, self.took = 0, 0.0
        self.notes: list[str] = []
        self._state: Any = None
        self._memory: list[tuple[float, float]] = []  # seconds, kB
        self._remember(model.init_state(1))

    @torch.no_grad()
    def read(self, decoding: threading.Lock) -> Iterator[None]:
        """Reads on, a segment for each item.

        Args:
            decoding: held while frames are decoded, as warnings are collected for the whole process.

        Raises:
            VideoError: where the video cannot be read on.
        """
        preprocessing = self.model.preprocessing
        how = (self.model.segment_frames(SEGMENT), None, parse_sampling(preprocessing.sampling), None, None)
        with closing(video_pieces(self.path, preprocessing, *how)) as pieces:  # type: ignore[type-var]  # generators
            while True:
                with decoding, catch_damage() as notes:
                    frames = next(pieces, None)
                self.notes += [note for note in notes if note not in self.notes]
                if frames is None:
                    break
                self._add(frames)
                self.frames += len(frames)
                self.now = float(self.times[min(self.frames, len(self.times)) - 1])
                self._remember(self._state)
                yield
        if not self.frames:
            raise VideoError(f"{self.path}: no frame could be read")

    def _remember(self, state: Any) -> None:
        self._memory.append((self.now, state_bytes(state) / 1e3))

    def _run(self, frames: Tensor) -> Any:
        """The model's output for the next frames [F, 3, H, W]."""
        began = time.monotonic()
        frames = frames[None].to(next(self.model.parameters()).device)
        output, self._state = self.model.read(frames, None, self._state)
        self.took += time.monotonic() - began
        return output

    @abstractmethod
    def _add(self, frames: Tensor) -> None:
        """Reads the next segment."""

    @property
    @abstractmethod
    def chart(self) -> Chart:
        """What the model said over time."""

    @property
    @abstractmethod
    def pictures(self) -> bytes | None:
        """PNG of frames, or of truth above forecast; None: not yet."""

    @property
    def memory(self) -> Chart:
        seconds, sizes = np.array(self._memory).T
        return self.lines("memory of its state, kB", seconds, [("currentColor", sizes)])

    @property
    def sentences(self) -> list[str]:
        (_, first), (_, size) = self._memory[1], self._memory[-1]  # after the first segment, when tails are full
        held = f"kept {size:,.1f} kB" if size == first else f"grew from {first:,.1f} to {size:,.1f} kB"
        rate = self.frames / max(self.took, 1e-9)
        read = f"{self.frames} of {len(self.times)} frames read, {rate:,.0f} a second; the state {held}."
        return [read, *self.notes]

    def lines(self, title: str, seconds: np.ndarray, lines: list[tuple[str, np.ndarray]], top: float = 0.0) -> Chart:
        """A chart from 0 to ``top``; by default to a little above the highest point."""
        top = top or 1.2 * max((float(line.max(initial=0)) for _, line in lines), default=0) or 1.0
        first, last = float(self.times[0]), float(self.times[-1])
        xs = 100 * (seconds - first) / max(last - first, 1e-9)
        chosen = np.unique(np.linspace(0, len(xs) - 1, min(POINTS, len(xs))).astype(int))
        points = [(c, " ".join(f"{xs[i]:.2f},{100 - 100 * ys[i] / top:.2f}" for i in chosen)) for c, ys in lines]
        return Chart(title, points, f"{top:.3g}", f"{first:.3g} s", f"{last:.3g} s")


class Classes(Panel):
    """Of a classifier: probabilities of all frames so far.

    Args:
        colours: by label, for all panels of a page; those of further classes are added.
    """

    def __init__(self, name: str, model: VideoModel, path: str, longest: float, colours: dict[str, str]):
        super().__init__(name, model, path, longest)
        self._growing, self._colours = Growing(), colours

    def _add(self, frames: Tensor) -> None:
        self._growing.add(self._run(frames).timeline[0].float().cpu(), frames)
        self._probabilities = self.model.probabilities(self._growing.timeline().logits)
        if not bool(self._probabilities.isfinite().all()):
            raise ValueError(f"{self.name} answers with NaN: its weights are damaged; use an earlier checkpoint")
        labels, now = self.model.labels, self._probabilities[-1].tolist()
        highest = self._probabilities.max(0).values
        highest[int(np.argmax(now))] = 2  # the answer is always shown
        best = highest.topk(min(SHOWN, len(labels))).indices.tolist()
        for number in best:
            self._colours.setdefault(labels[number], COLOURS[len(self._colours) % len(COLOURS)])
        self._best = sorted(best, key=lambda number: -now[number])
        self.answers = [Answer(labels[i], now[i], self._colours[labels[i]]) for i in self._best]

    @property
    def chart(self) -> Chart:
        ends = (np.arange(len(self._probabilities)) + 1) * self.model.encoder.stride
        seconds = self.times[np.minimum(ends, len(self.times)) - 1]
        classes = zip(self.answers, self._best, strict=True)
        lines = [(answer.colour, self._probabilities[:, number].numpy()) for answer, number in classes]
        return self.lines("probability so far", seconds, lines, 1.0)

    @property
    def pictures(self) -> bytes:
        """Below the chart, each in its time."""
        from PIL import Image

        _, pictures, at = self._growing.timeline()
        height, width = pictures.shape[2:]
        strip = np.zeros((height, RECENT * width, 4), np.uint8)  # transparent where nothing was read yet
        for cell in range(RECENT):
            wanted = (cell + 0.5) / RECENT * len(self.times)
            if wanted <= self.frames:
                nearest = min(range(len(at)), key=lambda i: abs(at[i] - wanted))
                part = strip[:, cell * width : (cell + 1) * width]
                part[..., :3], part[..., 3] = pictures[nearest].permute(1, 2, 0), 255
        image, stream = Image.fromarray(strip), io.BytesIO()
        image.reduce(max(1, height // 64)).save(stream, format="png")
        return stream.getvalue()


class Forecasts(Panel):
    """Of a model that predicts: each frame beside what was expected of it; then the end of the video beside what the
    model generates from all before.

    Raises:
        VideoError: for a video with too few frames.
    """

    def __init__(self, name: str, model: VideoModel, path: str, longest: float):
        super().__init__(name, model, path, longest)
        total, step = len(self.times), model.frame_multiple
        self._split = (total - min(HORIZON, total // 2)) // step * step
        if total < 2 or not self._split:
            raise VideoError(f"{path} has {total} frames; {name} needs {max(2, 2 * step)} to have something to predict")
        self._following = Following(model.head)  # type: ignore[arg-type]
        self._errors: list[tuple[float, ...]] = []  # seconds, of the model, of copying the last frame
        self._before = self._truth = self._expected = torch.empty(0)  # [n, 3, H, W] in 0..1, of the strip
        self._generated = False

    def _add(self, frames: Tensor) -> None:
        context, end = frames.tensor_split([max(0, self._split - self.frames)])
        if len(context):
            output = self._run(context)
            self._compare(len(context), output)
            self._before = torch.cat([self._before, in_unit(context)])[-LAST:]
            if self.frames + len(context) == self._split:
                horizon = len(self.times) - self._split
                self._expected = generate(self.model, output, self._state, horizon)[0].cpu()
                self._truth, self._generated = torch.empty(0), True
        if len(end):
            self._truth = torch.cat([self._truth, in_unit(end)])
        if not bool(self._expected.isfinite().all()):
            raise ValueError(f"{self.name} predicts NaN: its weights are damaged; use an earlier checkpoint")

    def _compare(self, count: int, output: Any) -> None:
        at, stride = self.frames, self.model.encoder.stride
        for truth, _, guess in self._following.add(torch.tensor([count]), output):
            at += stride
            if guess is None:
                continue
            predicted, copied, *_ = self._following.guesses(guess)
            errors = [float((frames - truth).square().mean()) for frames in (predicted, copied)]
            self._errors.append((float(self.times[min(at, len(self.times)) - 1]), *errors))
            self._truth = torch.cat([self._truth, truth[0].cpu()])[-RECENT:]
            self._expected = torch.cat([self._expected, predicted[0].cpu()])[-RECENT:]

    @property
    def chart(self) -> Chart:
        seconds, predicted, copied = np.array(self._errors).reshape(-1, 3).T
        lines = [("#777777", copied), (COLOURS[0], predicted)]
        return self.lines("squared error of the next frame (grey: of the last frame again)", seconds, lines)

    @property
    def pictures(self) -> bytes | None:
        if not len(self._expected):
            return None
        first, before = self.frames - len(self._truth), self._truth[:0]
        if self._generated:
            first, before = self._split - len(self._before), self._before
        return strip_png(before, self._truth, self._expected, first)

    @property
    def sentences(self) -> list[str]:
        what = "Each frame above what was expected of it."
        if self._generated:
            what = f"The last {len(self._expected)} frames, above what the model generates from all before them."
        return [what, *super().sentences]


def check_model(name: str, model: VideoModel) -> None:
    """Raises ValueError for a model whose answers have no picture."""
    if not model.config.task.classifies and (model.head.generated is None or model.head.space != "pixels"):
        raise ValueError(
            f"{name} was trained for {type(model.config.task).__name__}, and a page shows classes or predicted pixels; "
            "measure it with tttvideo evaluate"
        )


def panels_of(models: dict[str, VideoModel], path: str, longest: float) -> list[Panel]:
    colours: dict[str, str] = {}
    return [
        Classes(name, model, path, longest, colours)
        if model.config.task.classifies
        else Forecasts(name, model, path, longest)
        for name, model in models.items()
    ]


def read_side_by_side(panels: Sequence[Panel], decoding: threading.Lock) -> Iterator[None]:
    """Reads the video with all models, the one that is furthest behind first."""
    running = [(panel, panel.read(decoding)) for panel in panels]
    try:
        while running:
            behind = min(running, key=lambda pair: pair[0].now)
            if next(behind[1], True):
                running.remove(behind)
            else:
                yield
    finally:
        for _, reading in running:
            reading.close()  # type: ignore[attr-defined]  # generators
