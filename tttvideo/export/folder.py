"""Export: a checkpoint as a folder that others can load, in Hugging Face's layout, with an honest card."""

import os
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..evaluation.checkpoint import Checkpoint, inspect_checkpoint, selection_sentence
from ..evaluation.forecaster import shown_horizons
from ..files import read_json
from ..model import VideoModel
from ..pretrained import from_pretrained
from ..printing import markdown, markdown_code, printable
from ..tasks import Prediction
from ..video.index import save_labels

EXPORTED = ("config.json", "model.safetensors", "labels.json", "README.md")


class ExportError(ValueError):
    """An export that cannot be written, or that does not do what the checkpoint does."""


def export(checkpoint: str | Path, out: str | Path, *, metrics: Sequence[str | Path] = (), trust: bool = False) -> Path:
    """Write config.json, model.safetensors, labels.json and a model card into the folder `out`.

    Args:
        checkpoint: run folder (its best checkpoint), checkpoint folder, or another export.
        out: a folder that is new, empty, or an earlier export, which is replaced (other files in it stay).
        metrics: metrics.json files of `tttvideo evaluate` for the card; by default the run folder's own.
            Only figures of these very weights are taken.
        trust: also build models from classes outside this package.

    The export is complete before it appears, and read back: its outputs on random frames must equal the
    checkpoint's to the bit. Raises ExportError (a ValueError) with one sentence.
    """
    out = Path(out)
    _refuse_foreign(out)
    source = inspect_checkpoint(checkpoint)
    model = from_pretrained(source.folder, trust=trust).eval()
    source = _public(source)
    title = source.provenance["name"]
    measured = _measured(source, metrics)
    unfinished = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        model.config = replace(model.config, encoder=model.config.encoder.portable())
        model.save_pretrained(unfinished, provenance=source.provenance)
        save_labels(unfinished / "labels.json", model.labels)
        (unfinished / "README.md").write_text(
            model_card(model, title, out.name, source, measured, trust=trust), encoding="utf-8", newline="\n"
        )
        _verify(model, from_pretrained(unfinished, trust=trust).eval(), out)
        out.mkdir(exist_ok=True)
        out.chmod(0o777 & ~_umask())
        for name in EXPORTED:
            (unfinished / name).chmod(0o666 & ~_umask())
            os.replace(unfinished / name, out / name)
    except OSError as error:
        file = out / Path(error.filename).name if error.filename and unfinished else out
        reason = error.strerror or str(error)
        raise ExportError(f"{file} cannot be written ({reason}); make room, or give --out another folder") from error
    finally:
        if unfinished is not None:
            shutil.rmtree(unfinished, ignore_errors=True)
    return out


def _public(source: Checkpoint) -> Checkpoint:
    """The checkpoint's origin as others may read it: without the path that the data has on this machine."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, str) and source.data:
            return value.replace(source.data, Path(source.data).name)
        return value

    selection = plain(source.selection)
    name = source.run.resolve().name if source.run else source.provenance.get("name") or source.folder.name
    provenance = {**plain(source.provenance), "name": name, "drawn": source.drawn, "selection": selection}
    if source.data:
        provenance["data"] = Path(source.data).resolve().name
    return source._replace(selection=selection, provenance=provenance)


def is_export(folder: Path) -> bool:
    """Whether a folder was written by `export`: all its files, and none of a run's."""
    return all((folder / name).is_file() for name in EXPORTED) and not (folder / "training_state").exists()


def _refuse_foreign(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ExportError(f"{out} is a file; give --out a new folder")
    if out.is_dir() and any(out.iterdir()) and not is_export(out):
        raise ExportError(f"{out} is not empty and holds no export; give --out a new folder")


def _verify(model: VideoModel, copy: VideoModel, out: Path) -> None:
    """Both must put out the same for the same random frames, a short clip and a shorter one in a batch."""
    shape, kind = model.reading.frame
    length = 2 * model.frame_multiple
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (2, length, *shape), dtype=torch.uint8, generator=generator).to(kind)
    lengths = torch.tensor([length, model.frame_multiple])
    with torch.no_grad():
        wanted, got = (m(frames, lengths)[0] for m in (model, copy))
    same = all(torch.equal(a, b) for a, b in zip(wanted, got))
    if not same or not all(bool(part.isfinite().all()) for part in wanted) or copy.labels != model.labels:
        raise ExportError(f"the export read back from {out} does not compute what the checkpoint computes")


def _measured(source: Checkpoint, files: Sequence[str | Path]) -> list[dict[str, Any]]:
    """The evaluations of exactly these weights, among the files named and the run folder's metrics.json."""
    found = []
    for file in map(Path, files):
        try:
            metrics = read_json(file)
        except (OSError, ValueError):
            raise ExportError(f"{file} is no metrics.json of `tttvideo evaluate`") from None
        if metrics.get("weights_sha256") != source.sha256:
            raise ExportError(f"{file} was measured with other weights than this checkpoint's")
        found.append(metrics)
    own = source.run / "metrics.json" if source.run else source.folder / "metrics.json"
    if not found and own.is_file():
        try:
            metrics = read_json(own)
        except ValueError:
            return found
        found += [metrics] if metrics.get("weights_sha256") == source.sha256 else []
    return found


def _umask() -> int:
    # Files made by tempfile are private; an export is for others, within what the user's umask allows.
    mask = os.umask(0)
    os.umask(mask)
    return mask


def model_card(
    model, name: str, folder: str, source: Checkpoint, measured: Sequence[dict[str, Any]], *, trust: bool = False
) -> str:
    """The README.md of an export: YAML front matter for the Hub, then what a user must know. With ``trust`` it has
    classes of the user's own."""
    from huggingface_hub import ModelCardData

    name = printable(name)
    if isinstance(model.config.task, Prediction):
        return _prediction_card(model, name, folder, source, measured, trust)
    data = ModelCardData(
        library_name="tttvideo",
        pipeline_tag="video-classification",
        tags=["video-classification", "test-time-training"],
        model_name=name,
        eval_results=_eval_results(measured) or None,
    )
    p = model.preprocessing
    parameters = sum(parameter.numel() for parameter in model.parameters())
    labels = ", ".join(map(markdown_code, model.labels[:50]))
    more = f" and {len(model.labels) - 50} more (labels.json)" if len(model.labels) > 50 else ""
    figures = (
        "\n\n".join(map(_figures, measured)) or "No evaluation of these weights was at hand at the time of export."
    )
    split_rule = (source.selection or {}).get("split_rule") or "not recorded"
    return f"""---
{data.to_yaml()}
---

# {markdown(name)}

A video classifier made with tttvideo: {parameters:,} parameters, {len(model.labels)} classes{
        ", several may apply to one video" if model.multi_label else ""
    }. It reads any
number of frames.

## Use

```python
import tttvideo
model = tttvideo.from_pretrained({_python(folder, trust)})
print(model.classify("clip.mp4"))  # [(label, probability), ...]
```

## Classes

{labels}{more}

## Preprocessing

Frames are brought to {p.size[0]} x {p.size[1]} pixels (height x width, fit: {p.fit}); frames picked by the rule
`{p.sampling}`. Normalisation happens inside the model. `classify` does all of this.
{OWN_CLASSES if trust else ""}
## Figures

{figures}

Choice of weights: {markdown(selection_sentence(source.selection))}.
Where that split is the one measured above, the figure is optimistic by the choice.
How the data was divided: {markdown(split_rule)}.

## Limits

The figures hold for videos like those measured. A classifier names one of its classes for every video, also
for one that shows none of them. Videos much longer than those of training, other frame rates and other
cameras can lower its accuracy: measure with `tttvideo evaluate` on your own.
"""


OWN_CLASSES = """
The model has classes that are not part of tttvideo: install them where it is loaded; `trust=True` imports them.
"""


def _python(folder: str, trust: bool) -> str:
    """The arguments of ``from_pretrained``."""
    return repr(printable(folder)).replace("`", "\\x60") + (", trust=True" if trust else "")


def _prediction_card(
    model, name: str, folder: str, source: Checkpoint, measured: Sequence[dict[str, Any]], trust: bool
) -> str:
    from huggingface_hub import ModelCardData

    data = ModelCardData(library_name="tttvideo", tags=["video-prediction", "test-time-training"], model_name=name)
    p = model.preprocessing
    parameters = sum(parameter.numel() for parameter in model.parameters())
    tables = [_errors(metrics) for metrics in measured]
    shell = shlex.quote(printable(folder)).replace("`", "\\x60")
    figures = "\n\n".join(tables) or "No evaluation of these weights was at hand at the time of export."
    return f"""---
{data.to_yaml()}
---

# {markdown(name)}

A model that predicts the next frames of a video from all frames so far, made with tttvideo: {parameters:,} parameters.

## Use

```sh
tttvideo predict {shell} clip.mp4{" --trust" if trust else ""} --context 64 --horizon 16 --out predictions
```

Its encoder and backbone start a classifier: `tttvideo train ... --init_from` with this folder.
{OWN_CLASSES if trust else ""}
## Preprocessing

Frames are brought to {p.size[0]} x {p.size[1]} pixels (height x width, fit: {p.fit}); frames picked by the rule
`{p.sampling}`. Normalisation happens inside the model.

## Figures

{figures}

Choice of weights: {markdown(selection_sentence(source.selection))}.
How the data was divided: {markdown((source.selection or {}).get("split_rule") or "not recorded")}.

## Limits

The figures hold for videos like those measured, at their frame rate. Errors grow with the horizon; compare them with
those of copying the last frame, which stand beside them.
"""


def _errors(metrics: dict[str, Any]) -> str:
    """One evaluation of predictions as a Markdown table."""
    methods = list(metrics["per_horizon"])
    lines = ["| horizon | " + " | ".join(methods) + " |", "|" + "---|" * (len(methods) + 1)]
    for ahead in shown_horizons(metrics["horizon"]):
        cells = [f"{metrics['per_horizon'][method]['mse'][ahead - 1]:.2f}" for method in methods]
        lines.append(f"| {ahead} | " + " | ".join(cells) + " |")
    head = (
        f"Data {markdown_code(Path(metrics['data']).name)}, split {markdown_code(metrics['split'])}: "
        f"{metrics['n_videos'] - metrics['n_failed']} videos, {metrics['context']} frames of context; mse: "
        f"{metrics['convention']}."
    )
    return "\n\n".join([head, "\n".join(lines)])


def _figures(metrics: dict[str, Any]) -> str:
    """One evaluation as a Markdown table."""
    controls = [row for row in metrics["results"] if row.get("control")]
    tables = [_rows(metrics, [row for row in metrics["results"] if not row.get("control")])]
    if controls:
        tables += ["Controls, with something taken away from the model:", _rows(metrics, controls)]
    failed = f", {metrics['n_failed']} of them unreadable and counted as wrong" if metrics["n_failed"] else ""
    head = (
        f"Data {markdown_code(Path(metrics['data']).name)}, split {markdown_code(metrics['split'])}: "
        f"{metrics['n_videos']} videos"
        f"{failed}; chance {metrics['chance']:.3f}."
    )
    notes = [f"Note: {markdown(note)}." for note in metrics.get("notes", [])]
    return "\n\n".join([head, *tables, *notes])


def _rows(metrics: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    """Rows of metrics.json as a table; how videos were divided, and the control, where any of them says so."""
    several, k = metrics["multi_label"], min(5, len(metrics["labels"]))
    divided, controlled = any(_views(row) for row in rows), any(row.get("control") for row in rows)
    bounded = any(row.get("ceiling") is not None for row in rows)
    names = ["frames", "sampling", *(["views"] if divided else []), *(["control"] if controlled else [])]
    names += [
        "top-1",
        f"top-{k}",
        "mean class recall",
        *(["mAP"] if several else []),
        *(["ceiling"] if bounded else []),
    ]
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in rows:
        cells = [str(row["frames"]), f"`{row['sampling']}`"]
        cells += ([_views(row) or "whole"] if divided else []) + ([row["control"]] if controlled else [])
        cells += [f"{row[key]:.3f}" for key in ("top1", "top5", "mean_class", *(["map"] if several else []))]
        cells += ["" if row.get("ceiling") is None else f"{row['ceiling']:.3f}"] if bounded else []
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _views(row: dict[str, Any]) -> str:
    """How the videos were divided; empty where each was read as a whole."""
    views = row.get("views", "whole")
    return "" if views == "whole" else views


def _eval_results(measured: Sequence[dict[str, Any]]) -> list:
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="video-classification",
            dataset_type=printable(Path(metrics["data"]).name),
            dataset_name=printable(Path(metrics["data"]).name),
            dataset_split=printable(metrics["split"]),
            metric_type=kind,
            metric_name=", ".join(filter(None, (shown, f"{row['frames']} frames", row["sampling"], _views(row)))),
            metric_value=round(row[key], 4),
        )
        for metrics in measured
        for key, kind, shown in (
            [("map", "mean_average_precision", "mAP")] if metrics["multi_label"] else [("top1", "accuracy", "top-1")]
        )
        for row in metrics["results"]
        if not row.get("control")  # the model with something taken away is not this model
    ]
