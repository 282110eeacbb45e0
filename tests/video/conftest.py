"""Fixtures of the tests of reading."""

from pathlib import Path

import pytest

from tests.video.small import make_video


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """13 videos of 4 to 16 frames and one that is no video, in two classes; seven in val."""
    root = tmp_path_factory.mktemp("data")
    for split, count in (("train", 13), ("val", 7)):
        for i in range(count):
            place = root / split / "ab"[i % 2]
            place.mkdir(parents=True, exist_ok=True)
            make_video(place / f"{i:02}.mp4", 4 + i, shade=i)
    (root / "train/b/broken.mp4").write_bytes(b"\0" * 3000)
    return root
