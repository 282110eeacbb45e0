"""Runs in processes of their own that are asked to stop, and go on as if nothing had been."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import train
from tests.training.test_run import curve, lines
from tttvideo.training import run as run_module

ROOT = Path(__file__).resolve().parents[2]

# train.py that has SIGNAL sent to WHOM (itself; its group, data workers too; torchrun) at a moment: after step N, or
# when validation begins
SCRIPT = """
import os, subprocess, sys
sys.path.insert(0, {root!r})
import torch
torch.set_num_threads(1)
from tttvideo.training import run, signals
signals.PATIENCE = 250.0  # of a machine that is busy
from tttvideo.training.loop import Trainer

number, moment = int(os.environ["SIGNAL"]), os.environ["MOMENT"]
rank = os.environ.get("RANK", "0")

def send():
    if rank == os.environ["AT_RANK"]:
        whom = {{"self": os.getpid(), "group": -os.getpgid(0), "launcher": os.getppid()}}[os.environ["WHOM"]]
        # from outside: data workers obey their parent
        subprocess.run(["kill", "-s", str(number), "--", str(whom)], start_new_session=True, check=True)

take_step, score = Trainer._step, run.score
def step_taken(self, *where):
    result = take_step(self, *where)
    if str(result.progress.step) == moment:
        send()
    return result

def scored(model, batches, *others, **more):
    def watched():
        for number, batch in enumerate(batches):
            if number == 1 and moment == "validation":
                send()
            yield batch
    return score(model, watched(), *others, **more)

if __name__ == "__main__":
    Trainer._step = step_taken
    run.score = scored
    code = run.main()
    print("exit code", code, flush=True)
    sys.exit(code)
"""


@pytest.fixture
def start(run_script):
    def run(argv, number, moment, *launcher, whom="group", at_rank=0, ranks=1, **environment):
        signalled = {"SIGNAL": str(int(number)), "MOMENT": str(moment), "AT_RANK": str(at_rank), "WHOM": whom}
        return run_script(SCRIPT, argv, *launcher, ranks=ranks, new_session=True, **signalled | environment)

    return run


def stopped(done, name: str) -> None:
    assert done.stderr.strip() == f"stopped by {name}: continue with the same command and --resume auto", done.stderr


def test_sigterm_to_the_group_then_resume(arguments, start, tmp_path):
    """Data workers are sent it too, and still give the step its batches."""
    settings = dict(data__workers=2, checkpoint__every=0, schedule__epochs=1)
    assert train.main(arguments(out="whole", **settings)) == 0
    done = start(arguments(**settings), signal.SIGTERM, 2)
    assert done.returncode == 143, done.stderr
    stopped(done, "SIGTERM")
    run = tmp_path / "run"
    assert [line["step"] for line in lines(run / "steps.jsonl")] == [1, 2, 3]
    assert not (run / "run.lock").exists()
    assert train.main(arguments("--resume", "auto", **settings)) == 0
    assert curve(run) == curve(tmp_path / "whole")


def test_a_signal_in_the_validation_of_an_epoch_without_a_checkpoint(arguments, monkeypatch, tmp_path, capsys):
    def score(*_, **__):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(run_module, "score", score)
    settings = dict(data__workers=0, checkpoint__every=0, checkpoint__each_epoch="false", schedule__epochs=2)
    assert train.main(arguments(**settings)) == 143
    said = capsys.readouterr().err.strip()
    assert said == "stopped by SIGTERM: continue with the same command and --resume auto"
    steps = len(lines(tmp_path / "run" / "steps.jsonl"))
    assert steps > 0
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")] == [f"step-{steps:08d}"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "moment", "workers"),
    [
        (signal.SIGUSR1, 138, 3, 2),
        (signal.SIGINT, 130, 6, 0),
        (signal.SIGTERM, 143, 4, 2),  # an epoch's last step
        (signal.SIGTERM, 143, "validation", 2),
        (signal.SIGINT, 130, "validation", 0),
    ],
)
def test_stopped_and_resumed_is_the_same_run(arguments, start, tmp_path, number, code, moment, workers):
    whole = start(arguments(out="whole"), signal.SIGTERM, "never")
    assert whole.returncode == 0, whole.stderr
    done = start(arguments(data__workers=workers), number, moment)
    assert done.returncode == code, done.stderr
    stopped(done, number.name)
    again = start(arguments("--resume", "auto", data__workers=workers), signal.SIGTERM, "never")
    assert again.returncode == 0, again.stderr
    assert curve(tmp_path / "run") == curve(tmp_path / "whole")
    if moment == "validation":
        assert "resume step-00000004: epoch 1, batch 7 of 7" in again.stdout


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--monitor-interval=0.2"]


@pytest.mark.slow
def test_all_processes_of_a_run_stop_together(arguments, start, tmp_path):
    settings = dict(data__batch_size=1, data__workers=1, checkpoint__every=0, checkpoint__each_epoch="false")
    whole = start(arguments(out="whole", **settings), signal.SIGTERM, "never", ranks=2)
    assert whole.returncode == 0, whole.stderr

    def stopped_and_resumed(*launcher, moment, **how) -> list[int]:
        out = f"{moment}-{len(list(tmp_path.iterdir()))}"
        done = start(arguments(out=out, **settings), signal.SIGTERM, moment, *launcher, **how)
        if launcher:
            assert done.returncode != 0
            assert done.stdout.count("exit code 143") == 2, (done.stdout, done.stderr)
        said = [line for line in done.stderr.splitlines() if line.startswith("stopped")]
        assert len(said) == 1, done.stderr
        assert "ontinue with the same command and --resume auto" in said[0]
        again = start(arguments("--resume", "auto", out=out, **settings), signal.SIGTERM, "never", ranks=2)
        assert again.returncode == 0, again.stderr
        assert "starting afresh" not in again.stdout
        assert curve(tmp_path / out) == curve(tmp_path / "whole")
        return done.codes

    # a process tells the other in the step's exchange
    for at_rank in (0, 1):
        assert stopped_and_resumed(moment=3, whom="self", at_rank=at_rank, ranks=2) == [143, 143]
    # in validation one may find the other gone: there is a checkpoint then, too
    assert stopped_and_resumed(moment="validation", whom="self", at_rank=1, ranks=2)[1] == 143
    # torchrun passes it on to both
    for moment in (3, "validation"):
        stopped_and_resumed(*TORCHRUN, moment=moment, whom="launcher", ACCELERATE_USE_CPU="1")


IMPATIENT = """
import os, signal, sys, time
from tttvideo.training import signals
signals.PATIENCE = float(sys.argv[1])
with signals.Signals(lambda why: print(why, flush=True)) as asked, asked.deferred():
    print("ready", flush=True)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        time.sleep(0.01)
"""


def test_a_second_signal_or_the_end_of_patience_ends_it():
    for patience, again, says in ((60, True, "SIGINT came a second time"), (1, False, "came 1 s ago")):
        process = subprocess.Popen(
            [sys.executable, "-c", IMPATIENT, str(patience)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGUSR1)
        if again:
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
        assert says in process.communicate(timeout=30)[0]
        assert process.returncode == 138


def test_handlers_are_put_back():
    from tttvideo.training.signals import STOP_SIGNALS, Signals, Stopped

    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with Signals(), pytest.raises(Stopped) as caught:
        signal.raise_signal(signal.SIGUSR1)
    assert caught.value.exit_code == 138
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before
    with Signals() as asked, asked.deferred():
        signal.raise_signal(signal.SIGTERM)
        assert asked.received == signal.SIGTERM
        with pytest.raises(Stopped), asked.immediate():
            pass
