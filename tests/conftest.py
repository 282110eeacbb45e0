"""Fixtures of the whole suite."""

import pytest

from tttvideo.video import reader


@pytest.fixture(autouse=True)
def _no_warning_was_given_yet():
    """A damaged file is warned of once per process; the tests share one."""
    reader._already_warned.clear()
