"""`tttvideo stream`: a line of JSON for each answer, while the video comes."""

from __future__ import annotations

import math
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from ..pretrained import from_pretrained
from ..printing import json_text, printable
from ..video.reading import damaged_videos_named
from .config import StreamConfig
from .files import device
from .forgetting import Decay, parse_forgetting
from .live import open_source, stream_rate
from .stream import LiveStream, Moment, as_row, grows


def watch(config: StreamConfig) -> int:
    """Reads the source to its end, or until Ctrl-C.

    Returns:
        the exit code.

    Raises:
        VideoError: for a source that cannot be opened, or went away and did not come back.
        ValueError: for a model that does not stream, or settings that do not fit it.
    """
    model = from_pretrained(config.checkpoint, trust=config.trust).to(device(config.device, 0))
    forget = parse_forgetting(config.forget)
    stream = LiveStream(model, rate=config.fps or config.rate, forget=forget, smooth=config.smooth)
    fps, sentence = stream_rate(model.preprocessing.sampling)
    if sentence and config.fps is None:
        say(sentence)
    config = replace(config, fps=config.fps or fps)
    if grows(model) and config.forget in ("never", "cut"):
        say("this model's state grows with every frame (attention without a window): memory will, too")
    if grows(model) and isinstance(forget, Decay):
        raise ValueError("this model's state grows with every frame, so it cannot decay; take --forget every=SECONDS")
    if config.state and Path(config.state).exists():
        stream.load(config.state)
    with damaged_videos_named():
        _watch(config, stream)
    return 0


def say(sentence: str) -> None:
    print(printable(f"note: {sentence}"), file=sys.stderr, flush=True)


def _watch(config: StreamConfig, stream: LiveStream) -> None:
    shown, waiting = -math.inf, None

    def put(moment: Moment) -> None:
        nonlocal shown, waiting
        shown, waiting = moment.time, None
        print(json_text(as_row(stream.model, moment, config.topk), indent=None), flush=True)

    started = stream.frames
    try:
        with closing(open_source(config, stream.model.preprocessing, say)) as shots:  # type: ignore[type-var]  # generators
            for frame, time in shots:
                for moment in stream(frame, time):
                    waiting = moment
                    if moment.reset or not 0 <= moment.time - shown < config.every - 1e-9:
                        put(moment)
        if config.state is None:  # the video has ended: its last frames get an answer, too
            for moment in stream.finish():
                waiting = moment
        if waiting is not None:
            put(waiting)
    finally:
        if config.state is not None and stream.frames > started:
            stream.save(config.state)
