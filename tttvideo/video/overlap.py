"""Fingerprints of the training videos, stored in the checkpoint; they contain no path."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from .index import Video

LARGEST = 20_000  # more training videos than this leave no marks: they would make config.json large
_SAMPLE = 4096  # bytes read from the middle of each file


def training_marks(videos: Sequence[Video]) -> str | None:
    """The marks of a training set, sorted and with spaces between them; None for more than 20,000 videos."""
    if len(videos) > LARGEST:
        return None
    return " ".join(sorted({mark for video in videos if (mark := mark_of(video))}))


def mark_of(video: Video) -> str | None:
    """Eight hexadecimal digits of a video's content and span; None if it cannot be read.

    Neither name nor folder count: the same file is found again through a link, in a copy, and under another root.
    """
    path = Path(video.path)
    try:
        if path.is_dir():  # frame images: the one in the middle stands for all
            frames = sorted(path.iterdir())
            content = f"{len(frames)} frames".encode() + (_sample(frames[len(frames) // 2]) if frames else b"")
        else:
            content = _sample(path)
    except OSError:
        return None
    return hashlib.sha256(content + repr((video.start, video.end)).encode()).hexdigest()[:8]


def count_seen(videos: Iterable[Video], marks: str | None) -> int:
    """How many of the videos were trained on, by the marks of a checkpoint."""
    fingerprints = set((marks or "").split())
    return sum(mark_of(video) in fingerprints for video in videos) if fingerprints else 0


def _sample(path: Path) -> bytes:
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, (size - _SAMPLE) // 2))
        return str(size).encode() + b" " + file.read(_SAMPLE)
