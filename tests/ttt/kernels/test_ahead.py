"""Every configuration that the launchers choose compiles for Ampere and Hopper, without a GPU, and fits there; for
Blackwell some of every kind do."""

import json
import os
import subprocess
import sys

import pytest

from tttvideo.ttt.kernels.ahead import configurations

QUICK = """
import json, sys
from pathlib import Path
from benchmarks.kernels import ahead_of_time
from tttvideo.ttt.kernels.ahead import SHARED_MEMORY, build, compiled, frame_configurations
one = next(frame_configurations("conv_depthwise", 16, "tf32", 90))
needs = compiled(one, 90)
assert 0 < needs.registers <= 255 and needs.stack == 0 and needs.shared < SHARED_MEMORY[90], needs
assert "cvt.rna.tf32.f32" in build(one, 90).asm["ptx"]  # tensor cores would cut what is not rounded
file = Path(sys.argv[1])
compile_some = lambda words: ahead_of_time([16], [90], file, words.split(","))["summary"]
assert compile_some("heads split d=16")["configurations"] == 2  # of tokens in float32, and in bfloat16
whole = file.read_text()
assert compile_some("heads split d=16,bf16")["configurations"] == 2  # stands there already
assert file.read_text() == whole and all(row["stack"] == 0 for row in json.loads(whole)["rows"])
file.write_text(whole.replace('"triton": "', '"triton": "0.'))
try:
    compile_some("heads split")
except ValueError as error:
    assert "is of Triton 0." in str(error), error
else:
    raise AssertionError("rows of another Triton were taken")
"""


def test_a_kernel_compiles_without_a_gpu(tmp_path):
    """In a process of its own: this one interprets kernels (conftest.py) and cannot compile them. What was compiled is
    not compiled again."""
    command = [sys.executable, "-c", QUICK, str(tmp_path / "aot.json")]
    subprocess.run(command, check=True, env=os.environ | {"TRITON_INTERPRET": "0"})


@pytest.mark.kernels
@pytest.mark.parametrize("capability", [80, 90])
def test_all_configurations_fit(capability, tmp_path):
    """For heads of 64, the paper's; `python -m benchmarks.kernels --aot --dims 32,64,128` takes three times as long."""
    file = tmp_path / "aot.json"
    command = [sys.executable, "-m", "benchmarks.kernels", "--aot", "--dims", "64", "--sm", str(capability)]
    subprocess.run([*command, "--json", str(file)], check=True, stdout=subprocess.DEVNULL)
    summary = json.loads(file.read_text())["summary"]
    assert summary["configurations"] == len(list(configurations([64], capability))) > 225
    assert summary["over_shared_memory"] == 0
    assert summary["over_stack"] == 0


BLACKWELL = """
from itertools import islice
from tttvideo.ttt.kernels import ahead
for capability in (100, 120):
    for kind, mode, number in (("mlp", "bf16", 3), ("mlp", "tf32", 11), ("conv", "tf32", 12)):
        one = next(islice(ahead.frame_configurations(kind, 64, mode, capability), number, None))
        needs = ahead.compiled(one, capability)
        assert "all phases" in one.name and needs.stack <= ahead.STACK["frame"], (one.name, needs)
        assert needs.shared <= ahead.SHARED_MEMORY[capability], (one.name, needs)
"""


@pytest.mark.kernels
def test_kernels_compile_for_blackwell():
    subprocess.run([sys.executable, "-c", BLACKWELL], check=True, env=os.environ | {"TRITON_INTERPRET": "0"})
