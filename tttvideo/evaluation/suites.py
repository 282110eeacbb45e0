"""What is known of a generated set: how well observers can do, why each of its videos has its label, and the errors on
what only a memory can know: the pixels that a suite says are newly revealed, frame by frame.

The suites are imported only where a set describes itself, in suite.json beside it.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..files import parse_json
from ..model import VideoModel
from ..tasks.forecast_errors import Following
from ..video.index import Index
from ..video.segments import read_segments
from ..video.views import Whole
from .settings import Setting
from .strata import Column
from .table import METHODS

if TYPE_CHECKING:
    from ..video.synthetic.prediction import Revealed

DAMAGED = (KeyError, ValueError, TypeError, IndexError)
"""What a row of meta.csv that is not as it was made leads an oracle to."""


class GeneratedSet:
    """A set that describes itself.

    Attributes:
        description: the content of suite.json.
        root: the set's folder.
        suite: made of the description; None for one of another version, whose videos are good but whose ceilings are
            not known here.
    """

    def __init__(self, description: dict[str, Any], root: Path):
        from ..video.synthetic import ClassificationSuite, PredictionSuite, SuiteError, suite_from

        self.description, self.root, self.refused = description, root, ""
        try:
            self.suite = suite_from(description)
        except SuiteError as error:
            self.suite, self.refused = None, str(error)
        self.labelled = self.suite if isinstance(self.suite, ClassificationSuite) else None
        moving = isinstance(self.suite, PredictionSuite) and "bounds" in description
        self.unlabelled: PredictionSuite | None = self.suite if moving else None  # type: ignore[assignment]

    # Of labels.

    def strata(self, rows: Sequence[Mapping[str, str]]) -> list[str]:
        """The columns that the suite names, as far as they are there."""
        names = self.labelled.strata if self.labelled else ()
        return [name for name in names if any(row.get(name) for row in rows)]

    def ceiling(self, setting: Setting) -> float | None:
        """The best top-1 that can be reached by a model that sees no more than this setting shows; None also for videos
        in views, whose answers are averaged, and for frames in a random order."""
        if self.labelled is None or setting.views != Whole() or setting.control == "shuffled":
            return None
        return self.labelled.ceiling_under(str(setting.sampling), setting.frames)

    def oracle(self, setting: Setting, rows: Sequence[Mapping[str, str]]) -> list[bool] | None:
        """Whether the best observer of these frames, who reads meta.csv, is right about each of these very videos."""
        if self.labelled is None or setting.views != Whole() or setting.control == "shuffled" or not all(rows):
            return None
        try:
            indices = self.labelled.sampled(str(setting.sampling), setting.frames)
            return [self.labelled.oracle(row, indices) == row["label"] for row in rows]
        except DAMAGED:  # a list that was changed: see ``notes``
            return None

    def notes(
        self,
        settings: Sequence[Setting],
        frames_used: Sequence[set[int]],
        rows: Sequence[Mapping[str, str]],
        columns: Sequence[Column],
    ) -> list[str]:
        """Why ceilings are not known, or cannot be those of these videos; ``frames_used`` of each setting."""
        if self.suite is None:
            return [f"there are no ceilings, as suite.json beside the data cannot be used: {self.refused}"]
        notes = []
        for setting, used in zip(settings, frames_used, strict=True):
            whole = setting.frames is None and str(setting.sampling) == "dense" and setting.views == Whole()
            if whole and used and used != {self.suite.frames}:
                read = ", ".join(map(str, sorted(used)[:4]))
                notes.append(
                    f"ceilings are those of videos of {self.suite.frames} frames (suite.json beside the data), but "
                    f"these have {read}"
                )
                break
        return notes + self._cause_notes(rows, columns)

    def _cause_notes(self, rows: Sequence[Mapping[str, str]], columns: Sequence[Column]) -> list[str]:
        """What the list of the set, meta.csv, does not say of these videos."""
        suite, notes = self.labelled, []
        if suite is None or not (suite.strata or columns):
            return []
        if not any(rows):
            return ["no meta.csv beside suite.json tells of these videos: there are no strata"]
        if unnamed := sum(not row for row in rows):
            notes.append(f"meta.csv does not name {unnamed} of the {len(rows)} videos: strata have no ceilings")
        described = [row for row in rows if row]
        absent = [name for name in suite.strata if name not in described[0]]
        for row in described:
            try:
                suite.oracle(row, range(suite.frames))
            except KeyError as error:
                absent.append(error.args[0])
            except DAMAGED:
                path = row.get("path") or "a video"
                notes.append(f"meta.csv is damaged in the row of {path}: strata have no ceilings; make the set again")
            else:
                continue
            break
        if absent:
            names = " and ".join(map(repr, dict.fromkeys(absent)))
            notes.append(f"meta.csv has no column {names}: strata or their ceilings are missing; make the set again")
        return notes

    # Of frames that are predicted.

    def revealed(self, model: VideoModel, index: Index, notes: list[str]) -> dict[int, Revealed]:
        """What is revealed in the videos, by their places in the index; empty where nothing is, or, with a note, where
        the error on it cannot be measured."""
        suite = self.unlabelled
        if suite is None or not suite.grouped:
            return {}
        reason = self.unlike(model)
        if not reason:
            try:
                return self._masks(index)
            except ValueError as error:
                reason = str(error)
        notes.append(f"errors by {suite.grouped} were not measured: {reason}")
        return {}

    def _masks(self, index: Index) -> dict[int, Revealed]:
        assert self.unlabelled is not None
        file, masks = self.root / "meta.csv", {}
        try:
            with file.open(newline="", encoding="utf-8") as stream:
                rows = {str((self.root / row["path"]).resolve()): row for row in csv.DictReader(stream)}
            for number, video in enumerate(index.videos):
                row = rows.get(str(Path(video.path).resolve()))
                revealed = None if row is None else self.unlabelled.revealed(row)
                if revealed is not None:
                    masks[number] = revealed
        except OSError as error:
            raise ValueError(f"{file} cannot be read ({error.strerror})") from None
        except (KeyError, ValueError, TypeError) as error:
            raise ValueError(f"{file} is damaged ({type(error).__name__}: {error})") from None
        return masks

    def unlike(self, model: VideoModel) -> str:
        """Why revealed pixels are not to be found in what a model predicts; empty where they are."""
        assert self.unlabelled is not None
        preprocessing, size = model.preprocessing, self.unlabelled.size
        if model.head.space == "features":
            return "they are of pixels, and the model predicts features"
        if preprocessing.size == (size, size) and preprocessing.sampling == "dense":
            return ""
        height, width = preprocessing.size
        return (
            f"{self.unlabelled.name} has frames of {size} x {size}, all of which must be read, and the model reads "
            f"{height} x {width}, {preprocessing.sampling}"
        )

    def bounds(self, model: VideoModel, *, grey: bool) -> dict[str, Any] | None:
        """``bounds`` as the suite states them, and ``best_mse``, the codec's error of a whole frame (sum over its
        pixels): what remains for who knows the drawn frames; None where that is not known."""
        suite = self.unlabelled
        if suite is None:
            return None
        bounds = self.description["bounds"]
        reachable = "codec" in bounds and not suite.grouped and not grey and not self.unlike(model)
        best = round(bounds["codec"] * 3 * suite.size**2, 6) if reachable else None
        return {"name": suite.name, "bounds": bounds, "best_mse": best}


def generated_set(data: Path, index: Index) -> GeneratedSet | None:
    """None for other data. A list of somebody's own beside a set may hold other videos, and cuts show less of one.

    Raises:
        ValueError: if suite.json is damaged.
    """
    if any(video.start is not None or video.end is not None for video in index.videos):
        return None
    if not data.is_dir() and data.name != "meta.csv":
        return None
    root = data if data.is_dir() else data.parent
    file = root / "suite.json"
    if not file.is_file():
        return None
    try:
        description = dict(parse_json(file.read_bytes()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error}); make the set again, or take the file away") from None
    return GeneratedSet(description, root)


@torch.no_grad()
def revealed_errors(
    model: VideoModel, segments: Iterable[tuple[Tensor, Tensor]], revealed: Sequence[Revealed], groups: int
) -> tuple[Tensor, Tensor]:
    """Squared errors of revealed pixels, each frame predicted from all true frames before it, and how many values
    (pixels times colours) were compared.

    Args:
        segments: of videos side by side: frames [B, F, 3, H, W], valid frames [B].
        revealed: what is revealed in each of them.
        groups: how many there are.

    Returns:
        Sums over each video, float64: [B, methods, groups] and [B, groups].
    """
    device, stride, at = next(model.parameters()).device, model.encoder.stride, 0
    mask = torch.stack([torch.from_numpy(r.mask) for r in revealed])  # [B, F, H, W]
    group = torch.stack([torch.from_numpy(r.group) for r in revealed])  # [B, F]
    squared = torch.zeros(len(revealed), groups, len(METHODS), dtype=torch.float64)
    values = torch.zeros(len(revealed), groups, dtype=torch.float64)
    steps = Following(model.head)
    for _, lengths, output in model.outputs(segments):
        for truth, valid, guess in steps.add(lengths, output):
            frames = slice(at, at + stride)
            at += stride
            if guess is None:
                continue
            counted = mask[:, frames].to(device) & valid[:, None, None, None]
            pixels = counted.flatten(2).sum(2).cpu()  # [B, p]
            sums = torch.stack([_sums(x - truth, counted) for x in steps.guesses(guess)], 2).cpu()  # [B, p, methods]
            row, frame = ((pixels > 0) & (group[:, frames] >= 0)).nonzero(as_tuple=True)
            under = (row, group[:, frames][row, frame])
            squared.index_put_(under, sums[row, frame], accumulate=True)
            values.index_put_(under, 3.0 * pixels[row, frame].double(), accumulate=True)
    return squared.transpose(1, 2), values


def _sums(error: Tensor, mask: Tensor) -> Tensor:
    """Errors [B, p, 3, H, W] -> sums of their squares where the mask [B, p, H, W] holds, float64 [B, p]."""
    return (error.square().sum(2) * mask).flatten(2).sum(2).double()


def measure_revealed(
    model: VideoModel,
    index: Index,
    suite: GeneratedSet,
    masks: dict[int, Revealed],
    *,
    batch_size: int,
    segment: int | None = None,
) -> tuple[dict[str, Any], Tensor, Tensor]:
    """Errors on the revealed pixels of a generated set, whole videos, by group.

    Returns what metrics.json says of them, and the sums of ``revealed_errors`` for every video of the index; zero for
    those that reveal nothing.

    Args:
        index: videos of the set; one that cannot be read to the end counts as far as it can.
        masks: what is revealed in them, by their places in the index.
    """
    groups = 1 + max(int(revealed.group.max()) for revealed in masks.values())
    squared = torch.zeros(len(index.videos), len(METHODS), groups, dtype=torch.float64)
    values = torch.zeros(len(index.videos), groups, dtype=torch.float64)
    for start in range(0, len(masks), batch_size):
        numbers = list(masks)[start : start + batch_size]
        paths = [index.videos[number].path for number in numbers]
        pieces = read_segments(paths, model.preprocessing, segment=model.segment_frames(segment or 64))
        segments = ((piece.frames, piece.lengths) for piece in pieces)
        revealed = [masks[number] for number in numbers]
        squared[numbers], values[numbers] = revealed_errors(model, segments, revealed, groups)
    assert suite.unlabelled is not None
    by, bounds = suite.unlabelled.grouped, suite.description["bounds"]
    return {"by": by, **means_by_group(squared, values), "bounds": bounds}, squared, values


def means_by_group(squared: Tensor, values: Tensor) -> dict[str, Any]:
    """Mean squared error of each method and group over all videos, None for groups that no frame fell under; and the
    number of values of each group."""
    total = values.sum(0)
    means = (squared.sum(0) / total).tolist()
    rows = {name: [None if x != x else round(x, 6) for x in row] for name, row in zip(METHODS, means, strict=True)}
    return {"mse": rows, "values": [int(n) for n in total.tolist()]}
