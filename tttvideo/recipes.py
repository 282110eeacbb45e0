"""The recipes: configuration files of `configs/`, which an installed package carries with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def recipes() -> list[Path]:
    """The YAML files, sorted by name: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    folders = (package / "configs", package.parent / "configs")
    return sorted(next((folder for folder in folders if folder.is_dir()), package).glob("*.yaml"))


def recipe(name: str) -> Path | None:
    """The file of a recipe, such as ``folder``; None if there is none of this name."""
    return next((path for path in recipes() if path.stem == name), None)


def comment(path: Path) -> str:
    """The comment that a recipe begins with: command, hardware, time, expected figure, source."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return "\n".join(lines)


def show(argv: Sequence[str]) -> int:
    """`tttvideo configs`: prints each recipe's name and first comment."""
    if argv and argv[0] in ("-h", "--help"):
        print("usage: tttvideo configs\n\nList the recipes that `tttvideo train --config NAME` takes.")
        return 0
    if argv:
        raise ValueError(f"tttvideo configs takes no arguments, got {argv[0]}")
    for path in recipes():
        print(f"{path.stem}\n    " + comment(path).replace("\n", "\n    ") + "\n")
    return 0
