"""Features that people already have, in place of an encoder: one .npy file for each video, no video needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

from torch import Tensor, nn

from ..video.features import FeatureFiles
from ..video.transforms import Preprocessing
from .base import Encoder, EncoderState, FrameEncoder


@dataclass(frozen=True)
class Features(Encoder):
    """Features [T, D] of T time steps as they are, normalised and mapped to the width.

    The data name .npy files in place of videos (class folders, or a list; in a list ``.npy`` may be left out), or
    videos whose features lie in ``folder`` under the same name.

    Attributes:
        folder: where the files of videos lie that the data name; null: the data name the files.
        rate: features a second, by which start, end and sampling rules count.
        layout: ``TD``: time first, or ``DT``: features first (MS-TCN); ``auto``: the side that all files share is that
            of the features.
        channels: features D of a time step; null: as the files have it.
    """

    folder: str | None = None
    rate: float = 1.0
    layout: Literal["auto", "TD", "DT"] = "auto"
    channels: int | None = None

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise ValueError(f"encoder.rate is {self.rate}; give the features a second, a number above 0.")
        if self.channels is not None and self.channels < 1:
            raise ValueError(f"encoder.channels is {self.channels}; give the features of a time step, at least 1.")
        if self.layout not in ("auto", "TD", "DT"):
            raise ValueError(f"encoder.layout is {self.layout!r}; it must be auto, TD or DT.")

    @property
    def root(self) -> str | None:
        return self.folder

    @property
    def views(self) -> int:
        return 1

    def portable(self) -> Features:
        return replace(self, folder=None)

    def resolved(self, paths: Sequence[str]) -> Features:
        """With what the files say of ``channels`` and ``layout``.

        Raises:
            ValueError: if they do not say it: no file can be read, no side is shared by all, or both are.
        """
        if self.channels is not None and self.layout != "auto":  # files that differ are skipped one by one
            return self
        files = self.reading(Preprocessing())
        shapes = {path: shape for path in dict.fromkeys(paths) if (shape := files.shape_of(path)) is not None}
        if not shapes:
            first = files.locate(paths[0])
            raise ValueError(f"None of the {len(paths)} files of features can be read (first: {first}).")
        allowed = ("TD", "DT") if self.layout == "auto" else (self.layout,)
        sides = {layout: Counter(shape[layout == "TD"] for shape in shapes.values()) for layout in allowed}
        fits = [layout for layout in allowed if set(sides[layout]) == {self.channels or next(iter(sides[layout]))}]
        if not fits:
            self._check_layout(files, shapes)
            raise ValueError(self._disagreement(files, shapes, sides))
        if len(fits) > 1:
            shape = next(iter(shapes.values()))
            raise ValueError(
                f"All files of features are {shape[0]} x {shape[1]}, so that either side could be time; set "
                "encoder.layout to TD (time first) or DT (features first)."
            )
        return replace(self, layout=fits[0], channels=next(iter(sides[fits[0]])))

    def _check_layout(self, files: FeatureFiles, shapes: Mapping[str, tuple[int, int]]) -> None:
        """Raises ValueError where the layout is given, and it is the other side that all files share."""
        other: Literal["TD", "DT"] = "DT" if self.layout == "TD" else "TD"
        sizes = {shape[other == "TD"] for shape in shapes.values()}
        if self.layout == "auto" or len(sizes) > 1 or self.channels not in (None, *sizes):
            return
        path, (rows, columns) = next(iter(shapes.items()))
        raise ValueError(
            f"encoder.layout is {self.layout}, but what all files of features share is the other side ("
            f"{files.locate(path)} is {rows} x {columns}); set encoder.layout: {other}."
        )

    def check_paths(self, paths: Sequence[str]) -> None:
        files, owners = self.reading(Preprocessing()), dict[str, str]()
        for path in paths:
            file = files.locate(path)
            if (other := owners.setdefault(file, path)) != path:
                raise ValueError(
                    f"{other} and {path} have the same name, and so one file of features, {file}; give each a name of "
                    "its own, or let the data name the .npy files."
                )

    def _disagreement(
        self, files: FeatureFiles, shapes: Mapping[str, tuple[int, int]], sides: Mapping[str, Counter[int]]
    ) -> str:
        """What most files share, and the first that has it not."""
        most = [
            (count, size, layout) for layout, sizes in sides.items() for size, count in sizes.items()
            if self.channels in (None, size)
        ]  # fmt: skip
        of_size = "" if self.channels is None else f" of {self.channels}"
        start = f"The files of features share no side{of_size} that could be the features of a time step"
        count, size, layout = max(most, default=(0, 0, "TD"), key=lambda one: one[0])
        path, (rows, columns) = next(item for item in shapes.items() if item[1][layout == "TD"] != size)
        other = f"{files.locate(path)} is {rows} x {columns}"
        if 2 * count <= len(shapes):
            return f"{start}: {other}; give files of one kind{of_size and ', or correct encoder.channels'}."
        return (
            f"{start}: {count} of {len(shapes)} have {size} ({layout}), but {other}; mend such files, or set "
            f"encoder.layout: {layout} and encoder.channels: {size}, with which they are skipped with the reason."
        )

    def reading(self, preprocessing: Preprocessing) -> FeatureFiles:
        read = {f.name: getattr(preprocessing, f.name) for f in fields(Preprocessing)}
        layout = "TD" if self.layout == "auto" else self.layout
        shape = (self.channels or 1, 1, 1)
        return FeatureFiles(**read, shape=shape, folder=self.folder, rate=self.rate, layout=layout)

    def build(self, size: tuple[int, int], dim: int, *, load: bool = True) -> FeatureEncoder:
        if self.channels is None:
            raise ValueError("The encoder Features needs the number of features; set encoder.channels.")
        return FeatureEncoder(self, self.channels, dim)


class FeatureEncoder(FrameEncoder):
    """See ``Features``: one token a time step."""

    reads_pixels = False

    def __init__(self, config: Features, channels: int, dim: int) -> None:
        super().__init__((1, 1), 1)
        self.config = config
        self.feature_shape = (channels, 1, 1)
        self.norm = nn.LayerNorm(channels)
        self.projection = nn.Linear(channels, dim)

    def reading(self, preprocessing: Preprocessing) -> Preprocessing:
        return self.config.reading(preprocessing)

    def encode(self, frames: Tensor, lengths: Tensor | None, state: EncoderState) -> tuple[Tensor, tuple[Tensor, ...]]:
        raise ValueError(
            f"This model reads features [B, F, {', '.join(map(str, self.feature_shape or ()))}], and no frames."
        )

    def embed(
        self, features: Tensor, lengths: Tensor | None, state: EncoderState
    ) -> tuple[Tensor, Tensor | None, EncoderState]:
        _, steps, after = self._count(features, lengths, state)
        return self.projection(self.norm(features.flatten(-3)))[:, :, None], steps, after
