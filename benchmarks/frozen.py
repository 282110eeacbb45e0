"""Sequence layers over what a frozen encoder makes of real videos (docs/results/frozen.md has the protocol).

    python -m benchmarks.frozen --videos DIR --cache DIR [--study configs/study/frozen.yaml]
    python -m benchmarks.frozen [--study FILE] --table docs/results/frozen.md

The features that `tttvideo cache` keeps of each frame become one vector, the mean over its tokens. A row is a training
by the settings of a recipe on those vectors, in this process, measured after its last step. Rates are chosen on a
part of the training videos that those trainings are not shown; the validation split is read by reported rows alone.
Finished rows are appended to a JSONL file at once, and skipped when the study is started again.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from benchmarks.fair import Job, all_rates, chosen_rate, difference, jobs, reported
from benchmarks.small import ROOT, append_row, commit, fill_page, hexadecimal, read_rows, read_study
from tttvideo.arguments import to_yaml
from tttvideo.evaluation.plots import plot_lines
from tttvideo.training.arguments import parse
from tttvideo.training.loop import NonFinite
from tttvideo.training.run import Run
from tttvideo.training.validation import Scores, score
from tttvideo.video.features import CachedFeatures

STUDY = ROOT / "configs" / "study" / "frozen.yaml"


class Clip(NamedTuple):
    """A line of the data's manifest: path below the folder of all sets, class, recording."""

    path: str
    label: str
    group: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=STUDY, help="YAML file: recipes, rates, seeds, tasks, variants")
    parser.add_argument("--rows", type=Path, help="JSONL file of the finished rows (default: as the study says)")
    parser.add_argument("--videos", type=Path, help="folder that holds the sets and manifest.csv")
    parser.add_argument("--cache", type=Path, help="folder of the encoder's features")
    parser.add_argument("--task", help="only this reported task")
    parser.add_argument("--table", type=Path, metavar="FILE.md", help="only write the finished rows into this page")
    options = parser.parse_args()
    study = read_study(options.study)
    file = options.rows or ROOT / study["rows"]
    if options.table:
        fill_page(options.table, {file.name: f"{table(study, read_rows(file))}\n"})
        if "figure" in study and (chart := drawn(study, read_rows(file))) is not None:
            plot_lines(options.table.with_name(study["figure"]), chart)
        return
    if not (options.videos and options.cache):
        parser.error("--videos and --cache are needed, but for --table")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        while (job := next(jobs(study, read_rows(file), options.task), None)) is not None:
            row = run(study, job, options.videos, options.cache, Path(folder))
            append_row(file, row)
            print(job, row["measured"][0]["top1"], f"train {row['train_top1']}", f"{row['cpu_seconds']} s", flush=True)


def run(study: dict[str, Any], job: Job, videos: Path, cache: Path, folder: Path) -> dict[str, Any]:
    """Trains and measures a row; ``folder`` holds the vectors of sets that were read before."""
    begin, task, variant = time.process_time(), study["tasks"][job.task], study["variants"][job.variant]
    lag, predicting = variant.get("motion", 0), variant.get("first")
    vectors = folder / f"{task['set']}-{lag}"
    if not vectors.exists():
        write_vectors(study, task, videos, cache, vectors, lag)
    fits: list[dict[str, Any]] = []
    settings: dict[str, Any] = {}
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for train, val in divisions(task, videos):
            parts = Path(scratch) / str(len(fits))
            parts.mkdir()
            train, unlabelled = labelled(train, task["labels"], job.seed) if "labels" in task else (train, [])
            if predicting:
                clips = write_list(parts / "unlabelled.csv", vectors, unlabelled, train)
                result["first"] = pretrain(words(study, job, clips, parts / "first", predicting), parts / "pretrained")
                settings["init_from"] = parts / "pretrained"
            clips = write_list(parts / "clips.csv", vectors, train, val)
            fits.append(fit(words(study, job, clips, parts / "run", settings)))
    result |= together(fits)
    about = {"cpu_seconds": round(time.process_time() - begin, 1), "commit": commit()}
    about |= {"torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}
    return {**job._asdict(), "times": job.steps, **result, **about}


def file_of(vectors: Path, clip: Clip) -> Path:
    return vectors / f"{clip.path.replace('/', '-')}.npy"


def write_vectors(
    study: dict[str, Any], task: dict[str, Any], videos: Path, cache: Path, vectors: Path, lag: int
) -> None:
    """A .npy file [frames, channels] for each clip of a set; with ``lag`` the change from so many frames before stands
    beside each frame's own vector.

    Raises:
        VideoError: the cache lacks a clip.
    """
    settings = {"model.encoder.cache": cache, **task["features"]}
    config, _ = parse([*recipes(study), *given(settings)])
    reading = config.model.encoder.build(config.data.size, 1).reading(config.data.preprocessing)
    assert isinstance(reading, CachedFeatures)
    vectors.mkdir()
    for clip in clips_of(task["set"], videos):
        reader = reading.open(str(videos / clip.path))
        features = reader.read(reading.wanted(reader, [(None, None, None)])).float().mean((2, 3)).numpy()
        if lag:
            before = features[np.maximum(np.arange(len(features)) - lag, 0)]
            features = np.concatenate([features, features - before], 1)
        np.save(file_of(vectors, clip), features)


def clips_of(name: str, videos: Path, split: str | None = None) -> list[Clip]:
    """The clips of a set, or of one of its splits, in the manifest's order."""
    with (videos / "manifest.csv").open(newline="") as lines:
        return [
            Clip(line["path"], line["label"], line["group"])
            for line in csv.DictReader(lines)
            if line["dataset"] == name and split in (None, line["split"])
        ]


def divisions(task: dict[str, Any], videos: Path) -> list[tuple[list[Clip], list[Clip]]]:
    """What is learned from and what is measured: the set's own splits; where a task has ``parts``, the training split
    without one of so many (``part``, counted from 0), and that part; where it has ``folds``, the whole set without each
    of so many parts in turn, and that part. Parts are whole recordings, where the set names any."""
    if "folds" in task:
        clips = clips_of(task["set"], videos)
        return [without(clips, task["folds"], part) for part in range(task["folds"])]
    train, val = (clips_of(task["set"], videos, split) for split in ("train", "val"))
    return [without(train, task["parts"], task.get("part", 0)) if "parts" in task else (train, val)]


def without(clips: list[Clip], parts: int, part: int) -> tuple[list[Clip], list[Clip]]:
    """The clips but for one of so many parts, and that part."""
    clips = sorted(clips)
    groups = sorted({clip.group for clip in clips})
    number = [groups.index(clip.group) if len(groups) > 1 else i for i, clip in enumerate(clips)]
    held_out = [n % parts == part for n in number]
    return (
        [clip for clip, out in zip(clips, held_out) if not out],
        [clip for clip, out in zip(clips, held_out) if out],
    )


def labelled(clips: list[Clip], count: int, seed: int) -> tuple[list[Clip], list[Clip]]:
    """So many of the clips, equally many of each class, drawn by ``seed``, and the others. A draw of fewer is part of
    one of more.

    Raises:
        ValueError: if the number does not divide by the classes, or one of them has not as many clips.
    """
    classes = sorted({clip.label for clip in clips})
    each, left = divmod(count, len(classes))
    chosen: list[Clip] = []
    for label in classes:
        candidates = sorted(clip for clip in clips if clip.label == label)
        if left or each > len(candidates):
            raise ValueError(f"Expected as many labels of each of {len(classes)} classes, got {count} in all.")
        chosen += random.Random(f"{seed} {label}").sample(candidates, len(candidates))[:each]
    return chosen, [clip for clip in clips if clip not in chosen]


def write_list(file: Path, vectors: Path, train: list[Clip], val: list[Clip]) -> Path:
    with file.open("w", newline="") as lines:
        csv.writer(lines).writerow(["path", "label", "split"])
        for split, clips in (("train", train), ("val", val)):
            csv.writer(lines).writerows([file_of(vectors, clip), clip.label, split] for clip in clips)
    return file


def words(study: dict[str, Any], job: Job, file: Path, out: Path, more: dict[str, Any] | None = None) -> list[str]:
    """The command line of a training; ``more``: settings in place of the task's."""
    task = study["tasks"][job.task]
    settings = study["settings"] | study["variants"][job.variant].get("settings", {})
    settings |= {"optimizer.lr": job.rate, "data.list": file, "out": out, "seed": job.seed}
    settings |= {"schedule.epochs": job.steps * task["epochs"], **task.get("settings", {})}
    settings |= more or {}
    return [*recipes(study), *given(settings)]


def recipes(study: dict[str, Any]) -> list[str]:
    """The words that name a study's recipes, each on top of the one before."""
    return [word for name in study["recipes"] for word in ("--config", name)]


def given(settings: dict[str, Any]) -> list[str]:
    """Settings as words of a command line."""
    texts = {
        name: str(value) if isinstance(value, str | Path) else json.dumps(value) for name, value in settings.items()
    }
    return [word for name, text in texts.items() for word in (f"--{name}", text)]


def pretrain(command: list[str], out: Path) -> dict[str, float]:
    """Trains to predict as ``tttvideo train`` with these words, saves the model in ``out``, and returns its error on
    the list's validation clips beside those of the predictions that need no model."""
    training, scores = trained(command)
    if scores is None:
        raise RuntimeError(f"The prediction's loss is no longer finite after {training.progress.step} steps.")
    training.trainer.evaluated_model.save_pretrained(out)
    return {"steps": training.progress.step} | training.task.summary(scores.rows, scores.labels, scores.scored)


def fit(command: list[str]) -> dict[str, Any]:
    """Trains as ``tttvideo train`` with these words, and measures what was trained after the last step; one whose loss
    is no longer finite has no right answer."""
    training, scores = trained(command)
    assert training.val is not None
    log = Path(str(training.config.out)) / "log.jsonl"
    learned = [json.loads(line)["train_accuracy"] for line in log.read_text().splitlines()] if log.exists() else [0.0]
    hits, loss = [False] * len(training.val.videos), 1e9
    if scores is not None:
        assert bool(scores.scored.all()), scores.failures
        hits = (scores.rows.argmax(1) == scores.labels).tolist()
        loss = float(cross_entropy(scores.rows, scores.labels))
    measured = {
        "length": 1,
        "top1": round(statistics.mean(hits), 4),
        "loss": round(loss, 4),
        "n": len(hits),
        "hits": hexadecimal(hits),
    }
    return {
        "measured": [measured],
        "train_top1": round(learned[-1], 4),
        "curve": [round(accuracy, 4) for accuracy in learned],
        "diverged_at": training.progress.step if scores is None else None,
        "parameters": sum(p.numel() for p in training.model.parameters() if p.requires_grad),
        "steps": training.progress.step,
    }


def together(fits: list[dict[str, Any]]) -> dict[str, Any]:
    """What ``fit`` returned of several folds as one, without a curve: each clip was measured once, by a model that was
    not shown it."""
    if len(fits) == 1:
        return fits[0]
    parts = [fit["measured"][0] for fit in fits]
    hits = [clip == "1" for part in parts for clip in _bits(part)]
    loss = sum(part["loss"] * part["n"] for part in parts) / len(hits)
    measured = parts[0] | {
        "top1": round(statistics.mean(hits), 4),
        "loss": round(loss, 4),
        "n": len(hits),
        "hits": hexadecimal(hits),
    }
    return fits[0] | {
        "measured": [measured],
        "train_top1": round(statistics.mean(fit["train_top1"] for fit in fits), 4),
        "curve": [],
        "diverged_at": next((fit["diverged_at"] for fit in fits if fit["diverged_at"] is not None), None),
    }


def _bits(part: dict[str, Any]) -> str:
    """A digit for each clip of a measurement: 1 where it was answered rightly."""
    return f"{int(part['hits'], 16):0{part['n']}b}"


def trained(command: list[str]) -> tuple[Run, Scores | None]:
    """A finished training, and what its last weights answer to the validation clips; None if the loss was no longer
    finite."""
    config, _ = parse(command)
    training, scores = Run(config, to_yaml(config)), None
    try:
        training.prepare()
        training.resume()
        while not training.trainer.schedule.done(training.progress):
            training.epoch()
        scores = _scores(training)
    except NonFinite:
        pass
    finally:
        training.close(None)
    return training, scores


def _scores(training: Run) -> Scores:
    assert training.val_batches is not None
    assert training.val is not None
    model = training.trainer.evaluated_model
    model.set_inner_rate(1.0)
    with training.trainer.evaluating():
        return score(model, *training.val_batches, training.val, training.accelerator)


# --- the table ------------------------------------------------------------------------------------


def table(study: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Markdown: of each task a line per variant with what each rate gave on the parts, then the reported seeds; of a
    study without those a line per variant with all parts together."""
    if not study["seeds"]:
        return pooled(study, rows)
    text: list[str] = []
    base = next(iter(study["variants"]))
    for task, trial in study["choice"].items():
        rates = " | ".join(f"{rate:g}" for rate in all_rates(study))
        text += [
            f"\n**{task}**{'' if trial.startswith(task) else f', at the rates of {trial}'}\n",
            f"| layer | {rates} | chosen | seeds | top-1 (min-max) | minus {base} | train top-1 | parameters | CPU s |",
            "|---|" + "---|" * (len(all_rates(study)) + 7),
        ]
        for variant in study["variants"]:
            tried = {
                row["rate"]: row["measured"][0]["top1"]
                for row in rows
                if (row["task"], row["variant"], row["seed"]) == (trial, variant, study["choice_seed"])
            }
            if not tried:
                continue
            cells = [f"{tried[rate]:.3f}" if rate in tried else "-" for rate in all_rates(study)]
            best = chosen_rate(study, rows, task, variant)
            cells += ["-" if best is None else f"{best:g}"]
            finished = reported(study, rows, task, variant)
            if finished:
                tops = [row["measured"][0]["top1"] for row in finished]
                cells += [str(len(finished)), f"{statistics.mean(tops):.3f} ({min(tops):.3f}-{max(tops):.3f})"]
                cells += ["-" if variant == base else difference(finished, reported(study, rows, task, base))]
                cells += [
                    f"{statistics.mean(row['train_top1'] for row in finished):.3f}",
                    f"{finished[0]['parameters']:,}",
                ]
                cells += [f"{statistics.median(row['cpu_seconds'] for row in finished):.0f}"]
            text.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(text)


def drawn(study: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The figure of the reported seeds for ``plot_lines``: accuracy of every layer on every set, mean and range; None
    before each set has all its layers."""
    series = {}
    for variant in study["variants"]:
        finished = [reported(study, rows, task, variant) for task in study["choice"]]
        if not all(finished):
            return None
        tops = [[row["measured"][0]["top1"] for row in by_task] for by_task in finished]
        about = {"run": variant, "control": "", "mean": list(map(statistics.mean, tops))}
        series[variant] = about | {"low": list(map(min, tops)), "high": list(map(max, tops))}
    title = "Frozen EfficientNet-Lite0, each layer at its own learning rate: mean and range over seeds"
    axis = {"x": list(study["choice"]), "x_label": "set", "numeric": False, "joined": False, "ceiling": []}
    return {"title": title, "series": series, "chance": 1 / 6, **axis}  # both have six classes


def pooled(study: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    base, text = next(iter(study["variants"])), []
    trials = list(dict.fromkeys(study["choice"].values()))
    for variant in study["variants"]:
        by_task = {row["task"]: row for row in rows if row["variant"] == variant}
        tasks = [task for task in trials if task in by_task]
        if tasks:
            mine, other = (_joined(rows, tasks, name) for name in (variant, base))
            learned = statistics.mean(by_task[task]["train_top1"] for task in tasks)
            minus = "-" if variant == base else difference([mine], [other])
            cells = [
                str(mine["n"]),
                f"{mine['top1']:.3f}",
                minus,
                f"{learned:.3f}",
                f"{by_task[tasks[0]]['parameters']:,}",
            ]
            text.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(
        [f"| variant | clips | top-1 | minus {base} | train top-1 | parameters |", "|---|" + "---|" * 5, *text]
    )


def _joined(rows: list[dict[str, Any]], tasks: list[str], variant: str) -> dict[str, Any]:
    """The measurements of a variant on several parts as one row."""
    parts = [row["measured"][0] for task in tasks for row in rows if (row["task"], row["variant"]) == (task, variant)]
    hits = "".join(map(_bits, parts))
    measured = {"n": len(hits), "hits": f"{int(hits, 2):x}"}
    return {"seed": 0, "measured": [measured], "n": len(hits), "top1": hits.count("1") / len(hits)}


if __name__ == "__main__":
    main()
