"""The commands about models and videos themselves: export, make-data, configs."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from .arguments import ConfigError, read
from .export.config import ExportConfig
from .printing import printable
from .recipes import comment, recipes


def export(config: ExportConfig) -> int:
    from .export.files import export_files

    return export_files(config)


@dataclass(frozen=True, kw_only=True)
class MakeDataConfig:
    """
    Attributes:
        out: folder for the set; an interrupted one is continued.
        workers: processes (default: by the number of CPUs and videos).
    """

    out: str
    workers: int | None = None


def make_data(words: Sequence[str]) -> int:
    from rich.console import Console
    from rich.progress import Progress

    from .video.synthetic import SUITES, find_suite, make

    if not words or words[0].startswith("-"):
        if not {"-h", "--help"} & set(words):
            raise ConfigError(f"tttvideo make-data needs the name of a suite: {', '.join(SUITES)}")
        print(
            "usage: tttvideo make-data NAME --out FOLDER [--key value ...]\n\n"
            "Make a suite: H.264 files, beside them meta.csv (what happens in each, with the\n"
            "cause of its label) and suite.json (parameters, and how well observers can do).\n\n"
            f"NAME: {', '.join(SUITES)}\n\ntttvideo make-data NAME --help lists the settings of a suite."
        )
        return 0
    name, *rest = words
    suite_class = find_suite(name)
    settings = dataclasses.make_dataclass(
        suite_class.__name__,
        [],
        bases=(MakeDataConfig, suite_class),
        namespace={"__doc__": suite_class.__doc__},
        frozen=True,
    )
    config, _ = read(settings, rest, prog=f"tttvideo make-data {name}")
    if config.workers is not None and config.workers < 1:
        raise ConfigError(f"workers must be at least 1, got {config.workers}")
    suite = suite_class(**{field.name: getattr(config, field.name) for field in dataclasses.fields(suite_class)})
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(f"{name}: videos", total=None)
        outcome = make(
            suite,
            config.out,
            workers=config.workers,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    splits = ", ".join(f"{split} {count}" for split, count in outcome.suite["splits"].items())
    kept = f" ({outcome.kept} were there)" if outcome.kept else ""
    print(printable(f"{outcome.out}: {outcome.written} videos written{kept}; {splits}"))
    print(suite_class.sentence(outcome.suite))
    return 0


@dataclass(frozen=True)
class ConfigsConfig:
    """List the recipes that `tttvideo train --config NAME` takes."""


def configs(config: ConfigsConfig) -> int:
    for path in recipes():
        print(f"{path.stem}\n    " + comment(path).replace("\n", "\n    ") + "\n")
    return 0
