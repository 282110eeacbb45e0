"""One run folder, one run."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

import train
from tests.conftest import ROOT, environment_of_a_user
from tests.training.test_run import curve
from tttvideo.model import VideoModel
from tttvideo.training import lock as module
from tttvideo.training.config import ConfigError
from tttvideo.training.lock import NAME, RunLock
from tttvideo.training.run_folder import JsonLines


def test_a_second_start_is_refused_while_the_first_lives(tmp_path):
    first = RunLock(tmp_path)
    assert first.take() is None
    with pytest.raises(ConfigError, match=f"is being written to by process {os.getpid()} on .*; stop that run first"):
        RunLock(tmp_path).take()
    first.check()
    first.release()
    assert RunLock(tmp_path).take() is None


def test_released_it_leaves_nothing(tmp_path):
    lock = RunLock(tmp_path / "a" / "b")
    lock.take()
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == [NAME]
    lock.release()
    assert not (tmp_path / "a").exists()


def owner_of_another_time(tmp_path, **changes) -> dict:
    lock = RunLock(tmp_path)
    lock.take()
    owner = json.loads((tmp_path / NAME).read_text())
    lock.release()
    (tmp_path / NAME).write_text(json.dumps(owner | changes))
    return owner


def test_a_dead_process_of_this_machine_is_taken_over_from(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    owner_of_another_time(tmp_path, pid=dead.pid)
    lock = RunLock(tmp_path)
    assert f"process {dead.pid} on" in (lock.take() or "")
    lock.release()
    owner_of_another_time(tmp_path, started=1)  # the number is another process's by now
    assert "has ended" in (RunLock(tmp_path).take() or "")


def test_another_machine_counts_by_the_folders_clock(tmp_path, monkeypatch):
    owner_of_another_time(tmp_path, host="elsewhere", machine="m", pid=1)
    monkeypatch.setattr("time.time", lambda: 0.0)  # this host's clock says nothing
    with pytest.raises(ConfigError, match="process 1 on elsewhere"):
        RunLock(tmp_path).take()
    now = (tmp_path / NAME).stat().st_mtime
    os.utime(tmp_path / NAME, (now, now - 50))
    with pytest.raises(ConfigError, match="process 1 on elsewhere"):
        RunLock(tmp_path).take()
    os.utime(tmp_path / NAME, (now, now - 70))
    assert "elsewhere gave no sign of life for 7" in (RunLock(tmp_path).take() or "")


@pytest.mark.parametrize(
    "content", ["", "[]", "{", "[" * 20_000, "\0\xff", '{"pid": "x"}', '{"pid": -1, "machine": 3}']
)
def test_a_damaged_lock_counts_by_its_age(tmp_path, content):
    (tmp_path / NAME).write_text(content)
    with pytest.raises(ConfigError, match="is being written to by"):
        RunLock(tmp_path).take()
    os.utime(tmp_path / NAME, (0, 0))
    assert RunLock(tmp_path).take()


def test_it_is_kept_fresh_and_its_loss_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "REFRESH", 0.05)
    lock = RunLock(tmp_path)
    lock.take()
    os.utime(tmp_path / NAME, (0, 0))
    for _ in range(200):
        if (tmp_path / NAME).stat().st_mtime > 1:
            break
        threading.Event().wait(0.05)
    else:
        pytest.fail("not refreshed")
    other = json.loads((tmp_path / NAME).read_text()) | {"pid": 7, "host": "elsewhere"}
    (tmp_path / NAME).write_text(json.dumps(other))
    with pytest.raises(ConfigError, match="was taken over by process 7 on elsewhere"):
        lock.check()
    lock.release()
    assert (tmp_path / NAME).exists()  # what is another's is not removed
    (tmp_path / NAME).unlink()
    lock._mine = b"x"
    with pytest.raises(ConfigError, match="is gone"):
        lock.check()


def _start(folder, together, answers) -> None:
    lock = RunLock(folder)
    together.wait()
    try:
        lock.take()
        answers.put("won")
    except ConfigError as error:
        answers.put(str(error))
    together.wait()  # it lives until all have tried


@pytest.mark.parametrize("stale", [False, True])
def test_of_many_starts_in_one_instant_one_wins(tmp_path, stale):
    fork = multiprocessing.get_context("fork")
    for _ in range(5):
        if stale:
            (tmp_path / NAME).write_text("{}")
            os.utime(tmp_path / NAME, (0, 0))
        together, answers = fork.Barrier(4), fork.Queue()
        starts = [fork.Process(target=_start, args=(tmp_path, together, answers)) for _ in range(4)]
        for start in starts:
            start.start()
        said = [answers.get(timeout=60) for _ in starts]
        for start in starts:
            start.join()
        assert said.count("won") == 1, said
        (tmp_path / NAME).unlink()


def test_a_run_holds_it_and_lets_go(arguments, tmp_path, capsys):
    other = RunLock(tmp_path / "run")
    other.take()
    assert train.main(arguments()) == 2
    said = capsys.readouterr().err
    assert "is being written to by process" in said
    assert len(said.splitlines()) == 1
    other.release()
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / NAME).write_text("{}")
    os.utime(tmp_path / "run" / NAME, (0, 0))
    assert train.main(arguments(schedule__epochs=1, evaluate_every=0)) == 0
    assert "its lock on the folder is taken over" in capsys.readouterr().err
    assert not (tmp_path / "run" / NAME).exists()


@pytest.mark.parametrize("moment", ["step", "validation"])
def test_a_run_that_was_taken_over_from_writes_nothing_more(arguments, tmp_path, monkeypatch, capsys, moment):
    """As it happens to one that was suspended for a minute."""
    run, before = tmp_path / "run", {}

    def taken_over():
        owner = json.loads((run / NAME).read_text()) | {"pid": 7, "host": "elsewhere"}
        (tmp_path / "other").write_text(json.dumps(owner))
        (tmp_path / "other").replace(run / NAME)
        before.update({path: path.read_bytes() for path in run.rglob("*") if path.is_file()})

    def append(self, line):
        original(self, line)
        if moment == "step" and line.get("step") == 2:
            taken_over()

    def read(self, pieces):
        for number, piece in enumerate(outputs_of_batches(self, pieces)):
            if moment == "validation" and number == 0:
                taken_over()
            yield piece

    original, outputs_of_batches = JsonLines.append, VideoModel.outputs_of_batches
    monkeypatch.setattr(JsonLines, "append", append)
    monkeypatch.setattr(VideoModel, "outputs_of_batches", read)
    monkeypatch.setattr(module, "REFRESH", 1e-3)
    assert train.main(arguments(checkpoint__every=0)) == 2
    said = capsys.readouterr().err
    assert f"{run} was taken over by process 7 on elsewhere" in said
    assert len(said.splitlines()) == 1
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


SUSPENDED = """
import os, signal, sys
import train
from tttvideo.training.run_folder import JsonLines
append = JsonLines.append
def appended(self, line):
    append(self, line)
    if line["step"] == 3:
        os.kill(os.getpid(), signal.SIGSTOP)
JsonLines.append = appended
sys.exit(train.main())
"""
ELSEWHERE = """
import os, signal, sys, socket
import train
from tttvideo.training import lock
from tttvideo.training.run_folder import JsonLines
process_here, append = lock._process, JsonLines.append
socket.gethostname = lambda: "elsewhere"
lock._process = lambda pid: process_here(pid) and process_here(pid)._replace(machine="another")
def appended(self, line):
    append(self, line)
    if line.get("step") == int(os.environ["STOP_AT"]):
        os.kill(os.getpid(), signal.SIGSTOP)
JsonLines.append = appended
sys.exit(train.main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("other", ["writes", "has finished"])
def test_a_suspended_run_ends_when_another_host_has_gone_on(arguments, run_script, tmp_path, other):
    assert train.main(arguments(out="whole")) == 0
    assert run_script("", []).returncode == 0  # so that the others start within a minute
    (tmp_path / "suspended.py").write_text(SUSPENDED)
    command = [sys.executable, str(tmp_path / "suspended.py"), *arguments()]
    environment = environment_of_a_user() | {"PYTHONPATH": str(ROOT)}
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
    os.waitid(os.P_PID, first.pid, os.WSTOPPED)
    lock, steps = tmp_path / "run" / NAME, tmp_path / "run" / "steps.jsonl"
    again = run_script(ELSEWHERE, arguments("--resume", "auto"), STOP_AT="0")
    assert again.returncode == 2
    assert f"is being written to by process {first.pid} on" in again.stderr
    os.utime(lock, (lock.stat().st_mtime - 61,) * 2)
    stop_at = {"STOP_AT": "6" if other == "writes" else "0"}
    elsewhere = threading.Thread(target=lambda: run_script(ELSEWHERE, arguments("--resume", "auto"), **stop_at))
    elsewhere.start()
    while other == "writes" and '"step": 6' not in steps.read_text():
        time.sleep(0.1)
        assert elsewhere.is_alive()
    if other == "has finished":
        elsewhere.join()
        assert curve(tmp_path / "run") == curve(tmp_path / "whole")
    time.sleep(module.REFRESH + 1)
    first.send_signal(signal.SIGCONT)
    said = "was taken over by process" if other == "writes" else "is gone: another run has ended there"
    assert said in first.communicate(timeout=200)[1]
    assert first.returncode == 2
    if other == "writes":
        os.kill(json.loads(lock.read_text())["pid"], signal.SIGCONT)
        elsewhere.join()
    assert curve(tmp_path / "run") == curve(tmp_path / "whole")
