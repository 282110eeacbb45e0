"""Files with flipped bits, holes and missing ends: the right frames, fewer with a warning, or a sentence."""

import random
import signal
import warnings

import pytest
import torch

from tests.video.clips import numbered, write
from tttvideo.video import probe, reader
from tttvideo.video.decode import VideoError, open_video

BASES = [
    ("a.mp4", "libx264"),
    ("b.mkv", "libx264"),
    ("c.ts", "libx264"),
    ("d.ts", "mpeg2video"),
    ("e.mpg", "mpeg2video"),
    ("f.avi", "mpeg4"),
    ("g.wmv", "wmv2"),
    ("h.webm", "libvpx"),
    ("i.flv", "libx264"),
    ("j.ogv", "libvpx"),
    ("k.mp4", "libx265"),
]


def broken(data: bytes, draw: random.Random) -> bytes:
    kind, changed = draw.choice(["flips", "flips", "end", "zeros", "gone"]), bytearray(data)
    at = draw.randrange(len(data))
    if kind == "flips":
        for _ in range(draw.choice([1, 5, 30, 200])):
            changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif kind == "end":
        del changed[at:]
    elif kind == "zeros":
        length = min(draw.choice([10, 500, 5000]), len(data) - at)
        changed[at : at + length] = bytes(length)
    else:
        del changed[at : at + draw.choice([100, 2000])]
    return bytes(changed)


def end_of(path, whole):
    """How reading ends; anything but these raises."""
    reader._already_warned.clear()
    probe.forget()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with open_video(path) as video:
                frames = video.read()
                some = sorted({0, len(frames) // 2, len(frames) - 1})
                assert torch.equal(video.read(some), frames[some])
        except VideoError as error:
            assert str(error).startswith(str(path))  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017
            return "refused"
    if torch.equal(frames, whole):
        return "exact"
    if caught:
        return "partial"
    # What a decoder decodes without a complaint cannot be told from what was meant; but no frame is missing.
    return "unseen" if len(frames) >= 0.9 * len(whole) else "silently short"


def fuzz(folder, count):
    wholes, ends = {}, {}
    for name, codec in BASES:
        options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
        path = write(folder / name, numbered(130, 64, 80), codec, options=options, bit_rate=300_000)
        with open_video(path) as video:
            wholes[name] = video.read()

    def hangs(*_):
        raise BaseException("a file was not read in 60 s")  # no handler of the reader's takes this for damage

    before = signal.signal(signal.SIGALRM, hangs)
    try:
        for seed in range(count):
            name = BASES[seed % len(BASES)][0]
            path = folder / f"{seed}_{name}"
            path.write_bytes(broken((folder / name).read_bytes(), random.Random(seed)))
            signal.alarm(60)
            ends.setdefault(end_of(path, wholes[name]), []).append(path.name)
            signal.alarm(0)
    finally:
        signal.signal(signal.SIGALRM, before)
    return ends


def test_a_few_broken_files(tmp_path):
    ends = fuzz(tmp_path, 33)
    assert "silently short" not in ends, ends
    assert len(ends.get("unseen", [])) <= 6, ends
    assert len(ends["partial"]) >= 8


@pytest.mark.slow
def test_many_broken_files(tmp_path):
    ends = fuzz(tmp_path, 400)
    assert "silently short" not in ends, ends
    assert len(ends.get("unseen", [])) <= 60, ends
    assert len(ends["partial"]) >= 120
    assert len(ends["exact"]) >= 30
