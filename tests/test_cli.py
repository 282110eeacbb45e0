"""The command `tttvideo`: what users type, and one line for what they mistype."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tttvideo
from tests.evaluation.small import noise_video, small_model, small_run, small_set, undrawn
from tttvideo.cli import main


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_set(tmp_path_factory.mktemp("data") / "set", count=6)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("runs") / "demo", small_model())


def error(capsys, *words) -> str:
    """Run a command that must fail as users' mistakes do; the sentence."""
    assert main([str(word) for word in words]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert "Traceback" not in shown.err
    return shown.err.removeprefix("error: ").strip()


def test_version_and_help(capsys):
    for words, expected in (
        (["--version"], f"tttvideo {tttvideo.__version__}"),
        (["--help"], "make-data"),
        (["evaluate", "--help"], "--sampling"),
        (["evaluate", "--help"], "--controls"),
        (["compare", "--help"], "--resamples"),
        (["position", "--help"], "--segment"),
        (["make-data", "shell-game", "--help"], "--swaps"),
        (["export", "--help"], "--metrics"),
        (["classify", "--help"], "--topk"),
        (["make-data", "--help"], "flash-order"),
        (["train", "--help"], "--data.root"),
        (["make-data", "flash-order", "--help"], "--distractors"),
    ):
        try:
            code = main(words)
        except SystemExit as stop:
            code = stop.code
        assert code == 0
        assert expected in capsys.readouterr().out


def test_without_a_command_help_is_shown_and_it_is_an_error(capsys):
    assert main([]) == 2
    assert "commands:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["evalute"], "no command 'evalute'; did you mean evaluate?"),
        (
            ["evaluate", "R", "--frame", "3"],
            "unknown setting frame; did you mean 'frames'?",
        ),
        (["evaluate", "--data", "d"], "tttvideo evaluate needs CHECKPOINT"),
        (["evaluate", "R"], "tttvideo evaluate needs --data; see tttvideo evaluate --help"),
        (
            ["evaluate", "R", "--data", "d", "--batch-size", "many"],
            "batch_size must be int, not 'many'",
        ),
        (["export", "R"], "tttvideo export needs --out"),
        (["classify", "R"], "tttvideo classify needs VIDEOS"),
        (["classify", "R", "v.mp4", "--topk", "0"], "topk must be at least 1"),
        (["classify", "R", "-v.mp4"], "unexpected argument '-v.mp4' beside CHECKPOINT VIDEOS"),
        (["index", "d", "e"], "unexpected argument 'e' beside DATA"),
        (["classify", "R", "v.mp4", "--topk"], "--topk needs a value"),
        (["classify", "R", "v.mp4", "--json=yes please"], "json must be bool, not 'yes please'"),
        (["evaluate", "R", "--data", "d", "--sampling"], "--sampling needs a value"),
        (["export", "R", "--out", ""], "out must not be empty"),
        (["configs", "demo"], "unexpected argument 'demo'"),
        (["make-data"], "make-data needs the name of a suite: flash-order"),
        (["make-data", "flash-ordr", "--out", "d"], "did you mean flash-order?"),
        (["make-data", "flash-order"], "tttvideo make-data flash-order needs --out"),
        (["make-data", "flash-order", "--out", "d", "--framse", "3"], "did you mean 'frames'?"),
        (["make-data", "flash-order", "--out", "d", "--split", "train"], "'train' is not NAME=NUMBER"),
        (
            ["make-data", "flash-order", "--out", "d", "--size", "x"],
            "size must be int, not 'x'",
        ),
        (["--what"], "unknown option --what"),
    ],
)
def test_mistyped_commands(capsys, tmp_path, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    assert sentence in error(capsys, *words)
    assert not list(tmp_path.iterdir())


def test_as_a_module_errors_are_one_line_and_code_2_and_train_needs_no_file_beside_the_package(tmp_path):
    """As from an installed wheel, where there is no train.py."""
    package = Path(tttvideo.__file__).parent
    shutil.copytree(package, tmp_path / "tttvideo", ignore=shutil.ignore_patterns("__pycache__"))
    words = [sys.executable, "-m", "tttvideo", "train", "--data.rot", "x", "--out", str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stderr.startswith("error: ")
    assert "did you mean 'data.root'" in done.stderr
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


def test_make_data(tmp_path, capsys):
    out = tmp_path / "flashes"
    words = ["make-data", "flash-order", "--out", str(out), "--split", "train=4,val=2", "--frames", "8"]
    assert main([*words, "--seed", "5", "--workers", "1"]) == 0
    shown = capsys.readouterr().out
    assert "6 videos written; train 4, val 2\n6 classes; best possible top-1" in shown
    assert "best possible top-1: dense 1.000" in shown
    suite = json.loads((out / "suite.json").read_text())
    assert (suite["parameters"]["frames"], suite["parameters"]["seed"]) == (8, 5)
    assert len(list(out.glob("*/*/*.mp4"))) == 6
    assert main([*words, "--seed", "5"]) == 0
    assert "0 videos written (6 were there)" in capsys.readouterr().out
    assert "error" not in error(capsys, *words, "--seed", "6")


def test_evaluate_writes_into_the_run_folder_by_default(run, data, capsys):
    words = ["evaluate", str(run), "--data", str(data), "--workers", "0"]
    with undrawn():
        assert main([*words, "--frames", "4,all", "--sampling", "dense", "fps=10", "--sampling", "uniform=2"]) == 0
    shown = capsys.readouterr().out
    assert f"written to {run}" in shown
    rows = json.loads((run / "metrics.json").read_text())["results"]
    assert [(row["frames"], row["sampling"]) for row in rows] == [
        (cut, rule) for rule in ("dense", "fps=10", "uniform=2") for cut in (4, "all")
    ]
    with (run / "predictions.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 36


def test_evaluation_mistakes(run, data, tmp_path, capsys):
    words = ["evaluate", run, "--data", data, "--workers", "0"]
    assert "sampling rule" in error(capsys, *words, "--sampling", "every=3")
    assert "--frames takes positive numbers" in error(capsys, *words, "--frames", "16,many")
    assert "no split 'test'; it has val" in error(capsys, *words, "--split", "test")
    assert "--device toaster cannot be used" in error(capsys, *words, "--device", "toaster")
    assert "--segment must be a multiple" in error(capsys, *words, "--segment", "0")
    assert "is a file" in error(capsys, *words, "--out", data / "meta.csv")
    missing = tmp_path / "missing"
    assert "missing" in error(capsys, "evaluate", run, "--data", missing)
    assert "missing" in error(capsys, "evaluate", missing, "--data", data)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "empty" in error(capsys, "evaluate", run, "--data", empty)
    assert "no checkpoint" in error(capsys, "evaluate", empty, "--data", data)
    listing = tmp_path / "list.csv"
    video = next(data.glob("val/*/*.mp4"))
    listing.write_text(f"path,label\n{video},red-bleu\n")
    sentence = error(capsys, "evaluate", run, "--data", listing, "--split", "all")
    assert "'red-bleu'" in sentence
    assert "red-blue" in sentence


def test_a_checkpoint_of_another_architecture_is_one_sentence(run, data, tmp_path, capsys):
    other = small_run(tmp_path / "other", small_model(tubelets=True))
    weights = next(other.glob("checkpoints/*/model.safetensors"))
    weights.write_bytes(next(run.glob("checkpoints/*/model.safetensors")).read_bytes())
    for words in (["evaluate", other, "--data", data], ["export", other, "--out", tmp_path / "export"]):
        assert "another architecture" in error(capsys, *words)
    weights.write_bytes(b"rubbish")
    assert "cannot be read" in error(capsys, "evaluate", other, "--data", data)


def test_export_and_classify(run, data, tmp_path, capsys):
    out = tmp_path / "export"
    assert main(["export", str(run), "--out", str(out)]) == 0
    assert "from_pretrained" in capsys.readouterr().out
    videos = [str(video) for video in sorted(data.glob("val/*/*.mp4"))[:2]]
    assert main(["classify", str(out), *videos, "--topk", "2"]) == 0
    table = capsys.readouterr().out
    assert main(["classify", str(out), *videos, "--topk", "2", "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    model = tttvideo.from_pretrained(out)
    assert [answer["path"] for answer in answers] == videos
    for video, answer in zip(videos, answers):
        wanted = model.classify(video, topk=2)
        assert [c["label"] for c in answer["classes"]] == [label for label, _ in wanted]
        assert [c["probability"] for c in answer["classes"]] == pytest.approx([p for _, p in wanted], abs=1e-5)
        assert all(f"{p:.3f}" in table for _, p in wanted)


def test_classify_names_unreadable_videos_and_does_the_others(run, data, tmp_path, capsys):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    good = next(data.glob("val/*/*.mp4"))
    assert main(["classify", str(run), str(broken), str(good), "--json"]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert "broken.mp4" in shown.err
    answers = {answer["path"]: answer for answer in json.loads(shown.out)}
    assert len(answers[str(good)]["classes"]) == 5
    assert answers[str(broken)]["error"]


def test_a_refused_command_leaves_no_folder(run, tmp_path, capsys):
    out = tmp_path / "new" / "out"
    error(capsys, "evaluate", run, "--data", tmp_path / "no data", "--out", out)
    error(capsys, "predict", run, tmp_path / "no video.mp4", "--out", out)
    error(capsys, "compare", tmp_path / "no run", "--out", out)
    error(capsys, "position", run, "--data", tmp_path / "no data", "--out", out)
    assert not out.parent.exists()


def test_out_is_checked_before_anything_is_measured(run, data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tttvideo.evaluation.evaluate", lambda *_, **__: pytest.fail("measured"))
    file = tmp_path / "file"
    file.write_text("")
    sentence = error(capsys, "evaluate", run, "--data", data, "--out", file / "sub")
    assert f"--out {file / 'sub'} cannot be made" in sentence
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nothing")
    for out in (link, link / "sub"):
        assert f"{link} is a link to nothing" in error(capsys, "evaluate", run, "--data", data, "--out", out)


def test_evaluate_takes_the_root_of_a_list(run, data, tmp_path, capsys):
    video = next(data.glob("val/*/*.mp4"))
    listing = tmp_path / "list.csv"
    listing.write_text(f"path,label,split\n{video.relative_to(data)},{video.parent.name},val\n")
    words = ["evaluate", str(run), "--data", str(listing), "--workers", "0", "--out", str(tmp_path / "out")]
    assert main([*words, "--root", str(data)]) == 0
    assert "val: the rows of" in capsys.readouterr().out


def test_classify_prints_names_as_they_are(data, tmp_path, capsys):
    model = small_model(["[bold]", "[/x]", ":cat:", "d", "e", "f"])
    run = small_run(tmp_path / "run", model)
    clip = tmp_path / "T [d].mp4"
    clip.write_bytes(next(data.glob("val/*/*.mp4")).read_bytes())
    assert main(["classify", str(run), str(clip), "--topk", "6"]) == 0
    shown = capsys.readouterr().out
    assert all(label in shown for label in model.labels)
    assert f"{clip}\n" in shown


def test_classify_names_damaged_videos_without_code(run, tmp_path, capsys):
    whole = noise_video(tmp_path / "whole.avi", 40)
    clip = tmp_path / "cut.avi"
    clip.write_bytes(whole.read_bytes()[: whole.stat().st_size * 3 // 4])
    assert main(["classify", str(run), str(clip), "--workers", "1"]) == 0
    shown = capsys.readouterr().err
    assert shown.startswith(f"warning: {clip}: only the first ")
    assert shown.count("\n") == 1


def test_classify_uses_the_accelerator_when_there_is_one(monkeypatch):
    from tttvideo.devices import best_device

    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda: torch.device("cuda"))
    assert best_device().type == "cuda"
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    assert best_device().type == "cpu"
