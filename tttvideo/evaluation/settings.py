"""What one row of an evaluation is: how many frames of each video are kept, and which of those are shown."""

from collections.abc import Sequence
from typing import NamedTuple

from ..video.decode import open_video
from ..video.index import Index
from ..video.reader import VideoError
from ..video.reading import within
from ..video.sampling import Dense, Last, Sampling, Window, parse_sampling
from ..video.views import Clips, Spans, Views, Whole, parse_views
from .controls import CONTROLS


class Setting(NamedTuple):
    """One row: the video is cut to its first `frames` frames (None: all), divided into `views`, and `sampling` picks
    from each of them; `control` is what was taken away from the model ("": nothing)."""

    frames: int | None
    sampling: Sampling
    views: Views = Whole()
    control: str = ""

    @property
    def frames_name(self) -> int | str:
        """The cut as results state it: a number, or "all"."""
        return "all" if self.frames is None else self.frames

    def __str__(self) -> str:
        more = [str(self.views)] * (self.views != Whole()) + [self.control] * bool(self.control)
        return ", ".join([f"{self.frames_name} frames", str(self.sampling), *more])


def parse_frames(text: str, trained: int | None = None) -> list[int | None]:
    """Read "16,64,2x,all" as numbers of frames, None for all, 2x for twice the length `trained` of a training clip.
    ValueError names the part that is none of these."""
    cuts: list[int | None] = []
    for part in text.split(","):
        word = part.strip()
        if word == "all":
            cut = None
        elif word.isdecimal() and int(word) > 0:
            cut = int(word)
        elif word.endswith("x") and word[:-1].isdecimal() and int(word[:-1]) > 0:
            if not trained:
                raise ValueError(
                    f"--frames {word} counts in lengths of training clips, and this checkpoint does not say how long "
                    "those were; give numbers of frames"
                )
            cut = int(word[:-1]) * trained
        else:
            raise ValueError(
                "--frames takes positive numbers and 'all', with commas, e.g. 16,64,all, and 2x for twice the length "
                f"of a training clip; got {word!r}"
            )
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


def parse_all_views(texts: Sequence[str]) -> list[Views]:
    """Read rules that divide videos, several per string allowed ("whole,spans=60")."""
    return list(dict.fromkeys(parse_views(part.strip()) for text in texts for part in text.split(",")))


def parse_controls(texts: Sequence[str], possible: Sequence[str]) -> list[str]:
    """Read names of controls, several per string allowed; "all" stands for those `possible`."""
    names = [part.strip() for text in texts for part in text.split(",")]
    for name in names:
        if name not in (*CONTROLS, "all"):
            raise ValueError(f"there is no control {name!r}; there are: {', '.join(CONTROLS)} (and all)")
    return list(possible) if "all" in names else list(dict.fromkeys(names))


def all_settings(
    cuts: Sequence[int | None],
    rules: Sequence[Sampling],
    views: Sequence[Views] = (Whole(),),
    controls: Sequence[str] = (),
) -> list[Setting]:
    """Every combination of cut, rule and way to divide the videos, one row each: all cuts of the first rule, then of
    the second, and so on. Controls have rows for all cuts with the first rule and the first way."""
    plain = [Setting(cut, rule, way) for way in views for rule in rules for cut in cuts]
    return plain + [Setting(cut, rules[0], views[0], control) for control in controls for cut in cuts]


def passes(settings: Sequence[Setting], frame_multiple: int, streams: bool = True) -> list[list[int]]:
    """Group settings (by position) that one reading of the videos answers exactly.

    The logits of the first n frames are the timeline's at n, so every dense cut at a multiple of
    `frame_multiple` is read off one pass over the longest of them. Other rules pick other frames for every cut
    (uniform=16 of 64 frames is no part of uniform=16 of 256), and a cut inside a tubelet pads that tubelet: a
    pass each. A model that does not stream has seen the end of the video at every time step: a pass each, too.
    """
    shared, alone = [], []
    for position, (cut, rule, views, control) in enumerate(settings):
        plain = rule == Dense() and views == Whole() and not control
        exact = streams and plain and (cut is None or cut % frame_multiple == 0)
        (shared if exact else alone).append(position)
    return [group for group in (shared, *([position] for position in alone)) if group]


def check_lengths(
    index: Index,
    cuts: Sequence[int | None],
    samplings: Sequence[Sampling],
    views: Sequence[Views],
    stream: int | None = None,
) -> list[str]:
    """Sentences on clips, spans, windows and last frames that are longer than every video of a split: they are read
    whole. Videos are opened until one is long enough for everything.

    Args:
        cuts: first n frames of each video; None: all.
        stream: the video stream that is read, as ``Preprocessing.stream``.

    Raises:
        ValueError: if no video has as many frames as a cut: its row would say what it is not.
    """
    cut = max((n for n in cuts if n), default=0)
    frames = {str(rule): rule.n for rule in samplings if isinstance(rule, Last)}
    frames |= {str(way): way.frames for way in views if isinstance(way, Clips) and way.frames}
    seconds = {str(rule): rule.seconds for rule in samplings if isinstance(rule, Window)}
    seconds |= {str(way): way.seconds for way in views if isinstance(way, Spans)}
    most, longest = max([cut, *frames.values()]), max(seconds.values(), default=0.0)
    frame_count, duration, broken = 0, 0.0, False  # of the longest video
    for video in index.videos:
        if frame_count >= most and duration >= longest:
            break
        try:
            with open_video(video.path, stream=stream) as reader:
                times = reader.times[within(reader, video.start, video.end)]
        except (VideoError, OSError):
            broken = True
            continue
        if len(times):
            last = float(times.diff().median()) if len(times) > 1 else 0.0
            frame_count = max(frame_count, len(times))
            duration = max(duration, float(times[-1] - times[0]) + last)
    if frame_count < cut and (frame_count or not broken):
        raise ValueError(
            f"--frames asks for the first {cut} frames, but the longest video of split {index.split} has "
            f"{frame_count}; give at most that, or all"
        )
    if not frame_count:  # none can be read; each is listed as a failure
        return []
    short = "no video is so long (the longest has {}), so that all are read whole"
    notes = [f"{name}: {short.format(f'{frame_count} frames')}" for name, n in frames.items() if n > frame_count]
    # to the rounding of time stamps
    longer = [name for name, s in seconds.items() if s > duration + 1e-3]
    return notes + [f"{name}: {short.format(f'{duration:.3g} s')}" for name in longer]
