"""A folder of frame images (frame_1.jpg ... frame_100.jpg) read as a video."""

import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .container import open_container
from .kinds import IMAGE_EXTENSIONS, choose_frames
from .pyav_reader import Converter
from .reader import Reader, VideoError, VideoInfo, VideoWarning, checked_size

# Kinds of folders of which it was said which images are their frames.
_already_said: set[str] = set()


class ImageFolderReader(Reader):
    """Images of a folder as frames, `fps` of them a second; all are brought to the size of the first one."""

    def __init__(self, path: str, size: Any, fps: float):
        self._files = _frames(path)
        if not self._files:
            raise VideoError(f"{path}: the folder holds no frame images ({', '.join(sorted(IMAGE_EXTENSIONS))})")
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
            for count, number in enumerate(numbers):
                frame = _decode(self._files[number])
                if frame is None:
                    self._warn(number)
                    if count:
                        yield out[:count]
                    return
                turns = round(frame.rotation / 90) % 4
                converter = converters.setdefault(turns, Converter(self._size, turns))
                converter.into(frame, out[count].numpy())
            yield out

    def close(self) -> None:
        pass


def _frames(folder: str) -> list[Path]:
    names = [entry.name for entry in os.scandir(folder) if not entry.name.startswith(".")]
    images = [name for name in names if os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS]
    try:
        frames = choose_frames(images)
    except ValueError as error:
        raise VideoError(
            f"{folder}: the folder holds several kinds of images, of which one must be the frames: {error}; leave one "
            "kind in it"
        ) from None
    if frames.left_out and frames.left_out not in _already_said:
        _already_said.add(frames.left_out)
        message = f"{folder}: {len(frames.names)} images are frames; left out: {frames.left_out}"
        warnings.warn(message, VideoWarning, stacklevel=4)
    return [Path(folder, name) for name in frames.names]


def _decode(file: Path) -> Any:
    """The picture, or None if the file holds none."""
    try:
        with open_container(str(file)) as container:
            return next(container.decode(video=0), None)
    except Exception:  # whatever FFmpeg makes of bytes that are no picture; nothing of ours runs in there
        return None
