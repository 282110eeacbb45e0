"""The recipes: configuration files of `configs/`, which an installed package carries with it."""

from __future__ import annotations

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
