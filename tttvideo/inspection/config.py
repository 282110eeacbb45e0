"""Settings of the command `inspect`; light, so that its help comes at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Look inside a model: what each part costs; and over a video what its hidden states learn: inner loss before and
    after each update, how far weights move, what the layers choose to learn from (a heat map on the frames), and what
    is still there at the end. Writes inspection.html, inspection.json and figures.

    Attributes:
        checkpoint: run folder (its best), checkpoint in it, or export.
        video: file, or folder of frame images (default: the costs alone are printed).
        out: folder for the report (default: inspection).
        frames: only the first n frames of the video.
        json: print the costs as JSON in place of a table.
        device: cpu, cuda, cuda:1, ... (default: a GPU if available).
        trust: allow model classes outside tttvideo, also from the working directory: they run their code.
    """

    positional: ClassVar = ("checkpoint", "video")

    checkpoint: str
    video: tuple[str, ...] = ()
    out: str | None = None
    frames: int | None = None
    json: bool = False
    device: str | None = None
    trust: bool = False

    def __post_init__(self) -> None:
        if self.frames is not None and self.frames < 1:
            raise ValueError(f"--frames must be at least 1, got {self.frames}")
        if len(self.video) > 1:
            raise ValueError(f"tttvideo inspect looks at one video, got {len(self.video)}; give them one by one")
        if not self.video and (self.out or self.frames):
            raise ValueError("--out and --frames are for the report of a video; give one: tttvideo inspect MODEL VIDEO")
