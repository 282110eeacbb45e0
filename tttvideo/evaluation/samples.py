"""Videos to look at: which, and what a model that reads made of them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ..model import VideoModel
from ..tasks import Score
from ..video.index import Index, Video
from ..video.reader import VideoError
from ..video.reading import open_sized, within
from ..video.segments import read_segments
from .plots import COLOURS, INK, new_figure, plain
from .settings import Setting
from .table import Result, Sample

LONGEST = 4096
"""Frames of a video that are read for a sample, at most."""
COLUMNS = 12
"""Frames of a sample that are shown."""
WORST = 12
"""Videos that went wrong, of which a report has thumbnails, at most."""


class Look(NamedTuple):
    """One video as the model read it."""

    row: dict[str, Any]  # of predictions.csv
    total: int  # frames that were read
    at: list[int]  # numbers of the frames shown
    frames: np.ndarray  # uint8 [n, H, W, 3]
    steps: list[int]  # frames read at each point of the curves; empty for a model that does not stream
    curves: dict[str, list[float]]  # name -> value at each of them


def choose(predictions: Sequence[dict[str, Any]], count: int, score: Score) -> tuple[list[int], list[int]]:
    """Positions of ``count`` videos to show at length, and those of ``worst_first``. Where videos are right or wrong,
    these take turns, with different labels as far as there are any; else they stand evenly from the best to the
    worst."""
    wrong = worst_first(predictions, score)
    if not score.judged:
        ranks = np.linspace(len(wrong) - 1, 0, min(count, len(wrong))).round().astype(int)
        return [wrong[rank] for rank in ranks], wrong
    of_wrong = set(wrong)
    right = [i for i, row in enumerate(predictions) if not row["failure"] and i not in of_wrong]
    first_of: dict[str, int] = {}
    for i in right:
        first_of.setdefault(str(predictions[i].get("label")), i)
    right = [*first_of.values(), *(i for i in right if i not in first_of.values())]
    alternating = [i for pair in zip(right, wrong) for i in pair]
    alternating += [i for i in right[len(wrong) :] + wrong[len(right) :]]
    return alternating[:count], wrong


def worst_first(rows: Sequence[dict[str, Any]], score: Score) -> list[int]:
    """Positions of the videos that went worst, the worst first: of wrong answers, the surest; else of all that have a
    score."""
    values = {i: score.of(row) for i, row in enumerate(rows) if not row["failure"]}
    if score.judged:
        wrong = [i for i, value in values.items() if not value]
        return sorted(wrong, key=lambda i: -float(rows[i].get("probability") or 0))
    ranked = {i: value for i, value in values.items() if value is not None}
    return sorted(ranked, key=lambda i: -ranked[i] if score.lower else ranked[i])


def evenly(ranked: int, count: int) -> tuple[list[int], list[int]]:
    """Of so many videos in order of their error, places in that order: ``count`` that stand evenly over them, the best
    first, and the ``count`` last, the worst first. No video is in both; of few, half are."""
    worst = list(range(ranked - min(count, ranked // 2), ranked))[::-1]
    others = ranked - len(worst)
    usual = np.unique(np.linspace(0, others - 1, min(count, others)).round().astype(int)) if others else []
    return [int(rank) for rank in usual], worst


def read_samples(model: VideoModel, index: Index, result: Result, settings: Sequence[Setting], count: int) -> Result:
    """The result with samples, of the ``main_row``."""
    results = result.metrics["results"]
    number = results.index(main_row(results))
    rows = result.predictions[number * len(index.videos) : (number + 1) * len(index.videos)]
    score = model.config.task.score(index.multi_label)
    usual, wrong = choose(rows, count, score)

    def samples(numbers: Sequence[int]) -> list[Sample]:
        looks = [look_at(model, index.videos[i], rows[i], settings[number]) for i in numbers]
        return [Sample(look.row, _caption(look.row, score), strip(look), thumbnails(look)) for look in looks if look]

    return result._replace(samples=samples(usual), worst=samples(wrong[:WORST]))


def _caption(row: dict[str, Any], score: Score) -> str:
    """Its score, where that is no right or wrong; what it is, what was answered, and how surely, where the task says
    so."""
    value = None if score.judged else score.of(row)
    words = [] if value is None else [f"{score.title} {value:.4g}"]
    words += [row[name] for name in ("label",) if row.get(name)]
    words += [f"answered {row['prediction']}"] if row.get("prediction") else []
    words += [f"probability {float(row['probability']):.3f}"] if row.get("probability") else []
    return ", ".join(words)


def main_row(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row that most readers mean: nothing taken away, the whole video, else the longest cut that was asked for."""
    unchanged = [row for row in rows if not row["control"]]
    return max(unchanged, key=lambda row: (row["frames"] == "all", row["frames"] if row["frames"] != "all" else 0))


@torch.no_grad()
def look_at(model: VideoModel, video: Video, row: dict[str, Any], setting: Setting) -> Look | None:
    """Reads a video again, to be shown; None if that fails."""
    try:
        with open_sized(video.path, model.preprocessing) as reader:
            times = reader.times[within(reader, video.start, video.end)][: setting.frames]
        total = min(LONGEST, len(setting.sampling.indices(times - times[0], None)))
        at = sorted({int((i + 0.5) * total / COLUMNS) for i in range(COLUMNS)})
        held, timelines, read = [], [], 0
        state = None
        device = next(model.parameters()).device
        segments = read_segments(
            [video.path],
            model.preprocessing,
            segment=model.segment_frames(64) if model.streams else LONGEST,
            max_frames=setting.frames,
            sampling=setting.sampling,
            spans=[(video.start, video.end)],
            prefetch=False,
        )
        for part in segments:
            if part.failures or read >= total:
                break
            frames = part.frames[:, : total - read]
            held += [frames[0, i - read] for i in at if read <= i < read + frames.shape[1]]
            if model.streams:
                output, state = model(frames.to(device), None, state)
                timeline = model.head.timeline(output)
                timelines += [] if timeline is None else [timeline[0].float().cpu()]
            read += frames.shape[1]
    except (VideoError, OSError):
        return None
    if not held:
        return None
    steps, curves = _curves(model, row, timelines, read)
    pictures = torch.stack(held).permute(0, 2, 3, 1).numpy()
    return Look(row, read, at[: len(held)], pictures, steps, curves)


def _curves(
    model: VideoModel, row: dict[str, Any], timelines: list[torch.Tensor], read: int
) -> tuple[list[int], dict[str, list[float]]]:
    """Frames read at each point, and what the task shows of the rows [S, columns] there."""
    if not timelines:
        return [], {}
    rows = torch.cat(timelines)
    ends = [min((i + 1) * model.encoder.stride, read) for i in range(len(rows))]
    kept = [i for i, end in enumerate(ends) if end % model.frame_multiple == 0 or i == len(rows) - 1]
    label = str(row.get("label", "")).split(";")
    return [ends[i] for i in kept], model.config.task.curves(rows[kept], label, model.labels, model.multi_label)


def strip(look: Look) -> bytes:
    """PNG: frames of a video in order, below them the curves."""
    aspect = look.frames.shape[1] / look.frames.shape[2]
    columns = len(look.frames)
    cell = 9.0 / max(columns, 6)
    figure = new_figure(9.6, cell * aspect + (2.1 if look.curves else 0.35))
    ratios = [cell * aspect, 1.9] if look.curves else [1]
    axes = figure.subplots(len(ratios), 1, height_ratios=ratios, squeeze=False)[:, 0]
    width = look.total / columns
    for number, picture in enumerate(look.frames):
        left = number * width
        axes[0].imshow(picture, extent=(left + 0.02 * width, left + 0.98 * width, 0, 1), aspect="auto")
    axes[0].set_xlim(0, look.total)
    axes[0].set_ylim(0, 1)
    axes[0].set_yticks([])
    axes[0].set_xticks([(i + 0.5) * width for i in range(columns)], [str(number) for number in look.at], fontsize=8)
    axes[0].tick_params(length=0, pad=2)
    axes[0].spines[:].set_visible(False)
    if look.curves:
        _draw_curves(axes[1], look)
        figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9, labelcolor=INK)
    stream = io.BytesIO()
    figure.savefig(stream, dpi=110, format="png")
    return stream.getvalue()


def _draw_curves(axes, look: Look) -> None:
    true = set(str(look.row.get("label", "")).split(";"))
    for number, (name, values) in enumerate(look.curves.items()):
        mark = " (true)" if name in true else ""
        axes.step(
            look.steps,
            values,
            where="post",
            color=COLOURS[number % len(COLOURS)],
            linestyle="-" if mark else "--",
            linewidth=2 if mark else 1.4,
            label=plain(name) + mark,
        )
    axes.set_xlim(0, look.total)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("frames read", fontsize=9)
    axes.set_ylabel("probability" if "probability" in look.row else "", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(color="#DDDDDD", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


def thumbnails(look: Look, count: int = 4, height: int = 72) -> bytes:
    """PNG: a few frames of a video side by side."""
    from PIL import Image

    chosen = np.unique(np.linspace(0, len(look.frames) - 1, count).round().astype(int))
    width = max(1, round(height * look.frames.shape[2] / look.frames.shape[1]))
    image = Image.new("RGB", (len(chosen) * (width + 4) - 4, height), (255, 255, 255))
    for column, number in enumerate(chosen):
        image.paste(Image.fromarray(look.frames[number]).resize((width, height)), (column * (width + 4), 0))
    stream = io.BytesIO()
    image.save(stream, format="png")
    return stream.getvalue()
