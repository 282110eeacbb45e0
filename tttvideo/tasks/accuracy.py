"""The figures of one setting over all its videos. Videos that could not be scored count as wrong in each."""

import warnings
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
    probability 1/2. A failure has probability 0 for every class: ranked last, found nowhere.
    """
    from torchmetrics.functional.classification import multilabel_average_precision, multilabel_recall

    n = logits.shape[1]
    truth = labels.bool()
    probabilities = logits.sigmoid().masked_fill(~scored[:, None], 0.0)
    order = probabilities.argsort(dim=1, descending=True)
    hits = [(truth.gather(1, order[:, :k]).any(1) & scored).float().mean() for k in (1, min(5, n))]
    occurs = truth.any(0)
    recall = multilabel_recall(probabilities, truth.long(), num_labels=n, average="none")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that do not occur; they are left out below
        precision = multilabel_average_precision(probabilities, truth.long(), num_labels=n, average="none")
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
        map=_value(precision[occurs].mean()),
        per_class=_where(recall, occurs),
    )


def confusion_matrix(logits: Tensor, labels: Tensor, scored: Tensor) -> Tensor:
    """Counts int64 [n, n + 1]: true class by predicted class, the last column the videos without a score."""
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    n = logits.shape[1]
    predicted = torch.where(scored, logits.argmax(1), n)
    return multiclass_confusion_matrix(predicted, labels, num_classes=n + 1)[:n]


def _where(values: Tensor, occurs: Tensor) -> list[float | None]:
    return [_value(value) if there else None for value, there in zip(values, occurs)]


def _value(share: Tensor) -> float:
    """torchmetrics computes in float32: what is beyond its precision is cut off (0.95, not 0.949999988)."""
    return round(float(share), 7)
