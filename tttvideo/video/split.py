"""Seeded splits and folds of videos: grouped, and stratified by class as far as groups allow."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence


def seeded_split(
    keys: Sequence[str], labels: Sequence[Sequence[Hashable]], *, val_fraction: float, seed: int
) -> list[bool]:
    """Which items are for validation.

    Groups are visited in an order that depends on (seed, key) only, not on the order of the files, and a
    group goes to validation if that brings the number of validation items per class nearer to `val_fraction`
    of the class (but at least one where the class has two items). A group is never divided.

    Args:
        keys: one per item; items with the same key are one group.
        labels: the classes of each item.
        val_fraction: between 0 and 1.

    Returns:
        One bool per item. All False if there is only one group.
    """
    groups, totals = _groups(keys, labels)
    missing = Counter({c: max(1, round(val_fraction * n)) if n > 1 else 0 for c, n in totals.items()})

    def gain(group: Counter) -> int:
        return sum(abs(missing[c]) - abs(missing[c] - n) for c, n in group.items())

    order = sorted(groups, key=lambda key: _draw(seed, key))
    val = set()
    for key in order:
        if gain(groups[key]) > 0:
            val.add(key)
            missing.subtract(groups[key])
    if not val and len(order) > 1:  # groups so large that each overshoots: one must still be kept back
        val.add(max(order, key=lambda key: gain(groups[key])))
    return [key in val for key in keys]


def balanced_folds(keys: Sequence[str], labels: Sequence[Sequence[Hashable]], count: int, seed: int) -> list[int]:
    """The fold of each item, 0 to count - 1; as many folds as there are groups at most.

    Groups go, large ones first, to the fold that has the fewest items of their classes. A group is never divided.

    Args:
        keys: one per item; items with the same key are one group.
        labels: the classes of each item.
    """
    groups, totals = _groups(keys, labels)
    folds: list[Counter] = [Counter() for _ in range(count)]
    fold_of: dict[str, int] = {}

    def cost(fold: int, group: Counter) -> tuple[float, int]:
        rise = sum(((folds[fold][c] + n) ** 2 - folds[fold][c] ** 2) / totals[c] for c, n in group.items())
        return rise, folds[fold].total()

    for key in sorted(groups, key=lambda key: (-groups[key].total(), _draw(seed, key))):
        fold_of[key] = min(range(count), key=lambda fold: cost(fold, groups[key]))
        folds[fold_of[key]].update(groups[key])
    return [fold_of[key] for key in keys]


def _groups(keys: Sequence[str], labels: Sequence[Sequence[Hashable]]) -> tuple[dict[str, Counter], Counter]:
    """Items of each class in each group, and in all."""
    groups: dict[str, Counter] = defaultdict(Counter)
    totals: Counter = Counter()
    for key, names in zip(keys, labels, strict=True):
        counted = names or ("",)  # an item of no class still counts
        groups[key].update(counted)
        totals.update(counted)
    return groups, totals


def _draw(seed: int, key: str) -> bytes:
    """Orders groups in a way that depends on (seed, key) only."""
    return hashlib.sha256(f"{seed}\0{key}".encode("utf-8", "surrogateescape")).digest()
