"""The whole model: encoder, sequence backbone and task head; from frames to logits, from a folder and to one."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .backbone import Backbone
from .encoder import Encoder, Patches
from .encoder.base import EncoderState
from .encoder.pretrained import TimmEncoder
from .serialize import from_plain, to_plain
from .tasks.classification import Classification, PoolState
from .ttt import TTTLayer
from .ttt.interface import Layout, State
from .ttt.interface import detach as detach_state
from .video.transforms import Preprocessing

FORMAT = "tttvideo-1"
WHOLE = 2**40
"""Frames of a segment that holds any video whole."""


@dataclass(frozen=True)
class ModelConfig:
    """Architecture: frames -> encoder -> tokens of all frames -> backbone -> task head.

    Attributes:
        encoder: frames to tokens: ``Patches``, ``Tubelets``, ``ConvStem`` or ``Timm``.
        backbone: the stack of blocks around a sequence layer.
        task: what is predicted.
    """

    encoder: Encoder = field(default_factory=Patches)
    backbone: Backbone = field(default_factory=Backbone)
    task: Classification = field(default_factory=Classification)


class ModelState(NamedTuple):
    """All that a model remembers of the videos it is reading."""

    encoder: EncoderState
    backbone: tuple[State, ...]
    pool: PoolState


class Output(NamedTuple):
    """``logits`` [B, classes] of everything seen so far; ``timeline`` [B, S, classes]: the same, had the video
    ended at each time step of this call (``encoder.stride`` frames each). That holds at multiples of
    ``frame_multiple`` frames, and nowhere before the end for a model that does not stream."""

    logits: Tensor
    timeline: Tensor


class VideoModel(nn.Module):
    """A video model: ``forward(frames, lengths, state) -> (Output, ModelState)``.

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
        self.head = config.task.build(config.backbone.width, len(labels))

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
    ) -> tuple[Output, ModelState]:
        """Reads frames after those already in ``state``.

        Args:
            frames: uint8 [B, F, 3, H, W], or floating point in 0..1.
            lengths: valid frames of each row in this call, int64 [B] (0 allowed); None for all.
            state: what earlier calls returned; None at the start.
        """
        if frames.dim() != 5:
            raise ValueError(
                f"A model reads clips [B, F, 3, H, W], but got {list(frames.shape)}; add a batch dimension."
            )
        if frames.shape[-3:] != (3, *self.preprocessing.size):
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
        tokens, steps, encoder_state = self.encoder(frames, lengths, state.encoder)
        count, per_step = tokens.shape[1:3]
        layout = Layout(self.encoder.grid, None if steps is None else steps * per_step)
        mixed, backbone_state = self.backbone(tokens.flatten(1, 2), state.backbone, layout)
        valid = None if steps is None else (torch.arange(count) < steps[:, None]).to(mixed.device)
        logits, timeline, pool = self.head(mixed.unflatten(1, (count, per_step)), valid, state.pool)
        return Output(logits, timeline), ModelState(encoder_state, backbone_state, pool)

    def loss(self, output: Output, labels: Tensor) -> Tensor:
        """The task's loss, mean over the batch; ``labels`` int64 [B] or float [B, classes]."""
        return self.config.task.loss(output.logits, labels, self.multi_label)

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
        device = self.head.classifier.weight.device
        state, output, timelines = None, None, []
        for frames, lengths in segments:
            output, state = self(frames.to(device, non_blocking=True), lengths, state)
            state = detach_state(state)
            timelines.append(output.timeline)
        if output is None:
            raise ValueError("There are no frames to score.")
        return Output(output.logits, torch.cat(timelines, dim=1))

    @torch.no_grad()
    def classify(self, path: str | Path, topk: int = 5, segment: int = 256) -> list[tuple[str, float]]:
        """Labels and probabilities of a video file or folder of frames, most probable first.

        Args:
            topk: how many labels.
            segment: frames held in memory at once, by a model that streams.

        Raises:
            tttvideo.video.decode.VideoError: if the video cannot be read.
        """
        from .video.decode import VideoError
        from .video.segments import read_segments

        training = self.training
        self.eval()

        def segments():
            for part in read_segments([str(path)], self.preprocessing, segment=self.segment_frames(segment)):
                if part.failures:
                    raise VideoError(part.failures[0])
                yield part.frames, part.lengths

        try:
            probabilities = self.probabilities(self.score_segments(segments()).logits[0].float())
        finally:
            self.train(training)
        values, indices = probabilities.topk(min(topk, len(self.labels)))
        return [(self.labels[i], float(p)) for i, p in zip(indices.tolist(), values.tolist(), strict=True)]

    def segment_frames(self, wanted: int) -> int:
        """The largest length of a segment up to ``wanted`` frames, but at least one that a stream may be cut at; of a
        model that does not stream: longer than any video."""
        return max(1, wanted // self.frame_multiple) * self.frame_multiple if self.streams else WHOLE

    def set_inner_rate(self, scale: float) -> None:
        """Multiplies every inner learning rate: 1 as configured, less while the inner loop warms up."""
        for layer in self._ttt_layers():
            layer.rate_warmup = scale

    def inner_rates(self) -> list[float]:
        """Base rate of the inner loop of every TTT layer."""
        return [layer.project.base_rate for layer in self._ttt_layers()]

    def set_checkpointing(self, chunks: int) -> None:
        """Recomputes activations of the chunk scan in the backward pass, in groups of ``chunks``; 0: stores all."""
        for layer in self._ttt_layers():
            layer.checkpoint_group = chunks

    def _ttt_layers(self) -> list[TTTLayer]:
        return [module for module in self.modules() if isinstance(module, TTTLayer)]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Depth of every parameter, for timm's layer-wise learning-rate decay."""
        return {
            "stem": r"^encoder",
            "blocks": [(r"^backbone\.blocks\.(\d+)", None), (r"^backbone\.norm|^head", (99999,))],
        }

    def no_weight_decay(self) -> set[str]:
        """Parameters that decay would pull from what they mean: positions, inner starts, rates and norms."""
        inner = (
            ".weights.",
            ".biases.",
            ".rate.",
            ".norm_",
            ".scale_shift",
            ".forget.",
            ".alpha",
            ".A_log",
            ".dt_bias",
            ".D",
        )
        named = {
            name
            for name, _ in self.named_parameters()
            if "position" in name or (".mixer." in name and any(part in name for part in inner))
        }
        if isinstance(self.encoder, TimmEncoder):
            own = getattr(self.encoder.model, "no_weight_decay", set)()
            named |= {f"encoder.model.{name}" for name in own}
        return named

    def save_pretrained(self, folder: str | Path, provenance: dict[str, Any] | None = None) -> None:
        """Writes ``config.json`` (plain data) and ``model.safetensors`` into ``folder``."""
        from safetensors.torch import save_file

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
        text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
        (folder / "config.json").write_text(text, encoding="utf-8")
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def from_pretrained(folder: str | Path, *, trust: bool = False) -> VideoModel:
    """The model of a run folder (its best checkpoint), a checkpoint in one, or an exported folder.

    Args:
        trust: allow classes outside ``tttvideo`` that the configuration names (importing them runs their code).

    Raises:
        ValueError: if the folder holds no such model, with the reason.
    """
    from safetensors.torch import load_file

    folder = resolve_checkpoint(folder)
    where = str(folder / "config.json")
    description = read_description(folder)
    try:
        labels = description["labels"]
        if not (isinstance(labels, list) and all(isinstance(name, str) for name in labels)):
            raise TypeError("labels are not a list of names")
        model = VideoModel(
            from_plain(description["model"], trust=trust, where=where),
            preprocessing=from_plain(description["preprocessing"], trust=trust, where=where),
            labels=labels,
            multi_label=description["multi_label"],
            load=False,
        )
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{where} is damaged or of another version ({type(error).__name__}: {error}).") from error
    model.provenance = description.get("provenance") or {}
    load_weights(model, folder, load_file)
    return model.eval()


def read_description(folder: Path) -> dict[str, Any]:
    """``folder/config.json`` as it stands; no class is built.

    Raises:
        ValueError: if it does not describe a model of this package.
    """
    where = folder / "config.json"
    try:
        description = json.loads(where.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{where} is not JSON ({error}); the file is damaged.") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise ValueError(f"{where} does not describe a tttvideo model (format {FORMAT}).")
    return description


def load_weights(model: VideoModel, folder: Path, load_file: Any) -> None:
    """Loads ``folder/model.safetensors`` strictly.

    Raises:
        ValueError: if the file is damaged or of another architecture.
    """
    path = folder / "model.safetensors"
    try:
        tensors = load_file(path)
    except Exception as error:
        raise ValueError(f"{path} cannot be read ({error}); the file is damaged or not safetensors.") from error
    expected = model.state_dict()
    missing, unknown = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    shapes = [n for n in sorted(set(expected) & set(tensors)) if expected[n].shape != tensors[n].shape]
    if missing or unknown or shapes:
        first = (missing or unknown or shapes)[0]
        raise ValueError(
            f"{path} is of another architecture than its configuration says: {len(missing)} tensors missing, "
            f"{len(unknown)} unknown, {len(shapes)} of another shape (first: {first})."
        )
    model.load_state_dict(tensors)


def resolve_checkpoint(path: str | Path) -> Path:
    """The folder with ``config.json`` and ``model.safetensors`` that ``path`` means.

    Raises:
        ValueError: if there is none.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"The checkpoint {path} does not exist.")
    if _is_model(path):
        return path
    index = path / "checkpoints" / "index.json"
    if index.is_file():
        try:
            entries = dict(json.loads(index.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{index} is damaged ({error}); name a checkpoint of the run instead.") from error
        for key in ("best", "last"):
            if isinstance(entries.get(key), str) and _is_model(path / "checkpoints" / entries[key]):
                return path / "checkpoints" / entries[key]
    raise ValueError(
        f"{path} holds no checkpoint: neither config.json and model.safetensors, nor checkpoints/ of a run."
    )


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() and (folder / "model.safetensors").is_file()
