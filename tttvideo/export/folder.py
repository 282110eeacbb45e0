"""Export: a checkpoint as a folder that others can load, in Hugging Face's layout, with an honest card."""

import os
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..evaluation.page import page_of, score_of, way
from ..evaluation.report import as_markdown
from ..files import read_json
from ..hub import FILES
from ..model import VideoModel
from ..origin import Checkpoint, inspect_checkpoint, selection_sentence
from ..pretrained import from_pretrained
from ..printing import markdown, markdown_code, printable
from ..video.index import save_labels
from .carrying import carried_files, carry_into, verify_alone
from .config import ExportError

EXPORTED = FILES


def export(
    checkpoint: str | Path,
    out: str | Path,
    *,
    metrics: Sequence[str | Path] = (),
    trust: bool = False,
    license: str | None = None,
    carry: Sequence[str | Path] = (),
) -> Path:
    """Write config.json, model.safetensors, labels.json and a model card into the folder `out`.

    Args:
        checkpoint: run folder (its best checkpoint), checkpoint folder, or another export.
        out: a folder that is new, empty, or an earlier export, which is replaced (other files in it stay).
        metrics: metrics.json files of `tttvideo evaluate` for the card; by default the run folder's own.
            Only figures of these very weights are taken.
        trust: also build models from classes outside this package.
        license: of the model, for the card.
        carry: Python files of those classes, which go with it; by default those that an export carries already.

    The export is complete before it appears, and read back: its outputs on random frames must equal the
    checkpoint's to the bit. Raises ExportError (a ValueError) with one sentence.
    """
    out = Path(out)
    _refuse_foreign(out)
    source = inspect_checkpoint(checkpoint)
    model = from_pretrained(source.folder, trust=trust).eval()
    carried = carried_files(model.config, source.folder, carry) if trust else []
    source = _public(source)
    title = source.provenance["name"]
    measured = _measured(source, metrics)
    unfinished = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        beside = out.parent / f".unfinished-{out.name}"
        shutil.rmtree(beside, ignore_errors=True)  # of an export that was killed
        beside.mkdir()
        unfinished = beside
        model.config = replace(model.config, encoder=model.config.encoder.portable())
        names = [file.name for file in carried]
        model.save_pretrained(unfinished, provenance=source.provenance)
        carry_into(unfinished, carried)
        save_labels(unfinished / "labels.json", model.labels)
        card = model_card(model, title, out.name, source, measured, trust=trust, license=license, carried=names)
        (unfinished / "README.md").write_text(card, encoding="utf-8", newline="\n")
        _verify(model, from_pretrained(unfinished, trust=trust).eval(), out)
        if carried:
            verify_alone(unfinished)
        out.mkdir(exist_ok=True)
        out.chmod(0o777 & ~_umask())
        for name in [*EXPORTED, *names]:
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
        expected, outputs = (m(frames, lengths)[0] for m in (model, copy))
    same = all(torch.equal(a, b) for a, b in zip(expected, outputs))
    if not same or not all(bool(part.isfinite().all()) for part in expected) or copy.labels != model.labels:
        raise ExportError(f"the export read back from {out} does not compute what the checkpoint computes")


def _measured(source: Checkpoint, files: Sequence[str | Path]) -> list[dict[str, Any]]:
    """The evaluations of exactly these weights, among the files named and the run folder's metrics.json."""
    evaluations = []
    for file in map(Path, files):
        try:
            metrics = read_json(file)
        except (OSError, ValueError):
            raise ExportError(f"{file} is no metrics.json of `tttvideo evaluate`") from None
        if metrics.get("weights_sha256") != source.sha256:
            raise ExportError(f"{file} was measured with other weights than this checkpoint's")
        evaluations.append(metrics)
    of_the_run = source.run / "metrics.json" if source.run else source.folder / "metrics.json"
    if not evaluations and of_the_run.is_file():
        try:
            metrics = read_json(of_the_run)
        except ValueError:
            return evaluations
        evaluations += [metrics] if metrics.get("weights_sha256") == source.sha256 else []
    return evaluations


def _umask() -> int:
    # Whatever libraries made them: an export is for others, within what the user's umask allows.
    mask = os.umask(0)
    os.umask(mask)
    return mask


def model_card(
    model,
    name: str,
    folder: str,
    source: Checkpoint,
    measured: Sequence[dict[str, Any]],
    *,
    trust: bool = False,
    license: str | None = None,
    carried: Sequence[str] = (),
) -> str:
    """The README.md of an export: YAML front matter for the Hub, then what a user must know. With ``trust`` it has
    classes of the user's own."""
    from huggingface_hub import ModelCardData

    name, task, p = printable(name), model.config.task, model.preprocessing
    parameters = sum(parameter.numel() for parameter in model.parameters())
    card = task.card(_python(folder, trust), _shell(folder, trust), parameters, model.labels, model.multi_label)
    optional = {"pipeline_tag": card.pipeline, "license": license, "base_model": model.config.encoder.base_model}
    optional = {key: value for key, value in optional.items() if value}
    results = _eval_results(measured, card.tag) or None
    tags = [card.tag, "test-time-training"]
    data = ModelCardData(library_name="tttvideo", tags=tags, model_name=name, eval_results=results, **optional)
    figures = "\n\n".join(map(_figures, measured))
    return f"""---
{data.to_yaml()}
---

# {markdown(name)}

{card.description}

## Use

{card.use}
{_own_classes(carried) if trust else ""}{_classes(model.labels)}
## Preprocessing

Frames are brought to {p.size[0]} x {p.size[1]} pixels (height x width, fit: {p.fit}); frames picked by the rule
`{p.sampling}`. Normalisation happens inside the model.{_latency(model)}

## Figures

{figures or "No evaluation of these weights was at hand at the time of export."}

Choice of weights: {markdown(selection_sentence(source.selection))}.
Where that split is the one measured above, the figure is optimistic by the choice.
How the data was divided: {markdown((source.selection or {}).get("split_rule") or "not recorded")}.

## Limits

{card.limits}
"""


def _latency(model: VideoModel) -> str:
    stride = model.encoder.stride
    if stride == 1:
        return ""
    return (
        f" Frames are read in time steps of {stride}:\na stream is answered once in so many, and the first frame of "
        f"each waits for {stride - 1} more."
    )


def _own_classes(carried: Sequence[str]) -> str:
    how = "install them where it is loaded; `trust=True` imports them"
    if carried:
        how = f"`trust=True` runs their code, which lies beside this card in {', '.join(map(markdown_code, carried))}"
    return f"\nThe model has classes that are not part of tttvideo: {how}.\n"


def _python(folder: str, trust: bool) -> str:
    """The arguments of ``from_pretrained``."""
    return repr(printable(folder)).replace("`", "\\x60") + (", trust=True" if trust else "")


def _shell(folder: str, trust: bool) -> str:
    """The folder as a word of a command."""
    return shlex.quote(printable(folder)).replace("`", "\\x60") + (" --trust" if trust else "")


def _classes(labels: Sequence[str]) -> str:
    if not labels:
        return ""
    more = f" and {len(labels) - 50} more (labels.json)" if len(labels) > 50 else ""
    return f"\n## Classes\n\n{', '.join(map(markdown_code, labels[:50]))}{more}\n"


def _figures(metrics: dict[str, Any]) -> str:
    """One evaluation: what was measured, and its tables."""
    page, failed = page_of(metrics), metrics["n_failed"]
    unreadable = f", {failed} of them {page.failed}" if failed else ""
    chance = "" if metrics.get("chance") is None else f"; chance {metrics['chance']:.3f}"
    convention = f", {metrics['context']} frames of context; {metrics['convention']}" if "convention" in metrics else ""
    head = (
        f"Data {markdown_code(Path(metrics['data']).name)}, split {markdown_code(metrics['split'])}: "
        f"{metrics['n_videos']} videos{unreadable}{chance}{convention}."
    )
    tables = []
    for grid in page.grids:
        if not grid.details:
            title = [f"{markdown(grid.title)}:", ""] if grid.title else []
            tables.append("\n".join([*title, *as_markdown(grid)]))
    notes = [f"Note: {markdown(note)}." for note in metrics.get("notes", [])]
    return "\n\n".join([head, *tables, *notes])


def _eval_results(measured: Sequence[dict[str, Any]], tag: str) -> list:
    from huggingface_hub import EvalResult

    results = []
    for metrics in (metrics for metrics in measured if "results" in metrics):
        score = score_of(metrics)
        key, kind, name = score.figure, score.figure, score.title.removesuffix(" accuracy")
        if score.share:
            kind = "accuracy"
        if metrics["multi_label"] and "map" in metrics["results"][0]:
            key, kind, name = "map", "mean_average_precision", "mAP"
        for row in metrics["results"]:
            if row.get("control"):  # the model with something taken away is not this model
                continue
            results.append(
                EvalResult(
                    task_type=tag,
                    dataset_type=printable(Path(metrics["data"]).name),
                    dataset_name=printable(Path(metrics["data"]).name),
                    dataset_split=printable(metrics["split"]),
                    metric_type=kind,
                    metric_name=", ".join((name, f"{row['frames']} frames", way(row))),
                    metric_value=round(row[key], 4),
                )
            )
    return results
