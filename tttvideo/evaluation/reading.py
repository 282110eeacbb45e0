"""The evaluation of a model that reads videos: in every setting the row of its head for each video, and what the task
says of these rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..devices import device_name
from ..measuring import EvaluateConfig
from ..model import VideoModel
from ..tasks import Score
from ..video.index import Index, label_tensor
from ..video.sampling import parse_sampling
from ..video.views import Whole, with_length
from .controls import applicable
from .samples import read_samples
from .scoring import NOT_FINITE, Answer, Answers, check_comparable, compare_streaming, score_videos
from .session import Session, progress_bar, versions, where
from .settings import (
    Setting,
    all_settings,
    check_lengths,
    parse_all_views,
    parse_controls,
    parse_frames,
    parse_samplings,
)
from .strata import Column, Stratum, choose_columns, read_columns, strata
from .suites import GeneratedSet, generated_set
from .table import Result

SAMPLES = 6
COLUMNS = ("path", "start", "end", "frames", "sampling", "views", "control")
"""The first columns of predictions.csv; those of the task follow, then the last two, then those of the data."""


class Plan(NamedTuple):
    """What is measured: settings, and what is known of the videos.

    Attributes:
        columns: columns of the data that figures are reported against.
        rows: what meta.csv or the list says of each video.
        suite: the generated set that the videos are; None for other data.
    """

    settings: list[Setting]
    columns: Sequence[Column] = ()
    rows: Sequence[Mapping[str, str]] = ()
    suite: GeneratedSet | None = None


def read_videos(session: Session, config: EvaluateConfig, progress: bool = False) -> Result | None:
    """Measures every combination of settings. Under torchrun every process takes its share of the videos; None on all
    but the first. Videos that cannot be read are failures, and listed."""
    from accelerate.utils import gather_object

    model, index = session.model, session.index
    if config.check_streaming:
        check_comparable(model)
    plan, notes = _plan(session, config)
    mine = list(range(session.process, len(index.videos), session.processes))
    with progress_bar(progress and not session.process, len(mine) * len(plan.settings)) as advance:
        answers = score_videos(
            model,
            [index.videos[i] for i in mine],
            plan.settings,
            batch_size=config.batch_size,
            segment=config.segment,
            workers=2 if config.workers is None else config.workers,
            device=session.device,
            progress=advance,
        )
    answers = answers._replace(answers=[answer._replace(video=mine[answer.video]) for answer in answers.answers])
    gathered = gather_object([answers]) if session.processes > 1 else [answers]
    if session.process:
        return None
    streamed = index.videos[: config.check_streaming]
    context = {
        "checkpoint": config.checkpoint,
        "data": config.data,
        **session.context(),
        "device": device_name(session.device),
        "processes": session.processes,
        "clip_frames": session.source.provenance.get("clip_frames"),
        "streaming": compare_streaming(model, streamed) if streamed else None,
    }
    result = fill(context, gathered, plan, index, model, notes)
    count = SAMPLES if config.samples is None else config.samples
    return read_samples(model, index, result, plan.settings, count) if count else result


def _plan(session: Session, config: EvaluateConfig) -> tuple[Plan, list[str]]:
    model, index = session.model, session.index
    samplings = parse_samplings(config.sampling) or [parse_sampling(model.preprocessing.sampling)]
    trained = session.source.provenance.get("clip_frames")
    cuts = parse_frames(config.frames or "all", trained)
    ways = parse_all_views(config.views or ["whole"])
    views = list(dict.fromkeys(with_length(way, model.preprocessing, trained) for way in ways))
    if any(way != Whole() for way in views):  # a task that has no average says so, before anything is read
        model.config.task.average(torch.zeros(2, model.head.columns), index.multi_label)
    settings = all_settings(cuts, samplings, views, parse_controls(config.controls, applicable(model)))
    notes = check_lengths(index, cuts, samplings, views, model.preprocessing.stream)
    suite = generated_set(session.data, index)
    rows: Sequence[Mapping[str, str]] = [{} for _ in index.videos]
    if config.by or suite:
        rows = read_columns(session.data, session.root, index)
    wanted = config.by or (suite.strata(rows) if suite else [])
    columns = choose_columns(wanted, rows, _written(model, index)) if wanted else []
    return Plan(settings, columns, rows, suite), [*session.notes, *notes]


def fill(
    context: dict[str, Any],
    gathered: Sequence[Answers],
    plan: Plan,
    index: Index,
    model: VideoModel,
    notes: Sequence[str] = (),
) -> Result:
    """The result of all answers: a row of metrics.json for each setting, and of predictions.csv for each video in it.

    Raises:
        ValueError: if no answer is a number, no video can be read, or none has a label.
    """
    task, names, labels = model.config.task, model.labels, label_tensor(index)
    by_setting = _by_setting(gathered, len(plan.settings), len(index.videos))
    if all(answer.failure for answers in by_setting for answer in answers):
        first = by_setting[0][0]
        raise ValueError(
            f"none of the {len(index.videos)} videos of split {index.split} can be measured (the first, "
            f"{index.videos[first.video].path}: {first.failure}), so there are no figures"
        )
    if task.labelled and index.multi_label and not labels.any():
        raise ValueError(f"no video of split {index.split} has a label, so there is nothing to measure")
    score, groups = task.score(index.multi_label), {column.name: strata(column) for column in plan.columns}
    suite = plan.suite if score.judged else None  # whose ceilings are of right answers
    results, predictions, failures = [], [], {}
    for number, (setting, answers) in enumerate(zip(plan.settings, by_setting)):
        rows = torch.tensor([answer.row or [0.0] * model.head.columns for answer in answers])
        cells = [task.answer(rows[a.video] if a.row else None, labels[a.video], names) for a in answers]
        result = _row(model, score, rows, labels, answers, setting)
        result["frames_per_second"] = _throughput(gathered, number)
        result["ceiling"] = suite.ceiling(setting) if suite else None
        if groups:
            best = suite.oracle(setting, plan.rows) if suite else None
            values = [score.of(own_cells) for own_cells in cells]
            by = {name: [_stratum(s, values, best, score) for s in of_column] for name, of_column in groups.items()}
            result["by"] = by
        results.append(_short_first(result))
        predictions += [_prediction(index, setting, *pair, plan.columns) for pair in zip(answers, cells)]
        failures |= {answer.video: answer.failure for answer in answers if answer.failure}
    described = plan.suite.description if plan.suite else None
    metrics = {
        "checkpoint": context.pop("checkpoint"),
        "data": context.pop("data"),
        "split": index.split,
        "n_videos": len(index.videos),
        "n_failed": len(failures),
        "chance": _chance(labels, names, index.multi_label) if score.judged else None,
        "results": results,
        "task": type(task).__name__,
        "score": score._asdict(),
        "ceilings_are": None if described is None else described.get("ceilings_are", "exact"),
        "labels": names,
        "multi_label": index.multi_label,
        "bins": {column.name: column.bins for column in plan.columns},
        "split_rule": index.rule,
        **context,
        "failures": [{**where(index.videos[video]), "reason": reason} for video, reason in sorted(failures.items())],
        "warnings": list(dict.fromkeys(message for answers in gathered for message in answers.warnings)),
        "notes": list(dict.fromkeys([*notes, *_silent(plan), *_suite_notes(plan, by_setting)])),
        "versions": versions(),
    }
    return Result(metrics, predictions, _in_order(predictions, [column.name for column in plan.columns]))


LAST = ("frames_used", "failure")


def _written(model: VideoModel, index: Index) -> set[str]:
    """The columns of predictions.csv that are not of the data. The task's own are those of any answer."""
    row, labels = torch.zeros(model.head.columns), label_tensor(index)
    task = model.config.task
    answer = task.answer(row, labels[0], model.labels)
    return {*COLUMNS, "label", task.score(index.multi_label).column, *answer, *LAST}


def _in_order(predictions: Sequence[Mapping[str, Any]], of_data: list[str]) -> list[str]:
    """The columns of predictions.csv: every evaluation's, the task's own, then those of the data."""
    of_task = dict.fromkeys(name for row in predictions for name in row if name not in (*COLUMNS, *LAST, *of_data))
    return [*COLUMNS, *of_task, *LAST, *of_data]


def _by_setting(gathered: Sequence[Answers], settings: int, videos: int) -> list[list[Answer]]:
    table: list[list[Answer | None]] = [[None] * videos for _ in range(settings)]
    for answers in gathered:
        for answer in answers.answers:
            assert table[answer.setting][answer.video] is None, "a video was counted twice"
            table[answer.setting][answer.video] = answer
    rows = [[answer for answer in row if answer is not None] for row in table]
    assert all(len(row) == videos for row in rows), "a video was not counted"
    if all(answer.failure == NOT_FINITE for row in rows for answer in row):
        raise ValueError(
            "the model answers no video with numbers (NaN or infinite): its weights are damaged, or its training "
            "diverged; use an earlier checkpoint"
        )
    return rows


def _row(
    model: VideoModel, score: Score, rows: Tensor, labels: Tensor, answers: Sequence[Answer], setting: Setting
) -> dict[str, Any]:
    """One setting: the task's figures, and what was read."""
    scored = torch.tensor([answer.row is not None for answer in answers])
    figures = model.config.task.report(rows, labels, scored, model.labels)
    frames = [answer.frames for answer in answers if answer.row is not None]
    used = sum(frames) / len(frames) if frames else 0.0
    tokens = model.encoder.grid[0] * model.encoder.grid[1] / model.encoder.stride
    return {
        "frames": setting.frames_name,
        "sampling": str(setting.sampling),
        **figures,
        **({f"{score.figure}_se": _share_error(figures[score.figure], len(rows))} if score.share else {}),
        "n_failed": int((~scored).sum()),
        "mean_frames_used": used,
        "mean_tokens_used": tokens * used,
        "views": str(setting.views),
        "control": setting.control,
    }


def _share_error(share: float, n: int) -> float:
    """One standard error."""
    return (share * (1 - share) / n) ** 0.5


def _short_first(row: dict[str, Any]) -> dict[str, Any]:
    """Lists and mappings last: people read metrics.json, too."""
    return dict(sorted(row.items(), key=lambda item: isinstance(item[1], list | dict)))


def _prediction(
    index: Index, setting: Setting, answer: Answer, cells: dict[str, Any], columns: Sequence[Column]
) -> dict[str, Any]:
    """One row of predictions.csv; ``cells`` are the task's own columns."""
    return {
        **where(index.videos[answer.video]),
        "frames": setting.frames_name,
        "sampling": str(setting.sampling),
        "views": str(setting.views),
        "control": setting.control,
        **cells,
        "frames_used": answer.frames,
        "failure": answer.failure,
        **{column.name: column.values[answer.video] for column in columns},
    }


def _chance(labels: Tensor, names: Sequence[str], several: bool) -> float | None:
    """Of guessing a class at random; for several labels also the mean average precision of random scores."""
    if not names:
        return None
    return float(labels.mean()) if several else 1 / len(names)


def _silent(plan: Plan) -> list[str]:
    return [
        f"{count} of the {len(column.values)} videos have no value of {column.name} and are in no stratum"
        for column in plan.columns
        if (count := column.values.count(""))
    ]


def _suite_notes(plan: Plan, by_setting: Sequence[Sequence[Answer]]) -> list[str]:
    if plan.suite is None:
        return []
    frames = [{answer.frames for answer in row if answer.row is not None} for row in by_setting]
    return plan.suite.notes(plan.settings, frames, plan.rows, plan.columns)


def _stratum(stratum: Stratum, values: list[float | None], best: list[bool] | None, score: Score) -> dict[str, Any]:
    """The score in one stratum: its mean over the videos that have one."""
    scored = [value for i in stratum.videos if (value := values[i]) is not None]
    n = len(scored)
    mean = sum(scored) / n if n else None
    return {
        "value": stratum.name,
        "centre": stratum.centre,
        "n": n,
        score.figure: mean,
        **({f"{score.figure}_se": None if mean is None else _share_error(mean, n)} if score.share else {}),
        "ceiling": None if best is None else sum(best[i] for i in stratum.videos) / len(stratum.videos),
    }


def _throughput(gathered: Sequence[Answers], setting: int) -> float:
    """Frames per second of the reading that answered this setting, decoding included, over all processes."""
    costs = [cost for answers in gathered for cost in answers.costs if setting in cost.settings]
    seconds = max((cost.seconds for cost in costs), default=0.0)
    return sum(cost.frames for cost in costs) / seconds if seconds > 0 else 0.0
