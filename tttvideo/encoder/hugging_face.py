"""Image and video encoders of the transformers library: frames, or windows of frames, to tokens."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..printing import cause, shortened
from .base import EncoderState
from .pretrained import Pretrained, PretrainedEncoder
from .unfreezing import leave_trained, listed_blocks


class Kind(NamedTuple):
    """How a type of model is called: its class, its input, the setting with its number of frames (None: images), and
    further arguments."""

    model: str
    input: str
    frames: str | None = None
    more: Mapping[str, Any] = MappingProxyType({})


KINDS = {
    "vjepa2": Kind("VJEPA2Model", "pixel_values_videos", "frames_per_clip", MappingProxyType({"skip_predictor": True})),
    "videomae": Kind("VideoMAEModel", "pixel_values", "num_frames"),
    "videoprism_vision_model": Kind("VideoPrismVisionModel", "pixel_values_videos", "num_frames"),
    "dinov2": Kind("Dinov2Model", "pixel_values"),
    "dinov3_vit": Kind("DINOv3ViTModel", "pixel_values"),
    "siglip_vision_model": Kind("SiglipVisionModel", "pixel_values"),
}
"""By ``model_type`` of the configuration; of models with a text half (SigLIP, VideoPrism) that of the vision half."""


PROCESSORS = ("video_preprocessor_config.json", "preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class Transformers(Pretrained):
    """Patch tokens of a pre-trained model of the transformers library, pooled to a grid, then mapped to the width.

    Models of images (DINOv2, DINOv3, SigLIP 2 of fixed size) read each frame. Models of videos (V-JEPA 2, VideoMAE,
    VideoPrism) read windows of frames that follow one another: a window is one time step, whose tokens are averaged
    over time. All its frames see each other, so an answer comes once a window. A last window that is not full is moved
    back over frames that were read before; of a video shorter than one the last frame is repeated.

    Attributes:
        name: a local folder with config.json, weights and the processor's settings, or a name on the Hugging Face Hub.
        window: frames of a window of a video model; null: as it was trained.
        grid: rows and columns of tokens a time step after pooling.
        frozen: do not train the model (it then runs without a graph and in evaluation mode).
        trainable: of a frozen model so many of its last blocks are trained all the same.
        at_once: frames that a frozen model encodes in one call, which bounds its memory.
        cache: a folder that keeps what a frozen model makes of each video, so that it reads a video once and later
            epochs decode nothing. Of a video model a row for each window from the video's beginning: training clips
            then begin at multiples of the window, and nothing may change which frames follow one another
            (``data.augment.speed``, ``drop``). null: no cache.
        cache_dtype: how the numbers are kept: fp16, or bf16 where they are too large for that.
        cache_views: how often each video is kept: once as it is, then with random changes of its pixels, as in
            ``Timm``.
        architecture: the model's configuration as JSON, with the mean and standard deviation of its processor; read
            from ``name`` when a training begins, so that checkpoints do not need it. Leave it out.
    """

    name: str
    window: int | None = None
    grid: tuple[int, int] = (2, 2)
    frozen: bool = True
    trainable: int = 0
    at_once: int = 64
    cache: str | None = None
    cache_dtype: Literal["fp16", "bf16"] = "fp16"
    cache_views: int = 1
    architecture: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.grid) < 1 or self.at_once < 1 or (self.window or 1) < 1:
            raise ValueError(
                f"Expected Transformers.grid, window and at_once of at least 1, got {list(self.grid)}, {self.window} "
                f"and {self.at_once}; change them."
            )

    @property
    def base_model(self) -> str | None:
        return _on_hub(self.name)

    def resolved(self, paths: Sequence[str]) -> Transformers:
        return self if self.architecture else replace(self, architecture=json.dumps(_read(self.name)))

    def build(self, size: tuple[int, int], dim: int, *, load: bool = True) -> TransformersEncoder:
        return TransformersEncoder(self.resolved(()), size, dim, load)  # type: ignore[arg-type]


class TransformersEncoder(PretrainedEncoder):
    """See ``Transformers``. ``source`` says where the weights came from, and how far it looks ahead."""

    def __init__(self, config: Transformers, size: tuple[int, int], dim: int, load: bool) -> None:
        assert config.architecture is not None
        settings = json.loads(config.architecture)
        mean, std = settings.pop("image_mean"), settings.pop("image_std")
        kind = KINDS[settings["model_type"]]
        of_model = settings[kind.frames] if kind.frames else 1
        window = of_model if config.window is None else config.window
        if kind.frames is None and window != 1:
            raise ValueError(f"{config.name} reads images, so encoder.window is {window} in vain; leave it out.")
        super().__init__(config.grid, window, tuple(mean), tuple(std))
        self.config = config
        model = _model(config.name, settings, load)
        self.model = model.requires_grad_(config.learns).eval()
        with torch.set_grad_enabled(config.learns):
            maps = self._first_map(size)
        if config.learns:
            blocks = partial(listed_blocks, model)
            self.trained_blocks = leave_trained(model, maps, config.trainable, blocks, config.name)
        self.source = f"{config.name} of the transformers library"
        if window > 1:
            self.source += f", in windows of {window} frames: an answer comes once in {window} frames, and the first "
            self.source += f"frame of each looks {window - 1} frames ahead"
        self.finish(maps.shape[1], dim)

    @property
    def kind(self) -> Kind:
        return KINDS[self.model.config.model_type]  # type: ignore[union-attr, index]

    def described(self) -> dict[str, Any]:
        assert self.config.architecture is not None
        settings = json.loads(self.config.architecture)
        architecture = {key: settings[key] for key in settings if key not in ("transformers_version", "_name_or_path")}
        sha = hashlib.sha256(json.dumps(architecture, sort_keys=True).encode())
        return {"name": settings["model_type"], "architecture": sha.hexdigest()}

    def used_weights(self) -> dict[str, Tensor]:
        return {key: weight for key, weight in super().used_weights().items() if _is_used(key)}

    def tails(self, batch: int) -> tuple[Tensor, ...]:
        """The last frames before this call, of which a last window that is not full takes some."""
        if self.stride == 1:
            return ()
        return (self.mean.new_zeros(batch, 3, self.stride - 1, *self._size),)

    def forward(
        self, frames: Tensor, lengths: Tensor | None, state: EncoderState
    ) -> tuple[Tensor, Tensor | None, EncoderState]:
        if self.stride == 1:
            return super().forward(frames, lengths, state)
        valid, steps, after = self._count(frames, lengths, state)
        moved, tail = self._moved_back(self._normalised(frames), valid, state)
        tokens, _ = self.encode(moved, steps, state)
        return tokens, steps, after._replace(tails=(tail,))

    def _moved_back(self, x: Tensor, counts: Tensor, state: EncoderState) -> tuple[Tensor, Tensor]:
        """Whole windows [B, S*W, 3, H, W] of normalised frames, and the tail that follows them."""
        window, (batch, count) = self.stride, x.shape[:2]
        before = state.tails[0].to(x.dtype).transpose(1, 2)
        full = torch.cat([before, x], 1)
        kept = before.shape[1]
        index = torch.arange(-(-count // window) * window).expand(batch, -1).clone()
        for row, (n, begun) in enumerate(zip(counts.tolist(), state.begun.tolist())):
            if rest := n % window:
                back = n - window if begun or n >= window else 0
                index[row, n - rest : n - rest + window] = torch.arange(back, back + window).clamp_max(n - 1)
        index = (index + kept).clamp_max(full.shape[1] - 1).to(x.device, non_blocking=True)
        rows = torch.arange(batch, device=x.device)[:, None]
        last = (torch.arange(kept) + counts[:, None]).to(x.device, non_blocking=True)
        return full[rows, index], full[rows, last].transpose(1, 2)

    def encode(self, frames: Tensor, lengths: Tensor | None, state: EncoderState) -> tuple[Tensor, tuple[Tensor, ...]]:
        """``frames`` are whole windows; what is left over of the last frames is the caller's."""
        tokens = self._tokens(self._of_windows(frames, lengths))
        tail = (frames[:, 1 - self.stride :].transpose(1, 2),) if self.stride > 1 else ()
        return tokens, tail

    def features(self, frames: Tensor, lengths: Tensor | None) -> Tensor:
        """All frames of a window have its maps."""
        batch, count = frames.shape[:2]
        counts = torch.full((batch,), count) if lengths is None else lengths.cpu()
        windows = self._normalised(frames)
        if self.stride > 1:
            windows, _ = self._moved_back(windows, counts, self.init_state(batch))
        maps = self._of_windows(windows, (counts + self.stride - 1) // self.stride)
        return maps.repeat_interleave(self.stride, 1)[:, :count]

    def _of_windows(self, frames: Tensor, lengths: Tensor | None) -> Tensor:
        """Whole normalised windows [B, S*W, 3, H, W] -> maps [B, S, channels, rows, columns]; zeros where a row, of
        ``lengths`` windows, is padding, which is not encoded."""
        batch, steps = frames.shape[0], frames.shape[1] // self.stride
        valid = torch.full((batch,), steps) if lengths is None else lengths
        chosen = (torch.arange(steps) < valid[:, None]).flatten().nonzero().squeeze(1)
        chosen = chosen.to(frames.device, non_blocking=True)
        shape = (batch * steps, self.projection.in_features, *self.grid)
        if not len(chosen):
            return self.position.new_zeros(shape).unflatten(0, (batch, steps))
        maps = self._maps(frames.unflatten(1, (steps, self.stride)).flatten(0, 1)[chosen])
        return maps.new_zeros(shape).index_copy(0, chosen, maps).unflatten(0, (batch, steps))

    def _maps(self, windows: Tensor) -> Tensor:
        """[n, W, 3, H, W] -> pooled maps [n, channels, rows, columns]."""
        if self.config.learns:
            return self._pooled(windows)
        with torch.no_grad():
            return torch.cat([self._pooled(part) for part in windows.split(max(1, self.config.at_once // self.stride))])

    def _pooled(self, windows: Tensor) -> Tensor:
        x = windows if self.kind.frames else windows[:, 0]
        tokens = self.model(**{self.kind.input: x}, **self.kind.more).last_hidden_state
        rows, columns = (side // patch for side, patch in zip(self._size, self._patch))
        steps = max(1, tokens.shape[1] // (rows * columns)) if self.kind.frames else 1
        tokens = tokens[:, tokens.shape[1] - steps * rows * columns :]  # class and register tokens come first
        maps = tokens.unflatten(1, (steps, rows, columns)).mean(1).movedim(-1, 1)
        return F.adaptive_avg_pool2d(maps, self.config.grid)

    def _first_map(self, size: tuple[int, int]) -> Tensor:
        """The map of a grey window.

        Raises:
            ValueError: the model cannot read frames of this size, windows of this length, or has fewer tokens than the
                grid.
        """
        settings: Any = self.model.config
        name = self.config.name
        patch = getattr(settings, "patch_size", None) or settings.tubelet_size[-2:]
        self._size, self._patch = tuple(size), (patch, patch) if isinstance(patch, int) else tuple(patch)[-2:]
        cells = tuple(side // p for side, p in zip(size, self._patch))
        trained_size = getattr(settings, "crop_size", None) or getattr(settings, "image_size", None)
        if any(side % p for side, p in zip(size, self._patch)) or any(c < g for c, g in zip(cells, self.config.grid)):
            raise ValueError(
                f"Expected frames that {name} divides into patches of {self._patch[0]} x {self._patch[1]}, "
                f"{self.config.grid[0]} x {self.config.grid[1]} of them at least, got {size[0]} x {size[1]} pixels; "
                f"set data.size (the model was trained with {trained_size}) or lower encoder.grid."
            )
        try:
            return self._pooled(torch.zeros(1, self.stride, 3, *size))
        except (ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            frames = getattr(settings, self.kind.frames) if self.kind.frames else 1
            todo = f"set data.size to the model's ({trained_size})"
            if self.stride != frames:
                todo = f"leave encoder.window out (the model was trained with windows of {frames} frames)"
            raise ValueError(
                f"{name} cannot read windows of {self.stride} frames of {size[0]} x {size[1]} pixels ({reason}); "
                f"{todo}."
            ) from error


def _read(name: str) -> dict[str, Any]:
    """The configuration of a model's vision half, and its processor's mean and standard deviation.

    Raises:
        ValueError: there is no such model, it is of another type, or says nothing of mean and standard deviation.
    """
    transformers = _library()
    name = os.path.expanduser(name)
    if not Path(name).is_dir() and _on_hub(name) is None:
        raise ValueError(
            "Expected a local folder with a model, or a name on the Hugging Face Hub (organisation/model), got "
            f"{name}, which is no folder; correct encoder.name."
        )
    try:
        config = transformers.AutoConfig.from_pretrained(name)
        config = getattr(config, "vision_config", config)
        settings = json.loads(config.to_json_string(use_diff=False))
    except Exception as error:  # each cause has a class of its own
        raise _unreadable("configuration", name, error) from error
    type_ = settings.get("model_type")
    if type_ not in KINDS:
        raise ValueError(f"Expected a model of type {', '.join(KINDS)}, got {name} of type {type_}; use one of those.")
    kind = KINDS[type_]
    frames = settings.get(kind.frames) if kind.frames else 1
    if not isinstance(frames, int) or frames < 1:
        raise ValueError(f"Expected {kind.frames} of at least 1 in config.json of {name}, got {frames}; correct it.")
    return settings | _statistics(name)


def _statistics(name: str) -> dict[str, list[float]]:
    """Mean and standard deviation of the colours, three numbers each, of a model's processor."""
    transformers = _library()
    readers = (transformers.ImageProcessingMixin.get_image_processor_dict,)
    if getattr(transformers, "AutoVideoProcessor", None):
        from transformers.video_processing_utils import BaseVideoProcessor

        readers = (BaseVideoProcessor.get_video_processor_dict, *readers)
    for read in readers:
        try:
            processor = dict(read(name)[0])
        except Exception:  # it has the other kind
            continue
        if {"image_mean", "image_std"} <= set(processor):
            return {key: _colours(name, key, processor[key]) for key in ("image_mean", "image_std")}
    files = [file for file in PROCESSORS if (Path(name) / file).exists()]
    what = f"{name} has no preprocessor_config.json with image_mean and image_std"
    if files:
        what = f"{name}: {' and '.join(files)} cannot be read, or gives no image_mean and image_std"
    raise ValueError(f"{what}; add the processor's settings.")


def _colours(name: str, key: str, value: Any) -> list[float]:
    """A value for each colour; as in the library one number is that of all three."""
    values = value if isinstance(value, list) else [value] * 3
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values)
    if len(values) != 3 or not numbers or (key == "image_std" and min(values) <= 0):
        what = "three numbers above 0" if key == "image_std" else "three numbers"
        raise ValueError(
            f"Expected {key} of {what} (or one for all colours) in the processor's settings of {name}, got "
            f"{shortened(value)}; correct it."
        )
    return [float(v) for v in values]


def _model(name: str, settings: dict[str, Any], load: bool) -> nn.Module:
    """In single precision, whatever it is stored in. Raises ValueError if the weights cannot be had, or are not all
    there."""
    transformers = _library()
    cls = getattr(transformers, KINDS[settings["model_type"]].model)
    config = cls.config_class.from_dict(settings | {"dtype": "float32"})
    if not load:
        return cls(config)
    name = os.path.expanduser(name)
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # not its table of weights that are missing: see below
    try:
        model, about = cls.from_pretrained(name, config=config, dtype=torch.float32, output_loading_info=True)
    except Exception as error:
        raise _unreadable("weights", name, error) from error
    finally:
        transformers.logging.set_verbosity(level)
    missing = sorted(filter(_is_used, about["missing_keys"]))
    if missing:
        raise ValueError(
            f"{name} does not hold all weights of {cls.__name__} (first: {missing[0]}); give another folder."
        )
    return model


def _is_used(weight: str) -> bool:
    """Whether tokens depend on a weight of this name."""
    return "predictor" not in weight and "pooler" not in weight


def _on_hub(name: str) -> str | None:
    """A name that can be one on the Hugging Face Hub."""
    return name if name.count("/") == 1 and not name.startswith((".", "~", "/")) else None


def _unreadable(what: str, name: str, error: Exception) -> ValueError:
    todo = "there is no such folder, and the Hugging Face Hub did not give it: give a local folder"
    if Path(name).is_dir():
        todo = "the folder needs a sound config.json and model.safetensors of the library: copy the model again"
    return ValueError(f"The {what} of {name} cannot be read ({cause(error)}); {todo}.")


def _library() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ValueError("The encoder Transformers needs the library: pip install 'tttvideo[transformers]'.") from error
    return transformers
