"""Data workers that are killed, hang, crash or fail, and a /dev/shm that is too small: a sentence, never a hang."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset, IterableDataset

from tests.training.conftest import write_video
from tests.video.small import batches, config
from tttvideo.video import workers
from tttvideo.video.index import DataError
from tttvideo.video.loader import train_loader
from tttvideo.video.workers import DataNote, DataWorkerError, WorkerLoader

ROOT = Path(__file__).resolve().parents[2]
Room = namedtuple("Room", "f_bavail f_frsize")


def room_for(monkeypatch, size: int) -> None:
    monkeypatch.setattr(workers.os, "statvfs", lambda path: Room(size // 4096, 4096))


def all_of(loader) -> tuple[list, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        items = list(loader)
    return items, [str(w.message) for w in caught if issubclass(w.category, DataNote)]


def arrays_received(monkeypatch) -> list:
    """Grows by the arrays that this process makes tensors of."""
    received = []
    monkeypatch.setattr(workers.torch, "from_numpy", lambda a, real=torch.from_numpy: received.append(a) or real(a))
    return received


class Clips(Dataset):
    """64 MB each, of one value; the number at `at` does something else."""

    def __init__(self, at: int = -1, deed=None, size: int = 2**26):
        self.at, self.deed, self.size = at, deed, size

    def __len__(self):
        return 6

    def name(self, i):
        return f"clips/{i}.mp4"

    def __getitem__(self, i):
        if i == self.at:
            self.deed()
        return torch.full((self.size,), i, dtype=torch.uint8), f"{i}"


class Pieces(Clips, IterableDataset):
    reading = None

    def __iter__(self):
        for i in range(len(self)):
            if self.reading:
                self.reading(self.name(i))
            yield self[i]


def die(number):
    return lambda: os.kill(os.getpid(), number)


# /dev/shm


def test_batches_that_shared_memory_has_no_room_for_travel_as_arrays_and_are_equal(folder, monkeypatch):
    setup = config(folder, max_frames=8)
    index = setup.index("train")
    expected = batches(train_loader(setup, index, seed=5))
    received = arrays_received(monkeypatch)
    room_for(monkeypatch, 2**40)
    loader = train_loader(replace(setup, workers=1), index, seed=5)
    assert batches(loader) == expected
    assert received == []
    room_for(monkeypatch, 200_000)  # 25 kB a batch; one of 4 clips has at least 4 * 8 * 3 * 16 * 16
    loader = train_loader(replace(setup, workers=1), index, seed=5)
    with pytest.warns(
        DataNote, match=r"/dev/shm has 197 kB free, too little for batches of \d+ kB from 1 data"
    ) as notes:
        twice = [batches(loader) for _ in range(2)]
    assert twice == [expected, expected]
    assert len(notes) == 1
    assert received


def test_each_batch_chooses_for_itself_how_it_travels(monkeypatch):
    class Growing(Clips):
        def __getitem__(self, i):
            return torch.full((10 ** (i + 1),), i, dtype=torch.uint8), [i]

    room_for(monkeypatch, 2 * 7 * 50_000)
    received = arrays_received(monkeypatch)
    items, notes = all_of(WorkerLoader(Growing(), batch_size=None, workers=2))
    assert [len(item[0]) for item in items] == [10, 100, 1000, 10_000, 100_000, 1_000_000]
    assert all(isinstance(item[0], torch.Tensor) and item[0].eq(i).all() for i, item in enumerate(items))
    assert [array.size for array in received] == [100_000, 1_000_000]
    assert len(notes) == 1


def test_without_room_for_locks_this_process_reads(folder, monkeypatch):
    room_for(monkeypatch, 65_536)
    setup = config(folder, workers=2)
    with pytest.warns(DataNote, match=r"/dev/shm has 66 kB free, too little for 2 data workers: .* by this process"):
        loader = train_loader(setup, setup.index("train"))
    assert loader.num_workers == 0
    assert batches(loader) == batches(train_loader(replace(setup, workers=0), setup.index("train")))


def test_room_is_shared_by_the_processes_of_a_machine(monkeypatch):
    room_for(monkeypatch, 2**30)
    whole = WorkerLoader(Clips(), batch_size=None, workers=1)._share
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert WorkerLoader(Clips(), batch_size=None, workers=1)._share == whole // 4


# Workers that end


def fails(loader, match: str, within: float = 20.0) -> str:
    begun = time.monotonic()
    with pytest.raises(DataWorkerError, match=match) as caught:
        all_of(loader)
    assert time.monotonic() - begun < within
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", [Clips, Pieces])
def test_a_killed_worker_is_a_sentence_that_names_the_file(kind):
    said = fails(
        WorkerLoader(kind(3, die(signal.SIGKILL), 10), batch_size=None, workers=1),
        r"data worker 0 \(process \d+\) was killed by SIGKILL while it read clips/3\.mp4, as happens where memory",
    )
    assert "fewer data workers (now 1)" in said


def test_a_worker_that_has_nothing_left_to_read_blames_no_file():
    loader = WorkerLoader(Pieces(size=3), batch_size=None, workers=1, persistent_workers=True)
    assert len(all_of(loader)[0]) == 6
    os.kill(loader._iterator._workers[0].pid, signal.SIGKILL)
    assert "while it read" not in fails(loader, "was killed by SIGKILL")


def test_a_crash_and_a_file_that_takes_too_long_are_named():
    loader = WorkerLoader(Clips(1, die(signal.SIGSEGV), 10), batch_size=None, workers=2)
    fails(loader, r"crashed with SIGSEGV while it read clips/1\.mp4; if that file did it, leave it out")
    loader = WorkerLoader(Clips(2, lambda: time.sleep(600), 10), batch_size=None, workers=1, time_limit=0.5)
    fails(loader, r"took more than 0\.5 s while it read clips/2\.mp4; leave that file out, convert it")


def test_a_worker_killed_in_the_middle_of_a_message_is_noticed(monkeypatch):
    room_for(monkeypatch, 2**20)  # 64 MB through a pipe that holds 64 kB
    loader = WorkerLoader(Clips(), batch_size=None, workers=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        received = iter(loader)
        (value, _) = next(received)
        assert value.eq(0).all()
        time.sleep(1)  # the next one is half written
        (worker,) = workers.multiprocessing.active_children()
        os.kill(worker.pid, signal.SIGKILL)
        begun = time.monotonic()
        with pytest.raises(DataWorkerError, match="killed by SIGKILL"):
            next(received)
    assert time.monotonic() - begun < 10
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL  # nothing is raised outside the loader


def test_a_full_shared_memory_in_spite_of_all_ends_the_run():
    class Unsendable:
        def __reduce__(self):
            raise RuntimeError(
                "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"
            )

    class Full(Clips):
        def __getitem__(self, i):
            return Unsendable() if i == 2 else i

    fails(WorkerLoader(Full(), batch_size=None, workers=1), r"found no room in /dev/shm, which has .* --shm-size=1g")


def test_an_error_in_a_worker_is_one_sentence(folder, tmp_path):
    (tmp_path / "cache").write_text("a file where a folder should be")
    setup = config(folder, workers=1, cache="disk", cache_dir=str(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"^the frame cache .*cache cannot be written \(Not a directory\)") as caught:
        list(train_loader(setup, setup.index("train")))
    assert "Traceback" not in str(caught.value)
    assert "store" in caught.value.__notes__[0]  # for TTTVIDEO_TRACEBACK

    def no_memory():
        raise MemoryError

    with pytest.raises(DataError, match="ran out of memory"):
        list(WorkerLoader(Pieces(2, no_memory, 10), batch_size=None, workers=1))

    def mistake():
        raise TypeError("ours")

    with pytest.raises(TypeError, match="ours"):
        list(WorkerLoader(Clips(2, mistake, 10), batch_size=None, workers=1))


# With a small /dev/shm in fact


def unshared(size: str, *command: str) -> subprocess.CompletedProcess:
    shell = f'mount --make-rprivate / && mount -t tmpfs -o size={size} t /dev/shm && exec "$@"'
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", shell, "sh", *command],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )


@pytest.fixture(scope="module")
def may_mount():
    if sys.platform != "linux" or not shutil.which("unshare") or unshared("1m", "true").returncode:
        pytest.skip("mounting another /dev/shm takes root on Linux")


@pytest.fixture(scope="module")
def large_clips(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("large")
    for split in ("train", "val"):
        for name, level in (("bright", 200), ("dark", 40)):
            for i in range(4):
                write_video(root / split / name / f"{i}.mp4", level + 5 * i, frames=100, size=160)
    return root


TRAIN_AND_EVALUATE = """
import json, sys
import train
from tttvideo.cli import main
for run, words in zip((train.main, main), json.loads(sys.argv[1])):
    assert run(words) == 0
    print("done", file=sys.stderr)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("size", "count"), [("64k", 0), ("64k", 2), ("1m", 4), ("64m", 2), ("64m", 4)])
def test_training_and_evaluation_with_a_small_shared_memory(may_mount, large_clips, tmp_path, size, count):
    settings = {
        "data.root": large_clips,
        "data.size": "[160,160]",  # 8 clips of a batch: 61 MB
        "data.workers": count,
        "model.encoder.patch": 80,
        "model.backbone.width": 16,
        "model.backbone.depth": 1,
        "model.backbone.mixer.heads": 2,
        "schedule.epochs": 2,
        "schedule.warmup": 0,
        "trackers": "[]",
        "out": tmp_path / "run",
    }
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    evaluation = ["evaluate", str(tmp_path / "run"), "--data", str(large_clips), "--split", "val"]
    both = json.dumps([words, [*evaluation, "--workers", str(count)]])
    done = unshared(size, sys.executable, "-c", TRAIN_AND_EVALUATE, both)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    training = done.stderr.split("done")[0]
    assert (training.count("note: /dev/shm has") > 0) == (count > 0)
