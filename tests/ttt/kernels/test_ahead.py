"""Every configuration that the launchers choose compiles for Ampere and Hopper, without a GPU, and fits there."""

import json
import subprocess
import sys

import pytest


@pytest.mark.kernels
def test_all_configurations_fit(tmp_path):
    """In a process of its own: this one interprets kernels (conftest.py) and cannot compile them. For heads of 64, the
    paper's; `python -m benchmarks.kernels --aot --dims 32,64,128` takes three times as long."""
    file = tmp_path / "aot.json"
    command = [sys.executable, "-m", "benchmarks.kernels", "--aot", "--dims", "64", "--json", str(file)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    summary = json.loads(file.read_text())["summary"]
    assert summary["configurations"] > 200
    assert summary["over_shared_memory"] == 0
    assert summary["over_stack"] == 0
