"""Classification of a whole video: pooling over everything seen so far, logits, loss."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .accuracy import confusion_matrix, multi_label, single_label
from .base import Card, Criterion, Examiner, Loss, Read, Score, Sizes, Task, TaskHead


@dataclass(frozen=True)
class Classification(Task):
    """One label per video (softmax), or several (sigmoid) where the data has several.

    Attributes:
        pooling: ``mean`` of all tokens; ``attention``: their mean weighted by a learned score; ``ema``: their
            exponential moving average over time, in which the end of a long video is not drowned.
        half_life: of ``ema``: time steps after which a token counts half; null: 16.
        dropout: before the classifier.
        label_smoothing: of the one-label loss.
        class_weights: ``balanced``: in the training loss a video weighs videos / (classes * videos of its class), so
            that all classes weigh the same together; null: all videos weigh the same. (``data.balance`` shows rare
            classes more often instead.)
    """

    pooling: Literal["mean", "attention", "ema"] = "mean"
    half_life: float | None = None
    dropout: float = 0.0
    label_smoothing: float = 0.0
    class_weights: Literal["balanced"] | None = None

    classifies: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.class_weights not in (None, "balanced"):
            raise ValueError(f"Classification.class_weights is {self.class_weights!r}; it must be balanced or null.")
        if self.pooling not in ("mean", "attention", "ema"):
            raise ValueError(f"Classification.pooling is {self.pooling!r}; it must be mean, attention or ema.")
        if self.half_life is not None and self.pooling != "ema":
            raise ValueError(f"Classification.half_life is of pooling ema, not of {self.pooling}; leave it out.")
        if self.half_life is not None and not 0 < self.half_life < math.inf:
            raise ValueError(f"Classification.half_life is {self.half_life} time steps; it must lie above 0.")
        if not (0 <= self.label_smoothing <= 1 and 0 <= self.dropout < 1):
            raise ValueError(
                f"Classification.label_smoothing and dropout lie between 0 and 1, not {self.label_smoothing} and "
                f"{self.dropout}."
            )

    def build(self, sizes: Sizes) -> ClassificationHead:
        return ClassificationHead(self, sizes)

    def criterion(self, multi_label: bool) -> Criterion:
        return Criterion("map" if multi_label else "top1")

    def target(self, frames: Tensor, lengths: Tensor, labels: Tensor) -> Tensor:
        return labels

    def summary(self, rows: Tensor, labels: Tensor, scored: Tensor) -> dict[str, float]:
        figures = (single_label if labels.dim() == 1 else multi_label)(rows, labels, scored)
        names = ("loss", "top1", "top5", "mean_class", "map", "n")
        return {name: value for name in names if (value := getattr(figures, name)) is not None}

    def report(self, rows: Tensor, labels: Tensor, scored: Tensor, names: Sequence[str]) -> dict[str, Any]:
        """Beside ``summary``, recall and number of videos of each class, and a confusion matrix (one label)."""
        several = labels.dim() > 1
        figures = (multi_label if several else single_label)(rows, labels, scored)._asdict()
        report = {name: figures[name] for name in ("top1", "top5", "mean_class", "n", "loss")}
        report["per_class"] = dict(zip(names, figures["per_class"]))
        counts = labels.sum(0) if several else torch.bincount(labels, minlength=len(names))
        report["videos_per_class"] = dict(zip(names, map(int, counts.tolist())))
        if several:
            return report | {"map": figures["map"]}
        return report | {"confusion": confusion_matrix(rows, labels, scored).tolist()}

    def score(self, multi_label: bool) -> Score:
        return Score("correct", "top1", "top-1 accuracy", share=True)

    def answer(self, row: Tensor | None, label: Tensor, names: Sequence[str]) -> dict[str, Any]:
        several = label.dim() > 0
        right = label.nonzero().flatten().tolist() if several else [int(label)]
        true = {"label": ";".join(names[i] for i in right), "prediction": "", "correct": 0}
        if row is None:
            return true
        probabilities = row.sigmoid() if several else row.softmax(0)
        order = row.argsort(descending=True).tolist()  # probabilities are rounded to 1 where logits differ
        best = min((order.index(i) for i in right), default=len(names))  # the best placed of the true labels
        return true | {
            "prediction": names[order[0]],
            "correct": int(best == 0),
            "probability": f"{probabilities[order[0]]:.6f}",
            "label_probability": f"{max((probabilities[i] for i in right), default=torch.tensor(0.0)):.6f}",
            "rank": best + 1,
            "top5": ";".join(f"{names[i]}={probabilities[i]:.4f}" for i in order[:5]),
        }

    def average(self, rows: Tensor, multi_label: bool) -> Tensor:
        """Logits of the mean probabilities: of the softmax, or of a sigmoid each where several labels are possible."""
        if multi_label:
            # of p and of 1 - p, both as logarithms: neither is rounded to 0 or 1
            yes, no = (F.logsigmoid(sign * rows.double()).logsumexp(0) for sign in (1, -1))
            return (yes - no).float()
        return (rows.double().log_softmax(1).logsumexp(0) - math.log(len(rows))).float()

    def curves(
        self, rows: Tensor, label: Sequence[str], names: Sequence[str], multi_label: bool
    ) -> dict[str, list[float]]:
        """Probabilities of the true classes and of those that are likeliest at the end."""
        probabilities = rows.sigmoid() if multi_label else rows.softmax(-1)
        true = [names.index(name) for name in label if name in names]
        order = [*true, *(i for i in probabilities[-1].argsort(descending=True).tolist() if i not in true)]
        return {names[i]: probabilities[:, i].tolist() for i in order[: max(CURVES, len(true))]}

    def card(self, python: str, shell: str, parameters: int, names: Sequence[str], several: bool) -> Card:
        more = ", several may apply to one video" if several else ""
        return Card(
            "video-classification",
            "video-classification",
            f"A video classifier made with tttvideo: {parameters:,} parameters, {len(names)} classes{more}. It reads "
            "any\nnumber of frames.",
            "```python\n"
            "import tttvideo\n"
            f"model = tttvideo.from_pretrained({python})\n"
            'print(model.classify("clip.mp4"))  # [(label, probability), ...]\n'
            "```\n\n"
            "`classify` does the preprocessing, too.",
            "The figures hold for videos like those measured. A classifier names one of its classes for every video, "
            "also\nfor one that shows none of them. Videos much longer than those of training, other frame rates and "
            "other\ncameras can lower its accuracy: measure with `tttvideo evaluate` on your own.",
        )


CURVES = 4
"""Classes whose probability a sample shows."""
HALF_LIFE = 16.0
"""Of ``ema`` in time steps, if none is given."""
BLOCK = 64
"""Time steps whose decays are one matrix: one over a whole video would grow with the square of its length."""


class Output(NamedTuple):
    """``logits`` [B, classes] of everything seen so far; ``timeline`` [B, S, classes]: the same, had the video
    ended at each time step of this call (``encoder.stride`` frames each). That holds at multiples of
    ``frame_multiple`` frames, and nowhere before the end for a model that does not stream."""

    logits: Tensor
    timeline: Tensor


class PoolState(NamedTuple):
    """Weighted sum of all tokens so far [B, C] and the sum of the weights [B, 1]; ``ema``: both have decayed."""

    total: Tensor
    weight: Tensor


class LastLogits(Examiner):
    """The logits of the whole videos."""

    logits: Tensor

    def add(self, lengths: Tensor, output: Output) -> None:
        self.logits = output.logits

    def rows(self) -> Tensor:
        return self.logits.float()


class ClassificationHead(TaskHead):
    """Pools tokens up to every time step, so that the answer "had the video ended here" is known at each."""

    logged = ("accuracy",)
    unit = "nats"
    has_timeline = True

    def __init__(self, config: Classification, sizes: Sizes):
        super().__init__()
        self.label_smoothing = config.label_smoothing
        self.balanced = config.class_weights == "balanced"
        self.class_weight: Tensor | None  # float [classes], of the training loss
        self.register_buffer("class_weight", None, persistent=False)
        self.multi_label = sizes.multi_label
        self.columns = sizes.classes
        self.score = nn.Linear(sizes.width, 1) if config.pooling == "attention" else None
        self.decay = 0.5 ** (1 / (config.half_life or HALF_LIFE)) if config.pooling == "ema" else 1.0
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(sizes.width, sizes.classes)

    def set_class_counts(self, counts: Sequence[int]) -> None:
        if not self.balanced:
            return
        if self.multi_label:
            raise ValueError("Classification.class_weights serves videos of one class each; leave it out.")
        videos = torch.tensor(counts, dtype=torch.float32)
        share = videos.sum() / ((videos > 0).sum() * videos.clamp_min(1))
        self.class_weight = share.to(self.classifier.weight)

    def init_state(self, batch: int) -> PoolState:
        weight = self.classifier.weight
        return PoolState(
            torch.zeros(batch, weight.shape[1], dtype=torch.float32, device=weight.device).to(_wide(weight)),
            torch.zeros(batch, 1, dtype=torch.float32, device=weight.device).to(_wide(weight)),
        )

    def forward(
        self, tokens: Tensor, steps: Tensor | None, frames: Tensor, lengths: Tensor | None, state: PoolState
    ) -> tuple[Output, PoolState]:
        valid = None
        if steps is not None:
            valid = (torch.arange(tokens.shape[1]) < steps[:, None]).to(tokens.device, non_blocking=True)
        logits, timeline, state = self.pool(tokens, valid, state)
        return Output(logits, timeline), state

    def loss(self, output: Output, target: Tensor) -> Loss:
        """Summed over the videos.

        Args:
            target: int64 [B], or float [B, classes]: several labels (binary cross-entropy per class), or the soft
                labels of Mixup.
        """
        if self.multi_label:
            each = F.binary_cross_entropy_with_logits(output.logits, target.to(output.logits.dtype), reduction="none")
            total = each.mean(1).sum()
        else:
            how = {"label_smoothing": self.label_smoothing, "reduction": "sum"}
            total = F.cross_entropy(output.logits, target, self.class_weight, **how)  # pyright: ignore
        return Loss(total, torch.full((), len(target), device=total.device))

    def figures(self, output: Output, target: Tensor) -> dict[str, Tensor]:
        logits = output.logits
        if target.dim() == 1:
            correct = (logits.argmax(1) == target).sum()
        else:  # several labels: the share of right yes/no answers
            correct = ((logits > 0) == (target > 0.5)).float().mean(1).sum()
        return {"accuracy": correct}

    def examiner(self) -> LastLogits:
        return LastLogits()

    def timeline(self, output: Output) -> Tensor:
        return output.timeline

    def step_losses(self, segments: Iterable[Read], labels: Tensor, stride: int, multiple: int) -> Iterator[Tensor]:
        """The loss of the answer, had the video ended at each time step."""
        read = 0
        for frames, lengths, output in segments:
            timeline = output.timeline.double().cpu()
            ends = (torch.arange(timeline.shape[1]) + 1) * stride
            if self.multi_label:
                target = labels[:, None].expand_as(timeline).double()
                loss = F.binary_cross_entropy_with_logits(timeline, target, reduction="none").mean(2)
            else:
                loss = F.cross_entropy(timeline.mT, labels[:, None].expand(timeline.shape[:2]), reduction="none")
            valid = (ends <= lengths.cpu()[:, None]) & ((read + ends) % multiple == 0)
            yield torch.where(valid, loss, torch.nan)
            read += frames.shape[1]

    def pool(self, x: Tensor, valid: Tensor | None, state: PoolState) -> tuple[Tensor, Tensor, PoolState]:
        """
        Args:
            x: tokens [B, F, N, C].
            valid: bool [B, F], or None for all.
            state: what was pooled before.

        Returns:
            logits [B, classes] of everything so far, timeline [B, F, classes] of everything up to each time
            step (at padded steps: of everything before), and the state.
        """
        score = None if self.score is None else self.score(x).squeeze(-1)
        x = x.to(_wide(x))
        if score is None:
            weight = x.new_ones(x.shape[:-1])
        else:
            # Bounded scores make the running softmax a ratio of plain sums: exp cannot overflow.
            weight = torch.exp(5.0 * torch.tanh(score.to(x.dtype) / 5.0))
        if valid is not None:
            weight = weight * valid[..., None]
            x = x.masked_fill(~valid[..., None, None], 0.0)
        read = torch.cat(((x * weight[..., None]).sum(2), weight.sum(-1, keepdim=True)), -1)
        sums = self._accumulate(read, torch.cat((state.total, state.weight), -1), valid)
        totals, weights = sums[..., :-1], sums[..., -1:]
        timeline = self._classify(totals, weights)
        after = PoolState(totals[:, -1], weights[:, -1]) if x.shape[1] else state
        logits = timeline[:, -1] if x.shape[1] else self._classify(*state)
        return logits, timeline, after

    def _accumulate(self, x: Tensor, before: Tensor, valid: Tensor | None) -> Tensor:
        """Sums [B, F, C] of all steps up to each, of which each valid step makes what was before it decay: before
        [B, C] and x [B, F, C]."""
        if self.decay == 1.0:
            # No matrix product, which autocast would take out of float32.
            return before[:, None] + x.cumsum(1)
        steps = torch.ones_like(x[..., 0]) if valid is None else valid.to(x.dtype)
        sums = [before[:, None]]
        with torch.autocast(x.device.type, enabled=False):
            for part, passed in zip(x.split(BLOCK, 1), steps.split(BLOCK, 1), strict=True):
                age = passed.cumsum(1)
                weight = torch.tril(self.decay ** (age[:, :, None] - age[:, None, :]))
                sums.append(weight @ part + self.decay ** age[..., None] * sums[-1][:, -1:])
        return torch.cat(sums[1:], 1) if x.shape[1] else x

    def _classify(self, total: Tensor, weight: Tensor) -> Tensor:
        pooled = total / weight.clamp_min(torch.finfo(weight.dtype).tiny)
        return self.classifier(self.dropout(pooled).to(self.classifier.weight.dtype))


def _wide(x: Tensor) -> torch.dtype:
    """Sums over a two-hour film need float32 at least."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
