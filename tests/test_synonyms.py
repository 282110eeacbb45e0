"""What a user of ultralytics or transformers types first works, or the error says what to type."""

import pytest
import torch

import tttvideo
from tests.evaluation.small import noise_video, small_model, small_run
from tttvideo.cli import COMMANDS, main
from tttvideo.synonyms import COMMANDS as OTHERS
from tttvideo.synonyms import MODEL


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return str(small_run(tmp_path_factory.mktemp("run"), small_model()))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    noise_video(path := tmp_path_factory.mktemp("clip") / "clip.mp4", 4, seed=0)
    return str(path)


def test_what_works(run, clip, tmp_path, capsys):
    model = tttvideo.VideoModel.from_pretrained(run)
    (label, probability), *_ = model.classify(clip)
    (first,) = tttvideo.pipeline("video-classification", model=run)(clip, top_k=1)
    assert first == tttvideo.pipeline(model)([clip])[0][0] == {"score": probability, "label": label}
    model.save_pretrained(tmp_path / "saved")
    assert tttvideo.from_pretrained(tmp_path / "saved").classify(clip)[0] == (label, probability)
    for words in (["--version"], ["-V"], ["version"], ["help"], ["classify", run, clip, "--device", "cpu"]):
        assert main(words) == 0
    shown = capsys.readouterr().out
    assert shown.count(f"tttvideo {tttvideo.__version__}") == 3
    assert label in shown


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (lambda model, clip: tttvideo.YOLO("run"), r"use tttvideo\.from_pretrained\(FOLDER\)"),
        (lambda model, clip: tttvideo.AutoModel, r"use tttvideo\.from_pretrained\(FOLDER\)"),
        (lambda model, clip: model.predict(clip), r"use model\.classify\(VIDEOS\)"),
        (lambda model, clip: model(clip), r"got a str; model\.classify"),
        (lambda model, clip: model([clip]), r"got a list; model\.classify"),
        (lambda model, clip: model.val(), "use `tttvideo evaluate"),
        (lambda model, clip: model.export(format="onnx"), "use `tttvideo export"),
        (lambda model, clip: model.push_to_hub("a/b"), "use `tttvideo export RUN --out FOLDER --push"),
        (lambda model, clip: model.names, r"use model\.labels"),
        (lambda model, clip: model.device, "use next"),
        (lambda model, clip: model.classify(clip, top_k=1), "did you mean topk"),
        (
            lambda model, clip: tttvideo.pipeline("object-detection", model=model),
            'Expected the task "video-classification"',
        ),
    ],
)
def test_python(typed, sentence, clip):
    with pytest.raises((AttributeError, ValueError, TypeError), match=sentence):
        typed(small_model(), clip)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["predict", "source=a.mp4", "model=runs/x"],
            "write CHECKPOINT VIDEOS --key value ..., such as --source a.mp4",
        ),
        (["classify", "R", "source=a.mp4"], "unexpected argument 'source=a.mp4'"),
        (["export", "R", "format=onnx"], "such as --format onnx"),
        (["classify", "R", "a.mp4", "--device", "0"], "--device 0 is no device; write cuda:0, or cpu"),
        (["train", "data=videos"], "settings are given as --key value"),
        *[([word], f"there is no command {word!r}; did you mean {ours}?") for word, ours in OTHERS.items()],
    ],
)
def test_commands(words, sentence, run, clip, capsys):
    assert main([{"R": run, "a.mp4": clip}.get(word, word) for word in words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert sentence in error


def test_names_lead_to_what_there_is():
    assert set(OTHERS.values()) <= set(COMMANDS)
    assert not set(OTHERS) & set(COMMANDS)
    model = small_model()
    assert not [name for name in MODEL if hasattr(model, name)]
    assert isinstance(model.head.classifier.weight, torch.nn.Parameter)
    for words in ("evaluate", "train", "export", "stream", "predict", "inspect"):
        assert any(f"`tttvideo {words}" in advice for advice in MODEL.values())
        assert words in COMMANDS
