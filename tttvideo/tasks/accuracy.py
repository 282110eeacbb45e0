"""The figures of one setting over all its videos. Videos that could not be scored count as wrong in each."""

from typing import NamedTuple

import torch
from torch import Tensor


class Figures(NamedTuple):
    """In [0, 1], except `loss`: mean negative log-likelihood in nats over the videos that have scores."""

    top1: float
    top5: float  # among the min(5, n_classes) highest scores
    mean_class: float  # recall averaged over the classes that occur in the data
    n: int
    loss: float | None
    map: float | None  # mean average precision over occurring classes; multi-label only
    per_class: list[float | None]  # recall of each class, None where it does not occur


def single_label(logits: Tensor, labels: Tensor, scored: Tensor) -> Figures:
    """One label per video: logits [V, n], labels int64 [V], scored bool [V] (False: a failure)."""
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_recall

    n = logits.shape[1]
    k = min(5, n)
    # A failure's k highest scores go to k extra classes that no video has, so it is wrong at every rank.
    padded = torch.cat([logits, torch.full((len(logits), k), -torch.inf)], dim=1)
    padded[~scored, :n] = -torch.inf
    padded[~scored, n:] = 1.0
    top = [multiclass_accuracy(padded, labels, num_classes=n + k, average="micro", top_k=rank) for rank in (1, k)]
    recall = multiclass_recall(padded.argmax(1), labels, num_classes=n + k, average="none")[:n]
    occurs = torch.bincount(labels, minlength=n) > 0
    loss = torch.nn.functional.cross_entropy(logits[scored], labels[scored]) if scored.any() else None
    return Figures(
        top1=_value(top[0]),
        top5=_value(top[1]),
        mean_class=_value(recall[occurs].mean()),
        n=len(labels),
        loss=None if loss is None else float(loss),
        map=None,
        per_class=_where(recall, occurs),
    )


def multi_label(logits: Tensor, labels: Tensor, scored: Tensor) -> Figures:
    """Figures for several labels per video: logits [V, n], labels {0, 1} [V, n], scored bool [V].

    top1 and top5 are hits: one of the highest scores is one of the labels. `mean_class` is the recall at
    probability 1/2, a logit of 0. A failure is ranked last in every class and found nowhere. Everything goes by logits:
    float32 probabilities are all 1 where logits exceed 17, which would make ties.
    """
    from torchmetrics.functional.classification import binary_average_precision

    n = logits.shape[1]
    truth = labels.bool()
    order = logits.argsort(dim=1, descending=True)
    hits = [(truth.gather(1, order[:, :k]).any(1) & scored).float().mean() for k in (1, min(5, n))]
    occurs = truth.any(0)
    true_positives = truth & (logits > 0) & scored[:, None]
    recall = true_positives.sum(0) / truth.sum(0).clamp_min(1)
    ranks = _ranks(logits, scored)
    precision = [binary_average_precision(ranks[:, i], labels[:, i].long()) for i in range(n) if occurs[i]]
    loss = None
    if scored.any():
        target = labels[scored].to(logits.dtype)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits[scored], target)
    return Figures(
        top1=_value(hits[0]),
        top5=_value(hits[1]),
        mean_class=_value(recall[occurs].mean()),
        n=len(labels),
        loss=None if loss is None else float(loss),
        map=_value(torch.stack(precision).mean()) if precision else float("nan"),
        per_class=_where(recall, occurs),
    )


def confusion_matrix(logits: Tensor, labels: Tensor, scored: Tensor) -> Tensor:
    """Counts int64 [n, n + 1]: true class by predicted class, the last column the videos without a score."""
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    n = logits.shape[1]
    predicted = torch.where(scored, logits.argmax(1), n)
    return multiclass_confusion_matrix(predicted, labels, num_classes=n + 1)[:n]


def _ranks(logits: Tensor, scored: Tensor) -> Tensor:
    """The order of each class's logits [V, n] as numbers in 0..1, which torchmetrics takes as they are: equal logits
    have equal ones, failures 0."""
    ranks = [column.unique(return_inverse=True)[1] + 1 for column in logits.T]
    return (torch.stack(ranks, 1).double() / len(logits)).masked_fill(~scored[:, None], 0.0)


def _where(values: Tensor, occurs: Tensor) -> list[float | None]:
    return [_value(value) if there else None for value, there in zip(values, occurs)]


def _value(share: Tensor) -> float:
    """torchmetrics computes in float32: what is beyond its precision is cut off (0.95, not 0.949999988)."""
    return round(float(share), 7)
