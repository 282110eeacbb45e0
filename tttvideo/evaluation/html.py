"""The report of an evaluation as one HTML file: no network, no further files, readable on a phone."""

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tttvideo.evaluation.checkpoint import selection_sentence
from tttvideo.evaluation.plots import COLOURS, INK, new_figure, plain, way
from tttvideo.evaluation.summary import has_ceiling, same_length
from tttvideo.printing import printable

if TYPE_CHECKING:
    from tttvideo.evaluation.samples import Sample
    from tttvideo.evaluation.summary import Evaluation

WRONG_LISTED = 200
"""Wrong answers that are named, at most; predictions.csv has all."""


def render(evaluation: "Evaluation", figures: dict[str, bytes], main: dict[str, Any]) -> str:
    """The page.

    Args:
        figures: caption -> PNG.
        main: the row of metrics.json that classes and failures are shown of.
    """
    metrics = evaluation.metrics
    own = [row for row in evaluation.predictions if _same(row, main)]
    wrong = [row for row in own if str(row["correct"]) != "1" and not row["failure"]]
    wrong.sort(key=lambda row: -float(row["probability"]))
    pictures = {_key(sample.row): uri(thumbnails(sample)) for sample in evaluation.failures_shown}
    return page(
        "report.html.jinja",
        metrics=metrics,
        main=main,
        figures=figures,
        selection=selection_sentence(metrics["selection"]),
        rows=metrics["results"],
        bounded=has_ceiling(metrics["results"]),
        strata_rows=same_length(metrics["results"]),
        strata=list(main.get("by", {})),
        counts=_class_counts(own, metrics["labels"]),
        samples=[(sample.row, uri(strip(sample))) for sample in evaluation.samples],
        wrong=[(row, pictures.get(_key(row))) for row in wrong[:WRONG_LISTED]],
        n_wrong=len(wrong),
    )


def page(template: str, **content: Any) -> str:
    """Fill a template of this folder; what comes from users is no markup."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: printable(value) if type(value) is str else value,  # markup is of another type
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "uri": uri,
        "way": way,
        "percent": lambda share: "" if share is None else f"{100 * share:.1f}",
        "error": lambda value: "" if value is None else f"{float(value):.4g}",
        "words": lambda name: name.replace("_", " "),
    }
    return environment.get_template(template).render(**content)


def uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def strip(sample: "Sample") -> bytes:
    """PNG: frames of a video in order, below them the probability of the likeliest classes at each frame."""
    aspect = sample.frames.shape[1] / sample.frames.shape[2]
    columns = len(sample.frames)
    cell = 9.0 / max(columns, 6)
    figure = new_figure(9.6, cell * aspect + (2.1 if sample.steps else 0.35))
    ratios = [cell * aspect, 1.9] if sample.steps else [1]
    axes = figure.subplots(len(ratios), 1, height_ratios=ratios, squeeze=False)[:, 0]
    width = sample.total / columns
    for place, picture in enumerate(sample.frames):
        left = place * width
        axes[0].imshow(picture, extent=(left + 0.02 * width, left + 0.98 * width, 0, 1), aspect="auto")
    axes[0].set_xlim(0, sample.total)
    axes[0].set_ylim(0, 1)
    axes[0].set_yticks([])
    axes[0].set_xticks([(i + 0.5) * width for i in range(columns)], [str(number) for number in sample.at], fontsize=8)
    axes[0].tick_params(length=0, pad=2)
    axes[0].spines[:].set_visible(False)
    if sample.steps:
        true = set(str(sample.row["label"]).split(";"))
        for number, (name, values) in enumerate(sample.timeline.items()):
            mark = " (true)" if name in true else ""
            axes[1].step(
                sample.steps,
                values,
                where="post",
                color=COLOURS[number % len(COLOURS)],
                linestyle="-" if mark else "--",
                linewidth=2 if mark else 1.4,
                label=plain(name) + mark,
            )
        axes[1].set_xlim(0, sample.total)
        axes[1].set_ylim(-0.03, 1.03)
        axes[1].set_xlabel("frames read", fontsize=9)
        axes[1].set_ylabel("probability", fontsize=9)
        axes[1].tick_params(labelsize=8)
        axes[1].grid(color="#DDDDDD", linewidth=0.8)
        axes[1].spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9, labelcolor=INK)
    stream = io.BytesIO()
    figure.savefig(stream, dpi=110, format="png")
    return stream.getvalue()


def thumbnails(sample: "Sample", count: int = 4, height: int = 72) -> bytes:
    """PNG: a few frames of a video side by side."""
    from PIL import Image

    chosen = np.unique(np.linspace(0, len(sample.frames) - 1, count).round().astype(int))
    width = max(1, round(height * sample.frames.shape[2] / sample.frames.shape[1]))
    image = Image.new("RGB", (len(chosen) * (width + 4) - 4, height), (255, 255, 255))
    for place, number in enumerate(chosen):
        image.paste(Image.fromarray(sample.frames[number]).resize((width, height)), (place * (width + 4), 0))
    stream = io.BytesIO()
    image.save(stream, format="png")
    return stream.getvalue()


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["path"], row["start"], row["end"]


def _same(row: dict[str, Any], main: dict[str, Any]) -> bool:
    return all(row[name] == main[name] for name in ("frames", "sampling", "views", "control"))


def _class_counts(rows: list[dict[str, Any]], labels: list[str]) -> dict[str, int]:
    """Videos of each class."""
    found = dict.fromkeys(labels, 0)
    for row in rows:
        for name in str(row["label"]).split(";"):
            if name in found:
                found[name] += 1
    return found
