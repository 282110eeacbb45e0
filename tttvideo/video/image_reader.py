"""A folder of frame images (frame_1.jpg ... frame_100.jpg) read as a video."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tttvideo.video.pyav_reader import Converter
from tttvideo.video.reader import Reader, VideoError, VideoInfo, checked_size

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


def image_files(folder: str | os.PathLike) -> list[Path]:
    """The images of a folder in natural order (2.jpg before 10.jpg); hidden files are left out."""
    files = [file for file in Path(folder).iterdir() if file.suffix.lower() in IMAGE_SUFFIXES]
    return sorted((file for file in files if not file.name.startswith(".")), key=_natural)


def _natural(file: Path) -> list[tuple[bool, int, str]]:
    parts = re.split(r"(\d+)", file.name)
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


class ImageFolderReader(Reader):
    """Images of a folder as frames, `fps` of them a second; all are brought to the size of the first one."""

    def __init__(self, path: str, size: Any, fps: float):
        self._files = image_files(path)
        if not self._files:
            raise VideoError(f"{path}: the folder holds no frame images ({', '.join(IMAGE_SUFFIXES)})")
        first = _decode(self._files[0])
        if first is None:
            raise VideoError(f"{path}: its first image, {self._files[0].name}, cannot be decoded")
        count, turns = len(self._files), round(first.rotation / 90) % 4
        height, width = (first.width, first.height) if turns % 2 else (first.height, first.width)
        suffix = self._files[0].suffix[1:].lower()
        info = VideoInfo(path, suffix, height, width, count, fps, count / fps, "images")
        super().__init__(info, torch.arange(count, dtype=torch.float64) / fps, announced=count)
        self._size = checked_size(size, info) or (height, width)

    @property
    def size(self) -> tuple[int, int]:
        return self._size

    def _stream(self, wanted: Sequence[int], batch: int) -> Iterator[Tensor]:
        converters: dict[int, Converter] = {}
        for start in range(0, len(wanted), batch):
            numbers = wanted[start : start + batch]
            out = torch.empty(len(numbers), 3, *self._size, dtype=torch.uint8)
            for place, number in enumerate(numbers):
                frame = _decode(self._files[number])
                if frame is None:
                    self._warn(number)
                    if place:
                        yield out[:place]
                    return
                turns = round(frame.rotation / 90) % 4
                converter = converters.setdefault(turns, Converter(self._size, turns))
                converter.into(frame, out[place])
            yield out

    def close(self) -> None:
        pass


def _decode(file: Path) -> Any:
    """The picture, or None if the file holds none."""
    import av

    try:
        with av.open(os.path.abspath(file), metadata_errors="replace") as container:
            return next(container.decode(video=0), None)
    except Exception:  # whatever FFmpeg makes of bytes that are no picture; nothing of ours runs in there
        return None
