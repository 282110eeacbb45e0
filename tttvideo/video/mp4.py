"""Frames in memory -> an H.264 MP4 file (PyAV, libx264), and back."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from ..files import replacing

# Every frame is a key frame at a constant quantiser, so that a decoded frame depends on that frame alone.
# With predicted frames or rate control a flash leaves faint traces in its neighbours, and a model could then
# see at frames where, by the stated ceiling, there is nothing to see. It also makes random access exact in
# any reader.
INTRA = {"preset": "ultrafast", "g": "1", "bf": "0", "sc_threshold": "0"}


def write_mp4(path: str | Path, frames: np.ndarray, fps: float, quantiser: int = 16) -> None:
    """Write `frames`, uint8 [F, H, W, 3] RGB with even H and W, at `fps` frames per second. With a `quantiser` of 0
    nothing is lost but by the conversion to YUV with halved colour planes.

    The file appears under its name only when it is complete. The same frames give the same bytes as long as
    PyAV and its FFmpeg stay the same (one encoder thread, no creation time). Raises OSError when
    the folder cannot be written, ValueError for frames or a quantiser that H.264 does not take.
    """
    count, height, width, _ = frames.shape
    if not count or not height or not width or height % 2 or width % 2:
        raise ValueError(
            f"{count} frames of {height} x {width} are no H.264 video: at least one, of even height and width"
        )
    if not 0 <= quantiser <= 51:
        raise ValueError(f"a quantiser of {quantiser}: it lies between 0 (nothing lost) and 51")
    path = Path(path)
    with (
        replacing(path) as unfinished,
        av.open(str(unfinished), "w", format="mp4", options={"fflags": "+bitexact"}) as container,
    ):
        stream = container.add_stream(
            "libx264", rate=Fraction(fps).limit_denominator(1001), options=INTRA | {"qp": str(quantiser)}
        )
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def read_mp4(path: str | Path) -> np.ndarray:
    """All frames of such a file, uint8 [F, H, W, 3]."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
