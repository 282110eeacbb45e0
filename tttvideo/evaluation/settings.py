"""What one row of an evaluation is: how many frames of each video are kept, and which of those are shown."""

from collections.abc import Sequence
from typing import NamedTuple

from tttvideo.video.sampling import Dense, Sampling, parse_sampling


class Setting(NamedTuple):
    """One row: first the video is cut to its first `frames` frames (None: all), then `sampling` picks."""

    frames: int | None
    sampling: Sampling

    @property
    def frames_name(self) -> int | str:
        """The cut as results state it: a number, or "all"."""
        return "all" if self.frames is None else self.frames

    def __str__(self) -> str:
        return f"{self.frames_name} frames, {self.sampling}"


def parse_frames(text: str) -> list[int | None]:
    """Read "16,64,256,all" as numbers of frames, None for all; ValueError names the part that is neither."""
    cuts: list[int | None] = []
    for part in text.split(","):
        word = part.strip()
        if word == "all":
            cut = None
        elif word.isdecimal() and int(word) > 0:
            cut = int(word)
        else:
            raise ValueError(f"--frames takes positive numbers and 'all', with commas, e.g. 16,64,all; got {word!r}")
        if cut not in cuts:
            cuts.append(cut)
    return cuts


def parse_samplings(texts: Sequence[str]) -> list[Sampling]:
    """Read sampling rules, several per string allowed ("dense,fps=1"); repetitions are dropped."""
    rules: list[Sampling] = []
    for text in texts:
        for part in text.split(","):
            rule = parse_sampling(part.strip())
            if rule not in rules:
                rules.append(rule)
    return rules


def all_settings(cuts: Sequence[int | None], rules: Sequence[Sampling]) -> list[Setting]:
    """Every combination, one row each: all cuts of the first rule, then of the second, and so on."""
    return [Setting(cut, rule) for rule in rules for cut in cuts]


def passes(settings: Sequence[Setting], frame_multiple: int, streams: bool = True) -> list[list[int]]:
    """Group settings (by position) that one reading of the videos answers exactly.

    The logits of the first n frames are the timeline's at n, so every dense cut at a multiple of
    `frame_multiple` is read off one pass over the longest of them. Other rules pick other frames for every cut
    (uniform=16 of 64 frames is no part of uniform=16 of 256), and a cut inside a tubelet pads that tubelet: a
    pass each. A model that does not stream has seen the end of the video at every time step: a pass each, too.
    """
    shared, alone = [], []
    for position, (cut, rule) in enumerate(settings):
        exact = streams and rule == Dense() and (cut is None or cut % frame_multiple == 0)
        (shared if exact else alone).append(position)
    return [group for group in (shared, *([position] for position in alone)) if group]
