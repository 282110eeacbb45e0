"""The story of an evaluation: a checkpoint, a set of videos, and a row of figures for every setting."""

import json
import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from tttvideo.evaluation.checkpoint import Checkpoint, inspect_checkpoint
from tttvideo.evaluation.scoring import score_videos
from tttvideo.evaluation.settings import all_settings
from tttvideo.evaluation.summary import Evaluation, summarise
from tttvideo.model import VideoModel, from_pretrained
from tttvideo.video.index import Index, build_index, split_names
from tttvideo.video.sampling import Sampling, parse_sampling


def evaluate(
    checkpoint: str | Path,
    data: str | Path,
    *,
    split: str | None = None,
    frames: Sequence[int | None] = (None,),
    samplings: Sequence[Sampling] = (),
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
            splits of its own and that the checkpoint was not trained on.
        frames: cuts; each video is first cut to its first n frames. None: whole videos.
        samplings: rules applied after the cut; without any, the rule the model was trained with.
        batch_size: videos read side by side (per process).
        segment: frames of each video that are read, encoded and scored at a time; the state is carried on.
        workers: processes that read ahead.
        device: where the model runs; None chooses an accelerator when there is one.
        trust: also build models from classes outside this package.
        progress: show a progress bar.

    Under torchrun every process takes its share of the videos. Returns None on all processes but the first.
    Raises ValueError with one sentence for a missing checkpoint or split, for labels the checkpoint does not
    know, and for settings that cannot be. Videos that cannot be read are counted as wrong and listed.
    """
    from accelerate.utils import gather_object

    wanted = choose_device(device)
    source = inspect_checkpoint(checkpoint)
    model = from_pretrained(source.folder, trust=trust)
    split = split or _split(data, source)
    index = _index(data, split, model, source)
    samplings = list(samplings) or [parse_sampling(model.preprocessing.sampling)]
    settings = all_settings(list(frames), samplings)

    state = _processes(wanted)
    own: torch.device = state.device  # type: ignore[assignment]  # with the index of this very process
    place = own if wanted is None or (wanted.type == own.type and wanted.index is None) else wanted
    mine = list(range(state.process_index, len(index.videos), state.num_processes))
    with _progress(progress and state.is_main_process, len(mine) * len(settings)) as advance:
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
        "device": _device_name(place),
        "processes": state.num_processes,
    }
    return summarise(context, gathered, settings, index, model.labels, _suite(data), model.multi_label)


def _split(data: str | Path, source: Checkpoint) -> str:
    """``val``; or ``all`` of a set without splits, unless the training run divided that set itself."""
    if split_names(data):
        return "val"
    trained_on = source.data or source.provenance.get("data")
    return "val" if trained_on and Path(trained_on).name == Path(data).resolve().name else "all"


def _index(data: str | Path, split: str, model: VideoModel, source: Checkpoint) -> Index:
    # A split that is drawn and not given must be drawn as in training, or training videos would be measured.
    return build_index(
        data,
        split,
        labels=model.labels,
        multi_label=model.multi_label,
        **source.drawn,
    )


def _suite(data: str | Path) -> dict[str, Any] | None:
    """The description of a generated set, whose ceilings are known; None for other data."""
    folder = Path(data) if Path(data).is_dir() else Path(data).parent
    file = folder / "suite.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


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


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _progress(shown: bool, total: int):
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
