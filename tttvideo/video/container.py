"""Opening a file with PyAV: which stream is read, its packets and frames, and every way in which that can fail."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .errors import VideoError

LONGEST_OPENING = 120.0
"""Seconds after which a file is given up: in a damaged header FFmpeg may search gigabytes for the next mark."""

# What FFmpeg reads from text: play lists, which name other files and addresses to be opened, and text itself.
_TEXTS = {"concat", "hls", "dash", "imf", "sdp", "tty"}


class Broken(Exception):
    """FFmpeg cannot go on with a file. PyAV raises more than FFmpeg's own errors: IndexError for a stream that turns
    up late in a damaged transport stream, ValueError, MemoryError ..."""

    def __init__(self, error: Exception):
        super().__init__((getattr(error, "strerror", None) or str(error) or type(error).__name__).lower())


class Film(NamedTuple):
    """A container and the stream of it that is read."""

    container: Any
    stream: Any
    streams: tuple[str, ...]
    """Sizes of all video streams that are no pictures, for example 96x64, in the order that `stream` counts."""
    number: int
    """Which of them is read."""

    def __enter__(self) -> "Film":
        return self

    def __exit__(self, *exception: object) -> None:
        self.container.close()


def open_film(path: str, number: int | None = None) -> Film:
    """Opens a video file. Cover pictures are no films. Of several video streams stream `number` is taken, counted from
    0; without one, the first that is marked as default, and where none is marked the largest.

    Raises VideoError.
    """
    begun = time.monotonic()
    try:
        container = open_container(path)
    except Exception as error:
        late = time.monotonic() - begun >= LONGEST_OPENING  # FFmpeg makes errors of all kinds of it
        why = f"cannot be opened within {LONGEST_OPENING:g} s" if late else _why_not_opened(path, error)
        raise VideoError(f"{path}: {why}") from error
    try:
        films = [stream for stream in container.streams.video if not _is_picture(stream) and stream.codec_context]
        if not films:
            only = " (audio only)" if container.streams.audio else ""
            raise VideoError(f"{path}: holds no video stream that can be decoded{only}")
        if number is not None and number >= len(films):
            have = "one video stream, number 0" if len(films) == 1 else f"video streams 0 to {len(films) - 1}"
            raise VideoError(f"{path}: there is no video stream {number}; the file has {have} (data.stream)")
        chosen = max(range(len(films)), key=lambda i: _rank(films[i])) if number is None else number
        stream = films[chosen]
        # FRAME threads can deadlock when a damaged file is closed; one thread per reader, workers give the rest.
        stream.thread_type = "SLICE"
        stream.thread_count = 1
        sizes = tuple(f"{film.codec_context.width}x{film.codec_context.height}" for film in films)
    except BaseException:
        container.close()
        raise
    return Film(container, stream, sizes, chosen)


def open_container(path: str) -> Any:
    """A file, opened by PyAV, which opens nothing else with it. Raises what PyAV raises; ValueError for a play list."""
    import av

    # An absolute path cannot be taken for a protocol ("a:b.mp4").
    only_files = {"protocol_whitelist": "file"}
    container = av.open(
        os.path.abspath(path), metadata_errors="replace", container_options=only_files, timeout=(LONGEST_OPENING, None)
    )
    if container.format.name in _TEXTS:
        container.close()
        raise ValueError("a text")
    return container


def packets(film: Film, all_streams: bool = False) -> Iterator[Any]:
    """Packets of the film, or of everything in the file. Raises Broken."""
    source = film.container.demux() if all_streams else film.container.demux(film.stream)
    while True:
        try:
            packet = next(source)
        except StopIteration:
            return
        except Exception as error:  # nothing of ours runs in there
            raise Broken(error) from error
        yield packet


def is_empty(packet: Any) -> bool:
    """A dropped frame (AVI), which would end the decoder; not the last packet of all, which flushes it."""
    return not packet.size and not (packet.pts is None and packet.dts is None)


def decode(packet: Any) -> list[Any]:
    """The frames that come out when a packet goes in. Raises Broken."""
    try:
        return packet.decode()
    except Exception as error:
        raise Broken(error) from error


def decoded(film: Film) -> Iterator[Any]:
    """Frames in presentation order. Raises Broken."""
    for packet in packets(film):
        if not is_empty(packet):
            yield from decode(packet)


def refuse_non_files(path: str, size: int) -> None:
    if not Path(path).is_file():  # a pipe would be waited for without end
        raise VideoError(f"{path}: is not a file")
    if size == 0:
        raise VideoError(f"{path}: the file is empty")
    with open(path, "rb") as file:
        if file.read(40).startswith(b"version https://git-lfs"):
            raise VideoError(f"{path}: is a git-lfs pointer, not the video itself; fetch it with `git lfs pull`")


def _is_picture(stream: Any) -> bool:
    """Covers and chapter pictures are stored as video streams. (The flag's text differs between PyAV 17 and 18.)"""
    from av.stream import Disposition

    return bool(stream.disposition & (Disposition.attached_pic | Disposition.timed_thumbnails))


def _rank(stream: Any) -> tuple[bool, bool, int]:
    from av.stream import Disposition

    marked = bool(stream.disposition & Disposition.default)
    size = 0 if marked else stream.codec_context.width * stream.codec_context.height
    return stream.frames != 1, marked, size


def _why_not_opened(path: str, error: Exception) -> str:
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError as failure:
        return str(failure.strerror)
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free"):
        return "is cut off or damaged: the index of the MP4 file (its moov atom) is missing or damaged"
    if not any(byte < 9 or 13 < byte < 32 for byte in head):
        return "is a text file, not a video"
    reason = getattr(error, "strerror", None) or "unknown format"
    return f"is not a video that FFmpeg recognises ({reason.lower()})"
