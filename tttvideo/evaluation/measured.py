"""What evaluations left in folders, read back: which videos were right in which setting, or how far off they were."""

import csv
import json
import os
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from tttvideo.evaluation.named import shortest
from tttvideo.printing import from_cell, printable

AGAIN = "run `tttvideo evaluate` once more"

Video = tuple[str, str, str]
"""Path (from the data set's own folder), start and end."""


class Cell(NamedTuple):
    """One setting of one evaluation of a classifier."""

    data: str  # name of the data set
    frames: str  # "16" or "all"
    sampling: str
    views: str
    control: str


class Case(NamedTuple):
    """One setting of one evaluation of predictions."""

    data: str  # name of the data set
    context: int
    control: str  # "write=context" where the hidden state did not learn from predictions


class Errors(NamedTuple):
    """What was measured in a ``Case``; a row for each video."""

    metrics: dict[str, Any]
    videos: list[Video]
    mse: dict[str, np.ndarray]  # method -> [V, horizon], NaN where it was not measured
    revealed: dict[str, np.ndarray]  # method -> sums of squared errors [V, groups]; empty where nothing is revealed
    values: np.ndarray  # [V, groups], how many values those are of


class Seed(NamedTuple):
    """Loss by position of one seed."""

    frames: list[float]
    losses: dict[Video, np.ndarray]  # [points] of each video, NaN where it has none


class Positions(NamedTuple):
    """What one position.json says of a run."""

    data: str  # name of the data set
    unit: str
    seeds: list[Seed]


class Measured(NamedTuple):
    """What one seed of a run gave."""

    correct: dict[Cell, dict[Video, bool]]
    rows: dict[Cell, dict[str, Any]]  # of metrics.json
    columns: dict[str, dict[str, dict[Video, str]]]  # data set -> column -> value of each video
    errors: dict[Case, Errors]
    about: list[dict[str, Any]]  # metrics.json without its results


class Found(NamedTuple):
    """Files of one kind below a folder, and what they hold."""

    folder: Path
    evaluations: dict[Path, dict[str, Any]]  # metrics.json
    positions: dict[Path, dict[str, Any]]  # position.json


def find(folder: Path) -> Found:
    """Every evaluation at or below a folder. Raises ValueError if there is none, or a damaged file."""
    read = {file: _json(file) for file in sorted(folder.rglob("metrics.json"))}
    known = {file: metrics for file, metrics in read.items() if "results" in metrics or "per_horizon" in metrics}
    positions = {file: _json(file) for file in sorted(folder.rglob("position.json"))}
    if not known and not positions:
        raise ValueError(f"{folder} holds no evaluation; run `tttvideo evaluate ... --out {folder}` first")
    return Found(folder, known, positions)


def shared_task(found: dict[str, list[Found]]) -> str:
    """What all models were trained for. Raises ValueError where they differ."""
    tasks: dict[str, str] = {}
    for run, seeds in found.items():
        for one in seeds:
            for metrics in one.evaluations.values():
                tasks.setdefault("Prediction" if "per_horizon" in metrics else "Classification", run)
            for curves in one.positions.values():
                tasks.setdefault(str(curves.get("task")), run)
    if len(tasks) > 1:
        (first, a), (second, b), *_ = tasks.items()
        if a == b:
            raise ValueError(f"{a} holds evaluations of {first} and of {second}; give the folder of one")
        raise ValueError(f"{a} was measured in {first} and {b} in {second}; compare runs of one task")
    return next(iter(tasks))


def _json(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error})") from error


def _cell(data: str, row: dict[str, Any]) -> Cell:
    return Cell(data, str(row["frames"]), row["sampling"], row.get("views", "whole"), row.get("control", ""))


def _inside(path: str, data: str) -> str:
    """The same for a file wherever its data set lay when it was measured."""
    root = os.path.abspath(printable(data))  # as predictions.csv has paths
    return Path(os.path.relpath(os.path.abspath(printable(path)), root)).as_posix()


def data_names(found: Sequence[Found]) -> dict[str, str]:
    """A short name for every data set that was measured on: the last part of its path, more where two end alike."""
    read = [about for one in found for kind in (one.evaluations, one.positions) for about in kind.values()]
    paths = {str(about.get("data")) for about in read}
    resolved = [Path(path).resolve() for path in sorted(paths)]
    return {path: shortest(Path(path).resolve(), list(dict.fromkeys(resolved))) for path in paths}


def read_run(found: Found, names: dict[str, str]) -> Measured:
    """What the evaluations of one seed gave; ``names`` are short ones of data sets.

    Raises:
        ValueError: for damaged files, and for two evaluations of the same.
    """
    measured = Measured({}, {}, {}, {}, [])
    for file, metrics in found.evaluations.items():
        try:
            (_read_errors if "per_horizon" in metrics else _read_answers)(measured, file, metrics, names)
        except (KeyError, TypeError, IndexError, OSError) as error:
            raise ValueError(f"{file} is damaged ({_told(error)}); {AGAIN}") from error
        measured.about.append({key: value for key, value in metrics.items() if key != "results"})
    return measured


def _read_answers(found: Measured, file: Path, metrics: dict[str, Any], names: dict[str, str]) -> None:
    data = names[metrics["data"]]
    for row in metrics["results"]:
        _once(found.rows, _cell(data, row), data, file)
        found.rows[_cell(data, row)] = row
    strata_names = list(metrics["results"][0].get("by", {}))
    columns: dict[str, dict[Video, str]] = {name: {} for name in strata_names}
    needed = ("frames", "sampling", "correct", *strata_names)
    for row in _table(file, metrics["n_videos"] * len(metrics["results"]), needed):
        video = _video(row, metrics["data"])
        found.correct.setdefault(_cell(data, row), {})[video] = row["correct"] == "1"
        for name in strata_names:
            columns[name][video] = row[name]
    found.columns[data] = columns


def _read_errors(found: Measured, file: Path, metrics: dict[str, Any], names: dict[str, str]) -> None:
    case = Case(names[metrics["data"]], metrics["context"], "" if metrics["write"] else "write=context")
    _once(found.errors, case, case.data, file)
    beside = file.with_name("per_video.npz")
    if not beside.is_file():
        raise ValueError(f"{file} has no per_video.npz beside it; {AGAIN}")
    arrays = _arrays(beside)
    videos = [_video(row, metrics["data"]) for row in _table(file, metrics["n_videos"])]
    methods = [str(name) for name in arrays["methods"]]
    mse = {name: arrays["mse"][:, i].astype(np.float64) for i, name in enumerate(methods)}
    told = arrays.get("revealed_squared")
    revealed = {} if told is None else {name: told[:, i] for i, name in enumerate(methods)}
    values = arrays.get("revealed_values", np.zeros((len(videos), 0)))
    if any(len(rows) != len(videos) for rows in (*mse.values(), *revealed.values(), values)):
        raise ValueError(f"{beside} and the predictions.csv beside it are of different videos")
    found.errors[case] = Errors(metrics, videos, mse, revealed, values)


def read_positions(found: Found, names: dict[str, str]) -> list[Positions]:
    """Curves from files with a single one: of several it is not known which is this run's."""
    curves = []
    for file, content in found.positions.items():
        try:
            if len(content["series"]) != 1:
                continue
            beside = file.with_name("position.npz")
            if not beside.is_file():
                raise ValueError(f"{file} has no position.npz beside it; run `tttvideo position` once more")
            arrays = _arrays(beside)
            videos = [(_inside(path, content["data"]), start, end) for path, start, end in arrays["videos_0"].tolist()]
            (curve,) = content["series"].values()
            seeds = [Seed(curve["frames"], dict(zip(videos, own, strict=True))) for own in arrays["losses_0"]]
            curves.append(Positions(names[content["data"]], content["unit"], seeds))
        except (KeyError, TypeError, IndexError, OSError) as error:
            again = "run `tttvideo position` once more"
            raise ValueError(f"{file} or the position.npz beside it is damaged ({_told(error)}); {again}") from error
    return curves


def _once(known: Container[Any], setting: Cell | Case, data: str, file: Path) -> None:
    if setting in known:
        raise ValueError(f"there are two evaluations of {data} in one run ({file} and another); keep one")


def _table(file: Path, rows: int, columns: Sequence[str] = ()) -> list[dict[str, str]]:
    """predictions.csv beside a metrics.json that tells of so many rows. Raises ValueError if it is damaged."""
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
        raise ValueError(f"{beside} is damaged ({error}); {AGAIN}") from None
    if len(answers) != rows or any(None in row.values() for row in answers):
        raise ValueError(f"{beside} is cut off: {len(answers)} of {rows} rows are there; {AGAIN}")
    if missing := [name for name in ("path", "start", "end", *columns) if answers and name not in answers[0]]:
        raise ValueError(f"{beside} has no column {missing[0]!r}; {AGAIN}")
    return answers


def _told(error: Exception) -> str:
    return f"there is no {error.args[0]!r} in it" if isinstance(error, KeyError) else str(error)


def _video(row: dict[str, str], data: str) -> Video:
    return _inside(row["path"], data), row["start"], row["end"]


def _arrays(file: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(file, allow_pickle=False) as content:
            return dict(content)
    except (ValueError, EOFError, BadZipFile) as error:
        raise ValueError(f"{file} is damaged ({error})") from error


def notes_of(measured: dict[str, list[Measured]]) -> list[str]:
    notes = []
    videos: dict[str, set[frozenset[Video]]] = {}
    for seeds in measured.values():
        for one in seeds:
            for cell, correct in one.correct.items():
                videos.setdefault(cell.data, set()).add(frozenset(correct))
            for case, errors in one.errors.items():
                videos.setdefault(case.data, set()).add(frozenset(errors.videos))
    notes += [
        f"the runs were not measured on the same videos of {name}" for name, sets in videos.items() if len(sets) > 1
    ]
    for name, seeds in measured.items():
        for about in (about for one in seeds for about in one.about):
            notes += [f"{name}: {note}" for note in about.get("notes", [])]
    return list(dict.fromkeys(notes))
