"""Which videos there are, their classes and their split: from class folders or a list file.

`Index` is what everything downstream reads; how the split was made travels with it as a sentence.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..files import parse_json
from ..printing import appearance, nearest
from .folders import read_folder
from .listfile import DataError, Row, read_list
from .split import balanced_folds, seeded_split

__all__ = ["DataError", "Fold", "Index", "Video", "build_index", "load_labels", "save_labels", "split_names"]


class Video(NamedTuple):
    """One example: a file (or a folder of frame images), or the seconds [start, end) of one."""

    path: str
    label: int | tuple[int, ...] | None  # class number; several (or none) if multi-label; None: not labelled
    group: str | None  # videos of one group never stand on both sides of a seeded split
    start: float | None  # seconds; None: from the beginning
    end: float | None  # seconds, exclusive; None: to the end


class Index(NamedTuple):
    """The videos of one split."""

    videos: list[Video]
    labels: list[str]  # class names; a class number is a place in this list
    multi_label: bool
    split: str
    rule: str  # one sentence: how the split was made


class Fold(NamedTuple):
    """One of the parts of a cross-validation over the videos of two splits."""

    number: int  # from 1
    count: int
    learned: str  # the split that becomes all folds but this one
    measured: str  # the split that becomes this fold

    def __str__(self) -> str:
        return f"fold {self.number} of {self.count}"


def label_tensor(index: Index) -> Tensor:
    """The labels of an index: int64 [V] (-1: none), or float 0/1 [V, n_classes] for several labels per video."""
    if not index.multi_label:
        return torch.tensor([-1 if v.label is None else v.label for v in index.videos], dtype=torch.int64)
    labels = torch.zeros(len(index.videos), len(index.labels))
    for row, video in zip(labels, index.videos):
        row[list(video.label or ())] = 1.0  # type: ignore[arg-type]
    return labels


def subset(index: Index, count: int, seed: int) -> Index:
    """At most `count` videos of an index, always the same ones for a seed, each class in proportion to its videos."""
    total = len(index.videos)
    if count >= total:
        return index
    drawn = random.Random(seed).sample(range(total), total)
    drawn.sort(key=lambda i: repr(index.videos[i].label))  # stable: random within a class
    places = sorted(drawn[(2 * k + 1) * total // (2 * count)] for k in range(count))
    return index._replace(videos=[index.videos[i] for i in places])


def build_index(
    source: str | Path,
    split: str,
    *,
    root: str | Path | None = None,
    labels: Sequence[str] | None = None,
    multi_label: bool | None = None,
    val_fraction: float = 0.2,
    seed: int = 0,
    labelled: bool = True,
    fold: Fold | None = None,
) -> Index:
    """The videos of one split of a folder or of a list file.

    Splits are the folders `source/<split>/<class>/`, or the list's split column. Where there are none,
    `train` and `val` are made from (seed, paths): grouped by the list's group column, several parts of one
    file always together, stratified by class as far as that allows. The split named `all` is everything.

    Args:
        root: folder against which a list's relative paths are resolved; None: the list's own folder.
        labels: fixes the class names and their order (a checkpoint's). By default the sorted names of all
            splits (as numbers if all are), so that every split of a source agrees.
        multi_label: True or False to fix it (a checkpoint's); by default True if any video has several
            labels.
        val_fraction: share of the videos kept for `val` where the split is made here.
        labelled: False: videos at any depth, labels ignored; splits are the folders `source/<split>/` then.
        fold: what becomes of the two splits that it names; other splits stay as they are.

    Raises:
        DataError: nothing there, nothing in it, no such split, one class only, an unknown label, a broken
            list.
    """
    source = Path(source)
    if not source.exists():
        raise DataError(f"{source} is not there; give a folder of class folders or a list file")
    if not 0 < val_fraction < 1:
        raise DataError(f"val_fraction is {val_fraction:g}; it must lie between 0 and 1")
    folder = source.is_dir()
    if folder:
        rows = read_folder(source, split, labelled=labelled)
    else:
        rows = read_list(source, root=root, labelled=labelled, multi_label=multi_label)
    if fold is None:
        chosen, rule = _choose(source, rows, split, val_fraction, seed)
        part = f"split {split!r}"
    else:
        part = str(fold) if split == fold.measured else f"all but {fold}"
        chosen, rule = _of_fold(source, rows, split, fold, seed)
    if not labelled:
        return Index([_video(row, None) for row in chosen], list(labels or ()), bool(multi_label), split, rule)
    multi_label = _several_labels(rows, multi_label)
    names = list(labels) if labels is not None else _class_names(source, rows, chosen, part, multi_label)
    numbers = {name: i for i, name in enumerate(names)}
    here = {name for row in chosen for name in row.labels or ()}
    if len(here) > 1 and here.isdisjoint(numbers):
        raise DataError(
            f"{source} and the model have no class in common: the data have {_some(sorted(here))}, the model knows "
            f"{_some(names)}"
        )
    if len(numbers) < len(names):
        raise DataError("the given class names contain the same name twice")
    return Index([_video(row, _numbers(row, numbers, multi_label)) for row in chosen], names, multi_label, split, rule)


def _several_labels(rows: Sequence[Row], multi_label: bool | None) -> bool:
    """Whether videos may have several labels: as given, else whether one has."""
    several = next((row for row in rows if len(row.labels or ()) > 1), None)
    if several and multi_label is False:
        raise DataError(f"{several.where} has several labels but the model gives one; use a multi-label model")
    return several is not None if multi_label is None else multi_label


def split_names(source: str | Path, root: str | Path | None = None, *, labelled: bool = True) -> list[str]:
    """The splits that `source` itself defines, sorted; empty if `train` and `val` would have to be made."""
    source = Path(source)
    if not source.exists():
        raise DataError(f"{source} is not there; give a folder of class folders or a list file")
    if source.is_dir():
        rows = read_folder(source, "all", labelled=labelled)
    else:
        rows = read_list(source, root=root, labelled=labelled)
    return sorted({row.split for row in rows if row.split})


def unlearnable_classes(train: Index, val: Index | None) -> str | None:
    """A sentence on classes without a training video, as a misspelt folder makes them; None if all have one, or if
    labels are not used."""
    if not train.labels:
        return None
    counts = [videos_of_each_class(index) for index in (train, val) if index]
    absent = [i for i, count in enumerate(counts[0]) if not count]
    if not absent:
        return None
    there = [name for name, count in zip(train.labels, counts[0]) if count]
    named = []
    for i in absent[:5]:
        elsewhere = f" ({counts[1][i]} in {val.split})" if val and counts[1][i] else ""
        near = nearest(train.labels[i], there, cutoff=0.75)
        named.append(f"{train.labels[i]!r}{elsewhere}{f', nearest: {near!r}' if near else ''}")
    more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
    one = len(absent) == 1
    return (
        f"{'a class has' if one else f'{len(absent)} classes have'} no video in {train.split} and cannot be learned: "
        f"{'; '.join(named)}{more}"
    )


def classes_that_look_equal(labels: Sequence[str]) -> str | None:
    """A sentence on names that differ in what cannot be seen (composed or decomposed accents, characters without a
    picture), or in case and spaces alone; None if there are none."""
    alike: dict[str, list[str]] = {}
    for name in labels:
        alike.setdefault(appearance(name), []).append(name)
    groups = [" and ".join(map(ascii, names)) for names in alike.values() if len(names) > 1]
    if not groups:
        return None
    return f"classes whose names look equal are learned apart: {_some(groups)}; rename those that are the same"


def videos_of_each_class(index: Index) -> list[int]:
    """How many videos each class has, in the order of the class names."""
    counts = [0] * len(index.labels)
    for video in index.videos if counts else ():
        for label in video.label if isinstance(video.label, tuple) else (video.label,):
            counts[label] += 1  # type: ignore[index]
    return counts


def largest_class(index: Index) -> float | None:
    """The share of the most frequent class: what guessing reaches; None without labels, or with several."""
    if not index.labels or index.multi_label or not index.videos:
        return None
    return max(videos_of_each_class(index)) / len(index.videos)


def save_labels(path: str | Path, labels: Sequence[str]) -> None:
    """Writes the class names, in order, as a JSON list."""
    Path(path).write_text(json.dumps(list(labels), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def load_labels(path: str | Path) -> list[str]:
    """The class names that `save_labels` wrote. Raises DataError if the file holds anything else."""
    try:
        labels = parse_json(Path(path).read_bytes())
    except ValueError:
        labels = None
    if not isinstance(labels, list) or not all(isinstance(name, str) for name in labels):
        raise DataError(f"{path} is not a JSON list of class names")
    return labels


def _choose(source: Path, rows: list[Row], split: str, val_fraction: float, seed: int) -> tuple[list[Row], str]:
    if split == "all":
        return rows, f"all {len(rows)} videos of {source}"
    splits = sorted({row.split for row in rows if row.split})
    if splits:
        chosen = [row for row in rows if row.split == split]
        if not chosen:
            raise DataError(f"{source} has no split {split!r}; it has {', '.join(splits)} (and all)")
        where = f"the folder {source / split}" if source.is_dir() else f"the rows of {source} with split {split}"
        others = ", ".join(name for name in splits if name not in (split, "train", "val"))  # one may be misspelt
        return chosen, f"{split}: {where}, {len(chosen)} videos" + (f"; other splits: {others}" if others else "")
    if split not in ("train", "val"):
        raise DataError(
            f"{source} has no split {split!r}; it has no splits of its own, so there are train and val (made "
            "here) and all"
        )
    keys = [row.group or row.key for row in rows]
    val = seeded_split(keys, [row.labels or () for row in rows], val_fraction=val_fraction, seed=seed)
    if not any(val):
        raise DataError(
            f"{source} cannot be divided into train and val: all {len(rows)} videos are one group; put those to "
            "validate on into a folder val/ beside train/"
        )
    chosen = [row for row, kept in zip(rows, val) if kept == (split == "val")]
    grouped = "grouped, " if any(row.group for row in rows) else ""
    grouped += "stratified by class, " if any(row.labels for row in rows) else ""
    return chosen, (
        f"{split}: {len(chosen)} of the {len(rows)} videos of {source}, which has no splits of its own "
        f"(made here: {grouped}seed {seed}, {val_fraction:g} for val)"
    )


def _of_fold(source: Path, rows: list[Row], split: str, fold: Fold, seed: int) -> tuple[list[Row], str]:
    """The videos of a fold, or of all others, as the split asks."""
    if any(row.split for row in rows):
        rows = [row for row in rows if row.split in (fold.learned, fold.measured)]
        if not rows:
            raise DataError(f"{source} has neither a split {fold.learned!r} nor {fold.measured!r} to make folds of")
    named = sorted({row.fold for row in rows if row.fold})
    folds = _named_folds(source, rows, named, fold) if named else _balanced_folds(source, rows, fold, seed)
    measured = split == fold.measured
    chosen = [row for row, number in zip(rows, folds) if (number == fold.number - 1) == measured]
    by = "by the list's column fold" if named else f"grouped and stratified by class, seed {seed}"
    what = str(fold) if measured else f"all but {fold}"
    return chosen, f"{split}: {what}, {len(chosen)} of {len(rows)} videos of {source} ({by})"


def _named_folds(source: Path, rows: list[Row], named: list[str], fold: Fold) -> list[int]:
    """The number of each row's fold, from the list's column."""
    if missing := next((row for row in rows if not row.fold), None):
        raise DataError(f"{missing.where} has an empty fold for {missing.key}; name one on every line")
    if len(named) != fold.count:
        raise DataError(f"{source} has {len(named)} folds ({_some(named)}), not {fold.count}; ask for {len(named)}")
    return [named.index(row.fold or "") for row in rows]


def _balanced_folds(source: Path, rows: list[Row], fold: Fold, seed: int) -> list[int]:
    """The number of each row's fold, made here."""
    keys = [row.group or row.key for row in rows]
    if len(set(keys)) < fold.count:
        what = "groups" if any(row.group for row in rows) else "videos"
        raise DataError(f"{source} has {len(set(keys))} {what}, too few for {fold.count} folds; ask for fewer")
    return balanced_folds(keys, [row.labels or () for row in rows], fold.count, seed)


def _class_names(source: Path, rows: list[Row], chosen: list[Row], part: str, multi_label: bool) -> list[str]:
    names = {name for row in rows for name in row.labels or ()}
    here = {name for row in chosen for name in row.labels or ()}
    if len(here) < 2 and not (multi_label and here):
        where = f"{source} holds" if here == names else f"{part} of {source} holds"
        raise DataError(f"{where} one class only ({', '.join(here) or 'none'}); at least two are needed")
    if all(name.isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def _numbers(row: Row, numbers: dict[str, int], multi_label: bool) -> int | tuple[int, ...]:
    for name in row.labels or ():
        if name not in numbers:
            near = nearest(name, numbers)
            if near and appearance(near) == appearance(name):
                raise DataError(f"{row.where} has the label {name!a}, which is not known; {near!a} looks the same")
            hint = f"nearest: {near}" if near else f"known: {', '.join(list(numbers)[:8])}"
            if not near and len(numbers) > 8:
                hint += f" and {len(numbers) - 8} more"
            raise DataError(f"{row.where} has the label {name!r}, which is not known ({hint})")
    labels = tuple(sorted(numbers[name] for name in row.labels or ()))
    if multi_label:
        return labels
    if not labels:
        raise DataError(f"{row.where} has no label; write path,label")
    return labels[0]


def _some(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _video(row: Row, label: int | tuple[int, ...] | None) -> Video:
    return Video(row.path, label, row.group, row.start, row.end)
