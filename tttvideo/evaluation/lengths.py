"""Lengths that are asked for and that no video has."""

from collections.abc import Sequence

from tttvideo.evaluation.views import Clips, Spans, Views
from tttvideo.video.decode import open_video
from tttvideo.video.index import Index
from tttvideo.video.reader import VideoError
from tttvideo.video.reading import within
from tttvideo.video.sampling import Last, Sampling, Window


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
    found, lasting, broken = 0, 0.0, False
    for video in index.videos:
        if found >= most and lasting >= longest:
            break
        try:
            with open_video(video.path, stream=stream) as reader:
                times = reader.times[within(reader, video.start, video.end)]
        except (VideoError, OSError):
            broken = True
            continue
        if len(times):
            shown = float(times.diff().median()) if len(times) > 1 else 0.0
            found, lasting = max(found, len(times)), max(lasting, float(times[-1] - times[0]) + shown)
    if found < cut and (found or not broken):
        raise ValueError(
            f"--frames asks for the first {cut} frames, but the longest video of split {index.split} has {found}; "
            "give at most that, or all"
        )
    if not found:  # none can be read, which is told elsewhere
        return []
    tell = "no video is so long (the longest has {}), so that all are read whole"
    notes = [f"{name}: {tell.format(f'{found} frames')}" for name, n in frames.items() if n > found]
    # to the rounding of time stamps
    return notes + [f"{name}: {tell.format(f'{lasting:.3g} s')}" for name, s in seconds.items() if s > lasting + 1e-3]
