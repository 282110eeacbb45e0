"""One video without end: frames as they come, answers with their time, in constant memory."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..files import parse_json, replacing
from ..model import VideoModel
from ..tasks.classification import PoolState
from ..ttt.interface import detach, state_from, state_tensors
from .classify import ranked
from .forgetting import Forgetting, Never
from .frames import as_frames


class Moment(NamedTuple):
    """What the model says after a unit of frames.

    Attributes:
        time: of the unit's last frame, in seconds.
        frame: number of frames read so far.
        probabilities: [classes] of everything since the last reset, smoothed where that is asked for; None for a model
            that predicts.
        error: mean squared error of what a model that predicts expected of this unit (pixels in 0..1); None for the
            first unit, and for a classifier.
        upcoming: [p, 3, H, W] in 0..1 (or features), what such a model expects next.
        reset: why the memory was thrown away after the moment before; "" where it was not.
    """

    time: float
    frame: int
    probabilities: Tensor | None = None
    error: float | None = None
    upcoming: Tensor | None = None
    reset: str = ""


class LiveStream:
    """``stream(frames)`` reads frames and gives the answers that they complete.

    A model answers after each unit of ``unit`` frames; fewer wait for those that follow. The answers are those of one
    call over all frames since the start (or the last reset).

    Args:
        model: any that streams, in evaluation mode from now on.
        rate: frames a second, where frames come without a time.
        forget: what is forgotten; a policy serves one stream.
        smooth: seconds over which probabilities are averaged (exponentially, this being the time constant); 0: not.

    Raises:
        ValueError: for a model that reads each video whole, or of a task that neither classifies nor generates frames.
    """

    def __init__(self, model: VideoModel, *, rate: float = 25.0, forget: Forgetting | None = None, smooth: float = 0.0):
        if not model.streams:
            raise ValueError(
                "This model reads each video whole (a bidirectional layer, or a step over the whole video), so it "
                "cannot read a stream; classify recordings with it."
            )
        if model.head.generated is None and not model.config.task.classifies:
            raise ValueError(
                f"This model was trained for {type(model.config.task).__name__}; a stream is answered with classes or "
                "with the frames to come."
            )
        if not (1e-6 <= rate <= 1e9 and 0 <= smooth < math.inf):
            raise ValueError(f"Expected a rate above 0 and a smoothing of 0 or more, got {rate} and {smooth}.")
        self.model, self.rate, self.smooth = model.eval(), rate, smooth
        self.forget = forget or Never()
        self.unit = model.frame_multiple
        self.reset()

    def reset(self) -> None:
        """As before the first frame."""
        self._clear()
        self._frame, self._time = 0, 0.0
        self._smoothed: Tensor | None = None
        self._reset = ""
        self.forget.restart()

    @property
    def frames(self) -> int:
        """Read so far, those that wait included."""
        return self._frame

    def __call__(self, frames: Any, time: float | None = None) -> list[Moment]:
        """The answers that ``frames`` complete; often none, or one.

        Args:
            frames: of any size and kind (``as_frames``), one or several.
            time: of the first of them, in seconds; further ones follow at ``rate``. None: they follow those before.

        Raises:
            ValueError: for what are no frames; the stream is then as it was.
        """
        if time is not None and not math.isfinite(time):
            raise ValueError(f"Expected a time in seconds, got {time}.")
        try:
            own = self.model.preprocessing.apply(as_frames(frames))
        except ValueError as error:
            raise ValueError(f"{error} The stream is as it was.") from error
        moments = []
        for number, frame in enumerate(own):
            passed = 1 / self.rate if self._frame else 0.0
            now = self._time + passed if time is None else time + number / self.rate
            reason = self.forget.reset_before(frame, now)
            if reason and self._since:
                moments += self._finish()
                self._clear()
                self._reset = reason
            self._frame, self._time = self._frame + 1, now
            self._waiting.append(frame)
            self._since += 1
            if len(self._waiting) == self.unit:
                moments.append(self._read())
        return moments

    def finish(self) -> list[Moment]:
        """The answer with those frames that still wait for a unit to be full: of a video that ends here. Frames may
        follow only after a ``reset``."""
        return self._finish()

    def save(self, path: str | Path) -> None:
        """Writes all that the stream remembers; ``load`` goes on from there, in another process too."""
        from safetensors.torch import save_file

        waiting = torch.stack(self._waiting) if self._waiting else torch.zeros(0, dtype=torch.uint8)
        tensors = {f"state{name}": value for name, value in state_tensors(self._state).items()}
        tensors["waiting"] = waiting.cpu().contiguous()
        if self._smoothed is not None:
            tensors["smoothed"] = self._smoothed
        if self._upcoming is not None:
            tensors["upcoming"] = self._upcoming.cpu().contiguous()
        about = {"frame": self._frame, "time": self._time, "since": self._since, "model": fingerprint(self.model)}
        about["forget"] = self.forget.state()
        with replacing(Path(path)) as file:
            save_file(tensors, file, {"tttvideo_stream": json.dumps(about)})

    def load(self, path: str | Path) -> None:
        """Goes on where ``save`` was called.

        Raises:
            ValueError: if the file holds no stream of this model; the stream is then as it was.
        """
        from safetensors import safe_open

        try:
            with safe_open(str(path), "pt") as file:
                about = parse_json((file.metadata() or {})["tttvideo_stream"])
                tensors = {name: file.get_tensor(name) for name in list(file.keys())}
            if about["model"] != fingerprint(self.model):
                raise ValueError("it is of a model with other weights")
            names = {name.removeprefix("state"): value for name, value in tensors.items() if name.startswith("state")}
            state = state_from(names, self.model.init_state(1))
            frame, time, since = int(about["frame"]), float(about["time"]), int(about["since"])
            waiting = list(tensors["waiting"])
            self._check(tensors, waiting, frame, time, since)
            self.forget.restore(about["forget"])
        except FileNotFoundError:
            raise ValueError(f"{path} does not exist; give the file of LiveStream.save.") from None
        except Exception as error:  # safetensors' own, and whatever else a foreign file raises
            reason = " ".join(str(error).split()).removesuffix(".")
            raise ValueError(f"{path} is no stream of this model: {reason}.") from error
        self._state, self._frame, self._time, self._since, self._waiting = state, frame, time, since, waiting
        self._smoothed, self._upcoming = tensors.get("smoothed"), tensors.get("upcoming")
        self._reset = ""

    def _check(self, tensors: dict[str, Tensor], waiting: list[Tensor], frame: int, time: float, since: int) -> None:
        """Raises ValueError for what no stream of this model can have saved."""
        smoothed, size = tensors.get("smoothed"), (3, *self.model.preprocessing.size)
        if any(bool(tensor.isnan().any()) for tensor in tensors.values()):
            raise ValueError("it holds NaN")
        if len(waiting) >= self.unit or any(picture.shape != size for picture in waiting):
            raise ValueError(f"frames that wait must be fewer than {self.unit}, each {size}")
        if smoothed is not None and smoothed.shape != (len(self.model.labels),):
            raise ValueError(f"its answer is not of {len(self.model.labels)} classes")
        if not math.isfinite(time) or frame < 0 or not 0 <= since <= frame:
            raise ValueError("its clock is impossible")

    def _clear(self) -> None:
        """The memory is thrown away, clock and smoothing are not."""
        with torch.no_grad():
            self._state = self.model.init_state(1)
        self._waiting: list[Tensor] = []
        self._since = 0  # frames since then
        self._upcoming: Tensor | None = None

    def _finish(self) -> list[Moment]:
        return [self._read()] if self._waiting else []

    @torch.no_grad()
    def _read(self) -> Moment:
        """Reads the frames that wait."""
        device = next(self.model.parameters()).device
        frames = torch.stack(self._waiting)[None].to(device)
        output, state = self.model.read(frames, None, self._state)
        share = self.forget.kept(len(self._waiting) / self.rate)
        self._state = detach(state) if share == 1.0 else _faded(state, self.model.init_state(1), share)
        moment = Moment(self._time, self._frame, reset=self._reset)
        if self.model.head.generated is not None:
            moment = moment._replace(error=self._error(frames), upcoming=output.upcoming[0].cpu())
            self._upcoming = output.upcoming
        else:
            moment = moment._replace(probabilities=self._smooth(self.model.probabilities(output.logits[0].float())))
        self._waiting, self._reset = [], ""
        return moment

    def _smooth(self, probabilities: Tensor) -> Tensor:
        probabilities = probabilities.cpu()
        if not bool(probabilities.isfinite().all()):
            raise ValueError("The model answers with NaN: its weights are damaged; use an earlier checkpoint.")
        if self.smooth and self._smoothed is not None:
            kept = torch.exp(torch.tensor(-self.unit / self.rate / self.smooth))
            probabilities = torch.lerp(probabilities, self._smoothed, float(kept))
        self._smoothed = probabilities
        return probabilities

    def _error(self, frames: Tensor) -> float | None:
        """Of what was expected of the first time step of these frames."""
        if self._upcoming is None:
            return None
        truth = self.model.truth(frames)[:, : self._upcoming.shape[1]]
        expected = self.model.head.bounded(self._upcoming.to(truth.device))[:, : truth.shape[1]]
        return float((expected - truth).square().mean())


def _faded(state: Any, start: Any, share: float) -> Any:
    """A state of which ``share`` is kept: what was learned is led back to the start, sums decay."""

    def fade(now: Any, first: Any) -> Any:
        if isinstance(now, PoolState):
            return PoolState(now.total * share, now.weight * share)
        if not isinstance(now, Tensor) or not now.is_floating_point():
            return now
        if now.shape != first.shape:  # a window or the last inputs of a convolution, which begin empty
            return now
        return torch.lerp(first.to(now), now, share)

    def leaf(node: Any) -> bool:
        return isinstance(node, PoolState)

    leaves, tree = pytree.tree_flatten(detach(state), is_leaf=leaf)
    firsts = pytree.tree_leaves(start, is_leaf=leaf)
    return pytree.tree_unflatten([fade(*pair) for pair in zip(leaves, firsts, strict=True)], tree)


def fingerprint(model: VideoModel) -> str:
    """Of a model's weights: a state of one set of weights means nothing to another."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + str(tensor.dtype).encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def grows(model: VideoModel) -> bool:
    """Whether the state grows with every unit (attention without a window): tried with black frames."""
    height, width = model.preprocessing.size
    frames = torch.zeros(1, model.frame_multiple, 3, height, width, dtype=torch.uint8)
    frames = frames.to(next(model.parameters()).device)
    state, sizes = None, []
    with torch.no_grad():
        for _ in range(18):  # tails and windows fill up at first
            _, state = model.read(frames, None, state)
            sizes.append(sum(leaf.numel() for leaf in pytree.tree_leaves(state) if isinstance(leaf, Tensor)))
    return sizes[-1] > sizes[-2] > sizes[-3]


def as_row(model: VideoModel, moment: Moment, topk: int) -> dict[str, Any]:
    """A moment as a line of JSON has it."""
    row: dict[str, Any] = {"time": round(moment.time, 6), "frame": moment.frame}
    if moment.probabilities is not None:
        row["classes"] = [{"label": n, "probability": p} for n, p in ranked(model, moment.probabilities, topk)]
    elif moment.error is not None:
        row["mse"] = moment.error
    return row | ({"reset": moment.reset} if moment.reset else {})
