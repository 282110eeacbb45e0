"""Imports little: every process of the work below imports this file."""

import os
import time

from benchmarks import isolated


def _parts(index):
    """Work of which one part ends its process, one hangs and one raises."""
    yield {"part": index}
    yield "more of it"
    if index == 1:
        os._exit(7)
    if index == 2:
        time.sleep(1000)
    if index == 3:
        raise RuntimeError("after the row, as a lost context is reported")
    yield {"part": index, "more": True}


def test_rows_outlive_the_process_that_made_them():
    found = list(isolated.results(_parts, 5, silence=8, end=time.time() + 300))
    assert [row for _, row in found if isinstance(row, dict)] == [
        {"part": 0},
        {"part": 0, "more": True},
        {"part": 1},
        {"part": 2},
        {"part": 3},
        {"part": 4},
        {"part": 4, "more": True},
    ]
    assert {part: why for part, why in found if isinstance(why, str)} == {
        1: "its process ended with exit code 7 (more of it)",
        2: "nothing was heard of it for 8 seconds (more of it)",
        3: "its process ended with exit code 1 (more of it)",
    }


def test_when_the_time_is_up_the_parts_left_are_named():
    found = list(isolated.results(_parts, 3, silence=100, end=time.time()))
    assert found == [(part, "the time was up") for part in range(3)]
