"""The whole model: encoder, sequence backbone and task head; from frames to outputs."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from . import serialize
from .backbone import Backbone
from .encoder import Encoder, Patches
from .encoder.base import EncoderState, check_range
from .plain import to_plain
from .serialize import FORMAT
from .synonyms import MODEL, advice
from .tasks import Classification, Loss, Output, Sizes, Task
from .tasks.base import Read
from .tasks.rollout import roll_out_end
from .ttt import TTTLayer
from .ttt.interface import NO_WEIGHT_DECAY, Layout, State
from .ttt.interface import detach as detach_state
from .video.transforms import Preprocessing, Span

if TYPE_CHECKING:
    from .inference.stream import LiveStream
    from .video.segments import Piece

WHOLE = 2**40
"""Frames of a segment that holds any video whole."""


@dataclass(frozen=True)
class ModelConfig:
    """Architecture: frames -> encoder -> tokens of all frames -> backbone -> task head.

    Attributes:
        encoder: frames to tokens: ``Patches``, ``Tubelets``, ``ConvStem``, ``Timm``, ``Transformers``, ``Features`` or
            a class by import path.
        backbone: the stack of blocks around a sequence layer.
        task: what is learned: ``Classification`` or ``Prediction``.
    """

    encoder: Encoder = field(default_factory=Patches)
    backbone: Backbone = field(default_factory=Backbone)
    task: Task = field(default_factory=Classification)


class ModelState(NamedTuple):
    """All that a model remembers of the videos it is reading."""

    encoder: EncoderState
    backbone: tuple[State, ...]
    task: Any


class VideoModel(nn.Module):
    """A video model: ``forward(frames, lengths, state) -> (output, ModelState)``; the output is the task's.

    Args:
        config: architecture.
        preprocessing: how videos become frames for it; travels with the weights.
        labels: class names, in the order of the logits.
        multi_label: several labels per video: sigmoid and binary cross-entropy.
        load: False where weights follow from a checkpoint.

    Raises:
        ValueError: where sizes do not fit together.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        preprocessing: Preprocessing,
        labels: list[str],
        multi_label: bool = False,
        load: bool = True,
    ):
        super().__init__()
        self.config = config
        self.preprocessing = preprocessing
        self.labels = list(labels)
        self.multi_label = multi_label
        self.provenance: dict[str, Any] = {}
        self.encoder = config.encoder.build(preprocessing.size, config.backbone.width, load=load)
        self.backbone = config.backbone.build()
        self.head = config.task.build(self._sizes())
        if self.head.generated is not None and self.head.space == "pixels" and not self.encoder.reads_pixels:
            raise ValueError(
                "Prediction of pixels needs videos as frames, and this encoder's are read as features; set task.space: "
                "features, or encoder.cache: null."
            )
        self._exempt: set[str] = set()
        self.no_weight_decay()  # collected now, as a copy of a parameter does not carry its mark

    @staticmethod
    def from_pretrained(folder: str | Path, *, trust: bool = False) -> VideoModel:
        """``tttvideo.from_pretrained``."""
        from .pretrained import from_pretrained

        return from_pretrained(folder, trust=trust)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            raise AttributeError(f"{error}{advice(name, MODEL)}") from None

    @property
    def reading(self) -> Preprocessing:
        """How videos are read for this model: as its preprocessing says, or as features that are at hand."""
        return self.encoder.reading(self.preprocessing)

    def reading_of(
        self, paths: Sequence[str], spans: Sequence[Span], sampling: object, first: int | None = None
    ) -> Preprocessing:
        """The same for these videos and another sampling rule: as frames, where a cache lacks features of one of them.
        The rest as ``Preprocessing.serving`` has it."""
        return replace(self.reading, sampling=str(sampling)).serving(paths, spans, first)

    @property
    def frame_multiple(self) -> int:
        """A stream may be cut at multiples of this many frames: whole time steps, and whole units of the backbone."""
        rows, columns = self.encoder.grid
        return self.encoder.stride * math.lcm(self.backbone.unit(rows * columns), rows * columns) // (rows * columns)

    @property
    def streams(self) -> bool:
        """False if each video must be read whole, in one call (``Bidirectional``)."""
        return self.backbone.streams

    def init_state(self, batch: int) -> ModelState:
        return ModelState(self.encoder.init_state(batch), self.backbone.init_state(batch), self.head.init_state(batch))

    def forward(
        self, frames: Tensor, lengths: Tensor | None = None, state: ModelState | None = None
    ) -> tuple[Any, ModelState]:
        """Reads frames after those already in ``state``.

        Args:
            frames: uint8 [B, F, 3, H, W], or floating point in 0..1 (checked, at a synchronisation, but in training);
                or what a frozen encoder makes of them, [B, F, *encoder.feature_shape].
            lengths: valid frames of each row in this call, int64 [B] (0 allowed); None for all.
            state: what earlier calls returned; None at the start.

        Raises:
            ValueError: for frames of another shape, kind or range, which leave ``state`` as it was.
        """
        if not isinstance(frames, Tensor):
            raise ValueError(
                f"A model reads tensors [B, F, 3, H, W], but got a {type(frames).__name__}; model.classify(...) reads "
                "files, folders of frames and arrays."
            )
        if not self.training and frames.shape[-3:] == (3, *self.preprocessing.size):  # features may have any values
            check_range(frames, lengths)
        return self.read(frames, lengths, state)

    def read(
        self, frames: Tensor, lengths: Tensor | None = None, state: ModelState | None = None
    ) -> tuple[Any, ModelState]:
        """``forward`` of frames whose values need no look: decoded ones, and those that the model made itself."""
        if frames.dim() != 5:
            raise ValueError(
                f"A model reads clips [B, F, 3, H, W], but got {list(frames.shape)}; add a batch dimension."
            )
        if frames.shape[-3:] == self.encoder.feature_shape:
            frames = frames.to(self.encoder.mean.dtype)
        elif frames.shape[-3:] not in ((3, *self.preprocessing.size), self.head.generated):
            raise ValueError(
                f"This model reads frames of 3 x {self.preprocessing.size[0]} x {self.preprocessing.size[1]}, but "
                f"got {' x '.join(map(str, frames.shape[-3:]))}; use its preprocessing."
            )
        state = self.init_state(frames.shape[0]) if state is None else state
        lengths = None if lengths is None else lengths.cpu()
        if lengths is not None and not bool(((lengths >= 0) & (lengths <= frames.shape[1])).all()):
            raise ValueError(
                f"lengths {lengths.tolist()} must lie between 0 and the {frames.shape[1]} frames of the call."
            )
        if lengths is not None and bool((lengths == frames.shape[1]).all()):
            lengths = None
        frames = self.observed(frames, lengths)
        if self.training and self.head.own_steps > 1:
            return roll_out_end(self._through, self.head, frames, lengths, state)
        return self._through(frames, lengths, state)

    def _through(self, frames: Tensor, lengths: Tensor | None, state: ModelState) -> tuple[Any, ModelState]:
        """Frames as ``observed`` gives them -> tokens [B, S, N, C] -> mixed tokens -> the task's output."""
        embed = self.encoder.embed if frames.shape[-3:] == self.encoder.feature_shape else self.encoder
        tokens, steps, encoder = embed(frames, lengths, state.encoder)
        layout = Layout(self.encoder.grid, None if steps is None else steps * tokens.shape[2])
        mixed, backbone = self.backbone(tokens.flatten(1, 2), state.backbone, layout)
        output, task = self.head(mixed.unflatten(1, tokens.shape[1:3]), steps, frames, lengths, state.task)
        return output, ModelState(encoder, backbone, task)

    def observed(self, frames: Tensor, lengths: Tensor | None = None) -> Tensor:
        """What is read, and what predictions are compared with: the frames; for a head that predicts features, what the
        frozen encoder sees in them [B, F, *encoder.feature_shape]."""
        if not self.head.reads_features or frames.shape[-3:] == self.encoder.feature_shape:
            return frames
        return self.encoder.features(frames, lengths)

    @torch.no_grad()
    def truth(self, frames: Tensor) -> Tensor:
        """What predictions of these frames, uint8 [B, F, 3, H, W], are compared with: [B, F, channels, rows, columns].

        Raises:
            ValueError: if the model generates no frames.
        """
        if self.head.generated is None:
            raise ValueError(f"This model was trained for {type(self.config.task).__name__} and predicts no frames.")
        return self.head.pictures(self.observed(frames))

    def _sizes(self) -> Sizes:
        return Sizes(
            width=self.config.backbone.width,
            grid=self.encoder.grid,
            stride=self.encoder.stride,
            frame=self.preprocessing.size,
            mean=self.encoder.statistics[0],  # pyright: ignore[reportArgumentType]
            std=self.encoder.statistics[1],  # pyright: ignore[reportArgumentType]
            causal=self.backbone.causal,
            whole_frames=self.backbone.whole_frames,
            features=self.encoder.feature_shape,
            classes=len(self.labels),
            multi_label=self.multi_label,
        )

    def loss(self, output: Any, target: Any) -> Tensor:
        """The task's loss, the mean over what counts in the batch (videos, or predicted time steps); ``target`` as the
        task defines it (labels, for classification)."""
        return self.summed_loss(output, target).mean()

    def summed_loss(self, output: Any, target: Any) -> Loss:
        """The same as a sum and the number of what it is summed over: what training adds up over the batches and
        processes of a step.

        Raises:
            ValueError: where the head of a user's own task gives anything else.
        """
        loss = self.head.loss(output, target)
        if not isinstance(loss, Loss):
            raise ValueError(
                f"Expected a tasks.Loss(total, count) of {type(self.head).__name__}.loss, got a {type(loss).__name__}; "
                "return the sum over what counts (videos, say) and how many those are, in place of their mean."
            )
        return loss

    def probabilities(self, logits: Tensor) -> Tensor:
        """[..., classes] -> the same shape: softmax, or a sigmoid each where a video has several labels."""
        return logits.sigmoid() if self.multi_label else logits.softmax(-1)

    @torch.no_grad()
    def score_segments(self, segments: Iterable[tuple[Tensor, Tensor]]) -> Output:
        """Reads videos segment by segment with carried state: memory does not grow with their length (the state of
        ``Attention`` without a window does: its cache).

        Args:
            segments: (frames [B, F, 3, H, W], lengths [B]) in order, as long as ``segment_frames`` says: each but a
                row's last a multiple of ``frame_multiple`` frames; one segment for a model that does not stream.

        Returns:
            the logits of the whole videos, and the timeline of all segments.

        Raises:
            ValueError: if there is no segment, or a second one for a model that does not stream.
        """
        last, timelines = None, []
        for _, _, last in self.outputs(segments):
            timelines.append(last.timeline)
        if last is None:
            raise ValueError("There are no frames to score.")
        return Output(last.logits, torch.cat(timelines, dim=1))

    @torch.no_grad()
    def outputs(self, segments: Iterable[tuple[Tensor, Tensor]]) -> Iterator[Read]:
        """Segments as ``score_segments`` takes them, each with its output, on the model's device."""
        state = None
        for frames, lengths in segments:
            frames, output, state = self._read_on(frames, lengths, state)
            yield frames, lengths, output

    @torch.no_grad()
    def outputs_of_batches(self, pieces: Iterable[Piece]) -> Iterator[tuple[Piece, Any]]:
        """The same of several batches whose segments alternate: each piece with the output for it; None where none of
        its videos has a frame. The state of a batch is let go after its last piece."""
        states: dict[int, ModelState | None] = {}
        for piece in pieces:
            state, output = states.pop(piece.batch, None), None
            if bool(piece.lengths.any()):
                _, output, state = self._read_on(piece.frames, piece.lengths, state)
            if not piece.last:
                states[piece.batch] = state
            yield piece, output

    def _read_on(self, frames: Tensor, lengths: Tensor, state: ModelState | None) -> tuple[Tensor, Any, ModelState]:
        frames = frames.to(next(self.parameters()).device, non_blocking=True)
        output, state = self(frames, lengths, state)
        return frames, output, detach_state(state)

    def classify(self, source: Any, topk: int = 5, **how: Any) -> Any:
        """Labels and probabilities [(label, probability), ...], most probable first.

        Args:
            source: a video: path of a file or of a folder of frames, or the frames themselves (array [F, h, w, 3],
                tensor [F, 3, h, w], list of pictures is not one: give it as an array), of which all are used. Or
                several: a list, answered by a list; an iterator, answered by an iterator that reads on as it is asked.
            topk: how many labels.
            how: fields of ``tttvideo.inference.config.How``: frames, sampling, views, batch_size, workers.

        Raises:
            tttvideo.video.decode.VideoError: if a video cannot be read.
            ValueError: if the model was not trained for classification, or frames are neither uint8 nor in 0..1.
        """
        from .inference.classify import answers_of
        from .inference.config import how_of

        return answers_of(self, source, topk, how_of(**{"workers": 0, **how}))

    def stream(self, **how: Any) -> LiveStream:
        """A reader of one video without end: ``stream(frames)`` takes frames of any size and kind, and gives the
        answers that they complete. ``how``: of ``tttvideo.inference.stream.LiveStream`` (rate, forget, smooth).

        Raises:
            ValueError: for a model that reads each video whole.
        """
        from .inference.stream import LiveStream

        return LiveStream(self, **how)

    def segment_frames(self, wanted: int) -> int:
        """The largest length of a segment up to ``wanted`` frames, but at least one that a stream may be cut at; of a
        model that does not stream: longer than any video."""
        return max(1, wanted // self.frame_multiple) * self.frame_multiple if self.streams else WHOLE

    def set_inner_rate(self, scale: float) -> None:
        """Multiplies every inner learning rate: 1 as configured, less while the inner loop warms up."""
        for layer in self.ttt_layers():
            layer.rate_warmup = scale

    def inner_rates(self) -> list[float]:
        """Base rate of the inner loop of every TTT layer."""
        return [layer.base_rate for layer in self.ttt_layers()]

    def set_checkpointing(self, chunks: int) -> None:
        """Recomputes activations of the chunk scan in the backward pass, in groups of ``chunks``; 0: stores all."""
        for layer in self.ttt_layers():
            layer.checkpoint_group = chunks

    def ttt_layers(self) -> list[TTTLayer]:
        return [module for module in self.modules() if isinstance(module, TTTLayer)]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Depth of every parameter, for timm's layer-wise learning-rate decay. Of an encoder some of whose blocks are
        trained each is a layer, the embedding is one with the last."""
        below = {
            f"encoder block {number}": [(rf"^encoder\.model\.{re.escape(name)}$", None) for name in block]
            for number, block in enumerate(self.encoder.trained_blocks[:-1])
        }
        return {
            **below,
            "stem": r"^encoder",
            "blocks": [(r"^backbone\.blocks\.(\d+)", None), (r"^backbone\.norm|^head", (99999,))],
        }

    def no_weight_decay(self) -> set[str]:
        """Parameters that say so themselves (``ttt.interface.exempt_from_decay``), and those that a module inside names
        in its own ``no_weight_decay()``, as timm's models do. Optimizers exempt biases and other vectors anyway."""
        self._exempt |= {name for name, p in self.named_parameters() if getattr(p, NO_WEIGHT_DECAY, False)}
        for prefix, module in self.named_modules():
            if module is not self and hasattr(module, "no_weight_decay"):
                self._exempt |= {f"{prefix}.{name}" for name in module.no_weight_decay()}  # type: ignore[operator]
        return set(self._exempt)

    def exempt_from_decay(self, names: set[str]) -> None:
        """Adds parameters to ``no_weight_decay``."""
        self._exempt |= names

    def save_pretrained(self, folder: str | Path, provenance: dict[str, Any] | None = None) -> None:
        """Writes ``config.json`` (plain data) and ``model.safetensors`` into ``folder``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        description = {
            "format": FORMAT,
            "model": to_plain(self.config),
            "preprocessing": to_plain(self.preprocessing),
            "labels": self.labels,
            "multi_label": self.multi_label,
            "provenance": self.provenance if provenance is None else provenance,
        }
        serialize.save_weights(self, folder)
        serialize.write_description(description, folder)
