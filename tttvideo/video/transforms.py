"""Frames to model input: deterministic preprocessing, and augmentation that treats all frames of a clip
alike.

Frames are uint8 [F, 3, H, W] throughout; normalisation happens inside the model.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from .errors import VideoError
from .kinds import FEATURES
from .listfile import DataError
from .sampling import parse_sampling

if TYPE_CHECKING:
    from torchvision.transforms import v2

    from .reader import Reader

LARGEST_SIDE = 2**14
"""Pixels of a frame's side: no decoder here gives more."""

Range = tuple[float, float]
Span = tuple[float | None, float | None]


@dataclass(frozen=True)
class Preprocessing:
    """What happens to every video before the model sees it; belongs to the model, so a checkpoint carries it.

    Args:
        size: height and width of the frames, in pixels.
        fit: how a frame of another shape comes to `size`: `crop` its centre (edges are lost), `pad` it with
            black, or `stretch` it.
        sampling: which frames are used, one rule: dense, fps=R, uniform=N, segments=N, window=SECONDS or last=N.
        stream: which video stream of a file with several, counted from 0 (cover pictures do not count); null: the
            first that is marked as default, or else the largest.
    """

    size: tuple[int, int] = (64, 64)
    fit: Literal["crop", "pad", "stretch"] = "crop"
    sampling: str = "dense"
    stream: int | None = None

    window: ClassVar[int] = 1
    """What is read of a video begins at a multiple of so many (sampled) frames."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", tuple(self.size))  # a list when it comes from JSON
        if len(self.size) != 2 or not all(type(n) is int and 0 < n <= LARGEST_SIDE for n in self.size):
            raise DataError(
                f"size is {self.size}; it must be height and width in pixels, for example [64, 64], and each at most "
                f"{LARGEST_SIDE:,}"
            )
        if self.fit not in ("crop", "pad", "stretch"):
            raise DataError(f"fit is {self.fit!r}; it must be crop, pad or stretch")
        parse_sampling(self.sampling)
        if self.stream is not None and self.stream < 0:
            raise DataError(f"stream is {self.stream}; it must be 0 (the first video stream), 1 ... or null")

    @property
    def frame(self) -> tuple[tuple[int, int, int], torch.dtype]:
        """Shape and type of a frame as the model gets it."""
        return (3, *self.size), torch.uint8

    def open(self, path: str, margin: float = 1.0) -> "Reader":
        """A reader of a video's frames, which it resizes while decoding to what is needed. Raises VideoError."""
        from .decode import open_video

        if path.endswith(FEATURES):
            raise VideoError(f"{path}: a file of features, which the encoder Features reads; this model reads frames")
        return open_video(path, lambda info: self.decode_size(info.height, info.width, margin), stream=self.stream)

    def drawn(self, generator: torch.Generator) -> "Preprocessing":
        """How a training video is read this time."""
        return self

    def serving(
        self, paths: Sequence[str], spans: Sequence[Span] | None = None, first: int | None = None
    ) -> "Preprocessing":
        """How these videos are read whole: all in the same way, which can be done for each of them.

        Args:
            spans: the part of each, (start, end) in seconds.
            first: frames that each part is cut to, before the sampling rule; None: none is.
        """
        return self

    def decode_size(self, height: int, width: int, margin: float = 1.0) -> tuple[int, int]:
        """Height and width to decode a video of this height and width at: `size`, or what covers it (crop) or fits into
        it (pad) in the video's own shape; `margin` times larger in both directions leaves room for random crops."""
        return self._fitted(height, width, *(round(n * margin) for n in self.size))

    def apply(self, frames: Tensor, crop: float = 0.5) -> Tensor:
        """uint8 [F, 3, h, w] of any size -> uint8 [F, 3, H, W]; every frame by itself, so pieces of a clip
        may be treated one after the other. `crop` is where `fit: crop` cuts: 0 at the top or left, 0.5 the centre, 1 at
        the bottom or right."""
        height, width = self.size
        h, w = frames.shape[-2:]
        frames = _resize(frames, *self._fitted(h, w, height, width))
        if self.fit == "crop":
            top, left = (round(crop * (have - want)) for have, want in zip(frames.shape[-2:], self.size, strict=True))
            return frames[..., top : top + height, left : left + width]
        top, left = (height - frames.shape[-2]) // 2, (width - frames.shape[-1]) // 2
        bottom, right = height - frames.shape[-2] - top, width - frames.shape[-1] - left
        return pad(frames, [left, right, top, bottom])

    def _fitted(self, h: int, w: int, height: int, width: int) -> tuple[int, int]:
        """h x w resized so that it covers (crop) or fits into (pad) height x width; rounding leaves no
        gap."""
        if self.fit == "stretch":
            return height, width
        if self.fit == "crop":
            scale = max(height / h, width / w)
            return max(height, round(h * scale)), max(width, round(w * scale))
        scale = min(height / h, width / w)
        return min(height, max(1, round(h * scale))), min(width, max(1, round(w * scale)))


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training clips, the same for all frames of a clip; everything is off by default.

    Args:
        speed: range of playback speeds; frames are repeated or left out. (0.8, 1.25) is a mild choice.
        drop: probability of leaving out each frame.
        scale: range of the area of a random crop, relative to the largest crop of the model's shape; the crop
            may lie anywhere in the frame, also outside the centre that evaluation uses.
        ratio: range of the factor by which a random crop is wider in shape than the model's frames.
        margin: decode this much larger than the model's frames, so that small crops stay sharp; costs memory.
        flip: probability of a mirror image. Leave it off where left and right matter.
        translate: largest shift, relative to height and to width.
        rotate: largest rotation in degrees.
        brightness: strength of the brightness jitter, as in torchvision's ColorJitter.
        contrast: strength of the contrast jitter.
        saturation: strength of the saturation jitter.
        hue: strength of the hue jitter, at most 0.5.
        grayscale: probability of losing the colours.
        auto: `none`, `trivial` (TrivialAugmentWide) or `rand` (RandAugment).
        auto_ops: number of operations of RandAugment.
        auto_magnitude: strength of RandAugment's operations, 0 to 30.
        erase: probability of blacking out one rectangle of 2 to 33 % of the area.
    """

    speed: Range = (1.0, 1.0)
    drop: float = 0.0
    scale: Range = (1.0, 1.0)
    ratio: Range = (1.0, 1.0)
    margin: float = 1.0
    flip: float = 0.0
    translate: Range = (0.0, 0.0)
    rotate: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grayscale: float = 0.0
    auto: Literal["none", "trivial", "rand"] = "none"
    auto_ops: int = 2
    auto_magnitude: int = 9
    erase: float = 0.0

    def __post_init__(self) -> None:
        for name in ("speed", "scale", "ratio", "translate"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("speed", "scale", "ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise DataError(f"augment.{name} is ({low:g}, {high:g}); it must be a range of numbers above 0")
        for name in ("drop", "flip", "grayscale", "erase"):
            if not 0 <= getattr(self, name) <= 1:
                raise DataError(f"augment.{name} is {getattr(self, name):g}; it is a probability, between 0 and 1")
        for name, most in (
            ("hue", 0.5),
            ("brightness", math.inf),
            ("contrast", math.inf),
            ("saturation", math.inf),
        ):
            if not 0 <= getattr(self, name) <= most:
                raise DataError(f"augment.{name} is {getattr(self, name):g}; it must be between 0 and {most:g}")
        if not all(0 <= shift <= 1 for shift in self.translate) or not 0 <= self.rotate <= 180:
            raise DataError("augment.translate must be between 0 and 1, augment.rotate between 0 and 180 degrees")
        if self.auto not in ("none", "trivial", "rand"):
            raise DataError(f"augment.auto is {self.auto!r}; it must be none, trivial or rand")
        if self.drop == 1:
            raise DataError("augment.drop is 1, which leaves no frames; it must be below 1")
        if self.scale[1] > 1 or self.margin < 1:
            raise DataError("augment.scale must not exceed 1, and augment.margin must be at least 1")

    @property
    def changes(self) -> list[str]:
        """Names of the settings by which a clip can be changed."""
        unlike = {name for name, value in vars(self).items() if value != getattr(Augmentation, name)}
        return sorted(
            unlike - {"auto_ops", "auto_magnitude"} - ({"margin"} if not unlike & {"scale", "ratio"} else set())
        )

    def resample(self, n: int, generator: torch.Generator) -> Tensor:
        """Positions (int64, increasing, possibly repeated) of the frames that a clip of `n` frames keeps."""
        keep = torch.arange(n)
        if self.speed != (1, 1):
            # log-uniform: half speed and double speed are equally likely
            speed = math.exp(_uniform(math.log(self.speed[0]), math.log(self.speed[1]), generator))
            keep = (torch.arange(max(1, round(n / speed)), dtype=torch.float64) * speed).long().clamp(max=n - 1)
        if self.drop:
            kept = keep[torch.rand(len(keep), generator=generator) >= self.drop]
            keep = kept if len(kept) else keep[:1]
        return keep

    def apply(self, frames: Tensor, preprocessing: Preprocessing, generator: torch.Generator) -> Tensor:
        """uint8 [F, 3, h, w] -> uint8 [F, 3, H, W] with the preprocessing's size; the global generators of
        torch, numpy and Python are left as they were."""
        with _seeded(int(torch.randint(2**62, (), generator=generator))):
            if self.scale != (1, 1) or self.ratio != (1, 1):
                if preprocessing.fit == "pad":
                    frames = preprocessing.apply(frames)
                frames = self._random_crop(frames, preprocessing.size)
            else:
                frames = preprocessing.apply(frames)
            for transform in self._transforms():
                frames = transform(frames)
        return frames.contiguous()

    def _random_crop(self, frames: Tensor, size: tuple[int, int]) -> Tensor:
        h, w = frames.shape[-2:]
        unit = min(h / size[0], w / size[1])  # pixels of the largest crop of the model's shape per model pixel
        area = _uniform(*self.scale)
        ratio = math.exp(_uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
        height = min(h, max(1, round(size[0] * unit * math.sqrt(area / ratio))))
        width = min(w, max(1, round(size[1] * unit * math.sqrt(area * ratio))))
        top = int(torch.randint(h - height + 1, ()))
        left = int(torch.randint(w - width + 1, ()))
        return _resize(frames[..., top : top + height, left : left + width], *size)

    def _transforms(self) -> "Iterator[v2.Transform]":
        if not self.changes:
            return
        from torchvision.transforms import v2  # not at the top: it takes longer to import than all else of this package

        if self.flip:
            yield v2.RandomHorizontalFlip(self.flip)
        if any(self.translate) or self.rotate:
            # torchvision counts (horizontal, vertical); sizes here are (height, width) everywhere
            shift = (self.translate[1], self.translate[0])
            yield v2.RandomAffine(
                (-self.rotate, self.rotate), translate=shift, interpolation=v2.InterpolationMode.BILINEAR
            )
        if self.brightness or self.contrast or self.saturation or self.hue:
            yield v2.ColorJitter(self.brightness, self.contrast, self.saturation, self.hue)
        if self.grayscale:
            yield v2.RandomGrayscale(self.grayscale)
        if self.auto == "trivial":
            yield v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR)
        elif self.auto == "rand":
            yield v2.RandAugment(self.auto_ops, self.auto_magnitude, interpolation=v2.InterpolationMode.BILINEAR)
        if self.erase:
            yield v2.RandomErasing(self.erase)


def sample_generator(seed: int, epoch: int, index: int) -> torch.Generator:
    """The source of all randomness of one example in one epoch."""
    digest = hashlib.blake2b(f"{seed} {epoch} {index}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def _uniform(low: float, high: float, generator: torch.Generator | None = None) -> float:
    return low + (high - low) * float(torch.rand((), dtype=torch.float64, generator=generator))


def _resize(frames: Tensor, height: int, width: int) -> Tensor:
    if tuple(frames.shape[-2:]) == (height, width):
        return frames
    from torchvision.transforms.v2 import functional as F

    return F.resize(frames, [height, width], antialias=True)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    # torchvision draws from torch's global CPU generator. It is seeded here and put back afterwards;
    # torch.manual_seed would also reseed every GPU.
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)
