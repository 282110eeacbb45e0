"""What the command `export` can be told: a dataclass that becomes options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ..hub import NAME


class ExportError(ValueError):
    """An export that cannot be written, or that does not do what the checkpoint does."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write a checkpoint for others: as a folder, or as its streaming step with explicit state.

    A folder is read back, and its outputs are compared with the checkpoint's.

    Attributes:
        checkpoint: run folder (its best), checkpoint in it, or export.
        out: new or empty folder, or an earlier export to replace.
        format: folder (config.json, model.safetensors, labels.json and a model card, for tttvideo.from_pretrained and
            the Hugging Face Hub), torch (step.pt2: one streaming step by torch.export), onnx (step.onnx: the same), or
            all of them.
        push: owner/name on the Hugging Face Hub, where the folder is put too; a new repository there is private.
        license: of the model, as the Hub calls it (apache-2.0, mit, ...), for the card.
        metrics: metrics.json of evaluations of these weights, for the card (default: the run folder's).
        batch: streams side by side in a step.
        verify: run the step over a video beside the model and compare the answers.
        video: the video for that (default: the first of the run's data).
        trust: allow model classes outside tttvideo, also from the working directory: they run their code.
        carry: Python files of such classes, which go into the folder, so that it can be loaded elsewhere.
    """

    positional: ClassVar = ("checkpoint",)
    repeated: ClassVar = ("metrics", "carry")

    checkpoint: str
    out: str
    format: Literal["folder", "torch", "onnx", "all"] = "folder"
    push: str | None = None
    license: str | None = None
    metrics: tuple[str, ...] = ()
    batch: int = 1
    verify: bool = False
    video: str | None = None
    trust: bool = False
    carry: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.format not in ("folder", "torch", "onnx", "all"):
            raise ValueError(f"--format is folder, torch, onnx or all, got {self.format!r}")
        if self.batch < 1:
            raise ValueError(f"--batch must be at least 1, got {self.batch}")
        if self.verify and self.format == "folder":
            raise ValueError("--verify is of a step (--format torch, onnx or all); a folder is always read back")
        if self.push is not None and (self.format not in ("folder", "all") or not NAME.fullmatch(self.push)):
            raise ValueError(f"--push puts a folder (--format folder or all) at owner/name, got {self.push!r}")
        if self.license is not None and self.format not in ("folder", "all"):
            raise ValueError("--license is of the card of a folder (--format folder or all); leave it out")
        if self.video is not None and not self.verify:
            raise ValueError("--video is for --verify; give both or neither")
        if self.carry and (not self.trust or self.format not in ("folder", "all")):
            raise ValueError("--carry puts the files of your own classes into a folder, which needs --trust; give both")
