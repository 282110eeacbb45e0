"""What users of ultralytics and transformers type first, and what it is here: said where the name is missed."""

from __future__ import annotations

_LOAD = "tttvideo.from_pretrained(FOLDER)"
_EVALUATE = "`tttvideo evaluate RUN --data VIDEOS`"

PACKAGE = {
    **dict.fromkeys(("load", "YOLO", "AutoModel", "AutoModelForVideoClassification"), _LOAD),
    "train": "`tttvideo train --config folder --data.root VIDEOS --out RUN`",
    "evaluate": _EVALUATE,
}
MODEL = {
    **dict.fromkeys(
        ("predict", "inference", "generate"), "model.classify(VIDEOS), or for frames to come `tttvideo predict`"
    ),
    "track": "model.stream(), or `tttvideo stream RUN SOURCE`",
    **dict.fromkeys(("val", "evaluate", "benchmark"), _EVALUATE),
    **dict.fromkeys(("fit", "tune"), "`tttvideo train --config folder --data.root VIDEOS --out RUN`"),
    "export": "`tttvideo export RUN --format onnx`",
    "push_to_hub": "`tttvideo export RUN --out FOLDER --push OWNER/NAME`",
    "names": "model.labels",
    "info": "`tttvideo inspect RUN`",
    "device": "next(model.parameters()).device",
}
COMMANDS = {
    **dict.fromkeys(("val", "test", "eval", "benchmark"), "evaluate"),
    **dict.fromkeys(("infer", "inference", "detect", "segment", "run"), "classify"),
    **dict.fromkeys(("track", "webcam", "live"), "stream"),
    **dict.fromkeys(("fit", "tune", "finetune"), "train"),
    **dict.fromkeys(("info", "summary"), "inspect"),
    **dict.fromkeys(("convert", "push"), "export"),
}


def advice(name: str, names: dict[str, str]) -> str:
    """The end of a sentence that says that there is no ``name``."""
    return f"; use {names[name]}" if name in names else ""
