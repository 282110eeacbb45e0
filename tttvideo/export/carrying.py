"""Python files of the user's own classes, which an export takes with it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..model import ModelConfig
from ..plain import to_plain
from ..printing import printable
from ..serialize import read_description, write_description
from .config import ExportError


def carried_files(config: ModelConfig, folder: Path, files: Sequence[str | Path]) -> list[Path]:
    """The files that go with a model: those named, or else those that its folder carries already.

    Raises:
        ExportError: a file that is none, or where none is of a class that the model has.
    """
    paths = [Path(file) for file in files] or [folder / name for name in read_description(folder).get("carried", [])]
    for path in paths:
        if not path.is_file() or path.suffix != ".py" or not path.stem.isidentifier():
            raise ExportError(f"--carry takes Python files, and {printable(str(path))} is none")
    stems = {path.stem: path for path in paths}
    if len(stems) < len(paths):
        raise ExportError("--carry takes files of different names, and two have the same")
    modules = dict.fromkeys(name.rpartition(".")[0] for name in _classes(to_plain(config)))
    foreign = [module for module in modules if module.partition(".")[0] != "tttvideo"]
    for module in foreign if paths else []:
        if module not in stems:
            raise ExportError(
                f"--carry lacks the module {module}, which the model has a class of; give its file, too, or leave out "
                "--carry where it is to be installed (a package cannot be carried)"
            )
        source = getattr(sys.modules[module], "__file__", None)
        if source is None or Path(source).read_bytes() != stems[module].read_bytes():
            raise ExportError(f"--carry names {stems[module]}, but {module} was imported from {source}; give that file")
    return paths


def carry_into(folder: Path, files: Sequence[Path]) -> None:
    """Puts the files into an export, and their names into its config.json."""
    if not files:
        return
    write_description(read_description(folder) | {"carried": [file.name for file in files]}, folder)
    for file in files:
        shutil.copyfile(file, folder / file.name)


def verify_alone(folder: Path) -> None:
    """Loads an export in a process that sees nothing of the user's but what it carries. Raises ExportError."""
    root = str(Path(__file__).parents[2])
    code = (
        f"import sys; sys.path.insert(0, {root!r}); import tttvideo; tttvideo.from_pretrained(sys.argv[1], trust=True)"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-P", "-c", code, str(folder.absolute())]
    done = subprocess.run(command, cwd=folder.absolute().anchor, env=environment, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ExportError(f"the export cannot be loaded elsewhere with what it carries ({printable(reason)[:300]})")


def _classes(data: Any) -> Iterator[str]:
    if isinstance(data, dict):
        if isinstance(data.get("class_path"), str):
            yield data["class_path"]
        for value in data.values():
            yield from _classes(value)
    elif isinstance(data, list):
        for item in data:
            yield from _classes(item)
