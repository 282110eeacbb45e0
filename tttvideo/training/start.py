"""`--init_from`: weights that a run starts from, and a table of what was taken of them and what was not."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from ..files import write_text
from ..model import VideoModel
from ..plain import from_plain
from ..printing import json_text
from ..serialize import difference, read_description, read_weights, resolve_checkpoint
from ..ttt_lm import is_ttt_lm, read_ttt_lm
from .config import ConfigError
from .run_folder import writing

PARTS = ("encoder", "backbone")
"""What is taken; the head starts afresh, as it belongs to the task."""
POSITION = "encoder.position"
"""A learned vector for each place of the token grid [rows * columns, C], resized where frames have another size."""


@dataclass
class Start:
    """What of the checkpoint ``source`` (None: of nothing) a model holds now, by the names of its tensors.

    Attributes:
        loaded: as they were.
        resized: with their size there and here.
        left: tensors of the model that start afresh, with the reason.
        unused: tensors of the checkpoint that have no place in the model.
    """

    source: str | None = None
    loaded: list[str] = field(default_factory=list)
    resized: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """The names of all tensors, as ``folder/start.json``."""
        if self.source is not None:
            with writing(folder / "start.json"):
                write_text(folder / "start.json", json_text(asdict(self)) + "\n")

    def lines(self) -> Iterator[str]:
        """The table, a row for each part of the model."""
        if self.source is None:
            return
        yield f"start  weights of {self.source}"
        yield f"       {'part':10}{'loaded':>8}{'resized':>9}{'left':>6}"
        for part in dict.fromkeys(name.split(".")[0] for name in (*self.loaded, *self.resized, *self.left)):
            loaded, resized, left = (_of(part, names) for names in (self.loaded, self.resized, self.left))
            notes = [f"{name.removeprefix(f'{part}.')} {self.resized[name]}" for name in resized]
            notes += dict.fromkeys(self.left[name] for name in left)
            yield f"       {part:10}{len(loaded):8}{len(resized):9}{len(left):6}  {'; '.join(notes)}".rstrip()
        if self.unused:
            names = ", ".join(self.unused[:3]) + (", ..." if len(self.unused) > 3 else "")
            yield f"       {len(self.unused)} tensors of the checkpoint are not used: {names}"


def _of(part: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.split(".")[0] == part]


def brings_encoder(init_from: str | None) -> bool:
    """Whether the encoder's weights come from there, so that no pre-trained ones need be fetched."""
    return bool(init_from) and not is_ttt_lm(Path(str(init_from)))


def start_from(model: VideoModel, init_from: str | None) -> Start:
    """Loads encoder and backbone of a run folder, checkpoint or export, or the backbone of a ttt-lm checkpoint;
    nothing of None.

    The backbone must be the same. An encoder of another kind starts afresh.

    Raises:
        ValueError: if there is no checkpoint, it is damaged, or its backbone is another one.
    """
    if not init_from:
        return Start()
    lm = is_ttt_lm(Path(init_from))
    folder = Path(init_from) if lm else resolve_checkpoint(init_from)
    tensors, size, unused = _read(folder, lm)
    start, expected = Start(str(folder), unused=unused), model.state_dict()
    _resize(start, tensors, expected, size, model.encoder.grid)
    for part in PARTS:
        shapes = {name: tensors[name].shape for name in _of(part, tensors)}
        reason = difference({name: expected[name].shape for name in _of(part, expected)}, shapes)
        if reason and shapes and part == "encoder" and hasattr(model.encoder, "source"):
            raise ConfigError(
                f"init_from: the encoder in {folder} is another one than this model's, whose pre-trained weights would "
                f"be lost: {reason}; give it the settings in {folder / 'config.json'}"
            )
        if reason and part == "backbone":
            where = f"tttvideo.ttt_lm.read_ttt_lm({init_from!r}).config" if lm else folder / "config.json"
            raise ConfigError(
                f"init_from: the backbone in {folder} does not fit this model's, which has another architecture: "
                f"{reason}; give it the settings in {where}"
            )
        if reason:
            start.left |= dict.fromkeys(_of(part, expected), reason if shapes else "the checkpoint has none")
            start.unused += shapes
        else:
            model.load_state_dict({name: tensors[name] for name in shapes}, strict=False)
            start.loaded += [name for name in shapes if name not in start.resized]
    start.resized = {name: sizes for name, sizes in start.resized.items() if name not in start.left}
    start.left |= dict.fromkeys((name for name in expected if name.split(".")[0] not in PARTS), "starts afresh")
    start.unused += [name for name in tensors if name.split(".")[0] not in PARTS]
    return start


def _read(folder: Path, lm: bool) -> tuple[dict[str, Tensor], Sequence[int] | None, list[str]]:
    """Tensors by the names of a video model, the size (height, width) of the frames that it reads (None: not known),
    and the names of those that no video model has. ``lm``: of a ttt-lm checkpoint."""
    size, unused = None, []
    if lm:
        language = read_ttt_lm(folder)
        tensors, unused = {f"backbone.{name}": tensor for name, tensor in language.tensors.items()}, language.left
    else:
        tensors = read_weights(folder)
        size = getattr(from_plain(read_description(folder).get("preprocessing")), "size", None)
    if broken := next((name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())), None):
        raise ConfigError(
            f"init_from: {broken} in {folder} has numbers that are not finite, so its weights are damaged, or its "
            "training diverged; take an earlier checkpoint"
        )
    return tensors, size, list(unused)


def _resize(
    start: Start,
    tensors: dict[str, Tensor],
    expected: dict[str, Tensor],
    size: Sequence[int] | None,
    grid: Sequence[int],
) -> None:
    """Brings the positions of another token grid, of frames of ``size`` (height, width), to ``grid``."""
    there, here = tensors.get(POSITION), expected.get(POSITION)
    if there is None or here is None or size is None or there.shape[1:] != here.shape[1:]:
        return
    rows = round(math.sqrt(len(there) * size[0] / size[1]))
    # of no grid of this shape: the encoder is another one
    if rows == 0 or len(there) % rows or (rows, len(there) // rows) == tuple(grid):
        return
    maps = there.unflatten(0, (rows, -1)).movedim(-1, 0)[None]
    tensors[POSITION] = F.interpolate(maps.float(), grid, mode="bicubic")[0].flatten(1).mT.to(there.dtype)
    start.resized[POSITION] = f"{rows} x {len(there) // rows} -> {grid[0]} x {grid[1]}"
