"""Files, folders, patterns, lists and `-` of a command line, resolved to videos."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..printing import printable
from ..video.folders import read_folder
from ..video.index import DataError, Video
from ..video.listfile import read_list

LISTS = {".txt", ".csv", ".tsv"}
"""Files with these endings are lists: ``path[,start,end]`` lines, or columns with a header."""


def find_videos(words: Sequence[str], lines: Iterable[str] = ()) -> list[Video]:
    """The videos that ``words`` name, in their order, each once.

    Args:
        words: video files; folders, with all below them (a folder of frame images is a video); patterns such as
            ``'films/**/*.mp4'``; lists; ``-`` for the ``lines``. A file that is not there is a video all the same:
            that it cannot be read is a result like others.
        lines: a word each.

    Raises:
        DataError: for an address on the web, a pattern or folder without videos, a list that cannot be read.
    """
    videos: dict[tuple[str, float | None, float | None], Video] = {}
    for word in words:
        for path, start, end in _lines(lines) if word == "-" else _named(word):
            videos.setdefault((os.path.abspath(path), start, end), Video(path, None, None, start, end))
    return list(videos.values())


Span = tuple[str, float | None, float | None]


def _lines(lines: Iterable[str]) -> list[Span]:
    words = [line.rstrip("\r\n") for line in lines]
    return [span for word in words if word.strip() for span in _named(word)]


def _named(word: str) -> list[Span]:
    if "://" in word:
        raise DataError(f"{printable(word)} is an address; `tttvideo stream MODEL ADDRESS` reads those")
    if os.path.isdir(word):
        return [(row.path, None, None) for row in read_folder(word, "all", labelled=False)]
    if os.path.splitext(word)[1].lower() in LISTS and os.path.isfile(word):
        return [(row.path, row.start, row.end) for row in read_list(Path(word), labelled=False)]
    if glob.has_magic(word) and not os.path.exists(word):
        paths = sorted(glob.glob(word, recursive=True))
        if not paths:
            raise DataError(f"no file is called like {printable(word)}; correct the pattern")
        return [span for path in paths for span in _named(path)]
    return [(word, None, None)]
