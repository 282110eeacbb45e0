"""Fixtures of the whole suite.

Triton decides when it is imported whether kernels are interpreted, on CPU tensors, or compiled, and PyTorch imports it
when it likes: so it is decided here, before either. Tests on a GPU set TRITON_INTERPRET=0 (`make test-gpu`).
"""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ["TTTVIDEO_INDEX"] = "off"  # nothing of a test in the user's index; tests of the index set their own

import pytest

from tttvideo.video import reader


@pytest.fixture(autouse=True)
def _no_warning_was_given_yet():
    """A damaged file is warned of once per process; the tests share one."""
    reader._already_warned.clear()
