"""Opening videos: `open_video(path)` gives the reader that decodes a file exactly. The only file that imports
decord.

decord hands out wrong frames, or never returns, for files that are in any way unusual. It is used where the
packets show nothing that it could get wrong (`_decord_is_exact`), always from the first frame on; PyAV serves
everything else, where decord has no wheels, and where decord gives up midway. Both give the same pixels, to
the bit, at the same speed (480 frames of 128x96 in 33 ms).
"""

import functools
import importlib.util
import os
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..printing import is_unicode, printable
from .image_reader import ImageFolderReader
from .probe import Probe, probe, remember
from .pyav_reader import PyAVReader
from .reader import PartialVideoWarning, Reader, VideoError, VideoInfo, channels_first, checked_size

__all__ = ["PartialVideoWarning", "Reader", "VideoError", "VideoInfo", "open_video"]

DECORD_CODECS = {"h264", "vp9", "mjpeg"}
# 8 bits only: decord's FFmpeg 4 rounds deeper pictures differently (differences up to 176 of 255 were seen).
DECORD_PIXELS = {"yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p"}

# Bytes asked of decord at once: larger arrays are mapped anew each time, page by page.
_PIECE = 8 * 2**20

Size = tuple[int, int]


def open_video(
    path: str | os.PathLike,
    size: Size | Callable[[VideoInfo], Size] | None = None,
    image_fps: float = 25.0,
    stream: int | None = None,
) -> Reader:
    """Opens a video file, or a folder of frame images, in the process that will read it.

    `size` = (height, width), or a function of the VideoInfo that gives it: frames are resized (stretched) while they
    are decoded; the caller computes the size that keeps the aspect. `image_fps` is the frame rate of a folder of
    images, in Hz. `stream` chooses a video stream of a file with several, counted from 0 without cover pictures; None:
    the first that is marked as default, or else the largest. Raises VideoError with the path and the reason if nothing
    can be decoded, ValueError for a size below 1.
    """
    path = os.fsdecode(path)
    if not is_unicode(path):  # neither FFmpeg nor a log takes such a name
        raise VideoError(f"{printable(path)}: its name is not UTF-8; rename it")
    if os.path.isdir(path):
        return ImageFolderReader(path, size, image_fps)
    metadata = probe(path, stream)
    use_decord = _decord_is_exact(metadata) and _decord_is_installed()
    info = VideoInfo(
        path=path,
        codec=metadata.codec,
        height=metadata.height,
        width=metadata.width,
        frames=metadata.frames,
        fps=metadata.fps,
        duration=metadata.duration,
        reader="decord" if use_decord else "pyav",
    )
    asked = checked_size(size, info)
    return DecordReader(info, metadata, asked) if use_decord else PyAVReader(info, metadata, asked)


@functools.cache
def _decord_is_installed() -> bool:
    return importlib.util.find_spec("decord") is not None


def _decord_is_exact(metadata: Probe) -> bool:
    return metadata.regular and metadata.codec in DECORD_CODECS and metadata.pixels in DECORD_PIXELS


class DecordReader(Reader):
    """Reads consecutive ranges from frame 0 on, of files that PyAV has once decoded whole without a flaw: decord
    passes over damaged pictures in silence. Where few frames are wanted or decord fails, PyAV goes on."""

    def __init__(self, info: VideoInfo, probe: Probe, size: Size | None):
        super().__init__(info, probe.times, probe.announced, probe.damaged, probe.offset, probe.notes, probe.corrupt)
        self._pyav = PyAVReader(info, probe, size)
        self._resize = {} if size is None else {"height": size[0], "width": size[1]}
        self._decord: Any = None

    @property
    def size(self) -> Size:
        return self._pyav.size

    def _stream(self, wanted: Sequence[int], batch: int) -> Iterator[Tensor]:
        # decord converts every frame it passes, PyAV only those asked for, and from the nearest keyframe.
        given, metadata = 0, self._pyav.probe
        flawless = metadata.decoded == metadata.frames and not metadata.corrupt
        if flawless and wanted and 2 * len(wanted) >= wanted[-1] + 1:
            for frames in self._by_decord(wanted, batch):
                given += len(frames)
                yield frames
        if given < len(wanted):
            yield from self._pyav._stream(wanted[given:], batch)

    def _by_decord(self, wanted: Sequence[int], batch: int) -> Iterator[Tensor]:
        """As many frames as decord gives without an error."""
        try:
            reader = self._open()
        except Exception as error:
            self._stop_at_foreign(error)
            return
        given, filled, out, room = 0, 0, torch.empty(0), np.empty(0)
        step = max(1, min(64, _PIECE // (3 * self.size[0] * self.size[1])))
        try:
            for start in range(0, wanted[-1] + 1, step):
                stop = min(start + step, wanted[-1] + 1)
                try:
                    pictures = reader.get_batch(range(start, stop)).asnumpy()
                except Exception as error:
                    self._stop_at_foreign(error)
                    break
                last = bisect_left(wanted, stop)
                chosen = [number - start for number in wanted[given + filled : last]]
                if start == 0 and chosen and not self._agrees(pictures[chosen[0]], wanted[0]):
                    break
                for number in chosen:
                    if not filled:
                        out = self._room(min(batch, len(wanted) - given))
                        room = out.numpy()
                    channels_first(pictures[number], room[filled])
                    filled += 1
                    if filled == len(room):
                        yield out
                        given, filled = given + filled, 0
            if filled:
                yield out[:filled]
        finally:
            self._rewind()

    def _agrees(self, picture: np.ndarray, number: int) -> bool:
        """Whether PyAV decodes the same picture [H,W,3]: a check of what the packets do not show."""
        if not self._pyav.probe.agreed:
            expected = next(self._pyav._stream([number], batch=1), None)
            if expected is None or not np.array_equal(picture, expected[0].permute(1, 2, 0)):
                return False
            self._pyav.probe = replace(self._pyav.probe, agreed=True)
            remember(self._pyav.probe)
        return True

    def _open(self) -> Any:
        if self._decord is None:
            import decord  # after torch, always: the other order crashes

            decord.logging.set_level(decord.logging.QUIET)  # damage is reported by the warning, once
            # One thread: data-loader workers already run side by side.
            self._decord = decord.VideoReader(self.info.path, num_threads=1, **self._resize)
            if len(self._decord) != self.info.frames:
                raise RuntimeError("decord counts another number of frames")
        return self._decord

    def _stop_at_foreign(self, error: Exception) -> None:
        """decord fails with RuntimeError or its own DECORDError (a bare Exception); anything else is a
        mistake of ours.
        """
        self._decord = None
        if not isinstance(error, RuntimeError | ImportError | OSError) and type(error).__module__[:6] != "decord":
            raise error

    def _rewind(self) -> None:
        """An idle decord reader decodes ahead without bound unless it stands at the start."""
        if self._decord is not None:
            try:
                self._decord.seek(0)
            except Exception as error:
                self._stop_at_foreign(error)

    def close(self) -> None:
        self._decord = None
        self._pyav.close()
