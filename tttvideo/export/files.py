"""`tttvideo export`: the files of a checkpoint for others, and the check of a step on real frames."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from .. import hub
from ..evaluation.generating import read_clip
from ..files import check_folder
from ..model import VideoModel
from ..origin import Checkpoint, inspect_checkpoint
from ..pretrained import from_pretrained
from ..printing import printable
from ..serialize import read_description
from ..video.folders import read_folder
from ..video.listfile import read_list
from .config import ExportConfig, ExportError
from .folder import export
from .runtimes import ONNX, TORCH, need_onnx, verify, write_step
from .step import Step

FRAMES = 64
"""Frames that a step is checked over, or four units if those are more."""

LIMIT = 1e-4
"""Largest difference of a probability, or of a pixel in 0..1."""

FILES = {"torch": TORCH, "onnx": ONNX}


def export_files(config: ExportConfig) -> int:
    """Writes what ``config.format`` asks for, and says where it is.

    Returns:
        the exit code.

    Raises:
        ValueError: for a model that has no streaming step, or a file that differs from its model.
    """
    formats = [name for name in FILES if config.format in (name, "all")]
    out = Path(config.out)
    check_folder(out)
    source = inspect_checkpoint(config.checkpoint)
    step, frames = None, None
    if formats:  # what cannot be written or checked is refused before anything is written
        if "onnx" in formats:
            need_onnx()
        step = Step(from_pretrained(source.folder, trust=config.trust).cpu().eval(), config.batch)
        frames = _frames(step, _video(config, source)) if config.verify else None
    if config.format in ("folder", "all"):
        how = {"metrics": config.metrics, "trust": config.trust, "license": config.license, "carry": config.carry}
        export(config.checkpoint, out, **how)
        trusted = ", trust=True" if config.trust else ""
        print(printable(f'exported to {out}; load it with tttvideo.from_pretrained("{out}"{trusted})'))
        if config.push is not None:
            address = hub.push(out, config.push, read_description(out).get("carried", ()))
            print(printable(f'{address}: tttvideo.from_pretrained("{config.push}"{trusted})'))
    if step is not None:
        _write(step, out, formats, frames)
    return 0


def _write(step: Step, out: Path, formats: list[str], frames: Tensor | None) -> None:
    """The step in these formats, checked on the frames."""
    write_step(step, out, formats)
    for name in formats:
        size = (out / FILES[name]).stat().st_size
        print(
            printable(
                f"{out / FILES[name]}: {size:,} bytes, {step.unit} frames a step, {len(step.names)} tensors of state"
            )
        )
    if frames is not None:
        for name in formats:
            _compare(step.model, out, name, frames)


def _compare(model: VideoModel, out: Path, name: str, frames: Tensor) -> None:
    check, file = verify(model, out, name, frames), FILES[name]
    print(
        f"{len(frames)} frames one after the other: {file} differs from the model by {check.difference:.1e} at most; "
        f"{check.file_rate:.0f} frames a second, the model {check.model_rate:.0f}"
    )
    if not check.difference <= LIMIT:
        raise ExportError(
            f"{out / file} differs from its model by {check.difference:.1e}, more than {LIMIT:.0e}: do not use it"
        )


def _frames(step: Step, video: str) -> Tensor:
    """Frames of a video, three units of them at least."""
    frames = read_clip(video, step.model.preprocessing, max(FRAMES, 4 * step.unit))
    if len(frames) < 3 * step.unit:
        raise ExportError(
            f"a check needs three units of {step.unit} frames, and {video} has {len(frames)} frames; give a longer one "
            "by --video"
        )
    return frames


def _video(config: ExportConfig, source: Checkpoint) -> str:
    """The video that a step is checked on."""
    if config.video is not None:
        return config.video
    if source.data is None or not Path(source.data).exists():
        raise ExportError("--verify needs a video, and the run's data are not there; give one by --video")
    data = Path(source.data)
    rows = read_folder(data, "all", labelled=False) if data.is_dir() else read_list(data, root=source.root)
    return rows[0].path
