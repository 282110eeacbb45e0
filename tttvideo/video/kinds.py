"""What counts as a video by its name: files by their extension, and which images of a folder are its frames."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

_MPEG = {".mp4", ".m4v", ".mov", ".3gp", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".vob", ".f4v", ".mxf"}
VIDEO_EXTENSIONS = _MPEG | {".avi", ".mkv", ".webm", ".wmv", ".flv", ".ogv", ".gif", ".asf", ".y4m", ".divx"}
FEATURES = ".npy"
"""Files of features, which are read in place of videos where there are none."""
IMAGE_EXTENSIONS = {".jpg", ".jpeg", ".png"}
# Words in the names of pictures that are made from frames and lie beside them.
_DERIVED = {"flow", "depth", "mask", "masks", "seg", "segmentation", "disparity", "disp", "normal", "normals", "ir"}
_AXES = {"x", "y", "u", "v"}  # whole names of flow pictures: x_00001.jpg beside img_00001.jpg


def features_of(path: str) -> str:
    """The name of a video's file of features: that of the video with another extension, if it has one (a dot may belong
    to a name). MS-TCN's lists name such files .txt."""
    stem, extension = os.path.splitext(path)
    return (stem if extension.lower() in VIDEO_EXTENSIONS | {".txt"} else path) + FEATURES


def holds_images(folder: str | os.PathLike) -> bool:
    """Whether a folder is one video given as frame images: images in it and no videos."""
    names = [entry.name for entry in os.scandir(folder) if not entry.name.startswith(".")]
    extensions = {os.path.splitext(name)[1].lower() for name in names}
    return bool(extensions & IMAGE_EXTENSIONS) and not extensions & VIDEO_EXTENSIONS


class Frames(NamedTuple):
    """The images of a folder that are its frames, in natural order (2.jpg before 10.jpg)."""

    names: list[str]
    left_out: str  # what else was there, "cover.jpg, flow_x_*.jpg"; "" if nothing


def choose_frames(names: Iterable[str]) -> Frames:
    """The frames among the names of a folder's images.

    Raises:
        ValueError: there are several pictures of the same number, and nothing says which of them are the frames; the
            message lists the kinds.
    """
    ordered = sorted(names, key=_natural)
    kinds: dict[str, list[str]] = defaultdict(list)
    for name in ordered:
        kinds[_kind(name)].append(name)
    unnumbered = [kind for kind in kinds if not re.search(r"\d", kinds[kind][0])]
    left_out = unnumbered if 2 * len(unnumbered) < len(ordered) else []  # cover.jpg, or all names are words
    if _overlap(kinds.values()):
        left_out = left_out + [kind for kind in kinds if _is_derived(kind)]
    frames = {kind: own for kind, own in kinds.items() if kind not in left_out}
    if (kinds and not frames) or _overlap(frames.values()):
        raise ValueError(", ".join(f"{kind} ({len(own)})" for kind, own in kinds.items()))
    return Frames([name for name in ordered if _kind(name) in frames], ", ".join(dict.fromkeys(left_out)))


def _natural(name: str) -> list[tuple[bool, int, str]]:
    parts = re.split(r"(\d+)", name)
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


def _kind(name: str) -> str:
    stem, extension = os.path.splitext(name.lower())  # a_1.jpg and a_1.png are two pictures of one number
    return re.sub(r"\d+", "*", stem) + extension


def _overlap(kinds: Iterable[Sequence[str]]) -> bool:
    """Whether two kinds have a picture of the same number; `intro_1 ... intro_9, main_10 ...` is one film."""
    numbers = [{tuple(map(int, re.findall(r"\d+", os.path.splitext(name)[0]))) for name in own} - {()} for own in kinds]
    return sum(map(len, numbers)) > len(set().union(*numbers))


def _is_derived(kind: str) -> bool:
    words = set(re.split(r"[^a-z]+", os.path.splitext(kind)[0])) - {""}
    return bool(words & _DERIVED) or (bool(words) and words <= _AXES)
