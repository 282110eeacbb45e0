"""Command line and YAML -> RunConfig."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TypeVar

from ..arguments import Setting, read, settings_of
from .config import RunConfig
from .launch import say

Config = TypeVar("Config", bound=RunConfig)


def parse(
    argv: Sequence[str] | None = None,
    *,
    prog: str = "tttvideo train",
    description: str = "",
    cls: type[Config] = RunConfig,  # type: ignore[assignment]
    default_recipe: bool = True,
) -> tuple[Config, str]:
    """`--config FILE.yaml` and `--a.b value` words as a configuration, and the whole of it as YAML text.

    Args:
        default_recipe: take the recipe ``folder`` where the words name data and no model.

    Raises:
        ConfigError: see `tttvideo.arguments.read`.
        SystemExit: after --help and --print_config.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if default_recipe and _starts_from_data_alone(words):
        say("no --config and no model given: the recipe `folder` is used (`tttvideo configs` lists others)")
        words = ["--config", "folder", *words]
    if not any(word in ("-h", "--help") or word.endswith(".help") for word in words):
        settings = settings_of(cls, [word for word in words if word != "--print_config"])
        words += [*_other_source_off(settings), *_other_length_off(settings)]
    return read(cls, words, prog=prog, description=description)


def _starts_from_data_alone(words: Sequence[str]) -> bool:
    """Whether there are videos, but nothing is said of what learns from them."""
    keys = [word.removeprefix("--").partition("=")[0] for word in words if word.startswith("--")]
    videos = any(key in ("data.root", "data.list") for key in keys)
    said = any(key in ("config", "help") or key.split(".")[0] == "model" or key.endswith(".help") for key in keys)
    return videos and not said and "-h" not in words


def _other_source_off(settings: Sequence[Setting]) -> list[str]:
    """What to add to the command line so that a list (or root) given there replaces the files' root (or list).

    Otherwise the files' root would silently become the folder that the paths of another list count from. A root
    given beside files that hold both moves that folder, and the list stays.
    """
    on_command_line = {s.key for s in settings if s.key in ("data.root", "data.list") and s.value != "null"}
    data = [s.value["data"] for s in settings if s.source and isinstance(s.value.get("data"), dict)]
    in_files = {name for part in data for name, value in part.items() if value}
    if on_command_line == {"data.list"} and "root" in in_files:
        return ["--data.root=null"]
    if on_command_line == {"data.root"} and "list" in in_files and "root" not in in_files:
        return ["--data.list=null"]
    return []


def _other_length_off(settings: Sequence[Setting]) -> list[str]:
    """What to add to the command line so that epochs given there, or in a later file, replace an earlier file's steps,
    which would silently count instead."""
    lengths = [s.value.get("schedule") if s.source else {s.key.removeprefix("schedule."): s.value} for s in settings]
    named = [{"steps", "epochs"} & set(part) for part in lengths if isinstance(part, dict)]
    last = next((names for names in reversed(named) if names), set())
    return ["--schedule.steps=null"] if last == {"epochs"} and {"steps"} < set().union(*named) else []
