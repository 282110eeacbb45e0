"""Clips of odd kinds, written with PyAV; every frame bears its number as a barcode that survives lossy coding."""

import warnings
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from tttvideo.video.decode import open_video

BITS = 10


def numbered(count, height=64, width=160, first=0):
    """Frames uint8 [F,H,W,3]: the number in the upper half, something that moves in the lower half."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    for i in range(count):
        for bit in range(BITS):
            value = 235 if (first + i) >> bit & 1 else 16
            frames[i, : height // 2, bit * width // BITS : (bit + 1) * width // BITS] = value
        place = 3 * (first + i) % (width - 16)
        frames[i, height // 2 :, place : place + 16] = (200, 60, 30)
    return frames


def numbers(frames: torch.Tensor) -> list[int]:
    """What `numbered` wrote, of uint8 [F,3,H,W]."""
    count, _, height, width = frames.shape
    upper = frames[:, :, height // 8 : height * 3 // 8].float().mean((1, 2))
    side = width // BITS
    cells = upper[:, : side * BITS].view(count, BITS, side)[:, :, side // 4 : -(side // 4)].mean(2)
    return ((cells > 120).long() << torch.arange(BITS)).sum(1).tolist()


def write(
    path,
    frames,
    codec="libx264",
    *,
    rate=25,
    pts=None,
    base=None,
    options=None,
    gop=12,
    bit_rate=None,
    pix_fmt=None,
):
    """A clip of one video stream of uint8 [F,H,W,3]; `pts` in units of `base`, which is the encoder's time base then.
    Skips the test where this PyAV has no such encoder."""
    try:
        av.codec.Codec(codec, "w")
    except av.error.FFmpegError:
        pytest.skip(f"this PyAV has no encoder {codec}")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = frames.shape[1], frames.shape[2]
        stream.pix_fmt = pix_fmt or ("yuvj420p" if codec == "mjpeg" else "yuv420p")
        stream.codec_context.gop_size = gop
        if bit_rate:
            stream.codec_context.bit_rate = bit_rate
        if base:
            stream.codec_context.time_base = base
        for i, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = (i, Fraction(1, rate)) if pts is None else (pts[i], base)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_picture(path, pixels, codec="png"):
    """An image file of uint8 [H,W,3]."""
    with av.open(str(path), "w", format="image2") as container:
        stream = container.add_stream(codec, rate=1)
        stream.height, stream.width, stream.pix_fmt = *pixels.shape[:2], "rgb24" if codec == "png" else "yuvj420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def remux(source, target, *, shift=0, tracks=None, keep=lambda i: True, options=None):
    """The packets of a file's video in another container, `shift` seconds later; `keep` chooses by their number."""
    with av.open(str(source)) as old, av.open(str(target), "w", options=options or {}) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        packets = [packet for packet in old.demux(video=0) if packet.dts is not None]
        for i, packet in enumerate(packets):
            if keep(i):
                ticks = round(shift / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts + ticks, packet.dts + ticks, stream
                new.mux(packet)
    return target


def cut(path, share=0.5, to=None) -> Path:
    """The first part of a file."""
    data = path.read_bytes()
    short = path.with_name(f"cut_{path.name}")
    short.write_bytes(data[: int(len(data) * share) if to is None else to])
    return short


def read(path, indices=None, **how):
    """Frames, reader and the texts of all warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with open_video(path, **how) as reader:
            return reader.read(indices), reader, [str(w.message) for w in caught]


class CountingReader:
    """A film of black frames, uint8 [F, 3, size, size], that counts in `pulled` those it has given."""

    def __init__(self, frames: int, size: int):
        self.size, self.pulled = size, 0
        self.times = torch.arange(frames, dtype=torch.float64) / 25

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def stream(self, indices, batch):
        for at in range(0, len(indices), batch):
            count = len(indices[at : at + batch])
            self.pulled += count
            yield torch.zeros(count, 3, self.size, self.size, dtype=torch.uint8)
