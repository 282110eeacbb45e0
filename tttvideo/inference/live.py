"""Sources of a stream: recordings, numbered images, pipes, cameras, addresses."""

from __future__ import annotations

import math
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from ..printing import printable
from ..video.pyav_reader import Converter
from ..video.reader import VideoError
from ..video.sampling import Dense, parse_sampling
from ..video.transforms import Preprocessing
from .config import StreamConfig, parse_size

Say = Callable[[str], None]

WAIT = 2.0
"""Seconds before the second try to connect; each further wait is twice as long, up to LONGEST."""
LONGEST = 30.0
BATCH = 16  # frames of a recording that are decoded at a time
AHEAD = 64  # frames of a live source that wait to be read, at most


class Shot(NamedTuple):
    """A frame uint8 [3, h, w] and its time in seconds."""

    frame: Tensor
    time: float


def open_source(config: StreamConfig, preprocessing: Preprocessing, say: Say) -> Iterator[Shot]:
    """The frames of ``config.source``, in order, resized while they are decoded, as in ``classify``: the model gets the
    same pixels. Close the iterator where it is not read to its end.

    Args:
        say: told what the user should know: dropped frames, lost connections.

    Raises:
        VideoError: while iterating: what cannot be opened, or went away and did not come back.
    """
    source = config.source
    if source == "-" and config.size:
        shots = _raw(sys.stdin.buffer, config)
    elif source != "-" and not _is_live(source):
        return _recorded(source, preprocessing, config.fps)
    else:
        shots = _connected(config, preprocessing, say)
    shots = _thinned(shots, config)
    return _newest(shots, say) if config.read == "newest" else _buffered(shots)


def _is_live(source: str) -> bool:
    """A pipe, a camera, an address, or a pattern of numbered images: read once, in the order in which it comes."""
    return source == "-" or "://" in source or source.isdecimal() or source.startswith("/dev/") or "%" in source


def _recorded(path: str, preprocessing: Preprocessing, fps: float | None) -> Iterator[Shot]:
    """A file or a folder of images, by the readers that training uses."""
    with preprocessing.open(path) as reader:
        wanted = Dense(fps).indices(reader.times - reader.times[0])
        times = iter((reader.times[wanted] + reader.offset).tolist())
        for frames in reader.stream(wanted, batch=BATCH):
            for frame in frames:
                yield Shot(frame, next(times))


def _raw(pipe: BinaryIO, config: StreamConfig) -> Iterator[Shot]:
    """rgb24, as `ffmpeg -f rawvideo -pix_fmt rgb24` writes it."""
    width, height = parse_size(config.size)
    length, number = width * height * 3, 0
    while len(data := pipe.read(length)) == length:
        frame = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(height, width, 3).permute(2, 0, 1)
        yield Shot(frame, number / config.rate)
        number += 1
    if data:
        raise VideoError(
            f"standard input ended within frame {number + 1} ({len(data)} of {length} bytes): its sender was stopped, "
            f"or sends no frames of {width}x{height} (--size) in rgb24"
        )
    if not number:
        raise VideoError("standard input has no frames")


def _connected(config: StreamConfig, preprocessing: Preprocessing, say: Say) -> Iterator[Shot]:
    """What PyAV opens; after an error it is opened again, at most ``config.retries`` times in a row."""
    tries, wait, offset, last = 0, WAIT, 0.0, None
    while True:
        began = time.monotonic()
        try:
            for shot in _opened(config, preprocessing):
                tries, wait = 0, WAIT
                if last is not None and shot.time + offset <= last:
                    # a new connection's clock begins anew
                    offset = last + (time.monotonic() - began) - shot.time
                last = shot.time + offset
                yield Shot(shot.frame, last)
            return
        except VideoError as error:
            again = "://" in config.source or config.source.startswith("/dev/")
            if not again or tries >= config.retries:
                tried = f" (tried {tries + 1} times)" if tries else ""
                raise VideoError(f"{error}{tried}") from None
            tries += 1
            say(f"{error}; try {tries} of {config.retries} in {wait:g} s")
            began = time.monotonic()
            time.sleep(wait)
            wait = min(2 * wait, LONGEST)


def _opened(config: StreamConfig, preprocessing: Preprocessing) -> Iterator[Shot]:
    """The frames of one connection. Raises VideoError."""
    import av

    source, name = config.source, "standard input" if config.source == "-" else printable(config.source)
    file, form = _device_or_address(source)
    if form and not Path(file).exists():
        raise VideoError(f"{name}: there is no camera {file}")
    if source == "-" and not sys.stdin.buffer.peek(1):
        raise VideoError("standard input is empty")
    wait: Any = config.timeout if "://" in source else None
    number, begun = 0, time.monotonic()
    try:
        options = {"format": form, "options": _options(config), "timeout": wait, "metadata_errors": "replace"}
        with av.open(file, **options) as container:
            if not container.streams.video:
                raise VideoError(f"{name}: has no video")
            stream = container.streams.video[0]
            rate = float(stream.average_rate or config.rate)
            converter: Converter | None = None
            for frame in container.decode(stream):
                if converter is None:  # further frames are brought to the first one's size
                    converter = Converter(preprocessing.decode_size(frame.height, frame.width))
                out = torch.empty(3, *converter.size, dtype=torch.uint8)
                converter.into(frame, out.numpy())
                yield Shot(out, number / rate if frame.time is None else float(frame.time))
                number, begun = number + 1, time.monotonic()
    except VideoError:
        raise
    except (av.FFmpegError, OSError, ValueError, IndexError, MemoryError) as error:
        # a read that is stopped ends in whatever error FFmpeg makes of it
        if wait and time.monotonic() - begun >= 0.95 * wait:
            raise VideoError(f"{name}: no answer within {config.timeout:g} s") from None
        reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
        raise VideoError(f"{name}: {reason}") from None
    if not number:
        raise VideoError(f"{name}: ended without a frame")


def _device_or_address(source: str) -> tuple[Any, str | None]:
    """What PyAV is to open, and its format where that does not follow from it: a camera's."""
    file = sys.stdin.buffer if source == "-" else f"/dev/video{source}" if source.isdecimal() else source
    return file, "v4l2" if isinstance(file, str) and file.startswith("/dev/video") else None


def _options(config: StreamConfig) -> dict[str, str]:
    """FFmpeg's options: those of the configuration, and what a network camera needs beside them."""
    options = dict(part.split("=", 1) for part in config.options.split(",") if "=" in part)
    if config.source.startswith("rtsp"):
        options = {"rtsp_transport": "tcp"} | options
        if "listen" in options.get("rtsp_flags", ""):  # its own default is refused by FFmpeg 8
            options = {"listen_timeout": str(math.ceil(config.timeout))} | options
    return options


def _thinned(shots: Iterator[Shot], config: StreamConfig) -> Iterator[Shot]:
    """Frames nearest after 0, 1/fps, 2/fps ... seconds, where the rate is limited."""
    if not config.fps:
        yield from shots
        return
    following = None
    with closing(shots):  # type: ignore[type-var]  # generators
        for shot in shots:
            if following is None or shot.time >= following - 1e-6:
                following = max(shot.time, following or shot.time) + 1 / config.fps
                yield shot


def stream_rate(sampling: str) -> tuple[float | None, str]:
    """Frames a second that a model's sampling rule leaves, None for all; and a sentence where the rule needs the end
    of a video, so that it cannot be followed."""
    rule = parse_sampling(sampling)
    if isinstance(rule, Dense):
        return rule.fps, ""
    return None, f"the model was trained with sampling {rule}, which needs whole videos: every frame is read"


class _Thread:
    """Reads ``shots`` in a thread of its own, where they are also opened and closed."""

    def __init__(self, shots: Iterator[Shot], put: Callable[[Shot], bool], end: Callable[[BaseException | None], None]):
        self._work = (shots, put, end)
        thread = threading.Thread(target=self._run, name="live source", daemon=True)
        thread.start()

    def _run(self) -> None:
        shots, put, end = self._work
        try:
            with closing(shots):  # type: ignore[type-var]  # generators
                for shot in shots:
                    if not put(shot):
                        return
        except BaseException as error:  # carried over to the reader's thread
            end(error)
        else:
            end(None)


def _buffered(shots: Iterator[Shot]) -> Iterator[Shot]:
    """Every frame; ``AHEAD`` of them wait at most, and then the source has to."""
    waiting: queue.Queue[Any] = queue.Queue(AHEAD)
    stopped = threading.Event()

    def put(item: Any) -> bool:
        while not stopped.is_set():
            try:
                waiting.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    _Thread(shots, put, lambda error: put((error,)) and None)
    try:
        while True:
            item = waiting.get()
            if isinstance(item, Shot):
                yield item
            elif item[0] is None:
                return
            else:
                raise item[0]
    finally:
        stopped.set()


def _newest(shots: Iterator[Shot], say: Say) -> Iterator[Shot]:
    """The newest frame whenever one is asked for; those that came in between are dropped, which is said once a
    minute."""
    changed, stopped = threading.Condition(), threading.Event()
    held: dict[str, Any] = {"came": 0, "dropped": 0}

    def put(shot: Shot) -> bool:
        with changed:
            held["dropped"] += "shot" in held
            held["came"] += 1
            held["shot"] = shot
            changed.notify()
        return not stopped.is_set()

    def end(error: BaseException | None) -> None:
        with changed:
            held["end"] = error
            changed.notify()

    _Thread(shots, put, end)
    said = -60.0
    try:
        while True:
            with changed:
                changed.wait_for(lambda: "shot" in held or "end" in held)
                shot = held.pop("shot", None)
                came, dropped = held["came"], held["dropped"]
            if shot is None:
                if held["end"] is not None:
                    raise held["end"]
                return
            if dropped and time.monotonic() - said >= 60:
                said = time.monotonic()
                say(f"{dropped} of {came} frames were dropped: to the model everything moves faster (--read every)")
            yield shot
    finally:
        stopped.set()
