"""Run folders that a disk, an editor or a stranger has changed: exact, or one sentence."""

import json
import os
import pickle
import random
import shutil
from pathlib import Path

import pytest

import train
from tests.training.test_run import curve


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run with two checkpoints, the later inside an epoch; made by the first test that asks."""
    return tmp_path_factory.mktemp("stopped") / "run"


def copy_of(stopped, arguments, tmp_path, monkeypatch) -> Path:
    from tttvideo.training.run import Run

    if not stopped.exists():

        class Killed(BaseException):
            pass

        def save(self, *args):
            original(self, *args)
            if self.progress.step == 6:
                raise Killed

        original = Run.save
        argv = arguments(out=stopped, trackers="[tensorboard]")
        with monkeypatch.context() as patch:
            patch.setattr(Run, "save", save)
            with pytest.raises(Killed):
                train.main(argv)
    run = tmp_path / "run"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(stopped, run)
    return run


def resumed(arguments, capsys, run, *extra) -> tuple[int, str]:
    """Exit code and what was said on stderr, which must be a sentence."""
    capsys.readouterr()
    code = train.main(arguments("--resume", "auto", *extra, out=run, evaluate_every=0, trackers="[tensorboard]"))
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert code in (0, 2)
    if code:
        assert len(said.strip().splitlines()) == 1, said
        assert said.startswith("error: ")
        assert len(said) < 600, said
    return code, said


LAST = "checkpoints/step-00000006"


def truncate(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])


def flip(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def remove(path: Path, draw: random.Random) -> None:
    path.unlink()


def foreign(path: Path, draw: random.Random) -> None:
    path.write_text(draw.choice(["[1, 2]", "null", '{"a": "b"}', "3", "[" * 10_000, '{"a":' * 10_000, "\0\0"]) + "\n")


HARMS = [truncate, flip, remove, foreign]


def some(path: Path, draw: random.Random) -> None:
    draw.choice(HARMS)(path, draw)


@pytest.mark.parametrize("harm", [some, *(pytest.param(harm, marks=pytest.mark.slow) for harm in HARMS)])
def test_no_damage_to_a_run_folder_is_a_traceback(stopped, arguments, tmp_path, monkeypatch, capsys, harm):
    """Each file in turn; a checkpoint is never used unless all of it is as it was written."""
    draw = random.Random(harm.__name__)
    run = copy_of(stopped, arguments, tmp_path, monkeypatch)
    files = sorted(path.relative_to(run) for path in run.rglob("*") if path.is_file())
    assert len(files) > 12
    monkeypatch.setattr("tttvideo.training.run.Run.epoch", end)
    for file in files:
        run = copy_of(stopped, arguments, tmp_path, monkeypatch)
        harm(run / file, draw)
        code, said = resumed(arguments, capsys, run)
        if file.is_relative_to(LAST):
            assert code == 2, file
            assert f"{LAST} is damaged" in said, said
            assert "go on from step-00000004 with --resume step-00000004" in said


def end(self) -> None:
    """In place of an epoch: the run has begun, and that is what is looked at."""
    from dataclasses import replace

    self.progress = replace(self.progress, epoch=99)


def test_what_the_sentence_says_works(stopped, arguments, tmp_path, monkeypatch, capsys):
    assert train.main(arguments(out="whole")) == 0
    run = copy_of(stopped, arguments, tmp_path, monkeypatch)
    (run / LAST / "training_state" / "optimizer.bin").unlink()
    said = resumed(arguments, capsys, run)[1]
    command = said.rsplit("with ", 1)[1].split()
    assert train.main(arguments(*command, out=run)) == 0
    said = capsys.readouterr().out
    assert "resume step-00000004: epoch 2, batch 0 of 7" in said
    assert f"a later checkpoint is set aside as {run}/checkpoints/aside-step-00000006" in said
    assert curve(run) == curve(tmp_path / "whole")


@pytest.mark.parametrize(
    "change",
    [
        {"batch": 10**6},
        {"batch": -3},
        {"batch": "4"},
        {"step": "6"},
        {"step": 10**9},
        {"epoch": 1.5},
        {"epoch": True},
        {"totals": {"loss": "much"}},
        {"totals": [1]},
        {"best": "../../elsewhere"},
        {"best_value": "good"},
        {"fixed": None},
        {"more": 1},
    ],
)
def test_absurd_positions(stopped, arguments, tmp_path, monkeypatch, capsys, change):
    run = copy_of(stopped, arguments, tmp_path, monkeypatch)
    file = run / LAST / "progress.json"
    content = json.loads(file.read_text()) | change
    del content["checksum"]  # as an earlier version wrote it
    file.write_text(json.dumps(content))
    code, said = resumed(arguments, capsys, run)
    assert code == 2
    assert f"{LAST} is damaged" in said


class Payload:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (Path.touch, (Path(self.file),))


def test_nothing_in_a_run_folder_is_unpickled_freely(stopped, arguments, tmp_path, monkeypatch, capsys):
    """Every file that accelerate would read, made to run code; with checksums gone, as in an earlier version."""
    mark = tmp_path / "it-ran"
    names = ("optimizer.bin", "random_states_0.pkl", "custom_checkpoint_0.pkl", "scaler.pt", "pytorch_model.bin")
    copy_of(stopped, arguments, tmp_path, monkeypatch)
    monkeypatch.setattr("tttvideo.training.run.Run.epoch", end)
    for name in names:
        run = copy_of(stopped, arguments, tmp_path, monkeypatch)
        file = run / LAST / "progress.json"
        content = json.loads(file.read_text())
        del content["checksum"], content["files"]
        file.write_text(json.dumps(content))
        (run / LAST / "training_state" / name).write_bytes(pickle.dumps(Payload(mark)))
        code, _ = resumed(arguments, capsys, run)
        assert code == (2 if name == "optimizer.bin" else 0)  # the others are not read
        assert not mark.exists(), name


def test_lines_of_something_else_in_a_log(stopped, arguments, tmp_path, monkeypatch, capsys):
    for line in ('{"a": 1}', "[1]", "text", '{"step": "3", "epoch": null}'):
        for name in ("steps.jsonl", "log.jsonl"):
            run = copy_of(stopped, arguments, tmp_path, monkeypatch)
            with (run / name).open("a") as file:
                file.write(line + "\n")
            code, said = resumed(arguments, capsys, run)
            assert code == 2
            assert f"{name} is damaged: line" in said


LINKS = ("run.lock", "config.yaml", "steps.jsonl", "console.log", "checkpoints/index.json", "checkpoints")


def test_links_that_lead_nowhere_or_to_themselves(stopped, arguments, tmp_path, monkeypatch, capsys):
    for name in (*LINKS, LAST, "checkpoints/step-00000009"):
        for target in ("nowhere", Path(name).name):
            run = copy_of(stopped, arguments, tmp_path, monkeypatch)
            path = run / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            path.symlink_to(target)
            code, said = resumed(arguments, capsys, run)
            assert code == 2, name
            assert f"{path} is damaged: expected a" in said
            assert "got a link that leads nowhere; move it away" in said
    (tmp_path / "dangling").symlink_to("nowhere")
    capsys.readouterr()
    assert train.main(arguments(out=tmp_path / "dangling" / "run")) == 2
    assert f"as {tmp_path / 'dangling'} is a link that leads nowhere" in capsys.readouterr().err


FILES = ("config.yaml", "labels.json", "log.jsonl", "run.lock", "skipped.csv", ".unfinished-config.yaml")
FILES += ("checkpoints/index.json", f"{LAST}/progress.json", f"{LAST}/training_state/optimizer.bin")
FOLDERS = ("checkpoints", "tensorboard", LAST)


def test_a_folder_in_the_place_of_a_file_and_the_reverse(stopped, arguments, tmp_path, monkeypatch, capsys):
    """Anywhere in a run folder: a sentence that names it and says what to do."""
    for name in (*FILES, *FOLDERS):
        run = copy_of(stopped, arguments, tmp_path, monkeypatch)
        if name in FOLDERS:
            shutil.rmtree(run / name)
            (run / name).write_bytes(b"")
        else:
            (run / name).unlink(missing_ok=True)
            (run / name).mkdir()
        code, said = resumed(arguments, capsys, run)
        assert code == 2, name
        if name.startswith(f"{LAST}/"):
            assert f"{LAST} is damaged" in said
            assert "go on from step-00000004 with --resume step-00000004" in said
        else:
            assert f"{run}/{name}" in said
            assert "move it away" in said or f"move {run}/{name} away" in said


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(stopped, arguments, tmp_path, monkeypatch, capsys):
    for name in ("steps.jsonl", f"{LAST}/progress.json", f"{LAST}/model.safetensors"):
        run = copy_of(stopped, arguments, tmp_path, monkeypatch)
        (run / name).unlink()
        os.mkfifo(run / name)
        code, said = resumed(arguments, capsys, run)
        assert code == 2
        assert "is damaged" in said


def test_a_log_whose_end_is_lost(stopped, arguments, tmp_path, monkeypatch, capsys):
    """A torn last line, or the zeros that a crash of the machine leaves, are no damage; missing lines are noted."""
    monkeypatch.setattr("tttvideo.training.run.Run.epoch", end)
    for keep, torn, says in ((6, b'{"step": 7, "lo', ""), (6, bytes(300), ""), (4, bytes(300), "lacks 2 of 6 lines")):
        run = copy_of(stopped, arguments, tmp_path, monkeypatch)
        written = (run / "steps.jsonl").read_bytes().splitlines(keepends=True)
        (run / "steps.jsonl").write_bytes(b"".join(written[:keep]) + torn)
        capsys.readouterr()
        assert train.main(arguments("--resume", "auto", out=run)) == 0
        said = capsys.readouterr().out
        assert (f"note: {run}/steps.jsonl {says} (first: step 5)" in said) == (keep == 4)
        assert (run / "steps.jsonl").read_bytes() == b"".join(written[:keep])
