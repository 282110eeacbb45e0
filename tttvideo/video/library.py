"""The index of a whole set of videos: builds missing entries with worker processes, and reports problems.

A file on which FFmpeg hangs or crashes costs its worker process, not the run: it is named, and refused from then on.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import numpy as np

from ..printing import is_unicode
from . import catalog
from .clock import MISSING
from .errors import VideoError
from .probe import Probe, identity
from .scan import scan

_FAR = 2000  # frames to be decoded for a window
# Kinds of problems: (name, whether frames are lost, what to do).
KINDS: dict[str, tuple[bool, str]] = {
    "unreadable": (True, "skipped in training, wrong in evaluation: replace or remove them"),
    "hung": (True, "refused from now on; `tttvideo index` tries again, --limit gives more time"),
    "cut": (True, "used up to the damage: fetch them again if you can"),
    "damaged frames": (True, "used as they decode: fetch them again if you can"),
    "damaged packets": (True, "their frames are used as they decode; --decode counts them"),
    "missing frames": (False, "a damaged file, or a recorder that left them out"),
    "several streams": (False, "the default one is read: data.stream chooses another"),
    "clock jumps": (False, "gaps are closed: check start and end in lists"),
    "edit lists": (False, "what they hide is not read: cut the file anew to have it"),
    "odd headers": (
        False,
        "what the header says cannot be: write the file anew (ffmpeg -i IN -c copy OUT), or fetch it",
    ),
    "irregular stamps": (False, "repeated or missing time stamps lie between their neighbours"),
    "late windows": (False, "decoded from far before: `tttvideo index --decode` mends most, else re-encode"),
}


class Finding(NamedTuple):
    """What the index says of one video."""

    path: str
    frames: int
    seconds: float
    codec: str
    decoded: bool  # every frame was tried
    fresh: bool  # it was not in the index
    problems: list[tuple[str, str]]  # (kind, sentence)


def build(
    paths: Sequence[str],
    *,
    stream: int | None = None,
    jobs: int = 1,
    decode: bool = False,
    limit: float | None = None,
    progress: Callable[[Finding], Any] = lambda finding: None,
) -> list[Finding]:
    """Indexes what is not indexed yet; findings in the order of `paths`.

    Args:
        jobs: worker processes.
        decode: decode every frame once: counts what really decodes, and lets late windows be reached everywhere.
        limit: seconds for a file, after which its process is ended; None: by its size, 60 at least (600 to decode).
    """
    findings: dict[str, Finding] = {}
    waiting = []
    for path in dict.fromkeys(paths):
        finding = _ready(path, stream, decode)
        if finding is not None:
            findings[path] = finding
            progress(finding)
        else:
            waiting.append(path)
    for finding in _by_processes(waiting, stream, jobs, decode, limit):
        findings[finding.path] = finding
        progress(finding)
    return [findings[path] for path in paths]


def look(metadata: Probe, fresh: bool) -> Finding:
    """What the index says of one video, in words."""
    problems = []
    n = metadata.frames
    if metadata.damaged or (metadata.decoded is not None and metadata.decoded < n):
        good = n if metadata.decoded is None else min(n, metadata.decoded)
        of = f" of {metadata.announced}" if metadata.announced > good else ""
        problems.append(("cut", f"only {good}{of} frames decode"))
    if metadata.corrupt:
        problems.append(
            (
                "damaged frames",
                f"{metadata.corrupt} of {n} frames {'comes' if metadata.corrupt == 1 else 'come'} out damaged",
            )
        )
    elif (broken := metadata.broken - metadata.damaged) > 0:  # the end of a cut file goes through a packet
        problems.append(("damaged packets", f"{broken} {'packet is' if broken == 1 else 'packets are'} damaged"))
    problems += metadata.remarks
    if metadata.base > 0 and n > 1:
        missing = int((metadata.stamps == MISSING).sum())
        repeated = n - missing - len(np.unique(metadata.stamps[metadata.stamps != MISSING]))
        if missing or (repeated and not metadata.jumps):
            problems.append(("irregular stamps", f"{missing} stamps are missing, {repeated} repeated"))
    if (far := _farthest(metadata)) > _FAR:
        problems.append(("late windows", f"up to {far} frames are decoded to reach one"))
    return Finding(
        metadata.file[0], n, metadata.duration, metadata.codec, metadata.decoded is not None, fresh, problems
    )


def _farthest(metadata: Probe) -> int:
    keys = metadata.keys[metadata.keys < len(metadata.checks)]
    return int(np.diff(np.unique(np.concatenate([[0, metadata.frames], metadata.entries, keys]))).max())


def _ready(path: str, stream: int | None, decode: bool) -> Finding | None:
    """What the index has, or a plain refusal; None: the file must be read."""
    if not is_unicode(path):
        return _refused(path, "unreadable", "its name is not UTF-8; rename it")
    try:
        metadata = catalog.load(identity(path), stream)
    except VideoError as error:
        return _refused(path, "unreadable", str(error))
    except catalog.Refused:
        return None
    enough = metadata is not None and (metadata.decoded is not None or not decode)
    return look(metadata, False) if metadata is not None and enough else None


def _refused(path: str, kind: str, sentence: str) -> Finding:
    return Finding(path, 0, 0.0, "", False, True, [(kind, sentence.removeprefix(f"{path}: "))])


def _index(path: str, stream: int | None, decode: bool) -> Finding:
    """Reads a file through, in a worker."""
    try:
        if os.path.isdir(path):
            from .decode import open_video

            info = open_video(path).info
            return Finding(path, info.frames, info.duration, info.codec, False, True, [])
        file = identity(path)
        metadata = scan(file, stream, whole=decode)
        try:
            before = catalog.load(file, stream)
        except catalog.Refused:
            before = None
        catalog.store(replace(metadata, agreed=before.agreed) if before else metadata)
        return look(metadata, True)
    except (VideoError, OSError) as error:
        return _refused(path, "unreadable", str(error))


def _serve(line: Connection, stream: int | None, decode: bool) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    line.send(None)  # imported: from here on time counts
    while True:
        try:
            path = line.recv()
        except EOFError:  # the parent is gone
            return
        line.send(_index(path, stream, decode))


class _Worker:
    def __init__(self, stream: int | None, decode: bool):
        # spawn: a process that has used FFmpeg or threads should not be forked
        self.line, theirs = get_context("spawn").Pipe()
        self.process = get_context("spawn").Process(target=_serve, args=(theirs, stream, decode), daemon=True)
        self.process.start()
        theirs.close()
        self.path = ""
        self.until = 0.0

        self.line.recv()

    def give(self, path: str, limit: float) -> None:
        self.path, self.until = path, time.monotonic() + limit
        self.line.send(path)

    def end(self) -> int | None:
        self.process.kill()
        self.process.join()
        self.line.close()
        return self.process.exitcode


def _by_processes(
    paths: list[str], stream: int | None, jobs: int, decode: bool, limit: float | None
) -> Iterator[Finding]:
    waiting = iter(paths)
    workers = [_Worker(stream, decode) for _ in range(min(jobs, len(paths)))]
    busy: list[_Worker] = []

    def start(worker: _Worker) -> None:
        path = next(waiting, None)
        if path is None:
            worker.end()
        else:
            worker.give(path, limit or _limit(path, decode))
            busy.append(worker)

    try:
        for worker in workers:
            start(worker)
        while busy:
            patience = max(0.0, min(worker.until for worker in busy) - time.monotonic())
            ready = wait([worker.line for worker in busy], patience)
            for worker in list(busy):
                if worker.line in ready:
                    busy.remove(worker)
                    try:
                        yield worker.line.recv()
                    except (EOFError, OSError):  # FFmpeg has crashed
                        code = worker.end()
                        if code in (-signal.SIGKILL, -signal.SIGTERM):  # somebody's, or memory's: no fault of the file
                            why = "was not indexed: its process was killed, as happens where memory runs out; try again"
                            yield _refused(worker.path, "unreadable", why)
                        else:
                            why = f"ended its process when it was indexed (exit code {code})"
                            yield _fatal(worker.path, stream, why)
                        worker = _Worker(stream, decode)
                    start(worker)
                elif time.monotonic() >= worker.until:
                    busy.remove(worker)
                    worker.end()
                    seconds = limit or _limit(worker.path, decode)
                    yield _fatal(worker.path, stream, f"was not read through in {seconds:.0f} s when it was indexed")
                    start(_Worker(stream, decode))
    finally:
        for worker in busy:
            worker.end()


def _limit(path: str, decode: bool) -> float:
    try:
        size = os.path.getsize(path)
    except OSError:
        size = 0
    return 600 + size / 5e5 if decode else 60 + size / 5e6


def _fatal(path: str, stream: int | None, sentence: str) -> Finding:
    catalog.store_refusal(identity(path), stream, sentence)
    return _refused(path, "hung", sentence)
