"""Where a checkpoint's weights came from: the run that made them and the rule that chose them."""

from pathlib import Path
from typing import Any, NamedTuple

from .files import file_checksum
from .serialize import check_drawn, read_description, read_index, read_provenance, resolve_checkpoint


class Checkpoint(NamedTuple):
    """A checkpoint as evaluation and export see it; nothing of the model is loaded."""

    folder: Path  # holds config.json and model.safetensors
    run: Path | None  # the run folder around it; None for an export
    sha256: str  # of model.safetensors: figures belong to weights, not to paths
    selection: dict[str, Any] | None  # {"step", "rule", "split", "split_rule", "value"}: how it was chosen
    drawn: dict[str, Any]  # how train and val were made: {"val_fraction", "seed", "fold"}, see ``check_drawn``
    data: str | None  # folder or list file of the run
    root: str | None  # folder that the run's list counts from; None where it used no list, or none was given
    provenance: dict[str, Any]  # as the checkpoint's config.json states it
    task: str  # name of the class: what the model was trained for


def inspect_checkpoint(path: str | Path) -> Checkpoint:
    """Find out about a run folder (its best checkpoint), a checkpoint in it, or an export.

    ValueError with one sentence when there is no checkpoint at `path`, or a damaged one.
    """
    folder = Path(resolve_checkpoint(path))
    description = read_description(folder)
    provenance = read_provenance(description, folder / "config.json")
    sha256 = file_checksum(folder / "model.safetensors")
    try:
        task = str(description["model"]["init_args"]["task"]["class_path"]).rsplit(".", 1)[-1]
    except (KeyError, TypeError):
        raise ValueError(f"{folder / 'config.json'} is damaged: it names no task") from None
    index_file = folder.parent / "index.json"
    if folder.parent.name != "checkpoints" or not index_file.is_file():
        selection, drawn = provenance.get("selection"), provenance.get("drawn") or {}
        return Checkpoint(folder, None, sha256, selection, drawn, None, None, provenance, task)
    run = folder.parent.parent
    selection = _selection(folder.name, read_index(index_file))
    drawn, data, root = _settings(run)
    return Checkpoint(folder, run, sha256, selection, drawn, data, root, provenance, task)


def selection_sentence(selection: dict[str, Any] | None) -> str:
    """Say in words how a checkpoint was chosen: it stands beside every figure."""
    if not selection:
        return "how this checkpoint was chosen is not recorded"
    if not selection.get("split"):
        return f"checkpoint {selection['step']}, {selection['rule']}"
    value = selection.get("value")
    reached = f" ({value:.4g})" if isinstance(value, float | int) else ""
    chosen = f"chosen by {selection['rule']}{reached} on split {selection['split']}"
    return f"checkpoint {selection['step']}, {chosen}"


def _selection(name: str, index: dict[str, Any]) -> dict[str, Any]:
    split_rule = index["split_rule"]
    if index["best"] != name or index["best_value"] is None:
        rule = "the last one" if index["last"] == name else "named by the user"
        return {"step": name, "rule": rule, "split": None, "split_rule": split_rule, "value": None}
    return {
        "step": name,
        "rule": index["rule"],
        "split": index["split"],
        "split_rule": split_rule,
        "value": index["best_value"],
    }


def _settings(run: Path) -> tuple[dict[str, Any], str | None, str | None]:
    """How the run divided data without splits of its own, for evaluation to draw the same; which data; its root."""
    file = run / "config.yaml"
    if not file.is_file():
        return {}, None, None
    import yaml

    try:
        data = dict((yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("data") or {})
    except (yaml.YAMLError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is damaged ({' '.join(str(error).split())})") from error
    settings = {"val_fraction": data.get("val_fraction"), "seed": data.get("split_seed")}
    if fold := data.get("fold"):
        fold = fold if isinstance(fold, list) else [fold]
        settings["fold"] = [*fold, data.get("split_train", "train"), data.get("split_val", "val")]
    drawn = {name: value for name, value in settings.items() if value is not None}
    check_drawn(drawn, file)
    listing, root = data.get("list"), data.get("root")
    return (drawn, listing, root) if listing else (drawn, root, None)
