"""Each figure against its definition in plain Python."""

import math

import pytest
import torch

from tttvideo.tasks.accuracy import confusion_matrix, multi_label, single_label


@pytest.mark.parametrize("n_classes", [2, 5, 6, 9])
def test_single_label_figures_are_what_they_say(n_classes):
    generator = torch.Generator().manual_seed(n_classes)
    logits = torch.randn(40, n_classes, generator=generator)
    labels = torch.randint(0, n_classes, (40,), generator=generator)
    scored = torch.rand(40, generator=generator) > 0.2
    figures = single_label(logits, labels, scored)

    ranked = [row.argsort(descending=True).tolist() for row in logits]
    right = [[ok and int(y) in order[:k] for order, y, ok in zip(ranked, labels, scored)] for k in (1, 5)]
    recalls = []
    for c in range(n_classes):
        own = [hit for hit, y in zip(right[0], labels.tolist()) if y == c]
        assert figures.per_class[c] == (pytest.approx(sum(own) / len(own)) if own else None)
        recalls += [sum(own) / len(own)] if own else []
    assert figures.top1 == pytest.approx(sum(right[0]) / 40)
    assert figures.top5 == pytest.approx(sum(right[1]) / 40)
    assert figures.mean_class == pytest.approx(sum(recalls) / len(recalls))
    assert figures.n == 40
    losses = [-logits[i].log_softmax(0)[labels[i]].item() for i in range(40) if scored[i]]
    assert figures.loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert figures.map is None


def test_a_failed_video_is_wrong_even_in_top5_of_five_classes():
    logits = torch.eye(5)
    figures = single_label(logits, torch.arange(5), torch.tensor([True, True, True, True, False]))
    assert (figures.top1, figures.top5, figures.mean_class) == (0.8, 0.8, 0.8)
    assert figures.per_class == [1, 1, 1, 1, 0]


def test_classes_without_videos_do_not_enter_the_class_mean():
    figures = single_label(torch.eye(4)[:2], torch.tensor([0, 1]), torch.ones(2, dtype=torch.bool))
    assert figures.mean_class == 1.0
    assert figures.per_class == [1.0, 1.0, None, None]


def test_figures_exist_when_everything_failed():
    nothing = torch.zeros(3, dtype=torch.bool)
    figures = single_label(torch.zeros(3, 2), torch.tensor([0, 1, 1]), nothing)
    assert (figures.top1, figures.top5, figures.mean_class, figures.loss) == (0, 0, 0, None)
    several = multi_label(torch.zeros(3, 2), torch.tensor([[1, 0], [1, 1], [0, 1]]), nothing)
    assert (several.top1, several.top5, several.mean_class, several.loss) == (0, 0, 0, None)


def test_multi_label_figures_are_what_they_say():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(30, 7, generator=generator)
    labels = (torch.rand(30, 7, generator=generator) > 0.7).long()
    labels[:, 6] = 0  # a class that does not occur
    scored = torch.rand(30, generator=generator) > 0.2
    figures = multi_label(logits, labels, scored)

    hits, recalls, precisions = [0, 0], [], []
    for i in range(30):
        order = logits[i].argsort(descending=True).tolist()
        for which, k in enumerate((1, 5)):
            hits[which] += bool(scored[i]) and any(labels[i, c] for c in order[:k])
    probabilities = logits.sigmoid() * scored[:, None]
    for c in range(6):
        positive = labels[:, c].bool()
        recalls.append((probabilities[positive, c] > 0.5).float().mean().item())
        # Average precision: the precision at each positive, where equal scores (the failures) are one step.
        terms = [positive[probabilities[:, c] >= p].float().mean().item() for p in probabilities[positive, c]]
        precisions.append(sum(terms) / len(terms))
    assert (figures.top1, figures.top5) == (pytest.approx(hits[0] / 30), pytest.approx(hits[1] / 30))
    assert figures.mean_class == pytest.approx(sum(recalls) / 6, abs=1e-6)
    assert figures.map == pytest.approx(sum(precisions) / 6, abs=1e-6)
    assert figures.per_class[6] is None
    assert figures.loss is not None
    assert math.isfinite(figures.loss)


def test_confusion_counts_every_video_once():
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 1.0], [3.0, 1.0]])
    counts = confusion_matrix(logits, torch.tensor([0, 0, 1, 1]), torch.tensor([True, True, True, False]))
    assert counts.tolist() == [[1, 1, 0], [1, 0, 1]]


def test_average_precision_ranks_logits_where_probabilities_are_all_one():
    logits = torch.tensor([[20.0], [22.0], [24.0], [27.0], [29.0], [31.0]])
    truth = torch.tensor([[0], [1], [0], [0], [1], [1]])
    everything = torch.ones(6, dtype=torch.bool)
    # in order of the logits: hits at places 1, 2 and 5
    assert multi_label(logits, truth, everything).map == pytest.approx((1 + 1 + 3 / 5) / 3)
    ties = multi_label(torch.full((6, 1), 25.0), truth, everything)
    assert ties.map == pytest.approx(1 / 2)
    assert multi_label(logits, truth, torch.tensor([True] * 5 + [False])).map == pytest.approx((1 + 2 / 4 + 3 / 6) / 3)
