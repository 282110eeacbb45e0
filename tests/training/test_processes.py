"""Runs in processes of their own: killed with SIGKILL, with data workers, and two at once."""

import random
import shutil
from pathlib import Path

import pytest

import train
from tests.training.test_run import curve, lines

ROOT = Path(__file__).resolve().parents[2]

# train.py that kills itself, once: in the middle of the append of step KILL_AT to steps.jsonl, or KILL_AFTER
# seconds later
SUICIDAL = """
import os, signal, sys, threading
sys.path.insert(0, {root!r})
import torch
torch.set_num_threads(1)
import train
from tttvideo.training.run_folder import JsonLines

append = JsonLines.append
def killed(self, line):
    if line.get("step") == int(os.environ["KILL_AT"]) and not os.path.exists(os.environ["KILLED"]):
        open(os.environ["KILLED"], "w").close()
        append(self, line)
        self._file.write(b'{{"step": 99, "torn')
        self._file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    if "KILL_AFTER" in os.environ and line.get("step") == int(os.environ["KILL_STEP"]):
        delay = float(os.environ["KILL_AFTER"])
        threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
    append(self, line)
if __name__ == "__main__":
    JsonLines.append = killed
    sys.exit(train.main())
"""


@pytest.fixture
def start(run_script, tmp_path):
    def run(argv, *launcher, kill_at=-1, ranks=1, **environment):
        environment = {"KILL_AT": str(kill_at), "KILLED": str(tmp_path / "was-killed"), **environment}
        return run_script(SUICIDAL, argv, *launcher, ranks=ranks, **environment)

    return run


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--monitor-interval=0.2"]


def test_kill_9_with_workers_then_resume_with_and_without(arguments, start, tmp_path, capsys):
    assert train.main(arguments(out="whole")) == 0
    done = start(arguments(out="killed", data__workers=2), kill_at=7)
    assert done.returncode == -9, done.stderr
    killed = tmp_path / "killed"
    assert "torn" in (tmp_path / "killed" / "steps.jsonl").read_text()
    expected = curve(tmp_path / "whole")
    other = tmp_path / "other"
    shutil.copytree(killed, other)
    capsys.readouterr()
    assert train.main(arguments("--resume", "auto", out="killed", data__workers=2)) == 0
    assert "resume step-00000006: epoch 2, batch 4 of 7" in capsys.readouterr().out  # inside an epoch
    assert curve(killed) == expected
    assert train.main(arguments("--resume", "auto", out="other", data__workers=0)) == 0
    assert curve(other) == expected


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_kill_9_anywhere_inside_an_epoch(arguments, start, tmp_path, processes):
    """With workers or without, the run is the same to the bit: every line of the logs and every weight."""
    settings = dict(data__batch_size=1, checkpoint__every=1, schedule__epochs=3)
    done = start(arguments(out="whole", data__workers=0, **settings), ranks=processes)
    assert done.returncode == 0, done.stderr
    whole = tmp_path / "whole"
    per_epoch = lines(whole / "log.jsonl")[0]["step"]
    draw = random.Random(processes)
    for workers in (0, 1, 2, 4):
        out = f"killed{workers}"
        argv = arguments("--resume", "auto", out=out, data__workers=workers, **settings)
        steps = sorted(epoch * per_epoch + draw.randrange(2, per_epoch) for epoch in range(3))
        for step in steps:
            moment = {"KILL_STEP": str(step), "KILL_AFTER": f"{draw.uniform(0, 0.05):.4f}"}
            done = start(argv, ranks=processes, **moment)
            assert done.returncode != 0, (workers, step)
        done = start(argv, ranks=processes)
        assert done.returncode == 0, done.stderr
        assert "batch 0 of" not in done.stdout, (workers, steps)  # resumed inside an epoch
        assert curve(tmp_path / out) == curve(whole), (workers, steps)
        assert weights(tmp_path / out) == weights(whole), (workers, steps)


def weights(run: Path) -> dict[str, bytes]:
    """The last checkpoint's weights and optimizer, byte for byte."""
    last = sorted((run / "checkpoints").glob("step-*"))[-1]
    names = ("model.safetensors", "training_state/model.safetensors", "training_state/optimizer.bin")
    return {name: (last / name).read_bytes() for name in names}


@pytest.mark.parametrize("launcher", ["forked", pytest.param("torchrun", marks=pytest.mark.slow)])
def test_two_processes_train_validate_and_resume_after_a_kill(arguments, start, tmp_path, capsys, videos, launcher):
    settings = dict(processes=2, trackers="[tensorboard]")
    root = tmp_path / "damaged"
    shutil.copytree(videos, root)
    (root / "train" / "dark" / "0.mp4").write_bytes(b"")
    settings |= dict(data__root=root, data__batch_size=1)  # one process meets an empty batch
    done = start(arguments(out="whole", **settings), ranks=2)
    assert done.returncode == 0, done.stderr
    log = lines(tmp_path / "whole" / "log.jsonl")
    assert [(line["step"], line["skipped"], line["val_n"]) for line in log] == [(4, 1, 5), (8, 1, 5)]
    argv = arguments("--resume", "auto", out="killed", **settings)
    if launcher == "torchrun":
        # two starts, as torchrun's own restart of killed processes does not always find the old ones gone
        done = start(argv, *TORCHRUN, kill_at=7, ACCELERATE_USE_CPU="1")
        assert done.returncode != 0
    else:
        done = start(argv, kill_at=7, ranks=2)
        assert 0 not in done.codes
    assert "starting afresh" in done.stdout
    done = start(argv, ranks=2)
    assert done.returncode == 0, done.stderr
    assert "resume step-00000006: epoch 2, batch 4 of 7" in done.stdout
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")
    # and one process alone cannot take over
    del settings["processes"]
    assert train.main(arguments("--resume", "auto", out="killed", **settings)) == 2
    assert "processes = 2 and this start has 1" in capsys.readouterr().err


def test_more_processes_started_than_accelerate_runs(arguments, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")  # torchrun without ACCELERATE_USE_CPU, and no GPU
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert train.main(arguments()) == 2
    assert "ACCELERATE_USE_CPU=1 torchrun" in capsys.readouterr().err


def test_accelerate_launch_that_starts_one_of_two(arguments, monkeypatch, capsys):
    for name, value in {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_MIXED_PRECISION": "no"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert train.main(arguments()) == 2
    assert "accelerate launch was asked for several processes but started one" in capsys.readouterr().err
