"""Every configuration that the launchers choose compiles for Ampere and Hopper, without a GPU, and fits there."""

import json
import subprocess
import sys

import pytest


@pytest.mark.kernels
@pytest.mark.parametrize("dim", [32, 64, 128])
def test_all_configurations_fit(dim, tmp_path):
    """In a process of its own: this one interprets kernels (conftest.py) and cannot compile them."""
    file = tmp_path / "aot.json"
    command = [sys.executable, "-m", "benchmarks.kernels", "--aot", "--dims", str(dim), "--json", str(file)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    summary = json.loads(file.read_text())["summary"]
    assert summary["configurations"] > 100
    assert summary["over_shared_memory"] == 0
    assert summary["over_stack"] == 0
