"""One pass over a file's packets: which frames it holds, when they are shown, where decoding can start, what is wrong.

Packets are not decoded (about 20,000 a second at 640x360) except for the first frame. Where packets are not known to
be frames one to one, all are decoded in the same pass, and a checksum of every frame is kept: it proves later that
decoding from the middle gives the same frames.
"""

import functools
import zlib
from array import array
from dataclasses import replace
from typing import Any

import numpy as np

from . import cut
from .clock import MISSING, ends_in_gap, holes, passed_over
from .container import Broken, Film, decode, is_empty, open_film, packets, refuse_non_files
from .errors import VideoError
from .keyframes import INTRA, shows_frames_only, starts_clean
from .probe import Probe

# Codecs whose every packet is one shown frame unless a packet says otherwise. Not so: MPEG-4 (packed B-frames and
# frames that are not coded), VP8 (hidden reference frames), MPEG-1/2 (fields).
ONE_PACKET_ONE_FRAME = {"h264", "hevc", "vp9", "av1", "libdav1d", "gif", "ffv1"} | INTRA
# Containers that keep frames whole; elsewhere a parser divides the stream.
_KEEP_FRAMES = ("mp4", "matroska", "flv")
_RESTARTING = ("mpegts", "mpeg")  # whose clock can start anew
# Containers of which the ends of all streams are compared with what the header says.
_TIMED = ("matroska", "asf", "flv", "mpegts", "mpeg")
# Those of them that say where in the file a packet's bytes are.
_PLACED = ("matroska", "asf", "flv")


def scan(file: tuple[str, int, int], stream: int | None = None, *, whole: bool = False) -> Probe:
    """Reads a file through; `whole` decodes all of it. Flaws are believed when two readings agree on them: a disk or a
    network that fails for a moment is no fault of the file's, and what is kept of a file is kept for ever.

    Raises VideoError if nothing can be decoded, or the file cannot be read.
    """
    metadata = read_through(file, stream, whole=whole)
    for _ in range(2):
        if not (metadata.damaged or metadata.broken or metadata.holes or cut_short(metadata)):
            return metadata
        before, metadata = metadata, read_through(file, stream, whole=whole)
        if agree(before, metadata):
            _refuse_unreadable(file[0])
            return metadata
    raise VideoError(f"{file[0]}: is read differently every time, as where a disk or a network fails; try again later")


def cut_short(metadata: Probe) -> bool:
    """Whether decoding has shown a flaw."""
    return metadata.decoded is not None and (metadata.corrupt > 0 or metadata.decoded < metadata.frames)


def agree(one: Probe, other: Probe) -> bool:
    """Whether two readings of a file show the same frames and flaws."""
    flaws = ("frames", "damaged", "decoded", "corrupt", "broken", "holes")
    return all(getattr(one, name) == getattr(other, name) for name in flaws)


def _refuse_unreadable(path: str) -> None:
    """Demuxers take a disk's error for the end of the file."""
    try:
        with open(path, "rb") as file:
            while file.read(2**20):
                pass
    except OSError as error:
        raise VideoError(f"{path}: cannot be read to its end ({error.strerror})") from error


def read_through(file: tuple[str, int, int], stream: int | None = None, *, whole: bool = False) -> Probe:
    """Reads a file once; see `scan`."""
    path, size, _ = file
    refuse_non_files(path, size)
    with open_film(path, stream) as film:
        packets = _Packets(film, whole)
        if packets.frame is None:
            raise VideoError(f"{path}: no frame of it can be decoded ({packets.reason})")
        decoded = packets.pictures if packets.decoding else None
        if decoded is None and not packets.one_to_one:
            with open_film(path, stream) as again:
                decoded = _Packets(again, True).pictures
        return _conclude(file, stream, film, packets, decoded)


def checksum(frame: Any) -> int:
    """Of every fourth row of a decoded frame's first plane: mistakes of a decoder come in blocks of four rows or more.
    Takes a twentieth of the decoding."""
    plane = frame.planes[0]
    width = plane.width * _pixel_bytes(frame.format.name)
    rows = np.frombuffer(plane, np.uint8)
    rows = rows[: len(rows) // plane.line_size * plane.line_size].reshape(-1, plane.line_size)
    return zlib.crc32(np.ascontiguousarray(rows[: plane.height : 4, :width]))  # pyright: ignore[reportArgumentType]


@functools.cache
def _pixel_bytes(pixels: str) -> int:
    """Bytes of a pixel in the first plane of a pixel format."""
    from av.video.format import VideoFormat

    form = VideoFormat(pixels, 16, 16)
    planar = len({component.plane for component in form.components}) > 1
    bits = form.components[0].bits if planar else form.padded_bits_per_pixel
    return (bits + 7) // 8


class Pictures:
    """Frames as they come out of a decoder from the beginning: stamps, key frames, checksums if they are asked for."""

    def __init__(self, checks: bool = True) -> None:
        self.stamps = array("q")
        self.keys = array("i")
        self.checks = array("I")
        self.corrupt = 0
        self.failed = False
        self._with_checks = checks

    def add(self, frame: Any) -> None:
        if frame.key_frame:
            self.keys.append(len(self.stamps))
        self.stamps.append(MISSING if frame.pts is None else frame.pts)
        if self._with_checks:
            self.checks.append(checksum(frame))
        self.corrupt += frame.is_corrupt


class _Packets:
    """What one pass shows."""

    def __init__(self, film: Film, whole: bool):
        context, kind = film.stream.codec_context, film.container.format.name
        self.codec, self.extradata = context.name, context.extradata
        self.restarts = kind in _RESTARTING
        self.step = 1 / _rate(film.stream) / float(film.stream.time_base or 1)
        self.decoding = whole or self.codec not in ONE_PACKET_ONE_FRAME
        self.keeps_frames = any(name in kind for name in _KEEP_FRAMES)
        self.pictures = Pictures()
        self.frame: Any = None
        self.reason = "the data end before the first picture"
        self.pts = array("q")
        self.fresh = array("i")  # places in `pts` at which decoding can start
        self.unclaimed = array("q")  # by place in `pts`: bytes before it, since the packet before, that no packet holds
        self.bytes_read = self.bytes_end = self._unclaimed = 0
        self.starts_with_key = self.whole_frames = False
        self.count = self.discarded = self.unstamped = self.empty = 0
        self._corrupt_at: list[int] = []  # packets, counted in order
        self._joints: list[int] = []  # those with which another recording begins
        self._dts: int | None = None
        self.slots = 0
        self.last: dict[int, int] = {}  # by stream: where its last packet ends, in its own unit
        self.units: dict[int, float] = {}
        self.ends_corrupt: dict[int, bool] = {}
        self.broken = self._failed = False
        try:
            placed = any(name in kind for name in _PLACED)
            for packet in packets(film, all_streams=any(name in kind for name in _TIMED)):
                self._end(packet)
                if placed:
                    self._claim(packet)
                if (
                    packet.stream is film.stream
                ):  # the number of the last packet, which flushes the decoder, may be wrong
                    self._take(packet)
        except Broken as error:
            self.broken, self.reason = True, str(error)
        self.one_to_one = self._one_to_one()

    def _end(self, packet: Any) -> None:
        stamp = packet.pts if packet.pts is not None else packet.dts
        if packet.size and stamp is not None:
            end, stream = stamp + (packet.duration or 0), packet.stream_index
            if stream not in self.last:
                self.units[stream] = float(packet.time_base)
            self.last[stream] = max(end, self.last.get(stream, end))
            self.ends_corrupt[stream] = packet.is_corrupt

    def _claim(self, packet: Any) -> None:
        if packet.pos is not None and packet.pos >= 0:
            if self.bytes_end and packet.pos > self.bytes_end:
                self._unclaimed += packet.pos - self.bytes_end
            self.bytes_end = max(self.bytes_end, packet.pos + packet.size)

    def _take(self, packet: Any) -> None:
        if is_empty(packet):
            self.empty += 1
            return
        if packet.size:
            self._look(packet)
        if (self.decoding or self.frame is None) and not self._failed:
            self._decode(packet)

    def _look(self, packet: Any) -> None:
        if not self.count:
            self.starts_with_key = packet.is_keyframe
            self.whole_frames = (
                self.keeps_frames or self.codec != "h264" or shows_frames_only(self.extradata, bytes(packet))
            )
        if self.restarts and packet.dts is not None:
            steps = (packet.dts - (packet.dts if self._dts is None else self._dts)) / self.step
            if packet.is_keyframe and not -10 < steps < 100:
                self._joints.append(self.count)
            self._dts = packet.dts
        if packet.is_corrupt:
            self._corrupt_at.append(self.count)
        self.count += 1
        self.bytes_read += packet.size
        stamp = packet.pts if packet.pts is not None else packet.dts
        if stamp is not None:
            self.slots = max(self.slots, stamp + (packet.duration or 0))
        if packet.is_discard:
            self.discarded += 1
        elif packet.pts is None:
            self.unstamped += 1
        else:
            if packet.is_keyframe and starts_clean(self.codec, self.extradata, bytes(packet)):
                self.fresh.append(len(self.pts))
            self.pts.append(packet.pts)
            self.unclaimed.append(self._unclaimed)
            self._unclaimed = 0

    def _decode(self, packet: Any) -> None:
        try:
            for frame in decode(packet):
                self.frame = self.frame or frame
                if self.decoding:
                    self.pictures.add(frame)
        except Broken as error:
            self._failed, self.reason = True, str(error)
            self.pictures.failed = True

    @property
    def corrupt(self) -> int:
        """Packets that the demuxer marks as damaged."""
        return len(self._corrupt_at)

    @property
    def broken_packets(self) -> int:
        """The same without those before another recording begins: its counters start anew, which looks like a loss."""
        return sum(not any(0 <= joint - at <= 2 for joint in self._joints) for at in self._corrupt_at)

    @property
    def ends(self) -> dict[int, float]:
        """By stream: where its last packet ends, in seconds."""
        return {stream: last * self.units[stream] for stream, last in self.last.items()}

    def _one_to_one(self) -> bool:
        """Whether the packets tell exactly which frames there are."""
        clean = not (self.broken or self.corrupt or self.unstamped or self.empty) and bool(self.pts)
        clean = clean and self.codec in ONE_PACKET_ONE_FRAME and self.whole_frames and self.starts_with_key
        if not clean or self.pts[0] != min(self.pts):
            return False
        steps = np.abs(np.diff(np.array(self.pts, np.int64)))
        if self.restarts and len(steps) and steps.max() > 100 * self.step:
            return False  # the clock starts anew in between: only decoding tells the order of the frames
        # H.264 that starts at a recovery point instead of an IDR picture loses its first frames without an error,
        # HEVC at an open random access point those that are shown before it.
        return self.codec not in ("h264", "hevc") or (len(self.fresh) > 0 and self.fresh[0] == 0)

    def entries(self) -> np.ndarray:
        """Clean starts as frame numbers: everything decoded before them is also shown before."""
        pts = np.array(self.pts, np.int64)
        fresh = np.array(self.fresh, np.int64)
        before = np.concatenate([[MISSING], np.maximum.accumulate(pts)[:-1]])
        fresh = fresh[before[fresh] < pts[fresh]]
        numbers = np.searchsorted(np.sort(pts), pts[fresh])
        if self.codec != "hevc":  # only there frames that are decoded later may be shown before
            numbers = numbers[numbers == fresh]
        return numbers.astype(np.int32)


def _conclude(
    file: tuple[str, int, int], stream: int | None, film: Film, packets: _Packets, decoded: Pictures | None
) -> Probe:
    first, kind = packets.frame, film.container.format.name
    rate, base = _rate(film.stream), float(film.stream.time_base or 0)
    stamps = np.sort(np.array(packets.pts, np.int64)) if packets.one_to_one else np.array(decoded.stamps, np.int64)  # type: ignore[union-attr]
    damaged, announced = _damage(film, file[0], packets, stamps, base, rate)
    if not packets.one_to_one and decoded:
        damaged = damaged or decoded.failed
    distinct = len(np.unique(stamps)) == len(stamps) and base > 0
    turns = round(first.rotation / 90) % 4
    height, width = (first.width, first.height) if turns % 2 else (first.height, first.width)
    countable = packets.one_to_one and distinct and not packets.discarded
    metadata = Probe(
        file=file,
        stream=stream,
        streams=film.streams,
        number=film.number,
        container=kind,
        codec="av1" if packets.codec == "libdav1d" else packets.codec,
        pixels=first.format.name,
        height=height,
        width=width,
        turns=turns,
        base=base,
        rate=rate,
        offset=_offset(film, packets, stamps, base),
        restarts=kind in _RESTARTING,
        announced=(announced or max(film.stream.frames, packets.count)) if damaged else len(stamps),
        damaged=damaged,
        regular=countable and not damaged and turns == 0 and _counted_alone(film, packets),
        broken=packets.broken_packets,
        holes=0 if damaged else _holes(film, file[0], packets, stamps),
        hidden=max(0, film.stream.frames - len(stamps)) if "mp4" in kind and not damaged else 0,
        stamps=stamps,
        entries=packets.entries() if countable else np.empty(0, np.int32),
    )
    return with_pictures(metadata, decoded, complete=True) if decoded else metadata


def _counted_alone(film: Film, packets: _Packets) -> bool:
    """Whether the file has no other film, and its header, where it counts frames, counts these."""
    container, kind = film.container, film.container.format.name
    indexed = any(name in kind for name in ("mp4", "matroska"))
    return indexed and len(container.streams.video) == 1 and film.stream.frames in (0, packets.count)


def _holes(film: Film, path: str, packets: _Packets, stamps: np.ndarray) -> int:
    """Frames that are missing inside or at the end, where the container has no table of its frames."""
    kind = film.container.format.name
    if "mp4" in kind or kind == "avi":
        return 0
    if kind == "ogg":  # its last page says how many frames there are
        promised = round((film.stream.duration or 0) / packets.step) - len(stamps)
        lost = max(holes(stamps, round(packets.step)), promised if promised > 1 else 0)
        return 0 if lost and cut.ogg_is_whole(path) else lost  # frames can be left out on purpose
    placed = np.array(packets.pts, np.int64), np.array(packets.unclaimed, np.int64)
    return max(holes(stamps), passed_over(*placed, packets.bytes_read / max(1, packets.count)))


def _offset(film: Film, packets: _Packets, stamps: np.ndarray, base: float) -> float:
    """Where packets bear no presentation stamps (AVI), frames are stamped with the decoder's delay."""
    if packets.unstamped or stamps[0] == MISSING:
        first = film.stream.start_time or 0
    else:
        first = int(stamps[0])
    start = film.container.start_time
    return first * base - start / 1e6 if start is not None else 0.0


def _rate(stream: Any) -> float:
    return float(stream.average_rate or stream.guessed_rate or 25)


def _damage(film: Film, path: str, packets: _Packets, stamps: np.ndarray, base: float, rate: float) -> tuple[bool, int]:
    """Whether the end is missing or the packets could not all be read; frames promised, 0 if that is not known."""
    steps = np.diff(np.sort(stamps[stamps != MISSING]))
    reached = cut.Reached(
        count=packets.count,
        empty=packets.empty,
        corrupt=packets.corrupt,
        slots=packets.slots,
        film_end=packets.ends.get(film.stream.index, 0.0),
        ends=tuple(packets.ends.values()),
        longest=float(steps.max()) * base if len(steps) else 0.0,
        bytes_end=packets.bytes_end,
    )
    short, announced = cut.announced(film.container, film.stream, path, reached, rate)
    unfinished = packets.restarts and (any(packets.ends_corrupt.values()) or ends_in_gap(stamps))
    return short or packets.broken or unfinished, announced


def with_pictures(metadata: Probe, pictures: Pictures, complete: bool) -> Probe:
    """A probe, and what decoding from the beginning has shown; `complete`: to the end, or to an error."""
    if complete:
        metadata = replace(metadata, decoded=len(pictures.stamps), corrupt=pictures.corrupt)
    n = min(len(pictures.checks), metadata.frames)
    if n <= len(metadata.checks) or not np.array_equal(pictures.stamps[:n], metadata.stamps[:n]):
        return metadata
    stamps, repeats = np.unique(metadata.stamps, return_counts=True)
    keys = np.array(pictures.keys, np.int32)
    keys = keys[keys < n]
    keys = keys[np.isin(metadata.stamps[keys], stamps[(repeats == 1) & (stamps != MISSING)])]
    return replace(metadata, checks=np.array(pictures.checks[:n], np.uint32), keys=keys)
