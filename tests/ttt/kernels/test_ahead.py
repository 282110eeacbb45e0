"""Every configuration that the launchers choose compiles for Ampere and Hopper, without a GPU, and fits there."""

import json
import os
import subprocess
import sys

import pytest

from tttvideo.ttt.kernels.ahead import SHARED_MEMORY, configurations

QUICK = """
from tttvideo.ttt.kernels.ahead import SHARED_MEMORY, build, compiled, frame_configurations
one = next(frame_configurations("conv_depthwise", 16, "tf32", 90))
for capability, most in SHARED_MEMORY.items():
    needs = compiled(one, capability)
    assert 0 < needs.registers <= 255 and needs.stack == 0 and needs.shared < most, needs
    assert "cvt.rna.tf32.f32" in build(one, capability).asm["ptx"]  # tensor cores would cut what is not rounded
"""


def test_a_kernel_compiles_without_a_gpu():
    """In a process of its own: this one interprets kernels (conftest.py) and cannot compile them."""
    subprocess.run([sys.executable, "-c", QUICK], check=True, env=os.environ | {"TRITON_INTERPRET": "0"})


@pytest.mark.kernels
def test_all_configurations_fit(tmp_path):
    """For heads of 64, the paper's; `python -m benchmarks.kernels --aot --dims 32,64,128` takes three times as long."""
    file = tmp_path / "aot.json"
    command = [sys.executable, "-m", "benchmarks.kernels", "--aot", "--dims", "64", "--json", str(file)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    summary = json.loads(file.read_text())["summary"]
    expected = sum(len(list(configurations([64], capability))) for capability in SHARED_MEMORY)
    assert summary["configurations"] == expected > 450
    assert summary["over_shared_memory"] == 0
    assert summary["over_stack"] == 0
