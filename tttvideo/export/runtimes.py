"""The streaming step in files: ``torch.export`` and ONNX, with the state to begin with and what must be known."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..files import replacing, write_text
from ..model import VideoModel
from .config import ExportError
from .step import Step, _plain_operators, trace

TORCH, ONNX, STATE, ABOUT = "step.pt2", "step.onnx", "initial_state.npz", "step.json"


def write_step(step: Step, out: Path, formats: Sequence[str]) -> None:
    """Writes ``step.pt2`` and ``step.onnx`` as ``formats`` (torch, onnx) ask, and beside them ``initial_state.npz`` and
    ``step.json``.

    Args:
        step: of a model on the CPU.

    Raises:
        ExportError: where an exporter gives up, or the packages that ONNX needs are not there.
    """
    if "onnx" in formats:
        need_onnx()
    out.mkdir(parents=True, exist_ok=True)
    inputs = (step.frames(), *step.initial)
    with warnings.catch_warnings(action="ignore"), _plain_operators():  # warnings of torch about its own insides
        program = torch.export.export(trace(step), inputs, strict=False)
        if "torch" in formats:
            with replacing(out / TORCH) as file, file.open("wb") as stream:
                torch.export.save(program, stream)
        if "onnx" in formats:
            _write_onnx(program, step, out / ONNX)
    with replacing(out / STATE) as file, file.open("wb") as stream:
        arrays = {name: value.numpy() for name, value in zip(step.names, step.initial, strict=True)}
        np.savez(stream, **arrays)  # type: ignore[arg-type]
    write_text(out / ABOUT, json.dumps(about(step), indent=2, ensure_ascii=False) + "\n")


def about(step: Step) -> dict[str, Any]:
    """What whoever runs the step must know."""
    model = step.model
    height, width = model.preprocessing.size
    return {
        "task": type(model.config.task).__name__,
        "labels": model.labels,
        "multi_label": model.multi_label,
        "frames": {"shape": list(step.frames().shape), "type": "uint8", "layout": "batch, frame, height, width, RGB"},
        "size": [height, width],
        "fit": model.preprocessing.fit,
        "sampling": model.preprocessing.sampling,
        "frame_rate": model.provenance.get("frame_rate"),
        "unit": step.unit,
        "batch": step.batch,
        "answer": step.answer,
        "state": {
            name: {"shape": list(value.shape), "type": str(value.dtype).removeprefix("torch.")}
            for name, value in zip(step.names, step.initial, strict=True)
        },
        "state_bytes": sum(value.numel() * value.element_size() for value in step.initial),
        "outputs": [step.answer, *(f"new_{name}" for name in step.names)],
    }


def need_onnx() -> None:
    """Raises ExportError where a package of the extra is not there."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ExportError(f"--format onnx needs the package {error.name}; pip install 'tttvideo[onnx]'") from None


def _write_onnx(program: Any, step: Step, path: Path) -> None:
    import onnx

    names = ["frames", *step.names]
    try:
        exported = torch.onnx.export(
            program,
            input_names=names,
            output_names=[step.answer, *(f"new_{name}" for name in step.names)],
            dynamo=True,
            verbose=False,
            optimize=False,  # onnxscript drops what it takes for x + 0: an eps of 1e-8 (Adam, ttt-video's LayerNorm)
        )
    except Exception as error:  # the exporter's, of any kind
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = " ".join(str(cause).split())[:300]
        raise ExportError(f"this model's step cannot be written as ONNX ({type(cause).__name__}: {reason})") from error
    assert exported is not None
    proto = exported.model_proto
    for key, value in about(step).items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    with replacing(path) as file:
        onnx.save(proto, file)


class Chain:
    """A file's step, run again and again from its initial state; ``chain(frames uint8 [B, unit, H, W, 3])``."""

    def __init__(self, folder: Path, form: str):
        self.about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        with np.load(folder / STATE) as state:
            self.state = {name: state[name] for name in self.about["state"]}
        if form == "onnx":
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            options.log_severity_level = 3  # errors: that some constants are not folded concerns nobody
            session = onnxruntime.InferenceSession(folder / ONNX, options, providers=["CPUExecutionProvider"])
            self._run = lambda inputs: session.run(None, inputs)
        else:
            module = torch.export.load(folder / TORCH).module()
            self._run = lambda inputs: [x.numpy() for x in module(*(torch.from_numpy(x) for x in inputs.values()))]

    def __call__(self, frames: Tensor) -> Tensor:
        with torch.no_grad():
            answer, *new = self._run({"frames": frames.numpy(), **self.state})
        self.state = dict(zip(self.state, new, strict=True))
        return torch.from_numpy(answer)


class Verified(NamedTuple):
    """``difference``: the largest one of an answer; frames a second of the file and of the model (of one stream, the
    first unit not counted)."""

    difference: float
    file_rate: float
    model_rate: float


def verify(model: VideoModel, folder: Path, form: str, frames: Tensor) -> Verified:
    """A file's step beside its model, over frames uint8 [F, 3, H, W] of the model's size: whole units of them, chained
    from the initial state.
    """
    chain = Chain(folder, form)
    unit, batch = chain.about["unit"], chain.about["batch"]
    state, worst, seconds = None, 0.0, [0.0, 0.0]
    for at in range(0, len(frames) - len(frames) % unit, unit):
        piece = frames[at : at + unit].expand(batch, -1, -1, -1, -1)
        begun = time.perf_counter()
        answer = chain(piece.permute(0, 1, 3, 4, 2).contiguous())
        between = time.perf_counter()
        with torch.no_grad():
            output, state = model.read(piece, None, state)
            took = (between - begun, time.perf_counter() - between)
            seconds = [total + own * (at > 0) for total, own in zip(seconds, took, strict=True)]
            if chain.about["answer"] == "upcoming":
                expected = model.head.bounded(output.upcoming)  # type: ignore[operator]
            else:
                expected = model.probabilities(output.logits.float())
        difference = float((answer - expected).abs().max())
        worst = math.inf if math.isnan(difference) else max(worst, difference)
    count = len(frames) - len(frames) % unit - unit
    return Verified(worst, *(count / total for total in seconds))
