"""Settings of the commands evaluate, position, compare and predict; light, so that their help comes at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple


def _at_least(least: int, **values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < least:
            limit = f"at least {least}" if least else "0 or more"
            raise ValueError(f"--{name.replace('_', '-')} must be {limit}, got {value}")


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure a checkpoint on the videos of one split.

    Every combination of frames, sampling and views is a row of the results: the video is cut to its first n frames,
    divided into views, then the sampling rule is applied. Videos that cannot be read are listed; a
    classifier's count as wrong. Runs on several processes under torchrun, except for a model that predicts frames.

    Attributes:
        checkpoint: run folder (its best), checkpoint in it, or export.
        data: folder of class folders, or list file.
        split: part of the data, ``all`` for everything (default: val, or all of data that has no splits of its own and
            of which no video was trained on).
        root: folder against which a list's relative paths are resolved (default: as in training for the list trained
            with; else the list's own folder).
        frames: cuts with commas, e.g. 16,64,256,all; 2x is twice the length of a training clip (default: all).
        sampling: dense, fps=R, uniform=N, segments=N, window=SECONDS, last=N; several allowed (default: as in
            training).
        views: whole, clips=CLIPSxCROPS[:FRAMES], spans=SECONDS[:STEP]: read clips and crops, or sliding spans, and
            average their probabilities; several allowed (default: whole).
        controls: further rows, of the first sampling rule, with something taken away: inner-rate-0 (no learning at
            test time), reset (state thrown away after each chunk), shuffled (frames in a random order; holds whole
            videos), or all that apply.
        by: report accuracy (or the task's own score) against a column of meta.csv or of the list, e.g. depth, or
            depth:8 for eight bins (default: the columns that a generated suite names).
        check_streaming: number of videos that are also read whole in one call and compared with the stream.
        workers: processes that read ahead; 0 for none (default: 2).
        context: frames that are read (default: 10).
        horizon: frames that are predicted (default: 10).
        write: what the hidden state learns from. all: the context and the frames that it predicts; context: the context
            alone (default: all).
        grey: measure predictions in grey, one channel, as tables of Moving MNIST and KTH do.
        lpips: measure LPIPS too: file of torchvision's ImageNet weights of AlexNet, VGG-16 or SqueezeNet 1.1.
        fvd: measure the Fréchet video distance too: file of I3D as TorchScript, which is a program and so needs
            --trust.
        batch_size: videos read side by side in each process.
        segment: frames of a video that are held at a time; the model's state is carried on (default: about 64).
        samples: videos shown at length in the report (default: a few).
        out: folder for the results (default: the run folder).
        device: cpu, cuda, cuda:1, ... (default: a GPU if available).
        trust: allow model classes outside tttvideo, also from the working directory, and the TorchScript of --fvd: they
            run their code.
    """

    positional: ClassVar = ("checkpoint",)
    several: ClassVar = ("sampling", "views", "controls", "by")
    groups: ClassVar = {
        "of a model that reads videos": ("frames", "sampling", "views", "controls", "by", "check_streaming", "workers"),
        "of a model that predicts frames": ("context", "horizon", "write", "grey", "lpips", "fvd"),
    }

    checkpoint: str
    data: str
    split: str | None = None
    root: str | None = None
    frames: str | None = None
    sampling: tuple[str, ...] = ()
    views: tuple[str, ...] = ()
    controls: tuple[str, ...] = ()
    by: tuple[str, ...] = ()
    check_streaming: int = 0
    workers: int | None = None
    context: int | None = None
    horizon: int | None = None
    write: Literal["all", "context"] | None = None
    grey: bool = False
    lpips: str | None = None
    fvd: str | None = None
    batch_size: int = 8
    segment: int | None = None
    samples: int | None = None
    out: str | None = None
    device: str | None = None
    trust: bool = False

    def __post_init__(self) -> None:
        _at_least(0, check_streaming=self.check_streaming, workers=self.workers, samples=self.samples)
        _at_least(1, batch_size=self.batch_size)

    def given(self) -> list[str]:
        """Names of the options that were given (or differ from their default)."""
        fields = [field for field in dataclasses.fields(self) if field.default is not dataclasses.MISSING]
        return [field.name for field in fields if getattr(self, field.name) != field.default]


@dataclass(frozen=True)
class PositionConfig:
    """Loss after each frame, for one checkpoint or several on the same videos: of the class, had the video ended there,
    or of the next frame. Writes position.json and position.png, a line for each model, with an interval over videos and
    seeds.

    Attributes:
        runs: run folder, checkpoint or export, or NAME=FOLDER, or NAME=FOLDER,FOLDER for several seeds of one model.
        data: folder of class folders, or list file.
        out: folder for the results.
        split: part of the data, ``all`` for everything (default: val, or all of data that has no splits of its own and
            of which no video was trained on).
        root: folder against which a list's relative paths are resolved (default: as in training for the list trained
            with; else the list's own folder).
        frames: only the first frames of each video: a number, or all.
        batch_size: videos read side by side.
        segment: frames held at a time (default: about 64).
        device: cpu, cuda, cuda:1, ... (default: a GPU if available).
        trust: allow model classes outside tttvideo, also from the working directory: they run their code.
    """

    positional: ClassVar = ("runs",)
    named: ClassVar = True

    runs: tuple[str, ...]
    data: str
    out: str
    split: str | None = None
    root: str | None = None
    frames: str = "all"
    batch_size: int = 8
    segment: int | None = None
    device: str | None = None
    trust: bool = False

    def __post_init__(self) -> None:
        if self.frames != "all" and (not self.frames.isdecimal() or int(self.frames) < 1):
            raise ValueError(f"--frames must be a number of frames, 1 or more, or all; got {self.frames!r}")
        _at_least(1, batch_size=self.batch_size)


@dataclass(frozen=True)
class CompareConfig:
    """Put evaluations of several runs side by side: read what `tttvideo evaluate` (and `tttvideo position`) left in the
    folders, and write compare.json, tables (compare.md) and a figure for each protocol: accuracy against length,
    sampling, tokens, views, strata and controls; of predictions, error by horizon, by context and on newly revealed
    pixels. Intervals are bootstrapped over videos, and over seeds where a run has several.

    Attributes:
        runs: folder with a metrics.json in it or below it (evaluations on several data sets: in one folder each), or
            NAME=FOLDER, or NAME=FOLDER,FOLDER for several seeds of one model.
        out: folder for the results.
        resamples: bootstrap samples.
        seed: seed of the bootstrap.
    """

    positional: ClassVar = ("runs",)
    named: ClassVar = True

    runs: tuple[str, ...]
    out: str
    resamples: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        _at_least(1, resamples=self.resamples)
        if self.seed < 0:
            raise ValueError(f"--seed must be 0 or more, got {self.seed}")


@dataclass(frozen=True)
class PredictConfig:
    """Read the first frames of videos, generate the next ones, and show them: OUT/NAME-predicted.mp4 and .png have the
    truth above, the prediction below, then where they differ. Of several videos the errors stand in
    OUT/predictions.jsonl, and the same command goes on where an earlier one ended.

    Attributes:
        checkpoint: run folder (its best), checkpoint in it, or export.
        videos: video file; folder, with all videos below it (a folder of frame images is a video); pattern; list of
            path[,start,end], of which the spans are not used; - for paths on standard input.
        out: folder for the films and pictures, and for predictions.jsonl where there are several videos.
        context: frames that are read.
        horizon: frames that are predicted.
        write: what the hidden state learns from. all: the context and the frames that it predicts; context: the context
            alone.
        device: cpu, cuda, cuda:1, ... (default: a GPU if available).
        trust: allow model classes outside tttvideo, also from the working directory: they run their code.
    """

    positional: ClassVar = ("checkpoint", "videos")

    checkpoint: str
    videos: tuple[str, ...]
    out: str
    context: int = 10
    horizon: int = 10
    write: Literal["all", "context"] = "all"
    device: str | None = None
    trust: bool = False


class RunFolders(NamedTuple):
    """One line of a figure: a name, and a folder for each seed."""

    name: str
    folders: list[Path]


def parse_runs(texts: Sequence[str]) -> list[RunFolders]:
    """Read "runs/a" (named by its last part, or more of them where two end alike) and "TTT-MLP=runs/a,runs/b".

    Raises:
        ValueError: for folders that are not there and names given twice.
    """
    runs = []
    for text in texts:
        name, equals, rest = text.partition("=")
        folders = [Path(part) for part in (rest if equals and not Path(text).exists() else text).split(",") if part]
        if missing := [folder for folder in folders if not folder.exists()]:
            raise ValueError(f"there is no folder {missing[0]}")
        if not folders or (equals and not name):
            raise ValueError(f"{text!r} names no run; write FOLDER or NAME=FOLDER[,FOLDER]")
        runs.append(RunFolders(name if rest and equals and folders != [Path(text)] else "", folders))
    unnamed = [run.folders[0].resolve() for run in runs if not run.name]
    runs = [run if run.name else run._replace(name=shortest(run.folders[0].resolve(), unnamed)) for run in runs]
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
