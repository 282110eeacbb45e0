"""Prediction of the next frames, as pixels or as features: all tokens of frame t + 1 at once, from frames 1..t."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Card, Criterion, Loss, Read, Sizes, Task, TaskHead
from .forecast_errors import Following, ForecastErrors
from .trivial import TRIVIAL


@dataclass(frozen=True)
class Prediction(Task):
    """What comes next, learned from videos without labels.

    Every token of a time step predicts, by one linear map, the pixels of its own patch in the next time step
    (``encoder.stride`` frames), as the encoder normalises them; together they are the next frame. In the space of
    features it predicts what a frozen encoder sees at its own place in the next frame; what is said of pixels and
    frames then holds for features and their maps, which are neither normalised nor bounded.

    Attributes:
        space: ``pixels``, or ``features`` of a frozen ``Timm`` or ``Transformers`` encoder that reads single frames.
        loss: ``mse``, or ``smooth_l1`` (quadratic below one standard deviation of the pixels, linear above).
        gradient_difference: weight of the difference between the absolute image gradients of prediction and truth
            (Mathieu et al., arXiv 1511.05440, equation 6 with alpha = 1), which keeps edges sharp; 0: none.
        context: frames that are read before the loss begins.
        residual: predict the change from the last frame instead of the frame. Training then starts at
            copy-last-frame.
        rollout: time steps that the end of a training clip is predicted from the model's own predictions, with
            gradient through all of them; 1: every frame is predicted from true frames (teacher forcing).
        rollout_from: share of the training after which the number of these steps rises, evenly, from 1 to
            ``rollout``.
    """

    labelled: ClassVar[bool] = False

    space: Literal["pixels", "features"] = "pixels"
    loss: Literal["mse", "smooth_l1"] = "mse"
    gradient_difference: float = 0.0
    context: int = 1
    residual: bool = True
    rollout: int = 1
    rollout_from: float = 0.5

    def __post_init__(self) -> None:
        if self.space not in ("pixels", "features"):
            raise ValueError(f"Prediction.space is {self.space!r}; it must be pixels or features.")
        if self.loss not in ("mse", "smooth_l1"):
            raise ValueError(f"Prediction.loss is {self.loss!r}; it must be mse or smooth_l1.")
        if self.context < 1 or self.rollout < 1:
            raise ValueError(f"Prediction.context ({self.context}) and rollout ({self.rollout}) need at least 1.")
        if not 0 <= self.gradient_difference < math.inf:
            raise ValueError(
                f"Prediction.gradient_difference is {self.gradient_difference}; it is a weight, 0 or more."
            )
        if not 0 <= self.rollout_from < 1:
            raise ValueError(f"Prediction.rollout_from is {self.rollout_from}; it is a share, at least 0 and below 1.")

    @property
    def least_frames(self) -> int:
        return self.context + 1

    def build(self, sizes: Sizes) -> PredictionHead:
        if not sizes.causal:
            raise ValueError(
                "Prediction needs a backbone whose outputs depend on no later frame, and this one's do: use the chunks "
                "FrameCausal or TokenCausal in place of Whole, and a mixer alone in place of Bidirectional."
            )
        if not sizes.whole_frames and math.prod(sizes.grid) > 1:
            raise ValueError(
                "Prediction needs a backbone in which a token sees its whole frame, and this one reads token after "
                "token: use chunk FrameCausal or causality frame, or set backbone.frame_attention to some heads."
            )
        if self.space == "features" and (sizes.features is None or sizes.stride > 1):
            raise ValueError(
                "Prediction of features needs an encoder whose features stay what they are, each of one frame: use "
                "encoder Timm, or Transformers with a model of images, with frozen: true, or task.space pixels."
            )
        if self.space == "pixels" and (sizes.frame[0] % sizes.grid[0] or sizes.frame[1] % sizes.grid[1]):
            raise ValueError(
                f"Prediction cannot divide frames of {sizes.frame[0]} x {sizes.frame[1]} pixels into "
                f"{sizes.grid[0]} x {sizes.grid[1]} patches, one per token; change data.size or the encoder's grid."
            )
        return PredictionHead(self, sizes)

    def criterion(self, multi_label: bool) -> Criterion:
        what = "a frame's pixels in 0..1" if self.space == "pixels" else "a frame's features"
        note = f"mse and mae: of {what}, summed over channels, height and width (OpenSTL's convention)"
        return Criterion("mse", lower=True, note=note)

    def target(self, frames: Tensor, lengths: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return frames, lengths

    def summary(self, rows: Tensor, labels: Tensor, scored: Tensor) -> dict[str, float]:
        """MSE and MAE per frame, of pixels in 0..1, in OpenSTL's convention: summed over channels, height and width,
        mean over time, then over videos; each frame predicted from all true frames before it. Beside them those of
        the predictions that need no model. ``n`` videos were measured, ``too_short`` ones had nothing to predict.

        Raises:
            ValueError: if that is so for all of them.
        """
        counted = rows[scored & (rows[:, 0] > 0)].double()
        if not len(counted):
            raise ValueError(
                f"none of the {len(rows)} videos to validate on has a frame to predict after {self.context} of context"
                "; give longer ones, lower model.task.context, or set evaluate_every to 0"
            )
        errors = counted[:, 1:] / counted[:, :1]
        means = errors.mean(0).tolist()
        names = [f"{method}{kind}" for method in ("", *(f"{name}_" for name in TRIVIAL)) for kind in ("mse", "mae")]
        too_short = int(scored.sum()) - len(counted)
        return {**dict(zip(names, means, strict=True)), "n": len(counted), "too_short": too_short}

    def card(self, python: str, shell: str, parameters: int, names: Sequence[str], several: bool) -> Card:
        return Card(
            "video-prediction",
            None,
            "A model that predicts the next frames of a video from all frames so far, made with tttvideo: "
            f"{parameters:,} parameters.",
            "```sh\n"
            f"tttvideo predict {shell} clip.mp4 --context 64 --horizon 16 --out predictions\n"
            "```\n\n"
            "Its encoder and backbone start a classifier: `tttvideo train ... --init_from` with this folder.",
            "The figures hold for videos like those measured, at their frame rate. Errors grow with the horizon; "
            "compare them with\nthose of copying the last frame, which stand beside them.",
        )


class Forecast(NamedTuple):
    """Frames as predicted: p frames of a time step, each [3, H, W] in 0..1, not clamped, or [E, rows, columns] of
    features.

    Attributes:
        upcoming: [B, p, 3, H, W], the time step after the last one that was read of each row (in this call or
            before).
        timeline: [B, P, p, 3, H, W]; in evaluation prediction i is made from all time steps up to i of this call,
            and is of time step i + 1.
        at: int64 [B, P], the time step of this call that each prediction in ``timeline`` is of; it lies behind the
            end for a row's last one, and is -1 for what was made of padding.
        seen: what predictions are compared with: the frames of this call [B, F, 3, H, W] as they were given, or their
            features.
    """

    upcoming: Tensor
    timeline: Tensor
    at: Tensor
    seen: Tensor


class PredictionState(NamedTuple):
    """``upcoming`` [B, p, 3, H, W] of rows whose next call brings no frame."""

    upcoming: Tensor


class PredictionHead(TaskHead):
    """See ``Prediction``. While it trains, ``own_steps`` rises from 1 to ``rollout``."""

    logged = ("mse",)
    columns = 1 + 2 * (1 + len(TRIVIAL))
    reads_step = False

    def __init__(self, config: Prediction, sizes: Sizes):
        super().__init__()
        self.config, self.sizes = config, sizes
        pixels = config.space == "pixels"
        self.reads_features = not pixels
        self.unit = f"squared error of a frame (sum over its {'pixels in 0..1' if pixels else 'features'})"
        shape = (3, *sizes.frame) if pixels else sizes.features
        assert shape is not None  # Prediction.build refused it
        self.generated = self.picture = shape  # the base class's may be None, this one's is not
        self.patch = (shape[1] // sizes.grid[0], shape[2] // sizes.grid[1])
        self.to_pixels = nn.Linear(sizes.width, sizes.stride * shape[0] * self.patch[0] * self.patch[1])
        if config.residual:
            nn.init.zeros_(self.to_pixels.weight)
            nn.init.zeros_(self.to_pixels.bias)
        self.mean: Tensor
        self.std: Tensor
        mean, std = (sizes.mean, sizes.std) if pixels else ((0.0,), (1.0,))
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def set_progress(self, done: float) -> None:
        start, most = self.config.rollout_from, self.config.rollout
        self.own_steps = 1 + min(most - 1, int(most * max(0.0, done - start) / (1 - start)))

    def init_state(self, batch: int) -> PredictionState:
        return PredictionState(self.mean.new_zeros(batch, self.sizes.stride, *self.picture))

    def forward(
        self, tokens: Tensor, steps: Tensor | None, frames: Tensor, lengths: Tensor | None, state: PredictionState
    ) -> tuple[Forecast, PredictionState]:
        predicted = self._predict(tokens, frames, lengths)
        batch, count = predicted.shape[:2]
        valid = _on_device(steps, batch, count, predicted.device)
        upcoming = state.upcoming
        if count:
            rows = torch.arange(batch, device=predicted.device)
            last = predicted[rows, (valid - 1).clamp_min(0)]
            upcoming = torch.where((valid == 0)[:, None, None, None, None], upcoming.to(last.dtype), last)
        step = torch.arange(count, device=predicted.device).expand(batch, count)
        at = torch.where(step < valid[:, None], step + 1, -1)
        return Forecast(upcoming, predicted, at, frames), PredictionState(upcoming)

    def pictures(self, seen: Tensor) -> Tensor:
        """Frames that the model observed as they are predicted: pixels in 0..1, or features."""
        return in_unit(seen, self.mean.dtype) if self.config.space == "pixels" else seen

    def bounded(self, predicted: Tensor) -> Tensor:
        """Predictions as the model may read them again: pixels lie in 0..1."""
        return predicted.clamp(0.0, 1.0) if self.config.space == "pixels" else predicted

    def _predict(self, tokens: Tensor, frames: Tensor, lengths: Tensor | None) -> Tensor:
        """Tokens [B, S, N, C], and the frames they are of -> the time step after each, [B, S, p, 3, H, W] in 0..1."""
        (rows, columns), (height, width), p = self.sizes.grid, self.patch, self.sizes.stride
        x = self.to_pixels(tokens).to(self.mean.dtype)
        x = x.unflatten(-1, (p, -1, height, width)).unflatten(2, (rows, columns))  # B S r c p channels h w
        x = x.permute(0, 1, 4, 5, 2, 6, 3, 7).flatten(6, 7).flatten(4, 5) * self.std
        return x + (self._last(frames, x.shape[1], lengths)[:, :, None] if self.config.residual else self.mean)

    def _last(self, frames: Tensor, count: int, lengths: Tensor | None) -> Tensor:
        """The last frame of each time step [B, S, 3, H, W] in 0..1; of an unfinished one, that of the video."""
        stride = self.sizes.stride
        valid = _on_device(lengths, *frames.shape[:2], frames.device)
        ends = (torch.arange(1, count + 1, device=frames.device) * stride - 1)[None]
        index = torch.minimum(ends, (valid[:, None] - 1).clamp_min(0))
        batch = torch.arange(frames.shape[0], device=frames.device)[:, None]
        return self.pictures(frames[batch, index])

    def _compared(self, output: Forecast, target: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Predictions and truth [B, P, p, 3, H, W] in 0..1, and which of them count, bool [B, P]: whole time steps
        of the row, after the context."""
        frames, lengths = output.seen, target[1]
        stride = self.sizes.stride
        whole = frames.shape[1] // stride
        steps = frames[:, : whole * stride].unflatten(1, (whole, stride))
        rows = torch.arange(frames.shape[0], device=frames.device)[:, None]
        counts = output.at < (_on_device(lengths, *frames.shape[:2], output.at.device) // stride)[:, None]
        counts = counts & (output.at * stride >= self.config.context)
        truth = steps[rows, output.at.clamp(max=max(whole - 1, 0))] if whole else torch.zeros_like(output.timeline)
        return output.timeline, self.pictures(truth), counts

    def loss(self, output: Forecast, target: tuple[Tensor, Tensor]) -> Loss:
        """Summed over the predicted time steps that count; of each, the mean over its pixels (in the encoder's
        normalisation).

        Args:
            target: frames [B, F, 3, H, W], valid frames [B].
        """
        predicted, truth, counts = self._compared(output, target)
        predicted, truth = (predicted - self.mean) / self.std, (truth - self.mean) / self.std
        kind = F.mse_loss if self.config.loss == "mse" else F.smooth_l1_loss
        each = kind(predicted, truth, reduction="none").flatten(2).mean(2)
        if self.config.gradient_difference:
            for dim in (-1, -2):
                difference = (predicted.diff(dim=dim).abs() - truth.diff(dim=dim).abs()).abs()
                each = each + self.config.gradient_difference * difference.flatten(2).mean(2)
        return Loss(_sum(each, counts), counts.sum())

    def figures(self, output: Forecast, target: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """``mse`` of a frame, as ``Prediction.summary`` has it, over the time steps that count."""
        predicted, truth, counts = self._compared(output, target)
        squared = (self.bounded(predicted) - truth).square().flatten(3).sum(3).mean(2)
        return {"mse": _sum(squared, counts)}

    def examiner(self) -> ForecastErrors:
        return ForecastErrors(self)

    def step_losses(self, segments: Iterable[Read], labels: Tensor, stride: int, multiple: int) -> Iterator[Tensor]:
        """Squared error of each time step, summed over pixels and channels, mean over its frames, predicted from all
        true frames before it; NaN for the first of the video."""
        steps = Following(self)
        for _, lengths, output in segments:
            losses = []
            for truth, valid, guess in steps.add(lengths, output):
                error = (self.bounded(truth if guess is None else guess) - truth).float().square().flatten(2).sum(2)
                counts = valid if guess is not None else torch.zeros_like(valid)
                losses.append(torch.where(counts, error.mean(1).double(), torch.nan).cpu())
            yield torch.stack(losses, 1) if losses else torch.zeros(len(lengths), 0, dtype=torch.float64)


def _on_device(lengths: Tensor | None, batch: int, whole: int, device: torch.device) -> Tensor:
    """Valid entries of each row (None: ``whole``) [B] on the device, which writes them itself where all are ``whole``:
    a copy could not be part of a CUDA graph. Nothing waits for other copies."""
    if lengths is None or bool((lengths == whole).all()):
        return torch.full((batch,), whole, device=device)
    return lengths.to(device, non_blocking=True)


def _sum(each: Tensor, counts: Tensor) -> Tensor:
    """Sum of ``each`` [B, P] over what ``counts``."""
    return torch.where(counts, each, 0.0).sum()  # not a product: what does not count may be anything


def in_unit(frames: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Pixels in 0..1, of uint8 or floating-point frames."""
    return frames.to(dtype) / 255.0 if frames.dtype == torch.uint8 else frames.to(dtype)
