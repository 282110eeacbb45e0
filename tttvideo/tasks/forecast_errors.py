"""Errors of predicted frames as a video is read, each frame predicted from all true frames before it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .base import Examiner
from .trivial import History

if TYPE_CHECKING:
    from .prediction import Forecast, PredictionHead


class Following:
    """Goes along with videos as they are read: each time step beside what was predicted of it.

    Attributes:
        history: of the time steps before, for predictions that need no model.
    """

    history: History | None = None

    def __init__(self, head: PredictionHead):
        self.head = head
        self.upcoming: Tensor | None = None  # the prediction of the time step that comes next

    def add(self, lengths: Tensor, output: Forecast) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Of each whole time step of the next segment: its true frames [B, p, 3, H, W] in 0..1 (or features), in which
        rows they are valid, bool [B], and their prediction; None for the first of the videos."""
        pictures, stride = self.head.pictures(output.seen), self.head.sizes.stride
        self.history = History(len(pictures), pictures) if self.history is None else self.history
        for step in range(pictures.shape[1] // stride):
            truth = pictures[:, step * stride : (step + 1) * stride]
            valid = ((step + 1) * stride <= lengths).to(pictures.device)
            yield truth, valid, self.upcoming
            self.history.add(truth, valid)
            if step < output.timeline.shape[1]:
                self.upcoming = output.timeline[:, step].to(pictures.dtype)

    def guesses(self, guess: Tensor) -> list[Tensor]:
        """The model's prediction of a time step and those of ``TRIVIAL``, as the model may read them again."""
        assert self.history is not None
        return [self.head.bounded(x) for x in (guess, *self.history.guesses(guess.shape[1]).values())]


class ForecastErrors(Examiner):
    """Predicted frames of each video, then the sums over them of squared and absolute errors: of the model, and of each
    of ``TRIVIAL``."""

    total: Tensor | None = None

    def __init__(self, head: PredictionHead):
        self.head, self.steps = head, Following(head)

    def add(self, lengths: Tensor, output: Forecast) -> None:
        if self.total is None:
            self.total = torch.zeros(
                len(lengths), self.head.columns, dtype=torch.float64, device=output.upcoming.device
            )
        for truth, valid, guess in self.steps.add(lengths, output):
            if guess is not None:
                self.total += self._errors(guess, truth, valid)

    def _errors(self, guess: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
        """Prediction and truth of a time step, [B, p, 3, H, W] -> [B, columns], 0 in rows that are not ``valid``."""
        history = self.steps.history
        assert history is not None
        counts = (valid & (history.count >= self.head.config.context)).double()[:, None]
        errors = [(x - truth).flatten(2) for x in self.steps.guesses(guess)]
        sums = [e for d in errors for e in (d.square().sum((1, 2)), d.abs().sum((1, 2)))]
        frames = torch.full_like(sums[0], float(truth.shape[1]))
        return counts * torch.stack([frames, *sums], 1).double()

    def rows(self) -> Tensor:
        assert self.total is not None
        return self.total.float()
