"""`tttvideo inspect`: the costs of a model as a table, and a report of what it learned over a video."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..evaluation.controls import chunk_frames
from ..evaluation.report import templates
from ..files import as_json, check_folder, replacing, result_set
from ..inference.files import device
from ..inference.timeline import frame_times
from ..model import VideoModel
from ..pretrained import from_pretrained
from ..printing import json_text, printable
from ..video.index import Video
from ..video.reader import VideoError
from ..video.reading import damaged_videos_named
from .config import InspectConfig
from .costs import Part, costs, total
from .figures import COLUMNS, plot_heat, plot_losses, plot_memory, plot_rates, plot_weights
from .recording import LayerRecord, layers_of, pieces_of, record

OUT = "inspection"

FIGURES = {
    "inner_loss.png": "Does the hidden state learn? Inner loss of every chunk at the weights before its update and "
    "after it, mean over heads.",
    "rates.png": "How strongly each frame is learned from: the learned part of the inner learning rate.",
    "rates_over_video.png": "The same as a heat map on frames from beginning to end: red is the most that this layer "
    "takes from any place of any frame, blue the least.",
    "rates_highest.png": "The frames that each layer learns most from, in their order.",
    "weights.png": "How far each update moves the fast weights, and how far they are from W_0.",
    "memory.png": "What is left at the end: loss of a chunk's own pairs at W_0, right after it was read, and at the "
    "last weights; and how similar the read-out of its queries is to what it was (cosine, beyond what W_0 gives).",
}


def inspect(config: InspectConfig) -> int:
    """Prints the costs, and writes a report where there is a video.

    Returns:
        the exit code.

    Raises:
        VideoError, ValueError: for a video or checkpoint that cannot be read.
    """
    out = Path(config.out or OUT)
    if config.video:
        check_folder(out)
    model = from_pretrained(config.checkpoint, trust=config.trust).to(device(config.device, 0))
    parts = costs(model)
    if config.json:
        print(json_text([part._asdict() for part in [*parts, total(parts)]]))
    else:
        _print_costs(model, parts)
    if not config.video:
        return 0
    if not layers_of(model):
        raise ValueError(f"{config.checkpoint} has no TTT layer: nothing in it learns while it reads; leave VIDEO out")
    with damaged_videos_named():
        sentences = write_inspection(model, config.checkpoint, config.video[0], out, parts, config.frames)
    if not config.json:
        for sentence in sentences:
            print(printable(sentence))
        print(printable(f"written to {out}: inspection.html, inspection.json and {len(FIGURES)} figures"))
    return 0


def write_inspection(
    model: VideoModel, name: str, video: str, out: Path, parts: list[Part], first: int | None = None
) -> list[str]:
    """Reads the ``first`` frames of a video (None: all) and writes inspection.html, inspection.json and the figures.

    Returns:
        sentences on what was found.
    """
    times = frame_times(Video(video, None, None, None, None), model.preprocessing, model.preprocessing.sampling, first)
    pictures: dict[int, Tensor] = {}
    stride, count, output, records = model.encoder.stride, 0, None, []
    for frames, output, records in record(model, pieces_of(model, video, first)):  # noqa: B007
        pictures |= {count + i: frames[i].clone() for i in range(0, len(frames), stride)}
        count += len(frames)
        kept = {number for numbers in (*_highest(records, stride), _regular(count, stride)) for number in numbers}
        pictures = {number: picture for number, picture in pictures.items() if number in kept}
    if not records or not len(records[0].steps):
        raise VideoError(
            f"{video}: its {count} frames do not fill a chunk of this model, which is of {chunk_frames(model)} frames; "
            "give a longer one"
        )
    sentences = [*_answer(model, output), *(_sentence(layer) for layer in records)]
    regular = _regular(count, stride)
    even = [regular[i] for i in np.linspace(0, len(regular) - 1, min(COLUMNS, len(regular))).round().astype(int)]
    with result_set(out, ["inspection.json"], ["inspection.html", "inspection.json", *FIGURES]) as folder:
        figures = _numbers(records, times, parts)
        with replacing(folder / "inspection.json") as path:
            path.write_text(as_json(figures), encoding="utf-8")
        plot_losses(folder / "inner_loss.png", records, times)
        plot_rates(folder / "rates.png", records, times, stride)
        plot_heat(folder / "rates_over_video.png", records, [even] * len(records), pictures, stride)
        plot_heat(folder / "rates_highest.png", records, _highest(records, stride), pictures, stride)
        plot_weights(folder / "weights.png", records, times)
        plot_memory(folder / "memory.png", records, times)
        images = {caption: (folder / file).read_bytes() for file, caption in FIGURES.items()}
        page = templates(Path(__file__).parent).get_template("report.html.jinja")
        facts = [("model", name), ("video", f"{video}, {count} frames")]
        with replacing(folder / "inspection.html") as path:
            html = page.render(facts=facts, sentences=sentences, rows=_rows(parts), figures=images)
            path.write_text(html, encoding="utf-8")
    return sentences


def _highest(records: list[LayerRecord], stride: int) -> list[list[int]]:
    """For each layer the frames that it learns most from, in their order."""
    highest = []
    for layer in records:
        rates = layer.rates.flatten(1).mean(1)
        highest.append(sorted((rates.topk(min(COLUMNS, len(rates))).indices * stride).tolist()))
    return highest


def _regular(count: int, stride: int) -> range:
    """Every n-th of so many frames, n doubling as they become more: those of before are among them."""
    every = stride
    while count > 4 * COLUMNS * every:
        every *= 2
    return range(0, count, every)


def _answer(model: VideoModel, output: Any) -> list[str]:
    if not model.config.task.classifies:
        return []
    probabilities = model.probabilities(output.logits[0].float())
    best = int(probabilities.argmax())
    return [f"answer: {model.labels[best]} ({float(probabilities[best]):.3f})"]


def _sentence(layer: LayerRecord) -> str:
    _, before, after = layer.inner_loss
    was, now, rates = float(before.mean()), float(after.mean()), layer.rates
    moved, start = float(layer.distances[-1].mean()), float(layer.start.mean())
    share = f"{moved / start:.2g} |W_0|" if start else f"{moved:.2g}"
    return (
        f"{layer.name}: an update takes the inner loss of its chunk from {was:.3g} to {now:.3g} "
        f"({100 * (now - was) / abs(was or 1):+.1f} %, mean of {len(before)}); at the end the weights are {share} away "
        f"from W_0; learned rates from {float(rates.min()):.3f} to {float(rates.max()):.3f}; read-out of the first "
        f"chunk, at the end against right after it: cosine {float(layer.probes.similarity[0]):.2f}"
    )


def _numbers(records: list[LayerRecord], times: np.ndarray, parts: list[Part]) -> dict[str, Any]:
    layers = {}
    for layer in records:
        frames, before, after = layer.inner_loss
        layers[layer.name] = {
            "frames": frames.tolist(),
            "seconds": [float(times[min(n, len(times)) - 1]) for n in frames.tolist()],
            "loss_before": before.mean(1).tolist(),
            "loss_after": after.mean(1).tolist(),
            "step": layer.steps.mean(1).tolist(),
            "distance": layer.distances.mean(1).tolist(),
            "length_of_w0": float(layer.start.mean()),
            "rate_of_time_step": layer.rates.flatten(1).mean(1).tolist(),
            "probes": {key: value.tolist() for key, value in layer.probes._asdict().items()},
        }
    return {"costs": [part._asdict() for part in [*parts, total(parts)]], "layers": layers}


def _rows(parts: list[Part]) -> list[list[str]]:
    head = ["part", "what", "parameters", "kFLOPs a frame", "bytes of state"]
    cells = [[p.name, p.what, f"{p.parameters:,}", f"{p.flops / 1e3:,.0f}", f"{p.state_bytes:,}"] for p in parts]
    last = total(parts)
    cells.append([last.name, "", f"{last.parameters:,}", f"{last.flops / 1e3:,.0f}", f"{last.state_bytes:,}"])
    return [head, *cells]


def _print_costs(model: VideoModel, parts: list[Part]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    head, *rows = _rows(parts)
    table = Table()
    for number, title in enumerate(head):
        table.add_column(title, justify="left" if number < 2 else "right")
    for row in rows:
        table.add_row(*(Text(printable(text)) for text in row))
    Console().print(table)
