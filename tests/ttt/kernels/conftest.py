"""Kernels run on CPU tensors here, through Triton's interpreter, and memory that nobody wrote holds NaN.

Triton decides about the interpreter when it is imported; tests on a GPU set TRITON_INTERPRET=0 (`make test-gpu`).
"""

import os

import pytest
import torch

os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def _unwritten_memory_is_nan():
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
