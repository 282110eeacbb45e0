"""What a report says: a headline, facts, tables and figures, made of the content of metrics.json alone, and the videos
to look at. ``report`` shows it on a screen, as a page, and in a model card."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..origin import selection_sentence
from ..tasks import Score
from ..tasks.frame_metrics import FRAME_METRICS, FrameMetric
from .figures import Figure, has_ceiling, horizon_figures, same_length, settings_figures, way, words
from .generating import shown_horizons
from .samples import main_row, worst_first
from .table import MODEL, Result, score_of

NAMES = {"top1": "top-1", "map": "mAP"}
"""Figures of videos that were read whose titles are not just their names."""
NO_FIGURES = ("frames", "sampling", "views", "control", "n", "n_failed", "frames_per_second", "ceiling")
NO_FIGURES += ("mean_frames_used", "mean_tokens_used")
"""Numbers of a row of metrics.json that are no figures of the model."""
WORST_LISTED = 200
"""Videos that are named as going worst, at most; predictions.csv has all."""


class Grid(NamedTuple):
    """A table as people read it.

    Attributes:
        header, rows: texts.
        narrow: columns that are shown where there is little room; None: all.
        best: (row, column) of cells that are the best of their row.
        details: shown on the page only.
    """

    title: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""
    narrow: list[int] | None = None
    best: frozenset[tuple[int, int]] = frozenset()
    details: bool = False


class Worst(NamedTuple):
    """The table of the videos that went worst."""

    title: str
    note: str
    header: list[str]
    rows: list[tuple[bytes, list[str]]]  # a picture, or b"", and the cells


class Page(NamedTuple):
    """
    Attributes:
        headline: the figure, and the sentence that it begins.
        facts: (what, which): settings, rules, and where the figures come from.
        figures: by the names of their files.
        failures_verb, failed: what could not be done with failures, and what became of them.
        lines: what the screen says beside its tables.
    """

    headline: tuple[str, str]
    facts: list[tuple[str, str]]
    grids: list[Grid]
    figures: dict[str, Figure]
    samples_note: str
    failures_verb: str
    failed: str
    lines: list[str]


def page_of(metrics: dict[str, Any]) -> Page:
    """The page of an evaluation: of the videos read in several settings, or of generated frames by horizon."""
    return _settings_page(metrics) if "results" in metrics else _horizon_page(metrics)


def _facts(metrics: dict[str, Any], more: list[tuple[str, str]]) -> list[tuple[str, str]]:
    processes = metrics.get("processes", 1)
    return [
        ("checkpoint", f"{metrics['checkpoint']}; {selection_sentence(metrics['selection'])}"),
        ("weights (sha256)", metrics["weights_sha256"]),
        ("data", metrics["data"]),
        ("split", metrics["split_rule"]),
        *more,
        ("device", metrics["device"] + (f", {processes} processes" if processes > 1 else "")),
        ("versions", ", ".join(f"{name} {version}" for name, version in metrics["versions"].items())),
    ]


# Videos read in several settings.


def _settings_page(metrics: dict[str, Any]) -> Page:
    rows, score = metrics["results"], score_of(metrics)
    main = main_row(rows)
    value, chance = main[score.figure], metrics["chance"]
    said = [f"{main['frames']} frames, {way(main)}", f"{main.get('n', metrics['n_videos'])} videos"]
    said += [f"one standard error {main[f'{score.figure}_se']:.1%}"] if f"{score.figure}_se" in main else []
    said += [f"ceiling {main['ceiling']:.1%}"] if main.get("ceiling") is not None else []
    said += [] if chance is None else [f"chance {chance:.1%}"]
    stated = metrics["ceilings_are"] if has_ceiling(rows) else None
    lines = [f"split: {metrics['split_rule']}", selection_sentence(metrics["selection"])]
    lines[1] += "" if chance is None else f"; chance {chance:.3f}"
    lines += [f"ceiling: {stated}"] if stated not in (None, "exact") else []
    failed = "failed and count as wrong" if score.judged else "failed"
    facts = [("videos", f"{metrics['n_videos']}, of which {metrics['n_failed']} {failed}")]
    facts += [("training clips", f"{metrics['clip_frames']} frames")] if metrics.get("clip_frames") else []
    facts += [("ceilings", stated)] if stated else []
    if streaming := _streaming(metrics.get("streaming")):
        facts.append(("streaming", streaming))
        lines.append(f"streaming: {streaming}")
    return Page(
        (
            f"{value:.1%}" if score.share else f"{value:.4g}",
            f"{score.title.removesuffix(' accuracy')} ({'; '.join(said)})",
        ),
        _facts(metrics, facts),
        [_results(metrics), *_strata(metrics), *_classes(main, metrics)],
        settings_figures(metrics, main, score),
        _samples_note(score),
        "scored",
        failed,
        lines,
    )


def _samples_note(score: Score) -> str:
    if score.judged:
        return "Frames of a video with their numbers; below, the probability of each class had the video ended there."
    return (
        f"Videos from the best {score.title} to the worst. Frames with their numbers; below, where the task has "
        "curves, their values had the video ended there."
    )


def _streaming(streaming: dict[str, Any] | None) -> str:
    """What `--check-streaming` measured; empty where it was not asked for."""
    if not streaming or not streaming["videos"]:
        return ""
    return (
        f"{streaming['same_class']} of {streaming['videos']} videos get the class of the whole clip when read "
        f"{streaming['segment']} frames at a time; probabilities differ by at most "
        f"{streaming['max_probability_difference']:.1e}; state {streaming['state_bytes_first']:,} bytes after the "
        f"first segment, {streaming['state_bytes_last']:,} after the last"
    )


def _number(value: float | None, form: str = "{:.3f}") -> str:
    return "" if value is None else form.format(value)


def _results(metrics: dict[str, Any]) -> Grid:
    rows = metrics["results"]
    scalars = [name for name, value in rows[0].items() if isinstance(value, int | float) or value is None]
    figures = [name for name in scalars if name not in NO_FIGURES and not name.endswith("_se")]
    header, columns = ["frames", "sampling, views, control"], [[str(r["frames"]) for r in rows], [way(r) for r in rows]]
    narrow = [0, 1]

    def add(title: str, cells: list[str], wide: bool = False) -> None:
        if not wide:
            narrow.append(len(header))
        header.append(title)
        columns.append(cells)

    for name in figures:
        title = f"top-{min(5, len(metrics['labels']))}" if name == "top5" else NAMES.get(name, words(name))
        add(title, [_number(row[name]) for row in rows], wide=name == "loss")
        if f"{name}_se" in rows[0]:
            add("± SE", [_number(row[f"{name}_se"]) for row in rows], wide=True)
    if has_ceiling(rows):
        add("ceiling", [_number(row["ceiling"]) for row in rows])
    if "n" in rows[0]:
        add("videos", [str(row["n"]) for row in rows])
    add("frames/s", [_number(row["frames_per_second"], "{:,.0f}") for row in rows])
    add("frames read", [_number(row["mean_frames_used"], "{:.0f}") for row in rows], wide=True)
    add("tokens read", [_number(row["mean_tokens_used"], "{:.0f}") for row in rows], wide=True)
    note = "A video is cut to its first n frames, divided into views, then the sampling rule is applied."
    return Grid("", header, [list(cells) for cells in zip(*columns)], note, narrow)


def _strata(metrics: dict[str, Any]) -> list[Grid]:
    rows, score = same_length(metrics["results"]), score_of(metrics)
    name = NAMES.get(score.figure, words(score.figure))
    grids = []
    for column in rows[0].get("by", {}):
        cells = [
            [
                (_number(s[score.figure]) or "-") + (f" ({s['ceiling']:.3f})" if s["ceiling"] is not None else "")
                for s in row["by"][column]
            ]
            for row in rows
        ]
        bounded = any(stratum["ceiling"] is not None for stratum in rows[0]["by"][column])
        header = ["frames", "sampling, views, control", *(f"{s['value']} (n={s['n']})" for s in rows[0]["by"][column])]
        note = "in brackets: what the best observer reaches on these videos" if bounded else ""
        texts = [[str(row["frames"]), way(row), *shares] for row, shares in zip(rows, cells)]
        grids.append(Grid(f"{name} by {column}", header, texts, note))
    return grids


def _classes(main: dict[str, Any], metrics: dict[str, Any]) -> list[Grid]:
    if not isinstance(main.get("per_class"), dict):
        return []
    title = "recall" if score_of(metrics).judged else "value"
    counts = main.get("videos_per_class", {})  # not in older evaluations
    rows = [[name, str(counts.get(name, "")), _number(share)] for name, share in main["per_class"].items()]
    return [Grid(f"Classes: {main['frames']} frames, {way(main)}", ["class", "videos", title], rows, details=True)]


# Generated frames, by horizon.


def _horizon_page(metrics: dict[str, Any]) -> Page:
    model, measured = metrics["mean"][MODEL], metrics["n_videos"] - metrics["n_failed"]
    psnr = f" (PSNR {_number(model['psnr'], '{:.4g}')} dB)" if "psnr" in model else ""
    learned = "all frames, its own predictions too" if metrics["write"] else "the context alone"
    lines = [f"{metrics['convention']}; metrics.json has all of them"]
    facts = [
        ("videos", f"{metrics['n_videos']}, of which {metrics['n_failed']} could not be measured"),
        (
            "given, predicted",
            f"the first {metrics['context']} frames of a video are read, the next {metrics['horizon']} predicted; the "
            f"hidden state learns from {learned}",
        ),
        ("errors", metrics["convention"]),
        ("tables", "a few frames of the horizon (metrics.json has all); in bold, the best of a row"),
    ]
    if metrics["space"] == "features":
        facts.append(("samples", "none: the model predicts features, of which there are no pictures"))
    if metrics["fvd"]:
        distances = ", ".join(f"{words(m)} {'-' if x is None else f'{x:.1f}'}" for m, x in metrics["fvd"].items())
        single = "" if any(x is not None for x in metrics["fvd"].values()) else " (a single video has no covariance)"
        facts.append(("Fréchet video distance", f"context included: {distances}{single}"))
        lines.append(f"Fréchet video distance, context included: {distances}{single}")
    if metrics["suite"]:
        bounds = ", ".join(f"{words(name)} {value:.4f}" for name, value in metrics["suite"]["bounds"].items())
        pixels = "newly revealed pixels" if metrics["revealed"] else "all pixels"
        facts.append(("suite", f"{metrics['suite']['name']}; expected mean squared errors of {pixels}: {bounds}"))
        lines.append(f"{metrics['suite']['name']}, expected mean squared errors of {pixels}: {bounds}")
    lines += [
        f"{metrics['context']} frames of context; the hidden state learns from {learned}",
        f"split: {metrics['split_rule']}",
        selection_sentence(metrics["selection"]),
    ]
    said = (
        f"squared error of a predicted frame{psnr}, mean over {metrics['horizon']} frames after {metrics['context']} "
        f"of context; copying the last frame has {metrics['mean']['copy_last']['mse']:.4g}. {measured} videos"
    )
    grids = [_by_horizon(metrics, name) for name in model]
    return Page(
        (f"{model['mse']:.4g}", said),
        _facts(metrics, facts),
        grids + ([_by_group(metrics["revealed"])] if metrics["revealed"] else []),
        horizon_figures(metrics, measured),
        "Videos of every difficulty, the easiest first: truth, prediction, and where they differ, with the numbers of "
        "the frames.",
        "measured",
        "were not measured",
        lines,
    )


def _by_horizon(metrics: dict[str, Any], name: str) -> Grid:
    """A few horizons and the mean: a value for each method, the best of them marked."""
    metric = FRAME_METRICS.get(name, FrameMetric(words(name)))
    values = [[row[name][n - 1] for row in metrics["per_horizon"].values()] for n in shown_horizons(metrics["horizon"])]
    values.append([row[name] for row in metrics["mean"].values()])
    first = [*map(str, shown_horizons(metrics["horizon"])), "mean"]
    best = set()
    for number, row in enumerate(values):
        defined = [value for value in row if value is not None]
        top = None if metric.lower is None else (min if metric.lower else max)(defined, default=None)
        best |= {(number, 1 + i) for i, value in enumerate(row) if value is not None and value == top}
    rows = [[ahead, *(_number(value, "{:.4g}") for value in row)] for ahead, row in zip(first, values)]
    header = ["frames ahead", *map(words, metrics["mean"])]
    return Grid(metric.title, header, rows, best=frozenset(best), details=not metric.brief)


def _by_group(revealed: dict[str, Any]) -> Grid:
    rows = [
        [str(group), *(_number(values[group], "{:.4f}") or "-" for values in revealed["mse"].values())]
        for group in range(len(revealed["values"]))
    ]
    note = "Mean squared error of what only a memory can know; every frame is predicted from all true frames before it."
    header = [revealed["by"], *map(words, revealed["mse"])]
    return Grid(f"newly revealed pixels by {revealed['by']}, mean squared error", header, rows, note)


# Videos that went worst.


def worst_of(result: Result) -> Worst:
    if "results" not in result.metrics:
        measured = [row for row in result.predictions if not row["failure"]]
        names = [f"{method}_mse" for method in result.metrics["mean"]]
        rows = sorted(measured, key=lambda row: -float(row[names[0]]))[:20]
        note = f"Squared error of a frame, mean over the horizon; the {len(rows)} largest of {len(measured)} videos"
        cells = [(b"", [located(row), *(f"{float(row[name]):.4g}" for name in names)]) for row in rows]
        return Worst("Largest errors", note, ["file", *map(words, result.metrics["mean"])], cells)
    main, score = main_row(result.metrics["results"]), score_of(result.metrics)
    settings = ("frames", "sampling", "views", "control")
    answers = [row for row in result.predictions if all(row[name] == main[name] for name in settings)]
    wrong = [answers[i] for i in worst_first(answers, score)]
    pictures = {located(sample.row): sample.thumbnail for sample in result.worst}
    names = [name for name in ("label", "prediction", "probability") if wrong and name in wrong[0]]
    names = names if names and score.judged else [score.column, *names]
    note = f"{len(wrong)} of {main.get('n', len(answers))} videos"
    if not score.judged:
        note += f", the {'largest' if score.lower else 'smallest'} {score.title} first"
    elif "probability" in names:
        note += ", the surest first"
    note += f"; {WORST_LISTED} of them here" if len(wrong) > WORST_LISTED else ""
    titles = {"label": "true class", "prediction": "answer"}
    cells = [
        (pictures.get(located(row), b""), [*(_cell(name, row[name]) for name in names), located(row)])
        for row in wrong[:WORST_LISTED]
    ]
    return Worst(
        "Wrong answers" if score.judged else "Worst videos",
        note,
        [*(titles.get(name, name) for name in names), "file"],
        cells,
    )


def _cell(column: str, value: Any) -> str:
    """Names as they are, also those of digits."""
    return str(value) if column in ("label", "prediction") else f"{float(value):.3f}"


def located(row: dict[str, Any]) -> str:
    """The path, and the seconds of it where they are a part."""
    start, end = row["start"], row["end"]
    if start is None and end is None:
        return row["path"]
    return f"{row['path']} from {start or 0:g} s" + ("" if end is None else f" to {end:g} s")
