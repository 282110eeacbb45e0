"""Reads class folders of videos: `root/<split>/<class>/*` or `root/<class>/*`.

A video is a file with a video extension or a folder of frame images.
"""

import os
import warnings
from pathlib import Path

from ..printing import is_unicode, printable
from .errors import PartialVideoWarning
from .kinds import FEATURES, VIDEO_EXTENSIONS, holds_images
from .listfile import SPLIT_NAMES, DataError, Row


class NoVideoWarning(PartialVideoWarning):
    """A class folder is skipped, as none of its files has a video's ending; shown like other gaps in the data."""


def read_folder(root: str | Path, split: str, *, labelled: bool = True) -> list[Row]:
    """Every video under `root`, sorted; `Row.split` is set where the first level of folders are splits.

    A first-level folder is a split if it holds class folders and is called like one (train, val, ...) or is
    `split`.

    Args:
        labelled: False takes all videos below root, at any depth, without labels; a first-level folder that
            holds videos at any depth and is called like a split (or is `split`) is one.

    Raises:
        DataError: nothing to read, videos without class folders, or folders in folders that fit neither
            layout.
    """
    root = Path(root)
    if not labelled:
        return _unlabelled_rows(root, split)
    classes = _folders(root)
    splits = [d for d in classes if (d.name.lower() in SPLIT_NAMES or d.name == split) and _has_classes(d)]
    if splits:
        rows = [row for d in splits for row in _class_rows(root, _folders(d), d.name)]
    else:
        rows = _class_rows(root, classes, None)
    if not rows:
        loose = len(_videos(root))
        if loose:
            raise DataError(
                f"{root} holds {loose} videos but no class folders; put the videos of each class in a folder "
                "named after it, or give a list file with path,label lines"
            )
        raise DataError(
            f"{root} holds no videos; expected {root.name}/<class>/*.mp4 or {root.name}/train/<class>/*.mp4"
        )
    return rows


def _folders(folder: Path) -> list[Path]:
    return sorted(Path(e.path) for e in os.scandir(folder) if _is_folder(e) and not e.name.startswith("."))


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself: reading it says so
        return False


def _videos(folder: Path) -> list[Path]:
    entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    paths = [Path(entry.path) for entry in entries if _is_video(entry)]
    return sorted(paths or [Path(entry.path) for entry in entries if entry.name.endswith(FEATURES)])


def _is_video(entry: os.DirEntry) -> bool:
    if _is_folder(entry):
        return holds_images(entry.path)
    return os.path.splitext(entry.name)[1].lower() in VIDEO_EXTENSIONS


def _has_classes(folder: Path) -> bool:
    return any(not holds_images(d) and _videos(d) for d in _folders(folder))


def _nested(folder: Path) -> Path | None:
    """The first folder of videos at any depth below `folder`; folders of frame images are videos
    themselves."""
    for below in _folders(folder):
        if not holds_images(below):
            nested = below if _videos(below) else _nested(below)
            if nested:
                return nested
    return None


def _class_rows(root: Path, classes: list[Path], split: str | None) -> list[Row]:
    rows = []
    for folder in classes:
        if not is_unicode(folder.name):
            raise DataError(f"the class folder {printable(str(folder))} has a name that is not UTF-8; rename it")
        videos = [] if holds_images(folder) else _videos(folder)
        deeper = _nested(folder)
        if not videos and not deeper:
            _warn_of(folder)
        if deeper:
            raise DataError(
                f"{folder} should hold the videos of one class but has folders of videos in it ({deeper}); "
                "give the folder whose sub-folders are the classes, or a list file with path,label lines"
            )
        rows += [Row(str(v), v.relative_to(root).as_posix(), str(v), (folder.name,), split=split) for v in videos]
    return rows


def _warn_of(folder: Path) -> None:
    """A warning and no error: a folder of notes may well lie beside the classes."""
    names = [e.name for e in os.scandir(folder) if not _is_folder(e) and not e.name.startswith(".")]
    if names:
        endings = ", ".join(sorted({os.path.splitext(name)[1].lower() or name for name in names})[:5])
        warnings.warn(f"class {folder.name!r} has no video (its files: {endings})", NoVideoWarning, stacklevel=4)


def _unlabelled_rows(root: Path, split: str) -> list[Row]:
    if holds_images(root):
        return _all_videos(root, root)
    named = [d for d in _folders(root) if d.name.lower() in SPLIT_NAMES or d.name == split]
    splits = [d for d in named if not holds_images(d) and (_videos(d) or _nested(d))]
    if not splits:
        return _all_videos(root, root)
    return [row._replace(split=d.name) for d in splits for row in _all_videos(root, d)]


def _all_videos(root: Path, below: Path) -> list[Row]:
    if holds_images(below):
        paths = [below]
    else:
        paths = []
        for folder, names, _ in os.walk(below):
            paths += _videos(Path(folder))
            names[:] = [n for n in names if not n.startswith(".") and not holds_images(os.path.join(folder, n))]
    if not paths:
        raise DataError(f"{below} holds no videos")
    return [Row(str(p), p.relative_to(root).as_posix(), str(p), None) for p in sorted(paths)]
