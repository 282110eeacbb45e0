"""The story of an evaluation: a checkpoint, a set of videos, and a row of figures for every setting."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tttvideo.evaluation.checkpoint import Checkpoint, inspect_checkpoint
from tttvideo.evaluation.config import EvaluateConfig
from tttvideo.evaluation.controls import applicable
from tttvideo.evaluation.lengths import check_lengths
from tttvideo.evaluation.samples import collect
from tttvideo.evaluation.scoring import score_videos
from tttvideo.evaluation.settings import all_settings, parse_all_views, parse_controls, parse_frames, parse_samplings
from tttvideo.evaluation.strata import choose_columns, read_columns
from tttvideo.evaluation.streaming import compare_streaming
from tttvideo.evaluation.summary import Evaluation, main_row, summarise
from tttvideo.evaluation.views import Clips, Views, Whole
from tttvideo.model import VideoModel
from tttvideo.pretrained import from_pretrained
from tttvideo.video.index import Index, build_index, split_names
from tttvideo.video.overlap import count_seen
from tttvideo.video.sampling import Sampling, parse_sampling

CLASSIFYING = ("frames", "sampling", "views", "controls", "by", "check_streaming", "workers")
PREDICTING = ("context", "horizon", "write", "grey", "lpips", "fvd")


def evaluate(config: EvaluateConfig, progress: bool = False) -> Any:
    """Measure a checkpoint; None on all processes but the first. ``print_report`` and ``write_report`` take the result.

    Raises:
        ValueError: for options that do not go with the checkpoint's task, and for all that cannot be measured.
    """
    from tttvideo.evaluation.forecasting import evaluate_prediction
    from tttvideo.video.reading import damaged_videos_named

    source = inspect_checkpoint(config.checkpoint)
    predicts = source.task == "Prediction"
    if foreign := [name for name in config.given() if name in (CLASSIFYING if predicts else PREDICTING)]:
        option = foreign[0].replace("_", "-")
        raise ValueError(f"--{option} does not go with a checkpoint trained for {source.task}; leave it out")
    shared: dict[str, Any] = {
        "split": config.split,
        "root": config.root,
        "batch_size": config.batch_size,
        "segment": config.segment,
        "device": config.device,
        "trust": config.trust,
        "progress": progress,
    }
    if predicts:
        return evaluate_prediction(
            config.checkpoint,
            config.data,
            context=10 if config.context is None else config.context,
            horizon=10 if config.horizon is None else config.horizon,
            write=config.write != "context",
            grey=config.grey,
            lpips=config.lpips,
            fvd=config.fvd,
            samples=4 if config.samples is None else config.samples,
            **shared,
        )
    with damaged_videos_named():
        return evaluate_classifier(
            config.checkpoint,
            config.data,
            frames=parse_frames(config.frames or "all", source.provenance.get("clip_frames")),
            samplings=parse_samplings(config.sampling),
            views=parse_all_views(config.views or ["whole"]),
            controls=config.controls,
            by=config.by or None,
            check_streaming=config.check_streaming,
            samples=6 if config.samples is None else config.samples,
            workers=2 if config.workers is None else config.workers,
            **shared,
        )


def evaluate_classifier(
    checkpoint: str | Path,
    data: str | Path,
    *,
    split: str | None = None,
    root: str | Path | None = None,
    frames: Sequence[int | None] = (None,),
    samplings: Sequence[Sampling] = (),
    views: Sequence[Views] = (Whole(),),
    controls: Sequence[str] = (),
    by: Sequence[str] | None = None,
    check_streaming: int = 0,
    samples: int = 0,
    batch_size: int = 8,
    segment: int | None = None,
    workers: int = 0,
    device: str | None = None,
    trust: bool = False,
    progress: bool = False,
) -> Evaluation | None:
    """Measure a checkpoint on the videos of one split.

    Args:
        checkpoint: run folder (its best checkpoint), checkpoint folder, or export.
        data: folder of class folders, or list file. Labels are matched to the checkpoint's by name.
        split: the part of the data to use; "all" for everything. None: ``val``, but all of data that has no
            splits of its own and of which no video was trained on.
        root: folder that a list's relative paths count from. None: for the list that the run was trained with,
            as it was then; for others, the list's own folder.
        frames: cuts; each video is first cut to its first n frames. None: whole videos.
        samplings: rules applied after the cut; without any, the rule the model was trained with.
        views: ways to divide videos; the probabilities of the views are averaged.
        controls: what to take away from the model, each in a row of its own; "all" for those that apply.
        by: columns of meta.csv or of the list that accuracy is reported against ("depth:8": in eight bins); None: those
            that a generated suite names.
        check_streaming: number of videos that are also read whole in one call, to compare.
        samples: videos to be shown at length in the report, with the frames of wrong answers.
        batch_size: videos read side by side (per process).
        segment: frames of each video that are read, encoded and scored at a time; the state is carried on. Not
            for models that do not stream.
        workers: processes that read ahead.
        device: where the model runs; None chooses an accelerator when there is one.
        trust: also build models from classes outside this package.
        progress: show a progress bar.

    Under torchrun every process takes its share of the videos. Returns None on all processes but the first.
    Raises ValueError with one sentence for a missing checkpoint or split, for labels the checkpoint does not
    know, and for settings that cannot be. Videos that cannot be read are counted as wrong and listed.
    """
    from accelerate.utils import gather_object

    if check_streaming < 0:
        raise ValueError(f"--check-streaming must be a number of videos, got {check_streaming}")
    wanted = choose_device(device)
    source = inspect_checkpoint(checkpoint)
    model = from_pretrained(source.folder, trust=trust)
    root = root or (source.root if source.data and Path(data).resolve() == Path(source.data).resolve() else None)

    def read(part: str) -> Index:
        # A split that is drawn and not given must be drawn as in training, or training videos would be measured.
        return build_index(data, part, root=root, labels=model.labels, multi_label=model.multi_label, **source.drawn)

    split = split or default_split(data, root, source, read)
    index = read(split)
    samplings = list(samplings) or [parse_sampling(model.preprocessing.sampling)]
    views = [_with_length(way, source, model) for way in views]
    settings = all_settings(list(frames), samplings, views, parse_controls(controls, applicable(model)))
    unlike = check_lengths(index, frames, samplings, views, model.preprocessing.stream)
    suite = described_suite(Path(data), index)
    rows = read_columns(Path(data), root, index) if by or suite else [{} for _ in index.videos]
    columns = choose_columns(_strata(suite, rows) if by is None else by, rows)

    state = _processes(wanted)
    own: torch.device = state.device  # type: ignore[assignment]  # with the index of this very process
    place = own if wanted is None or (wanted.type == own.type and wanted.index is None) else wanted
    mine = list(range(state.process_index, len(index.videos), state.num_processes))
    with progress_bar(progress and state.is_main_process, len(mine) * len(settings)) as advance:
        scores = score_videos(
            model,
            [index.videos[i] for i in mine],
            settings,
            batch_size=batch_size,
            segment=segment,
            workers=workers,
            device=place,
            progress=advance,
        )
    scores = scores._replace(scores=[score._replace(video=mine[score.video]) for score in scores.scores])
    gathered = gather_object([scores]) if state.num_processes > 1 else [scores]
    if not state.is_main_process:
        return None
    context = {
        "checkpoint": str(checkpoint),
        "data": str(data),
        "split": split,
        "weights_sha256": source.sha256,
        "selection": source.selection,
        "device": device_name(place),
        "processes": state.num_processes,
        "clip_frames": source.provenance.get("clip_frames"),
    }
    known = count_seen(index.videos, source.provenance.get("trained_on"))
    notes = [f"{known} of the {len(index.videos)} measured videos were trained on"] if known else []
    notes += unlike
    compared = index.videos[:check_streaming]
    context["streaming"] = compare_streaming(model.to(place), compared) if compared else None
    grid = model.encoder.grid[0] * model.encoder.grid[1]
    evaluation = summarise(
        context,
        gathered,
        settings,
        index,
        model.labels,
        suite,
        model.multi_label,
        notes,
        columns=columns,
        rows_of=rows,
        tokens_per_frame=grid / model.encoder.stride,
    )
    if not samples:
        return evaluation
    number = evaluation.metrics["results"].index(main_row(evaluation.metrics["results"]))
    answers = evaluation.predictions[number * len(index.videos) : (number + 1) * len(index.videos)]
    shown, wrong = collect(model.to(place), index, answers, settings[number], samples)
    return evaluation._replace(samples=shown, failures_shown=wrong)


def _with_length(views: Views, source: Checkpoint, model: VideoModel) -> Views:
    """Clips without a length get that of a training clip. Raises ValueError where views cannot be made."""
    if not isinstance(views, Clips):
        return views
    if views.places > 1 and model.preprocessing.fit != "crop":
        raise ValueError(
            f"--views {views} asks for several crops, but this model never crops (fit: {model.preprocessing.fit}); "
            f"write clips={views.count}"
        )
    if views.frames is None:
        if not (trained := source.provenance.get("clip_frames")):
            raise ValueError(
                f"--views {views} needs a length, as this checkpoint does not say how long its training clips were; "
                f"write {views}:FRAMES"
            )
        views = replace(views, frames=trained)
    return views


def _strata(suite: dict[str, Any] | None, rows: Sequence[Mapping[str, str]]) -> list[str]:
    """The columns that a generated suite names, as far as they are there."""
    from tttvideo.video.synthetic import SUITES, ClassificationSuite

    known = SUITES.get(suite.get("name", "")) if suite else None
    named = known.strata if known and issubclass(known, ClassificationSuite) else ()
    return [name for name in named if any(row.get(name) for row in rows)]


def default_split(
    data: str | Path, root: str | Path | None, source: Checkpoint, read: Callable[[str], Index], labelled: bool = True
) -> str:
    """``val``; or ``all`` of a set without splits, unless the model was trained on a part of it."""
    if split_names(data, root=root, labelled=labelled):
        return "val"
    marks = source.provenance.get("trained_on")
    if marks:
        return "val" if count_seen(read("all").videos, marks) else "all"
    # Nothing tells which videos were trained on (too many, or an older checkpoint): then the name must do.
    trained_on = source.data or source.provenance.get("data")
    return "val" if trained_on and Path(trained_on).resolve().name == Path(data).resolve().name else "all"


def described_suite(data: Path, index: Index) -> dict[str, Any] | None:
    """The description of a generated set, whose ceilings are known; None for other data.

    A list of somebody's own beside it may hold other videos, and cuts of a video show less of it.
    """
    if any(video.start is not None or video.end is not None for video in index.videos):
        return None
    if not data.is_dir() and data.name != "meta.csv":
        return None
    file = (data if data.is_dir() else data.parent) / "suite.json"
    if not file.is_file():
        return None
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error}); make the set again, or take the file away") from None


def _processes(place: torch.device | None):
    """accelerate's view of the processes of this evaluation, one or several."""
    from accelerate import PartialState
    from accelerate.utils import str_to_bool

    # Without cpu=True, accelerate silently makes single processes of those that torchrun started on a CPU.
    asked = bool(str_to_bool(os.environ.get("ACCELERATE_USE_CPU", "false")))
    accelerated = torch.accelerator.is_available()
    state = PartialState(cpu=asked or not accelerated or (place is not None and place.type == "cpu"))
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if state.num_processes != started:
        raise ValueError(f"{started} processes were started, but accelerate joined {state.num_processes}")
    return state


def one_process() -> None:
    """Raises ValueError if several were started."""
    if (started := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise ValueError(f"{started} processes were started, but predictions are measured by one; leave torchrun out")


def choose_device(name: str | None) -> torch.device | None:
    """The device of that name, tried; None where none is named. ValueError where it cannot be used."""
    if name is None:
        return None
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name} cannot be used here: {reason}") from None
    return device


def best_device() -> torch.device:
    """The accelerator, where there is one."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def progress_bar(shown: bool, total: int):
    """A context that gives a function to call with the number of videos done, or None."""
    if not shown:
        return nullcontext(None)
    from contextlib import contextmanager

    from rich.console import Console
    from rich.progress import Progress

    @contextmanager
    def bar():
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("videos", total=total)
            yield lambda done: progress.advance(task, done)

    return bar()
