"""Frames by PyAV (FFmpeg): exact for everything that FFmpeg decodes, by decoding from the start or a proven
entry point.
"""

from bisect import bisect_right
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from tttvideo.video.probe import Probe, decode_packets, open_container
from tttvideo.video.reader import Reader, VideoInfo

# Filters that turn a frame counter-clockwise by this many quarters.
_TURNS = {0: [], 1: [("transpose", "cclock")], 2: [("hflip", ""), ("vflip", "")], 3: [("transpose", "clock")]}

# Decoding without converting passes 2,600 frames/s at 640x360. Over a shorter way than this, seeking gains
# little, and going through the sequence shows damage, so that the frames of a damaged file do not depend on
# the sampling.
SHORTEST_JUMP = 500


class Converter:
    """Decoded frame -> uint8 [3,H,W] RGB at a fixed size, turned for display.

    One filter graph serves all frames of a kind: building the scaler anew for every frame
    (`frame.to_ndarray`) costs four times the decoding of a small video. Scaler and flags are decord's, so
    that both readers give identical pixels.
    """

    def __init__(self, size: tuple[int, int], turns: int = 0):
        self.size = size
        self.turns = turns
        self._kind: tuple | None = None
        self._graph: Any = None

    def into(self, frame: Any, out: Tensor) -> None:
        """Writes the frame into `out` uint8 [3,H,W]."""
        kind = (frame.width, frame.height, frame.format.name)
        if kind != self._kind:  # a resolution change in midstream: every frame is brought to the one size
            self._graph, self._kind = self._build(frame), kind
        self._graph.push(frame)
        picture = self._graph.pull().to_ndarray()
        out.copy_(torch.from_numpy(picture).permute(2, 0, 1))

    def _build(self, frame: Any) -> Any:
        from fractions import Fraction

        import av.filter

        graph = av.filter.Graph()
        if hasattr(graph, "threads"):
            graph.threads = 1
        height, width = self.size
        steps = [*_TURNS[self.turns], ("scale", f"{width}:{height}:flags=bilinear"), ("format", "rgb24")]
        time_base = frame.time_base or Fraction(1, 1000)
        last = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=time_base)
        for name, arguments in [*steps, ("buffersink", "")]:
            following = graph.add(name, arguments) if arguments else graph.add(name)
            last.link_to(following)
            last = following
        graph.configure()
        return graph


class PyAVReader(Reader):
    """Decodes every frame in order and converts only those asked for; see `Reader`."""

    def __init__(self, info: VideoInfo, probe: Probe, size: tuple[int, int] | None):
        super().__init__(info, probe.times, probe.announced, probe.damaged)
        self._probe = probe
        self._converter = Converter(size or (probe.height, probe.width), probe.turns)
        self._container: Any = None

    @property
    def size(self) -> tuple[int, int]:
        return self._converter.size

    def _stream(self, wanted: Sequence[int], batch: int) -> Iterator[Tensor]:
        filled, out, next_wanted = 0, torch.empty(0), iter(wanted)
        target = next(next_wanted, None)
        frames = self._frames(target or 0)
        while target is not None:
            found = next(frames, None)
            if found is None:
                break
            number, frame = found
            if number < target:
                continue
            if not filled:
                out = torch.empty(batch, 3, *self.size, dtype=torch.uint8)
            self._converter.into(frame, out[filled])
            filled += 1
            if filled == batch:
                yield out
                filled = 0
            target = next(next_wanted, None)
            if target is not None and self._entry(target) > number + SHORTEST_JUMP:
                frames.close()
                frames = self._frames(target)
        frames.close()
        if filled:
            yield out[:filled]

    def _entry(self, number: int) -> int:
        """The last frame, not after `number`, at which decoding can start."""
        entries = self._probe.entries
        at = bisect_right(entries, number)
        return entries[at - 1] if at else 0

    def _frames(self, number: int) -> Generator[tuple[int, Any], None, None]:
        """(frame number, decoded frame) from some frame at or before `number` on, until the end or the
        damage.
        """
        start = self._entry(number)
        if start >= SHORTEST_JUMP:
            for found in self._frames_after_seek(start):
                number = found[0] + 1
                yield found
            if number >= self.info.frames:
                return
            # The seek did not lead where the packets promised, or damage was met: only the sequence can tell.
            yield from self._frames_in_sequence(number)
        else:
            yield from self._frames_in_sequence(0)

    def _frames_after_seek(self, start: int) -> Generator[tuple[int, Any], None, None]:
        """Frames from `start` on as long as each bears exactly the stamp expected of it."""
        import av.error

        pts = self._probe.pts
        assert pts is not None
        container, stream = self._open()
        try:
            container.seek(int(pts[start]), stream=stream)
            number = start
            for frame in decode_packets(container, stream):
                if number >= len(pts) or frame.pts != int(pts[number]):
                    return
                yield number, frame
                number += 1
        except (av.error.FFmpegError, OSError, EOFError):
            return

    def _frames_in_sequence(self, first: int) -> Generator[tuple[int, Any], None, None]:
        import av.error

        container, stream = self._open()
        number = 0
        try:
            for frame in decode_packets(container, stream):
                if number >= first:
                    yield number, frame
                number += 1
                if number == self.info.frames:
                    return
        except (av.error.FFmpegError, OSError, EOFError):
            pass
        if number < self.info.frames:
            self._warn(number)

    def _open(self) -> tuple[Any, Any]:
        self.close()
        self._container, stream = open_container(self.info.path)
        return self._container, stream

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
            self._container = None
