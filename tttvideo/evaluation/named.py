"""Several runs on one command line: FOLDER, or NAME=FOLDER, or NAME=FOLDER,FOLDER for the seeds of one model."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Named(NamedTuple):
    """One line of a figure."""

    name: str
    folders: list[Path]  # one for each seed


def parse_named(texts: Sequence[str]) -> list[Named]:
    """Read "runs/a" (named by its last part, or more of them where two end alike) and "TTT-MLP=runs/a,runs/b". Raises
    ValueError for folders that are not there and names given twice."""
    found = []
    for text in texts:
        name, given, rest = text.partition("=")
        folders = [Path(part) for part in (rest if given and not Path(text).exists() else text).split(",") if part]
        if missing := [folder for folder in folders if not folder.exists()]:
            raise ValueError(f"there is no folder {missing[0]}")
        if not folders or (given and not name):
            raise ValueError(f"{text!r} names no run; write FOLDER or NAME=FOLDER[,FOLDER]")
        found.append(Named(name if rest and given and folders != [Path(text)] else "", folders))
    plain = [run.folders[0].resolve() for run in found if not run.name]
    runs = [run if run.name else run._replace(name=shortest(run.folders[0].resolve(), plain)) for run in found]
    names = [run.name for run in runs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two runs are called {min(twice)!r}; name them: NAME=FOLDER")
    return runs


def shortest(path: Path, others: Sequence[Path]) -> str:
    """The last parts of a path, as many as tell it from the others."""
    for count in range(1, len(path.parts)):
        tail = path.parts[-count:]
        if sum(other.parts[-count:] == tail for other in others) == 1:
            return "/".join(tail)
    return str(path)
