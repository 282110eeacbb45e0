"""What every task does: it uses what encoder and backbone read, says what is learned from it, and measures it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

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


class Score(NamedTuple):
    """What evaluations are compared by: one number for each video, and its mean over videos.

    Attributes:
        column: the column of predictions.csv with the number of each video.
        figure: the name of its mean in a row of metrics.json.
        title: in words, for the axis of a figure.
        lower: smaller is better.
        share: it lies in 0..1 and is shown in per cent.
    """

    column: str
    figure: str
    title: str
    lower: bool = False
    share: bool = False

    @property
    def judged(self) -> bool:
        """Whether every video is answered right or wrong: the column is ``correct``, with 1 or 0. Only of such a score
        can be said what guessing and the best observer of a generated set reach."""
        return self.column == "correct"

    def of(self, row: Mapping[str, Any]) -> float | None:
        """The number in a row of predictions.csv; None where there is none, or no number."""
        value = row.get(self.column)
        number = math.nan if value is None or value == "" else float(value)
        return None if math.isnan(number) else number


class Card(NamedTuple):
    """What the model card of an export says of its task, in Markdown.

    Attributes:
        tag: the Hub's name for the task, e.g. ``video-classification``.
        pipeline: the Hub's pipeline that runs it; null: none does.
        description: begins the card.
        use: how the model is called.
        limits: what its figures do not say.
    """

    tag: str
    pipeline: str | None
    description: str
    use: str
    limits: str


@dataclass(frozen=True)
class Task(ABC):
    """What a model is trained for; one subclass per file. Evaluation asks it, too, for figures, columns and a card:
    the methods from ``report`` to ``card`` have defaults that suit any task.

    Attributes:
        labelled: whether videos need labels; otherwise labels are ignored, and videos may lie anywhere.
        classifies: whether outputs have ``logits``, one for each class: what ``VideoModel.classify`` reads.
    """

    labelled: ClassVar[bool] = True
    classifies: ClassVar[bool] = False

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

    def report(self, rows: Tensor, labels: Tensor, scored: Tensor, names: Sequence[str]) -> dict[str, Any]:
        """Figures of a split for metrics.json, one setting of an evaluation.

        Args:
            rows: [V, columns], as for ``summary``.
            labels: as for ``summary``.
            scored: as for ``summary``.
            names: the classes.
        """
        return dict(self.summary(rows, labels, scored))

    def score(self, multi_label: bool) -> Score:
        """What evaluations are compared by."""
        criterion = self.criterion(multi_label)
        return Score(criterion.metric, criterion.metric, criterion.metric.replace("_", " "), criterion.lower)

    def answer(self, row: Tensor | None, label: Tensor, names: Sequence[str]) -> dict[str, Any]:
        """Columns of predictions.csv for one video, that of ``score`` among them, from its row (None: it could not be
        read) and its label."""
        if row is None:
            return {}
        return dict(self.summary(row[None], label[None], label.new_ones(1).bool()))

    def average(self, rows: Tensor, multi_label: bool) -> Tensor:
        """One row from those of several views of a video, [views, columns] -> [columns].

        Raises:
            ValueError: if that means nothing for the task.
        """
        raise ValueError(f"--views does not go with a checkpoint trained for {type(self).__name__}; leave it out")

    def curves(
        self, rows: Tensor, label: Sequence[str], names: Sequence[str], multi_label: bool
    ) -> dict[str, list[float]]:
        """Lines below the frames of a sample: name -> a value in 0..1 for each row [S, columns] of a timeline. Those
        that are named in ``label`` are the true ones."""
        return {}

    def card(self, python: str, shell: str, parameters: int, names: Sequence[str], several: bool) -> Card:
        """What an export's card says.

        Args:
            python: the arguments of ``tttvideo.from_pretrained``.
            shell: the folder as a word of a command.
            parameters: how many the model has.
            names: the classes.
            several: a video can have several of them.
        """
        name = type(self).__name__
        return Card(
            "video",
            None,
            f"A video model trained for {name} with tttvideo: {parameters:,} parameters.",
            f"```python\nimport tttvideo\nmodel = tttvideo.from_pretrained({python})\n```",
            "The figures hold for videos like those measured.",
        )


class TaskHead(nn.Module, ABC):
    """The part of a model that belongs to its task.

    Attributes:
        logged: names of the figures that training shows beside the loss.
        columns: length of a row of an ``examiner``.
        unit: of ``step_losses``, in words.
        has_timeline: whether ``timeline`` knows the rows at each time step.
        reads_step: True if a time step's loss is taken after the model has read it; False: before, of its prediction.
        generated: [channels, rows, columns] of frames that the head makes and the model reads again, the next ones
            being its output's ``upcoming``; None: it makes none.
        reads_features: what is predicted, and read again, are features of the frozen encoder.
        own_steps: time steps that the end of a training clip is predicted over, each from the prediction before it
            (``rollout.roll_out_end``); 1: all are predicted from what was given.
    """

    logged: tuple[str, ...] = ()
    columns: int
    unit: str = ""
    has_timeline: bool = False
    reads_step: bool = True
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

    def timeline(self, output: Any) -> Tensor | None:
        """The rows that ``examiner`` would have, had the video ended at each time step of this output, [B, S, columns];
        None where they are not known without reading the video again."""
        return None

    def step_losses(self, segments: Iterable[Read], labels: Tensor, stride: int, multiple: int) -> Iterator[Tensor]:
        """Loss by position: of each segment of a batch, float64 [B, S], NaN where a time step has none.

        Args:
            segments: (frames [B, F, 3, H, W], valid frames [B], output), in order.
            labels: of these videos, as for ``Task.summary``.
            stride: frames per time step.
            multiple: the model's output is that of a video which ends there at multiples of this many frames.

        Raises:
            ValueError: if the task has no loss by position.
        """
        raise ValueError(f"{type(self).__name__} has no loss by position")

    def pictures(self, frames: Tensor) -> Tensor:
        """Frames as they were given, as what is ``generated`` is compared with them: [B, F, channels, rows, columns].

        Raises:
            ValueError: if the head generates no frames.
        """
        raise ValueError(f"{type(self).__name__} generates no frames")

    def bounded(self, predicted: Tensor) -> Tensor:
        """Generated frames as the model may read them again; pixels lie in 0..1."""
        return predicted

    @property
    def space(self) -> Literal["pixels", "features"]:
        """Of generated frames: pixels lie in 0..1."""
        return "features" if self.reads_features else "pixels"

    def set_class_counts(self, counts: Sequence[int]) -> None:
        """Tells how many training videos each class has, before training.

        Raises:
            ValueError: if the loss cannot be weighted by them as it should be.
        """

    def set_progress(self, done: float) -> None:
        """Tells the share of the training's steps that are done, 0..1, before each: schedules follow it."""
