"""Settings of the commands `classify`, `stream` and `serve`."""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from ..printing import did_you_mean, shortened


def parse_size(text: str | None) -> tuple[int, int]:
    """ "640x360" -> width and height; ValueError for anything else."""
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text or "")
    if not match or not int(match[1]) or not int(match[2]):
        raise ValueError(f"--size is WIDTHxHEIGHT, such as 640x360; got {text!r}")
    return int(match[1]), int(match[2])


def whole_number(name: str, value: Any, least: int) -> int:
    """The value as an int, of numpy's kinds too.

    Raises:
        ValueError: for anything else, and below ``least``.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise ValueError(f"{name} must be a whole number, got {shortened(value)}")
    if number < least:
        raise ValueError(f"{name} must be {f'at least {least}' if least else '0 or more'}, got {number}")
    return number


@dataclass(frozen=True, kw_only=True)
class How:
    """How videos are read.

    Args:
        frames: cut each video to its first n frames before anything else (default: none is cut).
        sampling: which frames are used: dense, fps=R, uniform=N, segments=N, window=SECONDS or last=N (default: as in
            training).
        views: whole, clips=CLIPSxCROPS[:FRAMES] or spans=SECONDS[:STEP]: the probabilities of clips and crops, or of
            sliding spans, are averaged.
        batch_size: videos read side by side.
        workers: processes that read ahead; 0 for none.
        segment: frames of a video that are held at a time, a multiple of the model's step (default: about 64).
    """

    frames: int | None = None
    sampling: str | None = None
    views: str = "whole"
    batch_size: int = 8
    workers: int = 2
    segment: int | None = None

    def __post_init__(self) -> None:
        for name, value, least in (
            ("frames", self.frames, 1),
            ("batch-size", self.batch_size, 1),
            ("segment", self.segment, 1),
            ("workers", self.workers, 0),
        ):
            if value is not None:
                object.__setattr__(self, name.replace("-", "_"), whole_number(f"--{name}", value, least))
        from ..video.sampling import parse_sampling
        from ..video.views import parse_views

        parse_views(self.views)
        if self.sampling is not None:
            parse_sampling(self.sampling)

    def __str__(self) -> str:
        cut = "all frames" if self.frames is None else f"{self.frames} frames"
        return f"{cut}, {self.sampling}" + ("" if self.views == "whole" else f", {self.views}")


def how_of(**settings: Any) -> How:
    """``How(**settings)``.

    Raises:
        TypeError: for one that there is not, with the nearest one.
    """
    names = [field.name for field in fields(How)]
    for name in settings:
        if name not in names:
            raise TypeError(f"unexpected argument {name!r}{did_you_mean(name, [*names, 'topk'])}")
    return How(**settings)


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig(How):
    """Name the classes of videos of any length. Each answer is printed, or written to --out, as soon as it is there;
    the same command with the same --out goes on where an earlier one ended. Under torchrun or accelerate the processes
    share the work.

    Args:
        checkpoint: run folder (its best), checkpoint in it, or export.
        videos: video file; folder, with all videos below it (a folder of frame images is a video); pattern such as
            'films/**/*.mp4'; list (.txt, .csv or .tsv) of path[,start,end]; - for paths on standard input.
        out: file of the answers, .jsonl or .csv; the same command goes on where an earlier one ended.
        timeline: folder for each video's probabilities over time: NAME.png above a strip of frames, and NAME.npy, a row
            (seconds, probabilities) for each time step.
        topk: number of classes that are named.
        json: print JSON in place of text.
        device: cpu, cuda, cuda:1, ... (default: a GPU if available).
        trust: allow model classes outside tttvideo, also from the working directory: they run their code.
    """

    positional: ClassVar = ("checkpoint", "videos")

    checkpoint: str
    videos: tuple[str, ...]
    out: str | None = None
    timeline: str | None = None
    topk: int = 5
    json: bool = False
    device: str | None = None
    trust: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_number("--topk", self.topk, 1)


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """Read a stream frame by frame and print a line of JSON after each unit of frames: time, number of frames, and the
    classes (of a model that predicts: the error of what it expected). Memory does not grow.

    Args:
        checkpoint: run folder (its best), checkpoint in it, or export.
        source: video file of any length; folder of images, or pattern such as frames/%05d.jpg; - for a video on
            standard input (raw where --size is given); camera, 0 or /dev/video0; address (rtsp://, http://, ...).
        read: every frame, or only the newest whenever the model is ready for one; frames that are dropped are counted
            and said, as to the model everything then moves faster.
        size: WIDTHxHEIGHT of raw rgb24 frames on standard input.
        rate: frames a second of what comes without times.
        fps: read at most so many frames a second (default: as in training).
        forget: when the state is forgotten: never; every=SECONDS; cut, or cut=CHANGE: at a scene cut (mean change of a
            pixel, of 1); decay=SECONDS: half of it in that time.
        smooth: seconds over which probabilities are averaged.
        every: seconds between two answers at least; 0: an answer after each unit of frames.
        topk: number of classes that are named.
        timeout: seconds that an address may take to answer.
        retries: times that an address or camera is tried again in a row, after 2, 4, 8 ... seconds.
        options: options for FFmpeg, KEY=VALUE with commas, such as rtsp_transport=udp.
        state: file of the stream's memory: read first, if it is there, and written at the end.
        device: cpu, cuda, cuda:1, ... (default: a GPU if available).
        trust: allow model classes outside tttvideo, also from the working directory: they run their code.
    """

    positional: ClassVar = ("checkpoint", "source")

    checkpoint: str
    source: str
    read: Literal["every", "newest"] = "every"
    size: str | None = None
    rate: float = 25.0
    fps: float | None = None
    forget: str = "never"
    smooth: float = 0.0
    every: float = 0.0
    topk: int = 5
    timeout: float = 10.0
    retries: int = 5
    options: str = ""
    state: str | None = None
    device: str | None = None
    trust: bool = False

    def __post_init__(self) -> None:
        from .forgetting import parse_forgetting

        if self.size is not None:
            parse_size(self.size)
        parse_forgetting(self.forget)
        if self.read not in ("every", "newest"):
            raise ValueError(f"--read is every or newest, got {self.read!r}")
        for name, value in (("rate", self.rate), ("timeout", self.timeout), ("topk", self.topk), ("fps", self.fps)):
            if value is not None and not value > 0:
                raise ValueError(f"--{name} must be above 0, got {value:g}")
        for name, value in (("smooth", self.smooth), ("every", self.every), ("retries", self.retries)):
            if value < 0:
                raise ValueError(f"--{name} must be 0 or more, got {value:g}")


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """A page in the browser: drop a video, record one or choose an example, and see what models make of it while they
    read it; several models side by side. Only this machine reaches it, unless --host says otherwise. Needs Gradio: pip
    install 'tttvideo[serve]'.

    Args:
        models: run folders (their best), checkpoints in them, or exports.
        examples: videos to choose from: files, folders, patterns, lists; of many, a dozen.
        host: address that the page answers at; 0.0.0.0: to everyone who reaches this machine.
        port: of that address.
        share: also give the page a public address for a week, through Gradio's servers.
        max_upload: largest file that is taken, in MB.
        max_seconds: longest video that is read.
        concurrency: videos that are read at a time.
        queue: videos that wait at most; further ones are turned away.
        device: cpu, cuda, cuda:1, ... (default: a GPU if available).
        trust: allow model classes outside tttvideo, also from the working directory: they run their code.
    """

    positional: ClassVar = ("models",)
    several: ClassVar = ("examples",)

    models: tuple[str, ...]
    examples: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 7860
    share: bool = False
    max_upload: float = 200.0
    max_seconds: float = 600.0
    concurrency: int = 1
    queue: int = 20
    device: str | None = None
    trust: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65535:
            raise ValueError(f"--port must be 1 to 65535, got {self.port}")
        for name, value in (("max-upload", self.max_upload), ("max-seconds", self.max_seconds)):
            if not 0 < value < float("inf"):
                raise ValueError(f"--{name} must be above 0, got {value:g}")
        for name, value in (("concurrency", self.concurrency), ("queue", self.queue)):
            if value < 1:
                raise ValueError(f"--{name} must be at least 1, got {value}")
