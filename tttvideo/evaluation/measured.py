"""What evaluations left in folders, read back: which videos were right in which setting."""

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tttvideo.evaluation.named import shortest

Video = tuple[str, str, str]
"""Path (from the data set's own folder), start and end."""


class Cell(NamedTuple):
    """One setting of one evaluation."""

    data: str  # name of the data set
    frames: str  # "16" or "all"
    sampling: str
    views: str
    control: str


class Measured(NamedTuple):
    """What one seed of a run gave."""

    correct: dict[Cell, dict[Video, bool]]
    rows: dict[Cell, dict[str, Any]]  # of metrics.json
    columns: dict[str, dict[str, dict[Video, str]]]  # data set -> column -> value of each video
    about: list[dict[str, Any]]  # metrics.json without its results
    positions: list[dict[str, Any]]  # contents of position.json


def _files(folder: Path) -> list[Path]:
    """Every metrics.json of classification at or below a folder."""
    files = [file for file in sorted(folder.rglob("metrics.json")) if "results" in _json(file)]
    if not files:
        raise ValueError(
            f"{folder} holds no evaluation of a classifier; run `tttvideo evaluate ... --out {folder}` first"
        )
    return files


def _json(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error})") from error


def _cell(data: str, row: dict[str, Any]) -> Cell:
    return Cell(data, str(row["frames"]), row["sampling"], row.get("views", "whole"), row.get("control", ""))


def _inside(path: str, data: str) -> str:
    """The same for a file wherever its data set lay when it was measured."""
    return Path(os.path.relpath(os.path.abspath(path), os.path.abspath(data))).as_posix()


def data_names(folders: Sequence[Path]) -> dict[str, str]:
    """A short name for every data set that was measured on: the last part of its path, more where two end alike."""
    paths = {about["data"] for folder in folders for about in map(_json, _files(folder))}
    resolved = [Path(path).resolve() for path in sorted(paths)]
    return {path: shortest(Path(path).resolve(), list(dict.fromkeys(resolved))) for path in paths}


def read_run(folder: Path, names: dict[str, str]) -> Measured:
    found = Measured({}, {}, {}, [], [])
    for file in _files(folder):
        metrics = _json(file)
        data = names[metrics["data"]]
        try:
            for row in metrics["results"]:
                cell = Cell(
                    data, str(row["frames"]), row["sampling"], row.get("views", "whole"), row.get("control", "")
                )
                if cell in found.rows:
                    raise ValueError(f"{folder} holds two evaluations of {data} ({file} and another); keep one")
                found.rows[cell] = row
            with file.with_name("predictions.csv").open(newline="", encoding="utf-8") as stream:
                table = list(csv.DictReader(stream))
            strata_names = list(metrics["results"][0].get("by", {}))
            columns: dict[str, dict[Video, str]] = {name: {} for name in strata_names}
            for row in table:
                cell = _cell(data, row)
                video = (_inside(row["path"], metrics["data"]), row["start"], row["end"])
                found.correct.setdefault(cell, {})[video] = row["correct"] == "1"
                for name in strata_names:
                    columns[name][video] = row[name]
        except (KeyError, TypeError, OSError) as error:
            raise ValueError(f"{file} or the predictions.csv beside it is damaged ({error!r})") from error
        found.columns[data] = columns
        found.about.append({key: value for key, value in metrics.items() if key != "results"})
    found.positions.extend(_json(file) for file in sorted(folder.rglob("position.json")))
    return found


def notes_of(measured: dict[str, list[Measured]]) -> list[str]:
    notes = []
    videos: dict[str, set[frozenset[Video]]] = {}
    for seeds in measured.values():
        for one in seeds:
            for cell, correct in one.correct.items():
                videos.setdefault(cell.data, set()).add(frozenset(correct))
    notes += [
        f"the runs were not measured on the same videos of {name}" for name, sets in videos.items() if len(sets) > 1
    ]
    for name, seeds in measured.items():
        for about in (about for one in seeds for about in one.about):
            notes += [f"{name}: {note}" for note in about.get("notes", [])]
    return list(dict.fromkeys(notes))
