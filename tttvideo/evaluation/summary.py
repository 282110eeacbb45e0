"""From what the model said of every video to the rows of metrics.json and predictions.csv."""

import platform
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from tttvideo.evaluation.samples import Sample
from tttvideo.evaluation.scoring import NOT_FINITE, Score, Scores
from tttvideo.evaluation.settings import Setting
from tttvideo.evaluation.strata import Column, Stratum, strata
from tttvideo.evaluation.views import Whole
from tttvideo.tasks.accuracy import confusion_matrix, multi_label, single_label
from tttvideo.video.index import Index, Video

DAMAGED = (KeyError, ValueError, TypeError, IndexError)
"""What a row of meta.csv that is not as it was made leads an oracle to."""


class Evaluation(NamedTuple):
    """`metrics` is the content of metrics.json, `predictions` the rows of predictions.csv; `samples` and
    `failures_shown` (wrong answers) are pictures for the report."""

    metrics: dict[str, Any]
    predictions: list[dict[str, Any]]
    samples: Sequence[Sample] = ()
    failures_shown: Sequence[Sample] = ()


def main_row(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row that most readers mean: nothing taken away, the whole video, else the longest cut that was asked for."""
    plain = [row for row in rows if not row["control"]]
    return max(plain, key=lambda r: (r["frames"] == "all", r["frames"] if r["frames"] != "all" else 0))


def same_length(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows cut as the main one is: what strata are shown of."""
    return [row for row in rows if row["frames"] == main_row(rows)["frames"]]


def has_ceiling(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether the best that can be reached is known of some row."""
    return any(row.get("ceiling") is not None for row in rows)


def summarise(
    context: dict[str, Any],
    gathered: list[Scores],
    settings: list[Setting],
    index: Index,
    labels: list[str],
    suite: dict[str, Any] | None,
    several: bool,
    remarks: Sequence[str] = (),
    columns: Sequence[Column] = (),
    rows_of: Sequence[Mapping[str, str]] = (),
    tokens_per_frame: float = 1.0,
) -> Evaluation:
    """All figures of an evaluation; `remarks` come first among its notes. `columns` are what accuracy is reported
    against, `rows_of` what meta.csv says of each video, for the oracle of a generated set."""
    n_videos, n_classes = len(index.videos), len(labels)
    by_setting: list[list[Score | None]] = [[None] * n_videos for _ in settings]
    for scores in gathered:
        for score in scores.scores:
            assert by_setting[score.setting][score.video] is None, "a video was counted twice"
            by_setting[score.setting][score.video] = score
    answers = [score for row in by_setting for score in row if score is not None]
    if answers and all(score.failure == NOT_FINITE for score in answers):
        raise ValueError(
            "the model answers no video with numbers (NaN or infinite): its weights are damaged, or its training "
            "diverged; use an earlier checkpoint"
        )
    truth = _truth(index, n_classes, several)
    if several and not truth.any():
        raise ValueError(f"no video of split {index.split} has a label, so there is nothing to measure")
    results, predictions, failures = [], [], {}
    groups = {column.name: strata(column) for column in columns}
    for number, (setting, row) in enumerate(zip(settings, by_setting)):
        row = [score for score in row if score is not None]
        assert len(row) == n_videos, "a video was not counted"
        logits = torch.tensor([score.logits or [0.0] * n_classes for score in row])
        scored = torch.tensor([score.logits is not None for score in row])
        figures = (multi_label if several else single_label)(logits, truth, scored)
        seen = [score.frames for score in row if score.logits is not None]
        result: dict[str, Any] = {
            "frames": setting.frames_name,
            "sampling": str(setting.sampling),
            "top1": figures.top1,
            "top5": figures.top5,
            "mean_class": figures.mean_class,
            "n": figures.n,
            "frames_per_second": _throughput(gathered, number),
            "top1_se": (figures.top1 * (1 - figures.top1) / figures.n) ** 0.5,
            "loss": figures.loss,
            "ceiling": _ceiling(suite, setting),
            "n_failed": int((~scored).sum()),
            "mean_frames_used": sum(seen) / len(seen) if seen else 0.0,
            "per_class": dict(zip(labels, figures.per_class)),
            "views": str(setting.views),
            "control": setting.control,
            "mean_tokens_used": tokens_per_frame * sum(seen) / len(seen) if seen else 0.0,
        }
        if groups:
            hits = [_hit(score, truth, several) for score in row]
            best = _oracle_hits(suite, setting, rows_of)
            result["by"] = {name: [_stratum(s, hits, best) for s in found] for name, found in groups.items()}
        if several:
            result["map"] = figures.map
        else:
            result["confusion"] = confusion_matrix(logits, truth, scored).tolist()
        results.append(result)
        for score in row:
            known = {column.name: column.values[score.video] for column in columns}
            predictions.append(_prediction(index, setting, score, truth[score.video], labels, several) | known)
        failures |= {score.video: score.failure for score in row if score.failure}
    metrics = {
        "checkpoint": context.pop("checkpoint"),
        "data": context.pop("data"),
        "split": context.pop("split"),
        "n_videos": n_videos,
        "n_failed": len(failures),
        # Of guessing a class at random; for several labels also the mean average precision of random scores.
        "chance": float(truth.float().mean()) if several else 1 / n_classes,
        "results": results,
        "ceilings_are": None if suite is None else suite.get("ceilings_are", "exact"),
        "labels": labels,
        "multi_label": several,
        "bins": {column.name: column.bins for column in columns},
        "split_rule": index.rule,
        **context,
        "failures": [{**where(index.videos[video]), "reason": reason} for video, reason in sorted(failures.items())],
        "warnings": list(dict.fromkeys(message for scores in gathered for message in scores.warnings)),
        "notes": list(
            dict.fromkeys(
                [*remarks, *_suite_notes(suite, settings, by_setting), *_cause_notes(suite, index, rows_of, columns)]
            )
        ),
        "versions": versions(),
    }
    return Evaluation(metrics, predictions)


def where(video: Video) -> dict[str, Any]:
    """What tells a video from all others: several can be cuts of one file."""
    return {"path": video.path, "start": video.start, "end": video.end}


def _prediction(
    index: Index, setting: Setting, score: Score, truth: torch.Tensor, labels: list[str], several: bool
) -> dict[str, Any]:
    """One row of predictions.csv."""
    video = index.videos[score.video]
    right = truth.nonzero().flatten().tolist() if several else [int(truth)]
    row: dict[str, Any] = {
        **where(video),
        "frames": setting.frames_name,
        "sampling": str(setting.sampling),
        "views": str(setting.views),
        "control": setting.control,
        "label": ";".join(labels[i] for i in right),
        "correct": 0,
        "frames_used": score.frames,
        "failure": score.failure,
    }
    if score.logits is None:
        return row
    logits = torch.tensor(score.logits)
    probabilities = logits.sigmoid() if several else logits.softmax(0)
    order = logits.argsort(descending=True).tolist()  # probabilities are rounded to 1 where logits differ
    best = min((order.index(i) for i in right), default=len(labels))  # the best placed of the true labels
    row |= {
        "prediction": labels[order[0]],
        "correct": int(best == 0),
        "probability": f"{probabilities[order[0]]:.6f}",
        "label_probability": f"{max((probabilities[i] for i in right), default=torch.tensor(0.0)):.6f}",
        "rank": best + 1,
        "top5": ";".join(f"{labels[i]}={probabilities[i]:.4f}" for i in order[:5]),
    }
    return row


def _truth(index: Index, n_classes: int, several: bool) -> torch.Tensor:
    """Labels int64 [V], or {0, 1} [V, n_classes] where a video can have several."""
    own = [(v.label,) if isinstance(v.label, int) else tuple(v.label or ()) for v in index.videos]
    if not several:
        return torch.tensor([label[0] for label in own])
    truth = torch.zeros(len(own), n_classes, dtype=torch.int64)
    for row, label in enumerate(own):
        truth[row, list(label)] = 1
    return truth


def _ceiling(suite: dict[str, Any] | None, setting: Setting) -> float | None:
    """The best top-1 that can be reached by a model that sees no more than this setting shows; None also for videos
    in views, whose answers are averaged, and for frames in a random order."""
    if suite is None or setting.views != Whole() or setting.control == "shuffled":
        return None
    from tttvideo.video.synthetic import SuiteError, ceiling_for

    try:
        return ceiling_for(suite, str(setting.sampling), setting.frames)
    except SuiteError:  # a suite of another version: its videos are good, its ceilings are not known here
        return None


def _suite_notes(
    suite: dict[str, Any] | None, settings: Sequence[Setting], by_setting: Sequence[Sequence[Score | None]]
) -> list[str]:
    """Why the ceilings of a suite are not known, or cannot be those of these videos."""
    if suite is None:
        return []
    from tttvideo.video.synthetic import SuiteError, suite_from

    try:
        stated = suite_from(suite).frames
    except SuiteError as error:
        return [f"there are no ceilings, as suite.json beside the data cannot be used: {error}"]
    for setting, row in zip(settings, by_setting):
        found = {score.frames for score in row if score is not None and score.logits is not None}
        whole = setting.frames is None and str(setting.sampling) == "dense" and setting.views == Whole()
        if whole and found and found != {stated}:
            read = ", ".join(map(str, sorted(found)[:4]))
            return [
                f"ceilings are those of videos of {stated} frames (suite.json beside the data), but these have {read}"
            ]
    return []


def _cause_notes(
    suite: dict[str, Any] | None, index: Index, rows: Sequence[Mapping[str, str]], columns: Sequence[Column]
) -> list[str]:
    """What the list of a generated set, meta.csv, does not say of these videos."""
    silent = {column.name: column.values.count("") for column in columns}
    notes = [
        f"{count} of the {len(index.videos)} videos have no value of {name} and are in no stratum"
        for name, count in silent.items()
        if count
    ]
    if suite is None:
        return notes
    from tttvideo.video.synthetic import ClassificationSuite, SuiteError, suite_from

    try:
        made = suite_from(suite)
    except SuiteError:  # told elsewhere
        return notes
    if not isinstance(made, ClassificationSuite) or not (made.strata or columns):
        return notes
    if not any(rows):
        return [*notes, "no meta.csv beside suite.json tells of these videos: there are no strata"]
    if unnamed := sum(not row for row in rows):
        notes.append(f"meta.csv does not name {unnamed} of the {len(index.videos)} videos: strata have no ceilings")
    told = [row for row in rows if row]
    absent = [name for name in made.strata if name not in told[0]]
    for row in told:
        try:
            made.oracle(row, range(made.frames))
        except KeyError as error:
            absent.append(error.args[0])
        except DAMAGED:
            where = row.get("path") or "a video"
            notes.append(f"meta.csv is damaged in the row of {where}: strata have no ceilings; make the set again")
        else:
            continue
        break
    if absent:
        names = " and ".join(map(repr, dict.fromkeys(absent)))
        notes.append(f"meta.csv has no column {names}: strata or their ceilings are missing; make the set again")
    return notes


def _hit(score: Score, truth: torch.Tensor, several: bool) -> bool:
    """Whether the first class is (one of) the video's."""
    if score.logits is None:
        return False
    first = max(range(len(score.logits)), key=score.logits.__getitem__)
    return bool(truth[score.video, first]) if several else first == int(truth[score.video])


def _oracle_hits(
    suite: dict[str, Any] | None, setting: Setting, rows: Sequence[Mapping[str, str]]
) -> list[bool] | None:
    """Whether the best observer of these frames, who reads meta.csv, is right about each of these very videos."""
    if suite is None or setting.views != Whole() or setting.control == "shuffled" or not all(rows):
        return None
    from tttvideo.video.synthetic import ClassificationSuite, suite_from

    try:
        made = suite_from(suite)
        if not isinstance(made, ClassificationSuite):
            return None
        indices = made.sampled(str(setting.sampling), setting.frames)
        return [made.oracle(row, indices) == row["label"] for row in rows]
    except DAMAGED:  # a suite of another version, a list that was changed: see _cause_notes
        return None


def _stratum(stratum: Stratum, hits: list[bool], best: list[bool] | None) -> dict[str, Any]:
    n = len(stratum.videos)
    top1 = sum(hits[i] for i in stratum.videos) / n
    ceiling = None if best is None else sum(best[i] for i in stratum.videos) / n
    return {
        "value": stratum.name,
        "centre": stratum.centre,
        "n": n,
        "top1": top1,
        "top1_se": (top1 * (1 - top1) / n) ** 0.5,
        "ceiling": ceiling,
    }


def _throughput(gathered: list[Scores], setting: int) -> float:
    """Frames per second of the pass that answered this setting, decoding included, over all processes."""
    costs = [cost for scores in gathered for cost in scores.passes if setting in cost.settings]
    seconds = max((cost.seconds for cost in costs), default=0.0)
    return sum(cost.frames for cost in costs) / seconds if seconds > 0 else 0.0


def versions() -> dict[str, str]:
    from importlib.metadata import version

    from tttvideo import __version__

    own = {"tttvideo": __version__, "python": platform.python_version()}
    return own | {name: version(name) for name in ("torch", "timm", "torchmetrics", "av")}
