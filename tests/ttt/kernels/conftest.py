"""Kernels run on CPU tensors here, through Triton's interpreter (tests/conftest.py), and memory that nobody wrote holds
NaN."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _unwritten_memory_is_nan():
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
