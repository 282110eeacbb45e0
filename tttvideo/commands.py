"""The commands about models and videos themselves: export, classify, make-data, configs."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from .arguments import ConfigError, read
from .printing import did_you_mean, json_text, printable, sentence
from .recipes import comment, recipes


@dataclass(frozen=True)
class ExportConfig:
    """Write config.json, model.safetensors, labels.json and a model card with the measured figures.

    The export is read back, and its outputs are compared with the checkpoint's.

    Attributes:
        checkpoint: run folder (its best), checkpoint in it, or export.
        out: new or empty folder, or an earlier export to replace.
        metrics: metrics.json of evaluations of these weights, for the card (default: the run folder's).
        trust: allow model classes outside tttvideo, also from the working directory: they run their code.
    """

    positional: ClassVar = ("checkpoint",)
    several: ClassVar = ("metrics",)

    checkpoint: str
    out: str
    metrics: tuple[str, ...] = ()
    trust: bool = False


def export(config: ExportConfig) -> int:
    from .export import export as write_export

    out = write_export(config.checkpoint, config.out, metrics=config.metrics, trust=config.trust)
    trusted = ", trust=True" if config.trust else ""
    print(printable(f'exported to {out}; load it with tttvideo.from_pretrained("{out}"{trusted})'))
    return 0


@dataclass(frozen=True)
class ClassifyConfig:
    """Classify videos of any length with a checkpoint.

    Attributes:
        checkpoint: run folder (its best), checkpoint in it, or export.
        videos: video files, or folders of frame images.
        topk: classes named for each video.
        json: print JSON in place of a table.
        device: cpu, cuda, cuda:1, ... (default: a GPU if available).
        trust: allow model classes outside tttvideo, also from the working directory: they run their code.
    """

    positional: ClassVar = ("checkpoint", "videos")

    checkpoint: str
    videos: tuple[str, ...]
    topk: int = 5
    json: bool = False
    device: str | None = None
    trust: bool = False

    def __post_init__(self) -> None:
        if self.topk < 1:
            raise ConfigError(f"topk must be at least 1, got {self.topk}")


def classify(config: ClassifyConfig) -> int:
    from .evaluation.evaluate import best_device, choose_device
    from .model import from_pretrained
    from .video.reading import damaged_videos_named

    device = choose_device(config.device) or best_device()
    model = from_pretrained(config.checkpoint, trust=config.trust).to(device).eval()
    answers: list[tuple[str, list[tuple[str, float]]]] = []
    failures: list[tuple[str, str]] = []
    for video in config.videos:
        try:
            with damaged_videos_named():
                answers.append((video, model.classify(video, topk=config.topk)))
        except (ValueError, OSError) as error:
            failures.append((video, sentence(error)))
    if config.json:
        classes = [[{"label": label, "probability": p} for label, p in answer] for _, answer in answers]
        rows = [{"path": video, "classes": row} for (video, _), row in zip(answers, classes)]
        print(json_text([*rows, *({"path": video, "error": reason} for video, reason in failures)]))
    elif answers:
        _print_classes(answers)
    for _, reason in failures:
        print(printable(f"error: {reason}"), file=sys.stderr)
    return 2 if failures else 0


def _print_classes(answers: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    table.add_column("video", overflow="fold")
    table.add_column("class", overflow="fold")
    table.add_column("probability", justify="right")
    for video, classes in answers:
        for i, (label, probability) in enumerate(classes):
            # Text: names with brackets or colons are no markup.
            name, last = Text("" if i else printable(video)), i + 1 == len(classes)
            table.add_row(name, Text(printable(label)), f"{probability:.3f}", end_section=last)
    Console().print(table)


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

    from .video.synthetic import SUITES, make

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
    if name not in SUITES:
        raise ConfigError(f"there is no suite {name!r}{did_you_mean(name, SUITES)}")
    suite_class = SUITES[name]
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
        made = make(
            suite,
            config.out,
            workers=config.workers,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    splits = ", ".join(f"{split} {count}" for split, count in made.suite["splits"].items())
    kept = f" ({made.kept} were there)" if made.kept else ""
    print(printable(f"{made.out}: {made.written} videos written{kept}; {splits}"))
    print(suite_class.sentence(made.suite))
    return 0


@dataclass(frozen=True)
class ConfigsConfig:
    """List the recipes that `tttvideo train --config NAME` takes."""


def configs(config: ConfigsConfig) -> int:
    for path in recipes():
        print(f"{path.stem}\n    " + comment(path).replace("\n", "\n    ") + "\n")
    return 0
