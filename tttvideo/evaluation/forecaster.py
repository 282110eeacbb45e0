"""A model that predicts frames, as evaluation uses it: loaded, its lengths checked, and what it makes of a context."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from tttvideo.model import VideoModel
from tttvideo.pretrained import from_pretrained
from tttvideo.tasks import Prediction, roll_out
from tttvideo.tasks.prediction import PredictionHead
from tttvideo.tasks.trivial import History
from tttvideo.video.reader import VideoError
from tttvideo.video.segments import read_segments
from tttvideo.video.transforms import Preprocessing


def prediction_model(folder: str | Path, *, trust: bool = False) -> VideoModel:
    """``from_pretrained``, for a model that predicts frames.

    Raises:
        ValueError: if it was trained for something else.
    """
    model = from_pretrained(folder, trust=trust)
    if not isinstance(model.config.task, Prediction):
        raise ValueError(
            f"{folder} was trained for {type(model.config.task).__name__} and predicts no frames; use a checkpoint "
            "trained with model.task Prediction"
        )
    return model.eval()


def space_of(model: VideoModel) -> str:
    """What a model that predicts puts out, ``pixels`` or ``features``."""
    assert isinstance(model.config.task, Prediction)
    return model.config.task.space


def rate_mismatch(what: str, rate: float | None, known: float | None) -> list[str]:
    """A sentence if ``what`` is read at ``rate`` Hz and the model learned from videos at clearly another, ``known``."""
    if not rate or not known or 0.9 <= rate / known <= 1.1:
        return []
    faster = f"motion looks {known / rate:.2g} times as fast to it"
    return [f"{what} is read at {rate:.4g} frames a second and the model learned from {known:.4g}: {faster}"]


def check_lengths(model: VideoModel, context: int, horizon: int) -> None:
    """Raises ValueError where a model cannot read such a context, or there is nothing to predict."""
    step = model.frame_multiple
    if horizon < 1:
        raise ValueError(f"--horizon is {horizon}, which leaves nothing to predict; give at least 1 frame")
    if context < 1 or context % step:
        of = f"a multiple of {step} frames, the model's time step" if step > 1 else "at least 1 frame"
        raise ValueError(f"--context must be {of}; got {context}")


def read_clip(
    path: str, preprocessing: Preprocessing, frames: int, span: tuple[float | None, float | None] = (None, None)
) -> Tensor:
    """The first ``frames`` frames that the sampling rule takes, uint8 [n, 3, H, W]; n is less in a shorter video.

    Raises:
        VideoError: if the video cannot be read.
    """
    held: list[Tensor] = []
    count = 0
    for segment in read_segments([path], preprocessing, segment=64, spans=[span], prefetch=False):
        if segment.failures:
            raise VideoError(segment.failures[0])
        held.append(segment.frames[0, : int(segment.lengths[0])])
        count += len(held[-1])
        if count >= frames:
            break
    return torch.cat(held)[:frames]


@torch.no_grad()
def forecasts(
    model: VideoModel, context: Tensor, horizon: int, *, write: bool = True, segment: int | None = None
) -> dict[str, Tensor]:
    """The frames after ``context`` (uint8 [B, C, 3, H, W]) by the model and by what needs none: each of
    ``METHODS`` -> [B, horizon, 3, H, W] in 0..1, or [B, horizon, E, rows, columns] of features.

    Raises:
        ValueError: if what the model makes is not finite.
    """
    assert isinstance(model.head, PredictionHead)
    pieces = context.split(model.segment_frames(segment or 64), dim=1)
    made = {"model": roll_out(model, [(piece, None) for piece in pieces], horizon, write=write)}
    if not made["model"].isfinite().all():
        raise ValueError(
            "the model's predictions are not numbers (NaN or infinite): its weights are damaged, or its training "
            "diverged; use an earlier checkpoint"
        )
    history = History(len(context), model.truth(context[:, :1]))
    for piece in pieces:
        history.add(model.truth(piece), torch.ones(len(context), dtype=torch.bool, device=context.device))
    return made | {name: model.head.bounded(guess) for name, guess in history.guesses(horizon).items()}


def shown_horizons(horizon: int) -> Sequence[int]:
    """1, 2, 4, ... and the last."""
    return sorted({h for h in (2**i for i in range(horizon.bit_length())) if h <= horizon} | {horizon})
