"""What every task does: it uses what encoder and backbone read, says what is learned from it, and measures it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

Read = tuple[Tensor, Tensor, Any]
"""A segment of videos (frames [B, F, 3, H, W], valid frames [B]) and what the model put out for it."""


class Sizes(NamedTuple):
    """What a head is built for."""

    width: int  # channels C of the backbone's tokens
    grid: tuple[int, int]  # rows and columns of one time step's tokens
    stride: int  # frames per time step
    frame: tuple[int, int]  # height and width in pixels
    mean: tuple[float, float, float]  # of the encoder's normalisation, for pixels in 0..1
    std: tuple[float, float, float]
    causal: bool  # no output of the backbone depends on later frames than its own
    whole_frames: bool  # no output of the backbone is cut off from later tokens of its own frame
    features: tuple[int, int, int] | None = None  # channels, rows, columns of a frozen encoder's maps; None: not frozen
    classes: int = 0
    multi_label: bool = False


class Loss(NamedTuple):
    """The loss of a batch, as a sum and the number of what it is summed over: videos, or predicted time steps.

    Training descends the mean over all that counts in a step: it adds up sums and counts of batches and processes, so
    it does not matter how many of them each holds.
    """

    total: Tensor  # float [], with the gradient
    count: Tensor  # int []; of a batch in which nothing counts both are 0

    def mean(self) -> Tensor:
        """The mean over what counts; 0 where nothing does."""
        return self.total / self.count.clamp_min(1)


class Examiner(ABC):
    """Finds what ``Task.summary`` needs of a batch of whole videos, while they are read segment by segment."""

    @abstractmethod
    def add(self, lengths: Tensor, output: Any) -> None:
        """The next segment: its valid frames [B], and what the model put out for it."""

    @abstractmethod
    def rows(self) -> Tensor:
        """float32 [B, columns], after all segments; at least one was added."""


class Criterion(NamedTuple):
    """How the best checkpoint is chosen: a name among ``Task.summary``'s figures, which way is better, and what must be
    said of it."""

    metric: str
    lower: bool = False
    note: str = ""


@dataclass(frozen=True)
class Task(ABC):
    """What a model is trained for; one subclass per file.

    Attributes:
        labelled: whether videos need labels; otherwise labels are ignored, and videos may lie anywhere.
    """

    labelled: ClassVar[bool] = True

    @property
    def least_frames(self) -> int:
        """A shorter clip teaches nothing."""
        return 1

    @abstractmethod
    def build(self, sizes: Sizes) -> TaskHead:
        """The head of this task.

        Raises:
            ValueError: if encoder or backbone do not serve this task; the sentence says what does.
        """

    @abstractmethod
    def criterion(self, multi_label: bool) -> Criterion:
        """What decides which checkpoint is the best."""

    @abstractmethod
    def target(self, frames: Tensor, lengths: Tensor, labels: Tensor) -> Any:
        """What a batch (frames [B, F, 3, H, W], valid frames [B], labels [B] or [B, classes]) should lead to."""

    @abstractmethod
    def summary(self, rows: Tensor, labels: Tensor, scored: Tensor) -> dict[str, float]:
        """Figures of a split.

        Args:
            rows: what ``TaskHead.examiner`` found of each video, [V, columns].
            labels: int64 [V] or float [V, classes].
            scored: bool [V], false where a video could not be read.
        """


class TaskHead(nn.Module, ABC):
    """The part of a model that belongs to its task.

    Attributes:
        logged: names of the figures that training shows beside the loss.
        columns: length of a row of an ``examiner``.
        generated: [channels, rows, columns] of frames that the head makes and the model reads again; None: it makes
            none.
        reads_features: what is predicted, and read again, are features of the frozen encoder.
        own_steps: time steps that the end of a training clip is predicted over, each from the prediction before it
            (``rollout.roll_out_end``); 1: all are predicted from what was given.
    """

    logged: tuple[str, ...] = ()
    columns: int
    generated: tuple[int, int, int] | None = None
    reads_features: bool = False
    own_steps: int = 1

    @abstractmethod
    def init_state(self, batch: int) -> Any:
        """What the head remembers of ``batch`` videos before their first frame."""

    @abstractmethod
    def forward(
        self, tokens: Tensor, steps: Tensor | None, frames: Tensor, lengths: Tensor | None, state: Any
    ) -> tuple[Any, Any]:
        """
        Args:
            tokens: what the backbone made of this call's frames, [B, S, N, C]: S time steps of N tokens.
            steps: valid time steps of each row, int64 [B] on the host; None for all.
            frames: the frames [B, F, 3, H, W] that the tokens are of, or their features (``reads_features``).
            lengths: valid frames of each row, int64 [B] on the host; None for all.
            state: what the head remembers.

        Returns:
            the output (a NamedTuple of tensors), and the state.
        """

    @abstractmethod
    def loss(self, output: Any, target: Any) -> Loss:
        """The loss, summed over what counts; ``target`` as ``Task.target`` gives it."""

    @abstractmethod
    def figures(self, output: Any, target: Any) -> dict[str, Tensor]:
        """Each figure in ``logged``, summed over what counts in the loss."""

    @abstractmethod
    def examiner(self) -> Examiner:
        """A new one, for a batch of videos; its memory does not grow with their length."""

    def examine(self, segments: Iterable[Read]) -> Tensor:
        """Whole videos, segment by segment -> float32 [B, columns], as an ``examiner`` finds them."""
        examiner, empty = self.examiner(), True
        for _, lengths, output in segments:
            examiner.add(lengths, output)
            empty = False
        if empty:
            raise ValueError("There are no frames to score.")
        return examiner.rows()

    def set_progress(self, done: float) -> None:
        """Tells the share of the training's steps that are done, 0..1, before each: schedules follow it."""
