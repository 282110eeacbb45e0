"""Fixtures of the whole suite.

Triton decides when it is imported whether kernels are interpreted, on CPU tensors, or compiled, and PyTorch imports it
when it likes: so it is decided here, before either. Tests on a GPU set TRITON_INTERPRET=0 (`make test-gpu`).
"""

import atexit
import contextlib
import faulthandler
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn

os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ["TTTVIDEO_INDEX"] = "off"  # nothing of a test in the user's index; tests of the index set their own

import pytest

gc.disable()  # while modules are imported, of which nothing is garbage

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _no_warning_was_given_yet():
    """A damaged file is warned of once per process; the tests share one."""
    if reader := sys.modules.get("tttvideo.video.reader"):  # pytest-xdist's first process runs no test and needs none
        reader._already_warned.clear()


def environment_of_a_user() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "ACCELERATE"))}
    return kept | {"OMP_NUM_THREADS": "1"}


NEEDED = """train accelerate.tracking decord jsonargparse safetensors.torch timm.data timm.utils torch.distributed.nn
torch.utils.tensorboard torchvision.transforms.v2 tttvideo.evaluation torchmetrics yaml"""
"""Imported once for all processes of `run_script`."""

FORK_SERVER = pytest.StashKey[tuple[int, socket.socket]]()


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session):
    """Forks, before the first test, a process from which those of `run_script` are forked: it need not import again
    what the tests have imported, and no test has changed anything yet."""
    gc.enable()
    gc.freeze()
    if any("run_script" in item.fixturenames for item in session.items) and not session.config.option.collectonly:
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            _serve(theirs)
        theirs.close()
        session.config.stash[FORK_SERVER] = pid, ours


def pytest_unconfigure(config):
    if FORK_SERVER in config.stash:
        pid, channel = config.stash[FORK_SERVER]
        channel.close()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _serve(channel: socket.socket) -> NoReturn:
    """Carries out orders, a line of JSON each, until there are no more."""
    os.setsid()
    faulthandler.disable()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in map(int, os.listdir("/dev/fd")):  # not closed: what holds them here may close them yet
        if number > 2 and number != channel.fileno():
            with contextlib.suppress(OSError):  # of the listing itself
                os.fstat(number)
                os.dup2(nowhere, number)
    file = channel.makefile("rw")
    for line in file:
        for name in NEEDED.split():
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        order, pids = json.loads(line), []
        for rank, environment in enumerate(order["environments"]):
            pids.append(os.fork())
            if pids[-1] == 0:
                _run(order, rank, environment)
        file.write(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]) + "\n")
        file.flush()
    os._exit(0)


def _run(order: dict, rank: int, environment: dict[str, str]) -> NoReturn:
    """Is the process of a script, to its end."""
    code = 1
    try:
        if order["new_session"]:
            os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number in (1, 2):
            os.dup2(os.open(f"{order['output']}-{rank}-{number}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdin, sys.stdout, sys.stderr = (open(n, "w" if n else "r", closefd=False) for n in range(3))  # noqa: SIM115
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(os.path.dirname(order["output"]))
        sys.argv = [order["script"], *order["argv"]]
        exec(compile(Path(order["script"]).read_text(), order["script"], "exec"), {"__name__": "__main__"})
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@pytest.fixture(scope="session")
def fork_server(request):
    """Carries out an order: the exit codes of its processes."""
    _, channel = request.config.stash[FORK_SERVER]
    answers = channel.makefile()

    def carry_out(order: dict) -> list[int]:
        channel.sendall(json.dumps(order).encode() + b"\n")
        assert select.select([channel], [], [], 300)[0], "a process hangs"
        return json.loads(answers.readline())

    return carry_out


class Done(NamedTuple):
    """What processes that have ended leave: exit codes, and all that they said."""

    codes: list[int]
    stdout: str
    stderr: str

    @property
    def returncode(self) -> int:
        return self.codes[0]


@pytest.fixture
def run_script(tmp_path, request) -> Callable[..., Done]:
    """Runs a script, which finds the repository at {root}, in a process of its own and waits for its end.

    Args of the function:
        ranks: so many processes, which find each other as those of torchrun do.
        launcher: arguments of Python before the script: started afresh, not forked.
    """

    def run(script: str, argv: list[str], *launcher: str, ranks: int = 1, new_session: bool = False, **environment):
        file = tmp_path / "script.py"
        file.write_text(script.format(root=str(ROOT)))
        if launcher:
            done = subprocess.run(
                [sys.executable, *launcher, str(file), *argv],
                env=environment_of_a_user() | environment,
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
                start_new_session=new_session,
            )
            return Done([done.returncode], done.stdout, done.stderr)
        environments = [environment_of_a_user() | environment]
        if ranks > 1:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                place = {
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(free.getsockname()[1]),
                    "WORLD_SIZE": str(ranks),
                }
            place |= {"ACCELERATE_USE_CPU": "1", "LOCAL_WORLD_SIZE": str(ranks)}
            environments = [environments[0] | place | {"RANK": str(r), "LOCAL_RANK": str(r)} for r in range(ranks)]
        order = {"script": str(file), "argv": argv, "environments": environments, "new_session": new_session}
        codes = request.getfixturevalue("fork_server")(order | {"output": str(tmp_path / "said")})
        said = ["".join((tmp_path / f"said-{r}-{n}").read_text() for r in range(ranks)) for n in (1, 2)]
        return Done(codes, *said)

    return run
