"""Fixtures of the whole suite.

Triton decides when it is imported whether kernels are interpreted, on CPU tensors, or compiled, and PyTorch imports it
when it likes: so it is decided here, before either. Tests on a GPU set TRITON_INTERPRET=0 (`make test-gpu`).
"""

import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ["TTTVIDEO_INDEX"] = "off"  # nothing of a test in the user's index; tests of the index set their own

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _no_warning_was_given_yet():
    """A damaged file is warned of once per process; the tests share one."""
    if reader := sys.modules.get("tttvideo.video.reader"):  # pytest-xdist's first process runs no test and needs none
        reader._already_warned.clear()


# Has imported everything once; each order, a line of JSON, is carried out by processes forked from it
SERVER = """
import importlib, json, os, sys
sys.path.insert(0, {root!r})
for name in ("train", "tttvideo.cli", "accelerate.tracking", "av", "decord", "jsonargparse", "safetensors.torch",
             "timm.data", "timm.utils", "torch.distributed.nn", "torch.utils.tensorboard", "torchvision.transforms.v2",
             "tttvideo.evaluation", "torchmetrics", "yaml"):
    try:
        importlib.import_module(name)
    except ImportError:
        pass
for line in sys.stdin:
    order = json.loads(line)
    pids = []
    for rank, environment in enumerate(order["environments"]):
        pids.append(os.fork())
        if not pids[-1]:
            break
    else:
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]), flush=True)
        continue
    if order["new_session"]:
        os.setsid()
    for number in (1, 2):
        os.dup2(os.open(f"{{order['output']}}-{{rank}}-{{number}}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(environment)
    os.chdir(os.path.dirname(order["output"]))
    sys.argv = [order["script"], *order["argv"]]
    exec(compile(open(order["script"]).read(), order["script"], "exec"), {{"__name__": "__main__"}})
    sys.exit()
"""


def environment_of_a_user() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "ACCELERATE"))}
    return kept | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def fork_server():
    """Carries out an order: the exit codes of its processes."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER.format(root=str(ROOT))],
        env=environment_of_a_user(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )

    def carry_out(order: dict) -> list[int]:
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
        assert select.select([process.stdout], [], [], 300)[0], "a process hangs"
        return json.loads(process.stdout.readline())

    yield carry_out
    process.kill()
    process.communicate()


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
        environments = [environment]
        if ranks > 1:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                place = {
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(free.getsockname()[1]),
                    "WORLD_SIZE": str(ranks),
                }
            place |= {"ACCELERATE_USE_CPU": "1", "LOCAL_WORLD_SIZE": str(ranks)}
            environments = [environment | place | {"RANK": str(r), "LOCAL_RANK": str(r)} for r in range(ranks)]
        order = {"script": str(file), "argv": argv, "environments": environments, "new_session": new_session}
        codes = request.getfixturevalue("fork_server")(order | {"output": str(tmp_path / "said")})
        said = ["".join((tmp_path / f"said-{r}-{n}").read_text() for r in range(ranks)) for n in (1, 2)]
        return Done(codes, *said)

    return run
