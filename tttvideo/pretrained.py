"""The model in a folder: built from its description, then given its weights."""

from __future__ import annotations

from pathlib import Path

from . import serialize
from .model import ModelConfig, VideoModel
from .plain import from_plain, import_carried


def from_pretrained(folder: str | Path, *, trust: bool = False) -> VideoModel:
    """The model of a run folder (its best checkpoint), a checkpoint in one, an exported folder, or ``owner/name`` on
    the Hugging Face Hub.

    Args:
        trust: allow classes outside ``tttvideo`` that the configuration names, and the files of them that the folder
            carries (importing them runs their code).

    Raises:
        ValueError: if the folder holds no such model, with the reason.
    """
    folder = serialize.resolve_checkpoint(folder, code=trust)
    where = str(folder / "config.json")
    description, shapes = serialize.read_description(folder), serialize.read_shapes(folder)
    provenance = serialize.read_provenance(description, folder / "config.json")
    if trust and "carried" in description:
        import_carried(folder, description["carried"])
    try:
        labels = description["labels"]
        if not (isinstance(labels, list) and all(isinstance(name, str) for name in labels)):
            raise TypeError("labels are not a list of names")
        if len(set(labels)) < len(labels) or not all(labels):
            raise TypeError("labels are not names, each once")
        if not isinstance(description["multi_label"], bool):
            raise TypeError("multi_label is neither true nor false")
        config = from_plain(description["model"], trust=trust, where=where)
        if not isinstance(config, ModelConfig):
            raise TypeError("its model is no ModelConfig")
        parts = {"labels": labels, "multi_label": description["multi_label"], "load": False}
        parts["preprocessing"] = from_plain(description["preprocessing"], trust=trust, where=where)
        serialize.check_depth(config.backbone.depth, shapes, folder)
        with serialize.outlined(shapes, config.backbone.width):
            outline = VideoModel(config, **parts)
            serialize.check_sizes(outline, outline.init_state(1), shapes, folder)
        model = VideoModel(config, **parts)
    except serialize.DAMAGES as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{where} is damaged or of another version ({type(error).__name__}: {reason}).") from error
    model.provenance = provenance
    serialize.load_weights(model, folder)
    return model.eval()
