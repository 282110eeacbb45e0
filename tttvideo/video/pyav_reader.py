"""Frames by PyAV (FFmpeg): exact for everything that FFmpeg decodes, by decoding from the start or a proven
entry point.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .clock import MISSING
from .container import Broken, Film, decoded, open_film
from .probe import Probe, remember
from .reader import Reader, VideoError, VideoInfo, channels_first
from .scan import Pictures, checksum, cut_short, read_through, with_pictures

# Filters that turn a frame counter-clockwise by this many quarters.
_TURNS = {0: [], 1: [("transpose", "cclock")], 2: [("hflip", ""), ("vflip", "")], 3: [("transpose", "clock")]}

# Decoding without converting passes 2,600 frames/s at 640x360. Over a shorter way than this, seeking gains
# little, and going through the sequence shows damage, so that the frames of a damaged file do not depend on
# the sampling.
SHORTEST_JUMP = 500
# A place that was not found after this many frames, or this many attempts, is not looked for any longer.
_LONGEST_SEARCH, _MOST_SEEKS = 400, 4

_LIFTED = "`tttvideo index --decode` lifts that, and so does any full read"
_NOT_LIFTED = "nowhere else decoding gives the same frames: encode it with closed groups of pictures to change that"


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

    def into(self, frame: Any, out: np.ndarray) -> None:
        """Writes the frame into `out` uint8 [3,H,W]."""
        kind = (frame.width, frame.height, frame.format.name)
        if kind != self._kind:  # a resolution change in midstream: every frame is brought to the one size
            self._graph, self._kind = self._build(frame), kind
        self._graph.push(frame)
        plane, (height, width) = self._graph.pull().planes[0], self.size
        rows = np.frombuffer(plane, np.uint8).reshape(height, plane.line_size)
        channels_first(rows[:, : 3 * width].reshape(height, width, 3), out)

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
        super().__init__(info, probe.times, probe.announced, probe.damaged, probe.offset, probe.notes, probe.corrupt)
        self.probe = probe
        self._converter = Converter(size or (probe.height, probe.width), probe.turns)
        self._film: Film | None = None
        self._passed = self._flawed = 0
        self._cut = probe.damaged

    @property
    def size(self) -> tuple[int, int]:
        return self._converter.size

    def _stream(self, wanted: Sequence[int], batch: int) -> Iterator[Tensor]:
        given, filled, next_wanted = 0, 0, iter(wanted)
        out, pictures = torch.empty(0), np.empty(0)
        self._passed = self._flawed = 0
        target = next(next_wanted, None)
        frames = self._frames(target or 0)
        while target is not None:
            numbered = next(frames, None)
            if numbered is None:
                break
            number, frame = numbered
            if number < target:
                continue
            if not filled:
                out = self._room(min(batch, len(wanted) - given))
                pictures = out.numpy()
            self._converter.into(frame, pictures[filled])
            filled += 1
            if filled == len(pictures):
                yield out
                given, filled = given + filled, 0
            target = next(next_wanted, None)
            far = target is not None and target > number + SHORTEST_JUMP
            if target is not None and far and self._entry(target) > number + SHORTEST_JUMP:
                frames.close()
                frames = self._frames(target)
        frames.close()
        if not self._corrupt and not self._cut:
            self._warn_of_corrupt(self._flawed, self._passed)
        if filled:
            yield out[:filled]

    def _entry(self, number: int) -> int:
        """The last frame, not after `number`, at which decoding can start."""
        places = (self.probe.entries, self.probe.keys if number < len(self.probe.checks) else self.probe.keys[:0])
        last = [entries[np.searchsorted(entries, number, side="right") - 1] for entries in places if len(entries)]
        return max([0, *(int(entry) for entry in last if entry <= number)])

    def _frames(self, number: int) -> Generator[tuple[int, Any], None, None]:
        """(frame number, decoded frame) from some frame at or before `number` on, until the end or the
        damage.
        """
        if self.probe.decoded is not None and number >= self.probe.decoded:
            self._cut = True
            self._warn(self.probe.decoded)
            return
        for _ in range(_MOST_SEEKS):
            start = self._entry(number)
            if start < SHORTEST_JUMP:
                break
            try:
                for numbered in self._frames_after_seek(start):
                    number = numbered[0] + 1
                    yield numbered
            except Broken:
                break
            if number >= self.info.frames:
                return
            self._forget_entry(start)
        # No seek led where it should, or damage was met: only the sequence can tell.
        if number > 4 * SHORTEST_JUMP and number >= len(self.probe.checks):
            self._tell("late", f"late windows of it are decoded from the start; {_LIFTED}")
        elif number > 4 * SHORTEST_JUMP:
            self._tell("late", f"late windows of it are decoded from the start; {_NOT_LIFTED}")
        yield from self._frames_in_sequence(number)

    def _frames_after_seek(self, start: int) -> Generator[tuple[int, Any], None, None]:
        """Frames from `start` on as long as each is proven to be the one expected: by its stamp, and by its checksum
        where that is known. Raises Broken at damage."""
        stamps, checks = self.probe.stamps, self.probe.checks
        by_standard = start in self.probe.entries
        for film in self._landings(start):
            number = start
            for frame in self._from_stamp(film, int(stamps[start])):
                stamp = MISSING if frame.pts is None else frame.pts
                if number >= len(stamps) or stamp != int(stamps[number]):
                    return
                if number < len(checks):
                    if checksum(frame) != int(checks[number]):
                        return
                elif not by_standard:
                    return
                self._count(frame)
                yield number, frame
                number += 1
            if number > start:
                return

    def _landings(self, start: int) -> Iterator[Film]:
        """The file, opened at or before a frame. Containers seek by decoding time, some to no keyframe at all: so
        at last from further ahead."""
        stamp = int(self.probe.stamps[start])
        for seconds in (0.5, 4.0) if self.probe.container in ("mpegts", "mpeg", "ogg") else (0.0, 2.0):
            film = self._open()
            try:
                film.container.seek(stamp - round(seconds / self.probe.base), stream=film.stream)
            except Exception:  # FFmpeg's, of any kind
                continue
            yield film

    def _from_stamp(self, film: Film, stamp: int) -> Iterator[Any]:
        passed: int | None = 0
        for frame in decoded(film):
            if passed is not None:
                passed += 1
                late = frame.pts is not None and frame.pts > stamp + 1 / self.probe.base
                if late or passed > _LONGEST_SEARCH:
                    return
                if frame.pts != stamp:
                    continue
                passed = None
            yield frame

    def _frames_in_sequence(self, first: int) -> Generator[tuple[int, Any], None, None]:
        film, number, ended = self._open(), 0, False
        pictures = Pictures(checks=self._needs_checks())
        try:
            for frame in decoded(film):
                pictures.add(frame)
                self._count(frame)
                if number >= first:
                    yield number, frame
                number += 1
                if number == self.info.frames:
                    break
            ended = True
        except Broken:
            ended = True
        finally:  # the last frame may be all that is wanted
            self._learn(pictures, ended or len(pictures.stamps) >= self.info.frames)
        if number < self.info.frames:
            self._cut, self._corrupt = True, pictures.corrupt
            self._warn(number)

    def _needs_checks(self) -> bool:
        """Whether late frames are far from every place at which decoding can start by the standard."""
        places = np.concatenate([[0], self.probe.entries, [self.info.frames]])
        return bool(np.diff(places).max() > 2 * SHORTEST_JUMP)

    def _learn(self, pictures: Pictures, ended: bool) -> None:
        """Keeps what decoding from the beginning has shown; flaws when they show twice, as a disk may have failed for a
        moment.
        """
        news = ended and self.probe.decoded is None
        if not news and len(pictures.checks) < len(self.probe.checks) + SHORTEST_JUMP:
            return
        metadata = with_pictures(self.probe, pictures, ended)
        if news and cut_short(metadata):
            try:
                again = read_through(metadata.file, metadata.stream, whole=True)
            except VideoError:
                return
            if (again.decoded, again.corrupt) != (metadata.decoded, metadata.corrupt):
                return
        self.probe = metadata
        remember(self.probe)

    def _forget_entry(self, start: int) -> None:
        """Never seeks to this frame again: decoding from it gave other frames than expected."""
        entries, keys = self.probe.entries, self.probe.keys
        self.probe = replace(self.probe, entries=entries[entries != start], keys=keys[keys != start])
        remember(self.probe)

    def _count(self, frame: Any) -> None:
        self._passed += 1
        self._flawed += frame.is_corrupt

    def _open(self) -> Film:
        self.close()
        self._film = open_film(self.info.path, self.probe.stream)
        return self._film

    def close(self) -> None:
        if self._film is not None:
            self._film.container.close()
            self._film = None
