"""What an evaluation begins with: a checkpoint's model, the videos of a split, and a device."""

from __future__ import annotations

import platform
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..devices import best_device, choose_device, join_processes, started_processes
from ..model import VideoModel
from ..origin import Checkpoint, inspect_checkpoint
from ..pretrained import from_pretrained
from ..video.index import Fold, Index, Video, build_index, split_names
from ..video.overlap import count_seen


class Session(NamedTuple):
    """One checkpoint and the videos that it is measured on.

    Attributes:
        source: where the weights came from.
        model: in evaluation mode, on ``device``.
        index: the videos of the split.
        data: folder or list file of the data.
        root: folder against which a list's relative paths are resolved; None: its own.
        process: number of this process, of ``processes``.
        notes: sentences for the report.
    """

    source: Checkpoint
    model: VideoModel
    index: Index
    data: Path
    root: str | Path | None
    device: torch.device
    process: int
    processes: int
    notes: list[str]

    def context(self) -> dict[str, Any]:
        """The entries of metrics.json that say whose figures these are."""
        return {"weights_sha256": self.source.sha256, "selection": self.source.selection}


class Opened(NamedTuple):
    """A checkpoint: where its weights came from, its model in evaluation mode, and the device that was asked for."""

    source: Checkpoint
    model: VideoModel
    wanted: torch.device | None


def open_checkpoint(path: str | Path, *, device: str | None = None, trust: bool = False) -> Opened:
    """
    Args:
        path: run folder (its best checkpoint), checkpoint folder, or export.
        device: None chooses an accelerator when there is one.
        trust: also build models from classes outside this package.

    Raises:
        ValueError: if there is no checkpoint, or a damaged one, or the device cannot be used.
    """
    wanted = choose_device(device)
    source = inspect_checkpoint(path)
    return Opened(source, from_pretrained(source.folder, trust=trust).eval(), wanted)


def open_session(
    opened: Opened, data: str | Path, *, split: str | None = None, root: str | Path | None = None
) -> Session:
    """
    Args:
        data: folder of class folders, or list file. Labels are matched to the checkpoint's by name, and not needed
            where the task has none.
        split: the part of the data; "all" for everything. None: ``val``, but all of data that has no splits of its own
            and of which no video was trained on. Of the data of a fold's run, train and val are those of the fold.
        root: folder against which a list's relative paths are resolved. None: for the list that the run was trained
            with, as it was then; for others, the list's own folder.

    Raises:
        ValueError: with one sentence for a missing split, and for labels the checkpoint does not know.
    """
    source, model, wanted = opened
    root = root or (source.root if source.data and Path(data).resolve() == Path(source.data).resolve() else None)
    labelled = model.config.task.labelled
    # A split that is drawn and not given must be drawn as in training, or training videos would be measured.
    options: dict[str, Any] = {"root": root, **source.drawn}
    options |= {"labels": model.labels, "multi_label": model.multi_label} if labelled else {"labelled": False}
    if (fold := options.pop("fold", None)) and _was_trained_on(data, source, options):
        fold = Fold(*fold)
        split = split or fold.measured
        options |= {"fold": fold} if split in (fold.learned, fold.measured) else {}
    split = split or _default_split(data, source, labelled, options)
    index = build_index(data, split, **options)
    model.config.encoder.check_paths([video.path for video in index.videos])
    chosen, process, processes = wanted or best_device(), 0, 1
    if started_processes() > 1:
        chosen, process, processes = join_processes(wanted)
    trained_on = count_seen(index.videos, source.provenance.get("trained_on"))
    notes = [f"{trained_on} of the {len(index.videos)} measured videos were trained on"] if trained_on else []
    return Session(source, model.to(chosen), index, Path(data), root, chosen, process, processes, notes)


def _default_split(data: str | Path, source: Checkpoint, labelled: bool, options: dict[str, Any]) -> str:
    """``val``; or ``all`` of a set without splits, unless the model was trained on a part of it."""
    divided = split_names(data, root=options["root"], labelled=labelled)
    return "val" if divided or _was_trained_on(data, source, options) else "all"


def _was_trained_on(data: str | Path, source: Checkpoint, options: dict[str, Any]) -> bool:
    """Whether some of the videos were."""
    if marks := source.provenance.get("trained_on"):
        return count_seen(build_index(data, "all", **options).videos, marks) > 0
    # Nothing tells which videos were trained on (too many, or an older checkpoint): then the name must do.
    trained_on = source.data or source.provenance.get("data")
    return bool(trained_on) and Path(trained_on).resolve().name == Path(data).resolve().name


def where(video: Video) -> dict[str, Any]:
    """What tells a video from all others: several can be cuts of one file."""
    return {"path": video.path, "start": video.start, "end": video.end}


def versions() -> dict[str, str]:
    from importlib.metadata import version

    from .. import __version__

    base = {"tttvideo": __version__, "python": platform.python_version()}
    return base | {name: version(name) for name in ("torch", "timm", "torchmetrics", "av")}


def progress_bar(visible: bool, total: int):
    """A context that gives a function to call with the number of videos done, or None."""
    if not visible:
        return nullcontext(None)
    from rich.console import Console
    from rich.progress import Progress

    @contextmanager
    def bar():
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("videos", total=total)
            yield lambda done: progress.advance(task, done)

    return bar()
