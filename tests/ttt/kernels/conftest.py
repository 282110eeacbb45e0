"""Kernels run on CPU tensors here, through Triton's interpreter (tests/conftest.py), and memory that nobody wrote holds
NaN."""

import os

import pytest
import torch

from tttvideo.ttt.kernels.choice import not_interpreted


@pytest.fixture(autouse=True)
def _the_interpreter_runs():
    if os.environ.get("TRITON_INTERPRET") == "1" and (why := not_interpreted()):
        pytest.skip(why)


@pytest.fixture(autouse=True)
def _unwritten_memory_is_nan():
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
