"""The result of an evaluation, and the files that hold it read again as tables: values by video, condition and x."""

from __future__ import annotations

import csv
import os
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..files import damaged
from ..measuring import shortest
from ..printing import from_cell, printable
from ..tasks import Score
from ..tasks.trivial import TRIVIAL
from .forms import LOSSES, PER_VIDEO, read_arrays_of, read_metrics, read_positions

AGAIN = "run `tttvideo evaluate` once more"
POSITION_AGAIN = "run `tttvideo position` once more"
ACCURACY = Score("correct", "top1", "top-1 accuracy", share=True)
"""What evaluations from before metrics.json named it are compared by."""
MODEL = "model"
"""The values of the model itself; others are of predictions that need none."""
METHODS = (MODEL, *TRIVIAL)
COPY_LAST = TRIVIAL[0]
"""The prediction that shows whether models were measured on the same frames."""

VideoKey = tuple[str, str, str]
"""Path (from the data set's own folder), start and end."""


class Condition(NamedTuple):
    """What the values of a table were measured in, as results name it."""

    data: str
    frames: str = "all"
    sampling: str = ""
    views: str = "whole"
    context: int = 0
    control: str = ""


class Table(NamedTuple):
    """Values of all videos in one condition.

    Attributes:
        axis: what x counts; empty where each video has one value.
        x: the points.
        videos: the rows.
        sums: by method, ``MODEL`` first: float64 [V, X], a value, or a sum over the values that a video has at a point.
        counts: float64 [V, X], how many values those were; 0 where there is none.
        row: figures of this condition: those of metrics.json.
        about: what holds for the whole evaluation: metrics.json without its results.
    """

    condition: Condition
    axis: str
    x: list[Any]
    videos: list[VideoKey]
    sums: dict[str, np.ndarray]
    counts: np.ndarray
    row: dict[str, Any]
    about: dict[str, Any]

    def measured(self) -> list[VideoKey]:
        """The videos that have a value at any point."""
        return [self.videos[i] for i in np.flatnonzero(self.counts.any(1))]

    def only(self, videos: Container[VideoKey]) -> Table:
        rows = [i for i, video in enumerate(self.videos) if video in videos]
        sums = {name: values[rows] for name, values in self.sums.items()}
        return self._replace(videos=[self.videos[i] for i in rows], sums=sums, counts=self.counts[rows])

    def points(self, x: Sequence[Any]) -> Table:
        """With these x, without values where it has none of them."""
        at = [self.x.index(point) if point in self.x else None for point in x]

        def moved(values: np.ndarray) -> np.ndarray:
            columns = [np.zeros(len(values)) if i is None else values[:, i] for i in at]
            return np.stack(columns, 1) if columns else values[:, :0]

        return self._replace(
            x=list(x), sums={name: moved(values) for name, values in self.sums.items()}, counts=moved(self.counts)
        )

    def mean(self, first: int) -> Table:
        """One value for each video: the mean of its first points."""
        sums = {name: values[:, :first].mean(1, keepdims=True) for name, values in self.sums.items()}
        return self._replace(axis="", x=[None], sums=sums, counts=self.counts[:, :first].min(1, keepdims=True))


class Sample(NamedTuple):
    """One video to look at.

    Attributes:
        row: of predictions.csv.
        caption: what to see in it.
        picture: PNG.
        thumbnail: PNG of a few frames; empty where there is none.
    """

    row: dict[str, Any]
    caption: str
    picture: bytes
    thumbnail: bytes = b""


class Result(NamedTuple):
    """What an evaluation leaves: the content of its files, and videos to look at.

    Attributes:
        metrics: metrics.json.
        predictions: the rows of predictions.csv.
        columns: its columns.
        arrays: per_video.npz, a row for each of ``predictions``; empty: no such file.
        samples: usual videos.
        worst: those that went worst, the worst first.
    """

    metrics: dict[str, Any]
    predictions: list[dict[str, Any]]
    columns: list[str]
    arrays: dict[str, np.ndarray] = {}  # noqa: RUF012
    samples: Sequence[Sample] = ()
    worst: Sequence[Sample] = ()


class Evaluations(NamedTuple):
    """The files of evaluations at or below a folder, by their paths: what metrics.json and position.json hold."""

    folder: Path
    metrics: dict[Path, dict[str, Any]]
    positions: dict[Path, dict[str, Any]]


class Measured(NamedTuple):
    """What one seed of a run gave.

    Attributes:
        tables: of all evaluations.
        columns: data set -> column of the data -> value of each video.
        about: each metrics.json without its results.
    """

    tables: list[Table]
    columns: dict[str, dict[str, dict[VideoKey, str]]]
    about: list[dict[str, Any]]


def find_evaluations(folder: Path) -> Evaluations:
    """
    Raises:
        ValueError: if there is none, or a damaged file.
    """
    read = {file: read_metrics(file, AGAIN) for file in sorted(folder.rglob("metrics.json"))}
    metrics = {file: content for file, content in read.items() if content is not None}
    positions = {file: read_positions(file, POSITION_AGAIN) for file in sorted(folder.rglob("position.json"))}
    if not metrics and not positions:
        raise ValueError(f"{folder} holds no evaluation; run `tttvideo evaluate ... --out {folder}` first")
    return Evaluations(folder, metrics, positions)


def task_of(metrics: dict[str, Any]) -> str:
    """What the model of an evaluation was trained for; older files of classifiers do not say it."""
    return str(metrics.get("task", "Classification"))


def score_of(metrics: dict[str, Any]) -> Score:
    """What a reading model's evaluation is judged by."""
    return Score(**metrics["score"]) if "score" in metrics else ACCURACY


def data_names(evaluations: Iterable[Evaluations]) -> dict[str, str]:
    """A short name for every data set that was measured on: the last part of its path, more where two end alike."""
    contents = [content for one in evaluations for files in one[1:] for content in files.values()]
    paths = {str(content.get("data")) for content in contents}
    resolved = [Path(path).resolve() for path in sorted(paths)]
    return {path: shortest(Path(path).resolve(), list(dict.fromkeys(resolved))) for path in paths}


def read_tables(evaluations: Evaluations, names: dict[str, str]) -> Measured:
    """The tables of one seed; ``names`` are short ones of data sets.

    Raises:
        ValueError: for damaged files, and for two evaluations of the same.
    """
    measured, owners = Measured([], {}, []), {}
    for file, metrics in evaluations.metrics.items():
        about = {key: value for key, value in metrics.items() if key != "results"}
        read = _horizon_tables if "per_horizon" in metrics else _condition_tables
        try:
            tables, columns = read(file, metrics, about, names[metrics["data"]])
        except (KeyError, TypeError, IndexError, OSError) as error:
            raise damaged(file, error, AGAIN) from error
        for table in tables:
            if owners.setdefault((table.condition, table.axis), file) != file:
                raise ValueError(
                    f"there are two evaluations of {table.condition.data} in one run ({file} and another); keep one"
                )
        measured.tables.extend(tables)
        measured.columns.setdefault(names[metrics["data"]], {}).update(columns)
        measured.about.append(about)
    return measured


def _condition_tables(
    file: Path, metrics: dict[str, Any], about: dict[str, Any], data: str
) -> tuple[list[Table], dict[str, dict[VideoKey, str]]]:
    """A value of each video in each condition, from predictions.csv; and the columns of the data."""
    score = score_of(metrics)
    strata = list(metrics["results"][0].get("by", {}))
    needed = ("frames", "sampling", score.column, *strata)
    rows = _csv(file, metrics["n_videos"] * len(metrics["results"]), needed)
    values: dict[Condition, dict[VideoKey, str]] = {}
    columns: dict[str, dict[VideoKey, str]] = {name: {} for name in strata}
    for row in rows:
        video = _video(row, metrics["data"])
        values.setdefault(_condition(data, row), {})[video] = row[score.column]
        for name in strata:
            columns[name][video] = row[name]
    tables = []
    for result in metrics["results"]:
        condition = _condition(data, result)
        if condition not in values or condition in (table.condition for table in tables):
            raise ValueError(f"{file} and the predictions.csv beside it are of different evaluations; {AGAIN}")
        of_condition = values[condition]
        column = np.array([[_number(value)] for value in of_condition.values()]).reshape(-1, 1)
        counts = (~np.isnan(column)).astype(np.float64)
        tables.append(
            Table(condition, "", [None], list(of_condition), {MODEL: np.nan_to_num(column)}, counts, result, about)
        )
    return tables, columns


def _number(value: str) -> float:
    try:
        return float(value)
    except ValueError:  # empty: a video without a value
        return float("nan")


def _condition(data: str, row: dict[str, Any]) -> Condition:
    views, control = row.get("views") or "whole", row.get("control") or ""
    return Condition(data, str(row["frames"]), row["sampling"], views, control=control)


def _horizon_tables(
    file: Path, metrics: dict[str, Any], about: dict[str, Any], data: str
) -> tuple[list[Table], dict[str, dict[VideoKey, str]]]:
    """Errors by horizon, and those of newly revealed pixels by group, from per_video.npz."""
    beside = file.with_name("per_video.npz")
    if not beside.is_file():
        raise ValueError(f"{file} has no per_video.npz beside it; {AGAIN}")
    arrays = read_arrays_of(beside, PER_VIDEO, AGAIN)
    videos = [_video(row, metrics["data"]) for row in _csv(file, metrics["n_videos"])]
    if any(len(arrays[name]) != len(videos) for name in arrays if name != "methods"):
        raise ValueError(f"{beside} and the predictions.csv beside it are of different videos")
    methods = arrays["methods"].tolist()
    if missing := [name for name in (MODEL, COPY_LAST) if name not in methods]:
        raise damaged(beside, f"its methods lack {missing[0]!r}", AGAIN)
    if any(arrays[name].shape[1] != len(methods) for name in ("mse", "revealed_squared") if name in arrays):
        raise damaged(beside, f"its arrays are not of its {len(methods)} methods", AGAIN)
    condition = Condition(data, context=metrics["context"], control="" if metrics["write"] else "write=context")
    tables = horizon_tables(arrays, videos, condition, about)
    return tables, {}


def horizon_tables(
    arrays: dict[str, np.ndarray], videos: list[VideoKey], condition: Condition, about: dict[str, Any]
) -> list[Table]:
    """The tables of per_video.npz."""
    methods = [str(name) for name in arrays["methods"]]
    mse = arrays["mse"].astype(np.float64)
    horizon = list(range(1, mse.shape[2] + 1))
    row = {"ceiling": (about.get("suite") or {}).get("best_mse")}
    measured = np.tile(~np.isnan(mse[:, 0, :1]), len(horizon)).astype(np.float64)
    sums = _by_method(methods, np.where(measured[:, None] > 0, mse, 0.0))
    tables = [Table(condition, "horizon", horizon, videos, sums, measured, row, about)]
    revealed = about.get("revealed")
    if (revealed is None) != ("revealed_squared" not in arrays):
        raise KeyError("revealed_squared" if revealed else "revealed")
    if revealed is not None:
        counts = arrays["revealed_values"]
        groups = list(range(counts.shape[1]))
        sums = _by_method(methods, arrays["revealed_squared"])
        tables.append(Table(condition, revealed["by"], groups, videos, sums, counts, revealed, about))
    return tables


def _by_method(methods: Sequence[str], values: np.ndarray) -> dict[str, np.ndarray]:
    return {name: values[:, i] for i, name in enumerate(methods)}


def read_position_tables(evaluations: Evaluations, names: dict[str, str]) -> list[Table]:
    """Losses by position, a table for each seed of each position.json with a single curve: of several it is not known
    which is this run's."""
    tables = []
    for file, content in evaluations.positions.items():
        try:
            if len(content["series"]) != 1:
                continue
            beside = file.with_name("position.npz")
            if not beside.is_file():
                raise ValueError(f"{file} has no position.npz beside it; {POSITION_AGAIN}")
            arrays = read_arrays_of(beside, LOSSES, POSITION_AGAIN)
            (curve,) = content["series"].values()
            shape = (len(arrays["videos_0"]), len(curve["frames"]))
            if arrays["losses_0"].shape[1:] != shape:
                raise ValueError(f"{file} and the position.npz beside it are of different curves; {POSITION_AGAIN}")
            videos = [(_inside(path, content["data"]), start, end) for path, start, end in arrays["videos_0"].tolist()]
            condition = Condition(names[content["data"]])
            tables += [position_table(condition, curve["frames"], videos, x, content) for x in arrays["losses_0"]]
        except (KeyError, TypeError, IndexError, OSError) as error:
            raise damaged(file, error, POSITION_AGAIN) from error
    return tables


def position_table(
    condition: Condition, frames: Sequence[float], videos: list[VideoKey], losses: np.ndarray, about: dict[str, Any]
) -> Table:
    """Losses [V, points] after so many frames, NaN where a video has none."""
    values = losses.astype(np.float64)
    counts = (~np.isnan(values)).astype(np.float64)
    return Table(condition, "frames read", list(frames), videos, {MODEL: np.nan_to_num(values)}, counts, {}, about)


def _csv(file: Path, rows: int, columns: Sequence[str] = ()) -> list[dict[str, str]]:
    """predictions.csv beside a metrics.json that tells of so many rows.

    Raises:
        ValueError: if it is damaged.
    """
    beside = file.with_name("predictions.csv")
    if not beside.is_file():
        raise ValueError(f"{file} has no predictions.csv beside it; {AGAIN}")
    try:
        with beside.open(newline="", encoding="utf-8") as stream:
            answers = [
                {key: from_cell(value) if isinstance(value, str) else value for key, value in row.items()}
                for row in csv.DictReader(stream)
            ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise damaged(beside, error, AGAIN) from None
    if len(answers) != rows or any(None in row.values() for row in answers):
        raise ValueError(f"{beside} is cut off: {len(answers)} of {rows} rows are there; {AGAIN}")
    if missing := [name for name in ("path", "start", "end", *columns) if answers and name not in answers[0]]:
        raise ValueError(f"{beside} has no column {missing[0]!r}; {AGAIN}")
    return answers


def _video(row: dict[str, str], data: str) -> VideoKey:
    return _inside(row["path"], data), row["start"], row["end"]


def _inside(path: str, data: str) -> str:
    """The same for a file wherever its data set lay when it was measured."""
    root = os.path.abspath(printable(data))  # as predictions.csv has paths
    return Path(os.path.relpath(os.path.abspath(printable(path)), root)).as_posix()
