"""How videos are read, as people choose it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class How:
    """How videos are read.

    Args:
        frames: cut each video to its first n frames before anything else; null: none is cut.
        sampling: which frames are used: dense, fps=R, uniform=N, segments=N, window=SECONDS or last=N; null: as in
            training.
        views: whole, clips=CLIPSxCROPS[:FRAMES] or spans=SECONDS[:STEP]: the probabilities of clips and crops, or of
            sliding spans, are averaged.
        batch_size: videos read side by side.
        workers: processes that read ahead; 0: none.
        segment: frames of a video that are held at a time, a multiple of the model's step; null: about 64.
    """

    frames: int | None = None
    sampling: str | None = None
    views: str = "whole"
    batch_size: int = 8
    workers: int = 2
    segment: int | None = None

    def __post_init__(self) -> None:
        if self.frames is not None and self.frames < 1:
            raise ValueError(f"--frames must be at least 1, got {self.frames}")
        if self.batch_size < 1:
            raise ValueError(f"--batch-size must be at least 1, got {self.batch_size}")
        if self.segment is not None and self.segment < 1:
            raise ValueError(f"--segment must be at least 1, got {self.segment}")
        if self.workers < 0:
            raise ValueError(f"--workers must be 0 or more, got {self.workers}")
        from tttvideo.evaluation.views import parse_views
        from tttvideo.video.sampling import parse_sampling

        parse_views(self.views)
        if self.sampling is not None:
            parse_sampling(self.sampling)

    def __str__(self) -> str:
        cut = "all frames" if self.frames is None else f"{self.frames} frames"
        return f"{cut}, {self.sampling}" + ("" if self.views == "whole" else f", {self.views}")
