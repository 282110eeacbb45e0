"""What a file says of itself, read with PyAV from its packets: which frames it holds, when they are shown,
what is wrong.

The pass over the packets decodes nothing (about 20,000 packets/s at 640x360) except the first frame. Where
packets are not known to be frames one to one, every frame is decoded once and counted (`_count_by_decoding`).
"""

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tttvideo.video.reader import VideoError

# Codecs whose every packet is one shown frame unless a packet says otherwise. Not so: MPEG-4 (packed B-frames
# and frames that are not coded), VP8 (hidden reference frames), MPEG-1/2 (fields).
ONE_PACKET_ONE_FRAME = {
    "h264",
    "hevc",
    "vp9",
    "av1",
    "libdav1d",
    "mjpeg",
    "gif",
    "png",
    "prores",
    "ffv1",
    "huffyuv",
}


class Probe(NamedTuple):
    """The result of reading a file's packets. F = frames that will be decoded."""

    file: tuple[str, int, int]
    """Path, size in bytes and modification time: the same three are the same file."""
    codec: str
    pixels: str
    """Pixel format of the first frame."""
    height: int
    width: int
    """Size of the first frame as displayed (rotation applied)."""
    turns: int
    """Quarter turns counter-clockwise to be applied for display."""
    fps: float
    times: Tensor
    """float64 [F] seconds."""
    pts: Tensor | None
    """int64 [F] presentation stamps in the stream's own unit, sorted; None where they do not identify frames.
    """
    entries: tuple[int, ...]
    """Frames at which decoding can start with exactly the same result as from frame 0."""
    announced: int
    damaged: bool
    regular: bool
    """Nothing unusual anywhere: every packet is one frame, counted by the header, in one closed sequence."""


def probe(path: str) -> Probe:
    """Reads the packets of a video. Raises VideoError (one sentence: path and reason) if nothing can be
    decoded.

    The last 512 results are kept per process, by path, size and modification time.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise VideoError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    return _probe(path, status.st_size, status.st_mtime_ns)


def open_container(path: str) -> tuple[Any, Any]:
    """PyAV's container and its first video stream. An absolute path cannot be taken for a protocol
    ("a:b.mp4").
    """
    import av.error

    try:
        container = av.open(os.path.abspath(path))
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"{path}: {_why_not_opened(path, error)}") from error
    for stream in container.streams.video:
        # A cover picture in an audio file is stored as a video stream of one frame.
        picture = "attached_pic" in str(getattr(stream, "disposition", ""))
        if not picture and stream.codec_context is not None:
            # FRAME threads can deadlock when a damaged file is closed; one thread per reader, workers give
            # the rest.
            stream.thread_type = "SLICE"
            stream.thread_count = 1
            return container, stream
    only = " (audio only)" if container.streams.audio else ""
    container.close()
    raise VideoError(f"{path}: holds no video stream that can be decoded{only}")


def decode_packets(container: Any, stream: Any) -> Iterator[Any]:
    """Frames in presentation order. Packets of size 0 (dropped frames in AVI) would end the decoder: they are
    left out.
    """
    for packet in container.demux(stream):
        if packet.size or packet.pts is None:
            yield from packet.decode()


class _Packets:
    """What one pass over the packets shows."""

    def __init__(self, container: Any, stream: Any):
        import av.error

        self.pts: list[int] = []
        self.fresh: list[bool] = []
        self.starts_with_key = False
        self.count = self.discarded = self.corrupt = self.unstamped = self.empty = 0
        self.broken = False
        codec, extradata = stream.codec_context.name, stream.codec_context.extradata
        try:
            for packet in container.demux(stream):
                if not packet.size:
                    self.empty += packet.pts is not None
                    continue
                if not self.count:
                    self.starts_with_key = packet.is_keyframe
                self.count += 1
                self.corrupt += packet.is_corrupt
                if packet.is_discard:
                    self.discarded += 1
                elif packet.pts is None:
                    self.unstamped += 1
                else:
                    self.pts.append(packet.pts)
                    self.fresh.append(packet.is_keyframe and _starts_afresh(codec, extradata, packet))
        except (av.error.FFmpegError, OSError, EOFError):
            self.broken = True

    def entries(self) -> tuple[int, ...]:
        """Keyframes, as frame numbers, before which everything earlier is shown and after which everything
        later is.
        """
        least, later = [], 2**63
        for pts in reversed(self.pts):
            later = min(later, pts)
            least.append(later)
        least.reverse()
        found, most = [], -(2**63)
        for i, (pts, fresh) in enumerate(zip(self.pts, self.fresh)):
            if fresh and most < pts == least[i]:
                # Everything decoded before is also shown before: i is the frame's number in both orders.
                found.append(i)
            most = max(most, pts)
        return tuple(found)


@lru_cache(maxsize=512)
def _probe(path: str, size: int, modified: int) -> Probe:
    _refuse_non_files(path, size)
    container, stream = open_container(path)
    with container:
        packets = _Packets(container, stream)
        codec, header = stream.codec_context.name, stream.frames
        rate = stream.average_rate or stream.guessed_rate
        base = float(stream.time_base or 0)
        one_stream = len(container.streams.video) == 1
        promised = _promised(container, stream, packets.corrupt)
        told = _announced_by_duration(container, stream, rate, packets.pts) if not header else 0
        matroska_or_mp4 = any(name in container.format.name for name in ("mp4", "matroska"))
        if container.format.name == "tty":  # FFmpeg draws any text file as a terminal
            raise VideoError(f"{path}: is a text file, not a video")
    rate = float(rate) if rate else 25.0
    first = _first_frame(path)

    cut = packets.broken or packets.count + packets.empty < promised or packets.count < 0.95 * told
    clean = not (cut or packets.corrupt or packets.unstamped or packets.empty) and bool(packets.pts)
    clean = clean and len(set(packets.pts)) == len(packets.pts) and packets.starts_with_key
    clean = clean and packets.pts[0] == min(packets.pts)
    # H.264 that starts at a recovery point instead of an IDR picture loses its first frames without an error.
    trusted = clean and codec in ONE_PACKET_ONE_FRAME and (codec != "h264" or packets.fresh[0])
    damaged, announced = cut, max(header, told)
    if trusted:
        stamps, frames = sorted(packets.pts), len(packets.pts)
    else:
        stamps, frames, failed = _count_by_decoding(path)
        damaged = damaged or failed
    announced = announced or (packets.count if damaged else frames)
    distinct = len(set(stamps)) == frames and base > 0
    if distinct:
        times = (torch.tensor(stamps, dtype=torch.float64) - stamps[0]) * base
    else:
        times = torch.arange(frames, dtype=torch.float64) / rate
    # Decoding from the middle, and decord, only where packets and frames are the same thing.
    exact = trusted and distinct and matroska_or_mp4
    turns = round(first.rotation / 90) % 4
    height, width = (first.width, first.height) if turns % 2 else (first.height, first.width)
    regular = exact and one_stream and turns == 0 and packets.discarded == 0 and header in (0, packets.count)
    return Probe(
        file=(path, size, modified),
        codec="av1" if codec == "libdav1d" else codec,
        pixels=first.format.name,
        height=height,
        width=width,
        turns=turns,
        fps=_frame_rate(times, rate),
        times=times,
        pts=torch.tensor(stamps) if exact else None,
        entries=packets.entries() if exact and packets.discarded == 0 else (),
        announced=announced,
        damaged=damaged,
        regular=regular,
    )


def _refuse_non_files(path: str, size: int) -> None:
    if not Path(path).is_file():  # a pipe would be waited for without end
        raise VideoError(f"{path}: is not a file")
    if size == 0:
        raise VideoError(f"{path}: the file is empty")
    with open(path, "rb") as file:
        if file.read(40).startswith(b"version https://git-lfs"):
            raise VideoError(f"{path}: is a git-lfs pointer, not the video itself; fetch it with `git lfs pull`")


def _why_not_opened(path: str, error: Exception) -> str:
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError as failure:
        return str(failure.strerror)
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free"):
        return "is cut off or damaged: the index of the MP4 file (its moov atom) is missing"
    if not any(byte < 9 or 13 < byte < 32 for byte in head):
        return "is a text file, not a video"
    reason = getattr(error, "strerror", None) or "unknown format"
    return f"is not a video that FFmpeg recognises ({reason.lower()})"


def _first_frame(path: str) -> Any:
    import av.error

    container, stream = open_container(path)
    with container:
        try:
            for frame in decode_packets(container, stream):
                return frame
        except (av.error.FFmpegError, OSError, EOFError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise VideoError(f"{path}: no frame of it can be decoded ({reason.lower()})") from error
    raise VideoError(f"{path}: no frame of it can be decoded (the data end before the first picture)")


def _count_by_decoding(path: str) -> tuple[list[int], int, bool]:
    """Sorted stamps of the frames that have one, the number of frames, and whether decoding ended with an
    error.

    Decoders put out the frames in the order they are shown, but can stamp them in another (MPEG-4 with packed
    B-frames): hence sorted.
    """
    import av.error

    stamps, frames, failed = [], 0, False
    container, stream = open_container(path)
    with container:
        try:
            for frame in decode_packets(container, stream):
                frames += 1
                if frame.pts is not None:
                    stamps.append(frame.pts)
        except (av.error.FFmpegError, OSError, EOFError):
            failed = True
    return sorted(stamps), frames, failed


def _promised(container: Any, stream: Any, corrupt: int) -> int:
    """Packets that must be there if the file is whole; 0 where that is not known.

    The header of an MP4 counts all samples, its index those that the edit list keeps (a trimmed video is not
    damaged). PyAV before 17 does not show the index: there a cut is recognised by the packet it went through.
    """
    if "mp4" not in container.format.name:
        return stream.frames
    if hasattr(stream, "index_entries"):
        return min(len(stream.index_entries), stream.frames)
    return stream.frames if corrupt else 0


def _announced_by_duration(container: Any, stream: Any, rate: Any, pts: list[int]) -> int:
    """Frames that a container without a frame count (Matroska, WebM) promises by the length of its video
    track.

    A file that was cut simply looks shorter. Without a length of its own for the track (audio can be longer):
    0.
    """
    if not rate or not pts or "matroska" not in container.format.name:
        return 0
    try:
        hours, minutes, seconds = stream.metadata.get("DURATION", "").split(":")
        end = int(hours) * 3600 + int(minutes) * 60 + float(seconds)  # counted from time 0
    except ValueError:
        return 0
    return int((end - min(pts) * float(stream.time_base)) * float(rate))


def _starts_afresh(codec: str, extradata: bytes | None, packet: Any) -> bool:
    """Whether a packet marked as a keyframe really needs nothing from before it.

    H.264 containers also mark recovery points, after which frames may still refer to the past; an IDR picture
    (NAL unit type 5) cannot. HEVC and AV1 are decoded from the start always.
    """
    if codec in ("vp9", "mjpeg"):
        return True
    if codec != "h264" or not extradata or extradata[0] != 1 or len(extradata) < 5:
        return False
    data, width, at = bytes(packet), (extradata[4] & 3) + 1, 0
    while at + width < len(data):
        if data[at + width] & 31 == 5:
            return True
        at += width + int.from_bytes(data[at : at + width], "big")
    return False


def _frame_rate(times: Tensor, rate: float) -> float:
    """Average rate by the stamps where there are two frames or more, else what the header says."""
    return float((len(times) - 1) / times[-1]) if len(times) > 1 else rate
