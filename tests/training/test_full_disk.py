"""A disk that fills up during training: one sentence that names the file, nothing lost, and the run goes on."""

import shutil
import subprocess
import sys

import pytest

import train
from tests.test_full_disk import room_for
from tests.training.test_run import curve

# train.py on a disk of its own, of 4 MB, that is filled up after step FULL_AT and copied to COPY at the end
SMALL_DISK = """
import ctypes, os, shutil, subprocess, sys
from pathlib import Path
disk = Path(os.environ["DISK"])
assert not ctypes.CDLL(None).unshare(0x20000)  # a mount namespace: the mount is gone with the process
subprocess.run(["mount", "--make-rprivate", "/"], check=True)
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "t", disk], check=True)
import torch
torch.set_num_threads(1)
import train
from tttvideo.training.run_folder import JsonLines

def fill():
    with open(disk / "ballast", "wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass

append = JsonLines.append
def appended(self, line):
    append(self, line)
    if line.get("step") == int(os.environ["FULL_AT"]) and "loss" in line:
        fill()
JsonLines.append = appended
if os.environ["FULL_AT"] == "0":
    fill()
code = train.main()
(disk / "ballast").unlink()
shutil.copytree(disk, os.environ["COPY"])
sys.exit(code)
"""


@pytest.fixture(scope="module")
def may_mount():
    command = ["unshare", "-m", "sh", "-c", "mount --make-rprivate / && mount -t tmpfs t /mnt"]
    if sys.platform != "linux" or not shutil.which("unshare") or subprocess.run(command, check=False).returncode:
        pytest.skip("mounting a disk takes root on Linux")


def sentence(said: str) -> str:
    """What is on stderr, which must be a sentence."""
    assert "Traceback" not in said, said
    assert said.startswith("error: ")
    assert len(said.strip().splitlines()) == 1, said
    return said


LONG = {
    "data.batch_size": 1,
    "accumulate": 1,
    "checkpoint.each_epoch": "false",
    "log_every": 1,
    "schedule.epochs": 3,
    "evaluate_every": 0,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("full_at", "settings", "says"),
    [
        (0, {}, "run/run.lock cannot be written"),
        (25, {"checkpoint.every": 20}, "run/steps.jsonl cannot be written"),
        (5, {"checkpoint.every": 4, "trackers": "[tensorboard]"}, " cannot be written"),
        (19, {"checkpoint.every": 10}, "run/checkpoints/step-00000020 cannot be written"),
        (5, {"checkpoint.every": 4, "data.cache": "disk"}, "the frame cache"),
        (5, {"checkpoint.every": 4, "data.cache": "disk", "data.workers": 2}, "the frame cache"),
    ],
)
def test_a_disk_that_fills_up(may_mount, arguments, run_script, tmp_path, capsys, full_at, settings, says):
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    disk.mkdir()
    settings, cached = LONG | {"data.cache_dir": disk / "cache"} | settings, "data.cache" in settings
    environment = {"DISK": str(disk), "COPY": str(copy), "FULL_AT": str(full_at)}
    done = run_script(SMALL_DISK, arguments(out="run" if cached else "disk/run", **settings), **environment)
    assert done.returncode == 2, done.stderr
    said = sentence(done.stderr)
    assert says in said
    assert "No space left on device" in said
    if full_at == 0:
        return
    run = tmp_path / "run" if cached else copy / "run"
    assert train.main(arguments("--resume", "auto", out=run, **settings)) == 0, capsys.readouterr().err
    assert "resume step-" in capsys.readouterr().out
    assert train.main(arguments(out="whole", **settings | {"data.cache": "none"})) == 0
    assert curve(run) == curve(tmp_path / "whole")


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")  # a traceback elsewhere
@pytest.mark.parametrize(
    ("room", "settings", "says"),
    [
        (4000, {}, "run/steps.jsonl cannot be written (File too large)"),
        (4000, {"trackers": "[tensorboard]"}, "run/tensorboard cannot be written (File too large)"),
        (4000, {"data.cache": "disk"}, "the frame cache"),
    ],
)
def test_a_file_that_cannot_grow(arguments, tmp_path, capsys, room, settings, says):
    settings = LONG | {"data.cache_dir": tmp_path / "cache", "checkpoint.every": 0} | settings
    with room_for(room):
        assert train.main(arguments(**settings)) == 2
    said = sentence(capsys.readouterr().err)
    assert says in said
