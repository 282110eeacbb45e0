"""Small real videos, the command line of a small run, and a fresh Accelerate for each run in this process."""

import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from tests.video.clips import write

ROOT = Path(__file__).resolve().parents[2]


def write_video(path: Path, level: int, frames: int = 6, size: int = 32) -> None:
    """A moving bar over a background of brightness `level`."""
    pictures = np.full((frames, size, size, 3), level, np.uint8)
    for t in range(frames):
        pictures[t, :, 4 * t : 4 * t + 4] = 255 - level
    write(path, pictures, rate=10)


@pytest.fixture(scope="session")
def videos(tmp_path_factory) -> Path:
    """root/{train,val}/{bright,dark}/*.mp4: 14 videos to train on, 5 to validate on."""
    root = tmp_path_factory.mktemp("videos")
    for split, count in (("train", 7), ("val", 3)):
        for name, level in (("bright", 200), ("dark", 40)):
            for i in range(count - (split == "val" and name == "dark")):
                write_video(root / split / name / f"{i}.mp4", level + 5 * i, frames=4 + i % 4)
    return root


# Has imported everything once; each order, a line of JSON, is carried out by processes forked from it
SERVER = """
import importlib, json, os, sys
sys.path.insert(0, {root!r})
for name in ("train", "accelerate.tracking", "av", "decord", "jsonargparse", "safetensors.torch", "timm.data",
             "timm.utils", "torch.distributed.nn", "torch.utils.tensorboard", "torchvision.transforms.v2", "yaml"):
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


@pytest.fixture
def arguments(videos, tmp_path) -> Callable[..., list[str]]:
    """Arguments of a short run: dropout, augmentation, Mixup, CutMix, moving average, accumulation are on."""

    def build(*extra: str, out: str = "run", **settings: object) -> list[str]:
        values = {
            "data.root": videos,
            "data.size": "[16,16]",
            "data.batch_size": 2,
            "data.workers": 0,
            "data.augment.flip": 0.5,
            "data.augment.brightness": 0.3,
            "data.max_frames": 5,
            "model.encoder.patch": 8,
            "model.backbone.width": 16,
            "model.backbone.depth": 1,
            "model.backbone.dropout": 0.2,
            "model.backbone.mixer.heads": 2,
            "mix.mixup": 0.5,
            "mix.cutmix": 1.0,
            "mix.probability": 0.5,
            "optimizer.lr": 0.003,
            "schedule.epochs": 2,
            "schedule.warmup": 0.5,
            "schedule.inner_warmup": 0.5,
            "accumulate": 2,
            "ema": 0.9,
            "checkpoint.every": 3,
            "trackers": "[]",
            "out": tmp_path / out,
        }
        values.update({key.replace("__", "."): value for key, value in settings.items()})
        return [word for key, value in values.items() for word in (f"--{key}", str(value))] + list(extra)

    return build


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Sums differ in their last bits between numbers of threads, and curves are compared to the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Accelerate keeps one state per process; each run here is a process of its own in real life."""
    yield
    from accelerate.state import AcceleratorState, GradientState, PartialState

    AcceleratorState._reset_state()
    PartialState._reset_state()
    GradientState._reset_state()
