"""A checkpoint's streaming step in files: equal to the model for every layer, chained from the initial state."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.evaluation.small import LABELS, noise_video, small_model, small_run
from tests.helpers import ALL_INNER, BASELINES, name
from tttvideo.backbone import Backbone
from tttvideo.cli import main
from tttvideo.encoder import ConvStem, Patches, Tubelets
from tttvideo.export.config import ExportError
from tttvideo.export.runtimes import ABOUT, STATE, verify, write_step
from tttvideo.export.step import Step, solve_unit_lower
from tttvideo.mixers import TTT, Attention, Bidirectional, LinearAttention
from tttvideo.model import ModelConfig, VideoModel
from tttvideo.tasks import Classification, Prediction
from tttvideo.ttt import Adam, FrameCausal, Momentum, Muon, ResidualL2, TokenCausal, Whole
from tttvideo.video.transforms import Preprocessing

SIZE = (16, 32)
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "export.md"

MIXERS = [
    *(TTT(inner=inner, heads=2) for inner in ALL_INNER),
    *(TTT(heads=2, chunk=chunk) for chunk in (FrameCausal(3), TokenCausal(4), Whole(2))),
    *(TTT(optimizer=optimizer, heads=2) for optimizer in (Momentum(), Adam(), Muon())),
    TTT(heads=2, normalize_qk=True, objective=ResidualL2(eps=1e-8)),
    TTT(heads=2, forget=True, gate=True, share_qk=True, short_conv="time", normalize_qk=True),
    *(mixer for mixer in BASELINES if not (isinstance(mixer, Attention) and mixer.window is None)),
]
"""Every inner model, chunk and kind of optimizer, and every other layer that has a step."""


def model_of(mixer, encoder=None, task=None) -> VideoModel:
    torch.manual_seed(0)
    config = ModelConfig(encoder or Patches(8), Backbone(width=16, depth=1, mixer=mixer), task or Classification())
    model = VideoModel(config, preprocessing=Preprocessing(size=SIZE), labels=LABELS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def frames(count=24):
    return torch.randint(0, 256, (count, 3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def need_onnx():
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="needs the extra onnx")


def test_a_step_chained_is_the_stream():
    """Before any exporter: the step's answers, and the state that goes in and out by name."""
    for model in (
        model_of(TTT(heads=2, chunk=FrameCausal(2), short_conv="time"), ConvStem((4, 8), (3, 2), (2, 1))),
        model_of(Attention(heads=2, window=3), ConvStem((4, 8), (2, 2), (1, 1), inputs="motion", motion_lag=2)),
        model_of(TTT(heads=2), Tubelets(8, 2), Prediction()),
    ):
        step = Step(model)
        assert len(set(step.names)) == len(step.names) == len(step.initial)
        shapes = [value.shape for value in step.initial]
        state, other, clip = step.initial, None, frames()
        for at in range(0, 24, step.unit):
            piece = clip[None, at : at + step.unit]
            with torch.no_grad():
                answer, *state = step(piece.permute(0, 1, 3, 4, 2), *state)
                output, other = model(piece, None, other)
            assert [value.shape for value in state] == shapes
            if step.answer == "upcoming":
                expected = output.upcoming.clamp(0, 1)
            else:
                expected = model.probabilities(output.logits)
            torch.testing.assert_close(answer, expected, rtol=0, atol=1e-5)


def test_a_triangular_solve_of_plain_operators():
    torch.manual_seed(0)
    A, B = torch.randn(2, 3, 7, 7).double(), torch.randn(2, 3, 7, 5).double()
    how = {"upper": False, "unitriangular": True}
    expected = torch.linalg.solve_triangular(A, B, **how)
    torch.testing.assert_close(solve_unit_lower(A, B, **how), expected, rtol=1e-10, atol=1e-10)


def test_models_without_a_step_are_refused_by_name():
    for mixer, sentence in (
        (Attention(heads=2), "Attention without a window remembers every frame"),
        (Bidirectional(LinearAttention(heads=2)), "Bidirectional sees the end of a video first"),
        (TTT(heads=2, chunk=Whole(None)), "TTT with Whole chunks of the whole video sees the end"),
    ):
        with pytest.raises(ExportError, match=sentence):
            Step(model_of(mixer))


def test_files_say_what_they_are_and_a_file_of_torch_runs_alone(tmp_path, capsys, monkeypatch):
    run, video = small_run(tmp_path / "run", small_model()), noise_video(tmp_path / "v.mp4", 12)
    out = tmp_path / "out"
    words = ["export", str(run), "--out", str(out), "--format", "torch", "--verify", "--video", str(video)]
    assert main(words) == 0
    assert "12 frames one after the other: step.pt2 differs from the model by" in capsys.readouterr().out
    about = json.loads((out / ABOUT).read_text())
    with np.load(out / STATE) as state:
        assert {key: list(value.shape) for key, value in state.items()} == {
            key: value["shape"] for key, value in about["state"].items()
        }
    assert (about["labels"], about["unit"], about["frames"]["shape"]) == (LABELS, 1, [1, 1, 32, 32, 3])
    assert about["outputs"] == ["probabilities", *(f"new_{key}" for key in about["state"])]
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    whole = tmp_path / "whole"
    assert main(["export", str(run), "--out", str(whole), "--format", "all"]) == 2
    assert "--format onnx needs the package onnx" in capsys.readouterr().err
    assert not whole.exists()
    short = noise_video(tmp_path / "short.mp4", 2)
    assert main([*words[:-1], str(short)]) == 2
    assert "needs three units of 1 frames, and" in capsys.readouterr().err
    assert main(words[:7]) == 2
    assert "give one by --video" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("mixer", MIXERS, ids=name)
def test_onnx_equals_the_model(mixer, tmp_path):
    need_onnx()
    model = model_of(mixer)
    step = Step(model)
    write_step(step, tmp_path, ("onnx",))
    worst = verify(model, tmp_path, "onnx", frames(12)).difference
    size = sum(value.numel() * value.element_size() for value in step.initial)
    print(f"| `{name(mixer)}` | {step.unit} | {size:,} | {worst:.0e} |")
    assert worst <= 1e-4


@pytest.mark.slow
def test_batches_encoders_and_prediction_in_onnx(tmp_path):
    need_onnx()
    stem = ConvStem((4, 8), (3, 2), (2, 1), inputs="both", norm="batch")
    for number, model in enumerate(
        (model_of(TTT(heads=2), stem), model_of(TTT(heads=2), Tubelets(8, 2), Prediction(residual=True)))
    ):
        write_step(Step(model, 2), tmp_path / str(number), ("onnx", "torch"))
        for form in ("onnx", "torch"):
            assert verify(model, tmp_path / str(number), form, frames(12)).difference <= 1e-4


@pytest.mark.slow
def test_the_example_runs_without_torch(tmp_path):
    """The page's code, in a process that cannot import torch, gives the model's answer."""
    need_onnx()
    import re

    model, video = small_model(), noise_video(tmp_path / "clip.mp4", 9)
    write_step(Step(model), tmp_path / "exported", ("onnx",))
    code = re.search(r"```python\n(import json.*?)```", PAGE.read_text(), re.DOTALL)
    assert code is not None
    (tmp_path / "run_onnx.py").write_text(
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'tttvideo']))\n" + code[1]
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "run_onnx.py", "exported", str(video)]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    label, probability = done.stdout.splitlines()[-1].split()[-2:]
    wanted = model.classify(video, topk=1)[0]
    assert (label, float(probability)) == (wanted[0], pytest.approx(wanted[1], abs=2e-3))
    assert len(done.stdout.splitlines()) == 9


def test_every_layer_with_a_step_stands_in_the_table():
    page = PAGE.read_text()
    assert [name(mixer) for mixer in MIXERS if f"| `{name(mixer)}` |" not in page] == []
