"""Detects files whose end is missing, from the length that their container states.

Only reliable statements are used: counts of headers are off by a few in healthy files (AVI), and a length
in seconds does not give a number of frames where the rate varies (Matroska).
"""

import os
import zlib
from typing import Any, NamedTuple

_BLOCKS = (b"\xa3", b"\xa0")  # of Matroska: a simple one, a group
_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class Reached(NamedTuple):
    """What the packets of a film showed."""

    count: int
    empty: int
    """Dropped frames: slots of an AVI without a picture."""
    corrupt: int
    slots: int
    """End of the last packet in the stream's own unit; in an AVI this is a number of frame slots."""
    film_end: float
    """Seconds at which the last frame ends, on the container's clock."""
    ends: tuple[float, ...]
    """The same of the last packet of every stream."""
    longest: float
    """Longest time between two frames, seconds."""
    bytes_end: int
    """Where in the file the last packet ends; 0: not known."""


def announced(container: Any, stream: Any, path: str, reached: Reached, rate: float) -> tuple[bool, int]:
    """Whether the end is missing, and how many frames there should be (0: not known)."""
    kind = container.format.name
    if "mp4" in kind:
        promised = _samples(stream, reached.corrupt)
        return reached.count < promised or _fragment_is_cut(path), max(promised, stream.frames)
    if kind == "avi":
        return _avi(path, stream.frames, reached), stream.frames
    if "matroska" in kind:
        return _matroska(container, stream, path, reached, rate)
    slack = max(0.5, 1.5 * reached.longest)
    if kind in ("asf", "flv"):
        duration = (container.duration or 0) / 1e6 + _start(container)
        cut = duration - _end(reached, duration) > slack or (kind == "asf" and _asf_size(path) > os.path.getsize(path))
        return cut, round((duration - _start(container)) * rate) if cut else 0
    if kind == "ogg":
        return not _ogg_ends(path), 0
    if kind == "mpegts":
        return _ends_in_a_packet(path), 0
    return reached.count + reached.empty < stream.frames, stream.frames


def _end(reached: Reached, duration: float) -> float:
    """Seconds at which the last packet of any stream ends. A stream far beyond the stated length is none: a few damaged
    bytes can look like one, at any time, and swallow the rest of the file."""
    return max(reached.film_end, *(end for end in reached.ends if end <= 2 * duration), 0.0)


def _start(container: Any) -> float:
    return (container.start_time or 0) / 1e6


def _samples(stream: Any, corrupt: int) -> int:
    """The header of an MP4 counts all samples, its index those that the edit list keeps (a trimmed video is not
    damaged). PyAV before 17 does not show the index: there a cut is recognised by the packet it went through.
    """
    if hasattr(stream, "index_entries"):
        return min(len(stream.index_entries), stream.frames)
    return stream.frames if corrupt else 0


def _fragment_is_cut(path: str) -> bool:
    """Whether a fragment of an MP4 goes beyond the end of the file; the samples of fragments are counted nowhere."""
    size, at, fragmented = os.path.getsize(path), 0, False
    with open(path, "rb") as file:
        while at + 8 <= size:
            file.seek(at)
            head = file.read(16)
            length, kind = int.from_bytes(head[:4], "big"), head[4:8]
            if length == 1:
                length = int.from_bytes(head[8:16], "big")
            fragmented = fragmented or kind == b"moof"
            if length < 8:  # 0: to the end
                return False
            at += length
    return fragmented and at > size


def ogg_is_whole(path: str) -> bool:
    """Whether every byte of an Ogg file is in a page, every page is as it was written, and none is left out."""
    numbers: dict[bytes, int] = {}
    with open(path, "rb") as file:
        while head := file.read(27):
            sizes = file.read(head[26]) if len(head) == 27 else b""
            body = file.read(sum(sizes))
            if head[:4] != b"OggS" or len(sizes) < head[26] or len(body) < sum(sizes):
                return False
            stream, number = head[14:18], int.from_bytes(head[18:22], "little")
            if (
                number != numbers.get(stream, -1) + 1
                or _ogg_sum(head[:22] + bytes(4) + head[26:] + sizes + body) != head[22:26]
            ):
                return False
            numbers[stream] = number
    return True


def _ogg_sum(page: bytes) -> bytes:
    """The checksum of a page: zlib's polynomial from the other end of the bits, beginning with 0."""
    mirrored = zlib.crc32(page.translate(_MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return mirrored.to_bytes(4, "big").translate(_MIRRORED)


def _avi(path: str, header: int, reached: Reached) -> bool:
    """Headers that count a few too many, or two slots for a frame, are common and harmless."""
    missing = header - max(reached.count + reached.empty, reached.slots)
    if missing <= 0:
        return False
    return missing > max(2, header // 100) or _riff_size(path) > os.path.getsize(path)


def _matroska(container: Any, stream: Any, path: str, reached: Reached, rate: float) -> tuple[bool, int]:
    start = _start(container)
    duration = (container.duration or 0) / 1e6
    tagged = _duration_tag(stream)  # of this track, counted from time 0; audio can be longer
    if tagged is None:
        cut, tagged = duration - _end(reached, duration) > max(0.5, 1.5 * reached.longest), duration
    else:
        cut = tagged - reached.film_end > max(0.1, 1.5 * reached.longest)
    cut = cut or _segment_end(path) > os.path.getsize(path) or _block_is_cut(path, reached.bytes_end)
    return cut, max(reached.count, round((tagged - start) * rate)) if cut else 0


def _block_is_cut(path: str, end: int) -> bool:
    """Whether behind the last packet, whose bytes end at `end`, a block begins that goes beyond the file."""
    at = end + 4  # a packet is placed at its block's header of four bytes
    with open(path, "rb") as file:
        file.seek(at)
        head = file.read(9)
    if end <= 0 or len(head) < 2 or head[:1] not in _BLOCKS or not head[1]:
        return False
    width = 9 - head[1].bit_length()
    size = int.from_bytes(head[1 : 1 + width], "big") & ((1 << 7 * width) - 1)
    return at + 1 + width + size > os.path.getsize(path)


def _duration_tag(stream: Any) -> float | None:
    try:
        hours, minutes, seconds = stream.metadata.get("DURATION", "").split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return None


def _riff_size(path: str) -> int:
    """Where the first RIFF list ends by its own header; 0 if it does not say."""
    head = _head(path, 12)
    size = int.from_bytes(head[4:8], "little")
    return size + 8 if head[:4] == b"RIFF" and 0 < size < 2**32 - 1 else 0


def _segment_end(path: str) -> int:
    """Where the segment of a Matroska file ends; 0 if it does not say (live recordings)."""
    head = _head(path, 4096)
    at = head.find(b"\x18\x53\x80\x67")
    if at < 0 or at + 12 > len(head):
        return 0
    first = head[at + 4]
    width = 9 - first.bit_length()
    size = int.from_bytes(head[at + 4 : at + 4 + width], "big") & ((1 << 7 * width) - 1)
    return 0 if size == (1 << 7 * width) - 1 else at + 4 + width + size


def _asf_size(path: str) -> int:
    """The file's size by the file properties object of an ASF header; 0 if it is not there."""
    head = _head(path, 65536)
    at = head.find(bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365"))
    return int.from_bytes(head[at + 40 : at + 48], "little") if at >= 0 else 0


def _ogg_ends(path: str) -> bool:
    """Whether the last page is whole and marked as the last one of its stream."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        file.seek(max(0, size - 131072))
        tail = file.read()
    at = tail.rfind(b"OggS")
    if at < 0 or at + 27 > len(tail):
        return False
    lengths = tail[at + 27 : at + 27 + tail[at + 26]]
    return bool(tail[at + 5] & 4) and at + 27 + tail[at + 26] + sum(lengths) <= len(tail)


def _ends_in_a_packet(path: str) -> bool:
    """Transport streams are whole packets of 188 bytes (192 with time codes, 204 with check bytes)."""
    head, size = _head(path, 1024), os.path.getsize(path)
    for width, first in ((188, 0), (192, 4), (204, 0)):
        if len(head) > 4 * width and all(head[first + i * width] == 0x47 for i in range(5)):
            return size % width != 0
    return False


def _head(path: str, size: int) -> bytes:
    with open(path, "rb") as file:
        return file.read(size)
