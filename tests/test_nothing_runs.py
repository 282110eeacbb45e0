"""Nothing that lies in a folder from somebody else is run: by real processes in a folder full of traps."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .evaluation.small import noise_video, small_model

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("safetensors", "yaml", "decord", "av", "torch", "timm", "rich", "numpy", "json", "PIL", "huggingface_hub")


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory):
    """An export and a video, and modules beside them that leave a mark where they are imported."""
    folder = tmp_path_factory.mktemp("downloaded")
    small_model(["a", "b"]).save_pretrained(folder / "model")
    noise_video(folder / "clip.mp4", 4)
    for name in NAMES:
        (folder / f"{name}.py").write_text(f"open({str(folder / 'it-ran')!r}, 'w').write({name!r})\n")
    return folder


SCRIPT = "from tttvideo.cli import main; raise SystemExit(main())"


@pytest.mark.parametrize("start", [pytest.param(["-c", SCRIPT], marks=pytest.mark.slow), ["-m", "tttvideo"]])
def test_modules_of_the_working_directory_are_not_imported(downloaded, start):
    # -P: a console script does not search the working directory, where -c would
    python = [sys.executable, *(["-P"] if start[0] == "-c" else [])]
    ran = subprocess.run(
        [*python, *start, "classify", "model", "clip.mp4", "--device", "cpu"],
        cwd=downloaded,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    assert not (downloaded / "it-ran").exists()


HOSTILE = """
import json, resource, sys, time
from pathlib import Path
import tttvideo
folder = Path("model")
tttvideo.from_pretrained(folder)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
description = json.loads((folder / "config.json").read_text())
del description["checksum"]  # which would refuse them all, by whoever cannot count it anew
description = json.dumps(description)
for *path, value in json.loads(sys.argv[1]):
    changed = json.loads(description)
    part = changed
    for name in path[:-1]:
        part = part[name]
    assert path[-1] in part, path
    part[path[-1]] = value
    (folder / "config.json").write_text(json.dumps(changed))
    begun = time.process_time()
    try:
        tttvideo.from_pretrained(folder)
        print("taken:", path, value)
    except ValueError as error:
        if "\\n" in str(error):
            print("several lines:", path, value, error)
    if time.process_time() - begun > 2:
        print("slow:", path, value)
if (grown := resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) > 100_000:
    print("memory:", grown, "kB")
"""


def test_sizes_are_compared_before_memory_is_asked_for(run_script, tmp_path):
    small_model(["a", "b"]).save_pretrained(tmp_path / "model")
    backbone = ["model", "init_args", "backbone", "init_args"]
    mixer = [*backbone, "mixer", "init_args"]
    changes = [
        [*backbone, "width", 1_000_000],
        [*backbone, "depth", 20_000],
        [*backbone, "depth", 1_000_000_000],
        [*backbone, "mlp_ratio", 1e6],
        [*backbone, "mlp_ratio", 1e300],
        [*mixer, "inner", "init_args", "expansion", 1_000_000],
        [*mixer, "inner", "init_args", "expansion", 10**30],
        [*mixer, "rope_theta", float("nan")],
        [*mixer, "base_rate", float("inf")],
        ["preprocessing", "init_args", "size", [1 << 20, 1 << 20]],
        ["labels", [str(i) for i in range(1000)]],
    ]
    ran = run_script(HOSTILE, [json.dumps(changes)])
    assert (ran.returncode, ran.stdout) == (0, ""), ran.stderr
