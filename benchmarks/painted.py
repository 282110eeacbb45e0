"""Videos of which every frame says its number, in each codec and container that PyAV writes.

The upper half of a frame is a code of 16 cells, the bits of its number above and their complements below, so that a
frame that is mixed or torn is no number at all. The lower half moves, for the sake of motion vectors. Numbers begin
anew after 65,536 frames (43 minutes).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

BITS = 16
RATE = 25
GOP = 50
DARK, LIGHT = 40, 210


def paint(number: int, height: int = 96, width: int = 128) -> np.ndarray:
    """Frame uint8 [height, width, 3] of a number, modulo 65,536."""
    frame = np.full((height, width, 3), 128, np.uint8)
    bits = number >> np.arange(BITS) & 1
    cells = np.repeat(bits, width // BITS)
    frame[: height // 4, : len(cells)] = np.where(cells, LIGHT, DARK)[None, :, None]
    frame[height // 4 : height // 2, : len(cells)] = np.where(cells, DARK, LIGHT)[None, :, None]
    x = number * 3 % (width - 16)
    frame[height // 2 :, x : x + 16] = (30, 200, 30)
    return frame


def numbers(frames: Tensor) -> list[int]:
    """What frames uint8 [F, 3, H, W] say they are; -1: no number."""
    height, width = frames.shape[-2:]
    cell = width // BITS
    grey = frames[..., : cell * BITS].float().mean(1)

    def bits(rows: slice) -> Tensor:  # [F, BITS], by the middle half of each cell
        band = grey[:, rows].mean(1).reshape(len(frames), BITS, cell)
        return band[..., cell // 4 : -(cell // 4)].mean(-1)

    above = bits(slice(height // 16, 3 * height // 16)) - (DARK + LIGHT) / 2
    below = bits(slice(5 * height // 16, 7 * height // 16)) - (DARK + LIGHT) / 2
    clear = (above.sign() == -below.sign()).all(1) & (torch.minimum(above.abs(), below.abs()) > 20).all(1)
    values = ((above > 0).long() << torch.arange(BITS)).sum(1)
    return torch.where(clear, values, -1).tolist()


@dataclass(frozen=True)
class Kind:
    """One way to write a video.

    Args:
        uneven: frames are shown for different times.
        offset: seconds by which all stamps are moved.
        turn: degrees, counter-clockwise, that a player turns it by.
        beside: another stream, first in the file: a cover picture, or a thumbnail track that is not the default.
    """

    name: str
    codec: str
    container: str
    options: dict[str, str] = field(default_factory=dict)
    pixels: str = "yuv420p"
    size: tuple[int, int] = (96, 128)
    rate: int | Fraction = RATE
    uneven: bool = False
    offset: float = 0.0
    turn: int = 0
    beside: str = ""
    frames: int | None = None  # at most, where files are large

    def time(self, number: int) -> float:
        """Seconds at which a frame is shown, the first at 0."""
        if not self.uneven:
            return number / self.rate
        return (number + number // 3 * 2 + (number * 7919 % 5) / 10) / self.rate


X264, X265 = {"preset": "ultrafast"}, {"preset": "ultrafast", "x265-params": "log-level=none"}
AV1 = {"preset": "8", "crf": "12", "svtav1-params": "lp=1:scm=0"}  # smears cells if it may
FAST_VP = {"deadline": "realtime", "cpu-used": "8"}


def _h264(name: str, container: str = "mp4", **more) -> Kind:
    return Kind(name, "libx264", container, **{"options": {**X264, "bf": "2"}, **more})


KINDS = (
    Kind("H.264, no B-frames", "libx264", "mp4", {**X264, "bf": "0"}),
    _h264("H.264, B-frames"),
    _h264("H.264, open GOP", options={**X264, "bf": "3", "x264-params": "open-gop=1"}),
    _h264("H.264, intra refresh", options={**X264, "intra-refresh": "1"}),
    _h264("H.264", "mov"),
    _h264("H.264", "mkv"),
    _h264("H.264", "ts"),
    Kind("H.264, no B-frames", "libx264", "avi", {**X264, "bf": "0"}),
    _h264("H.264", "avi"),
    _h264("H.264", "flv"),
    _h264("H.264, fragmented", options={**X264, "bf": "2", "movflags": "frag_keyframe+empty_moov"}),
    _h264("H.264, 10 bit", pixels="yuv420p10le"),
    _h264("H.264, 29.97/s", rate=Fraction(30000, 1001)),
    _h264("H.264, uneven times", uneven=True),
    _h264("H.264, uneven times", "mkv", uneven=True),
    _h264("H.264, begins at 1.5 s", offset=1.5),
    _h264("H.264, stamps from 26 h on", "ts", offset=26 * 3600 - 20),
    _h264("H.264, stamps from 100 h on", "mkv", offset=360_000.0),
    _h264("H.264, turned 90 degrees", turn=90),
    _h264("H.264, cover first", beside="cover"),
    _h264("H.264, thumbnail track first", beside="thumbnail"),
    _h264("H.264, thumbnail track first", "mkv", beside="thumbnail"),
    Kind("HEVC", "libx265", "mp4", X265),
    Kind("HEVC, closed GOP", "libx265", "mp4", {**X265, "x265-params": "log-level=none:open-gop=0"}),
    Kind("HEVC", "libx265", "mkv", X265),
    Kind("HEVC", "libx265", "ts", X265),
    Kind("AV1", "libsvtav1", "mp4", AV1),
    Kind("AV1", "libsvtav1", "mkv", AV1),
    Kind("VP8, hidden frames", "libvpx", "webm", {**FAST_VP, "auto-alt-ref": "1", "lag-in-frames": "16"}),
    Kind("VP8", "libvpx", "ogv", FAST_VP),
    Kind("VP9, hidden frames", "libvpx-vp9", "webm", {**FAST_VP, "auto-alt-ref": "1", "lag-in-frames": "16"}),
    Kind("VP9", "libvpx-vp9", "mp4", FAST_VP),
    Kind("MPEG-1", "mpeg1video", "mpg", {"bf": "2"}),
    Kind("MPEG-2", "mpeg2video", "mpg", {"bf": "2"}),
    Kind("MPEG-2", "mpeg2video", "ts", {"bf": "2"}),
    Kind("MPEG-2", "mpeg2video", "mkv", {"bf": "2"}),
    Kind("MPEG-4", "mpeg4", "mp4", {"bf": "2"}),
    Kind("MPEG-4, no B-frames", "mpeg4", "avi"),
    Kind("MPEG-4, B-frames", "mpeg4", "avi", {"bf": "2"}),
    Kind("MPEG-4", "mpeg4", "3gp"),
    Kind("WMV 2", "wmv2", "wmv"),
    Kind("WMV 1", "wmv1", "avi"),
    Kind("DivX 3", "msmpeg4", "avi"),
    Kind("Sorenson H.263", "flv", "flv"),
    Kind("Motion JPEG", "mjpeg", "avi", pixels="yuvj420p"),
    Kind("Motion JPEG", "mjpeg", "mov", pixels="yuvj420p"),
    Kind("FFV1", "ffv1", "mkv", frames=1500),
    Kind("FFV1", "ffv1", "avi", frames=1500),
    Kind("ProRes", "prores_ks", "mov", pixels="yuv422p10le", frames=1500),
    Kind("DNxHR", "dnxhd", "mov", {"profile": "dnxhr_lb"}, pixels="yuv422p", size=(144, 256), frames=1500),
    Kind("Huffyuv", "huffyuv", "avi", pixels="yuv422p", frames=1500),
    Kind("PNG", "png", "mov", pixels="rgb24", frames=1500),
    Kind("GIF", "gif", "gif", pixels="rgb8", frames=500),
)


def can_write(kind: Kind) -> bool:
    try:
        av.codec.Codec(kind.codec, "w")
    except av.error.FFmpegError:
        return False
    return True


def write(kind: Kind, folder: Path, frames: int) -> Path:
    """A file of frames 0, 1, 2 ..."""
    path = folder / f"{kind.codec}-{KINDS.index(kind)}.{kind.container}"
    height, width = kind.size
    tick = Fraction(1, 1000) if kind.uneven else 1 / Fraction(kind.rate)
    options = {key: value for key, value in kind.options.items() if key == "movflags"}
    with av.open(str(path), "w", container_options=options) as out:
        extra = _beside(out, kind) if kind.beside else None
        stream = out.add_stream(
            kind.codec, rate=kind.rate, options={k: v for k, v in kind.options.items() if k != "movflags"}
        )
        stream.height, stream.width, stream.pix_fmt = height, width, kind.pixels
        stream.codec_context.gop_size = GOP
        if kind.uneven:
            stream.codec_context.time_base = tick
        if kind.turn:
            stream.set_display_rotation(kind.turn)
        if kind.beside:
            stream.disposition = av.stream.Disposition.default
        if extra is not None:
            extra()
        for number in range(frames):
            picture = paint(number, height, width)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            seconds = Fraction(round((kind.time(number) + kind.offset) * 1000), 1000) if kind.uneven else None
            frame.time_base = tick
            frame.pts = int(seconds / tick) if seconds is not None else number + round(kind.offset / float(tick))
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def _beside(out, kind: Kind):
    """Adds the other stream; a function that writes it."""
    cover = kind.beside == "cover"
    other = out.add_stream("mjpeg" if cover else "libx264", rate=RATE, options={} if cover else dict(X264))
    other.height, other.width, other.pix_fmt = 48, 64, "yuvj420p" if cover else "yuv420p"
    other.disposition = av.stream.Disposition.attached_pic if cover else av.stream.Disposition(0)

    def fill() -> None:
        for number in range(1 if cover else 25):
            picture = np.full((48, 64, 3), 90, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            out.mux(other.encode(frame))
        out.mux(other.encode())

    return fill
