"""Suites of generated videos whose best possible accuracy is known (`tttvideo make-data`).

A new suite is one file with a subclass of `Suite` and one line in SUITES.
"""

import difflib
from typing import Any

from tttvideo.video.synthetic.count_events import CountEvents
from tttvideo.video.synthetic.flash_order import FlashOrder
from tttvideo.video.synthetic.flash_recall import FlashRecall
from tttvideo.video.synthetic.shell_game import ShellGame
from tttvideo.video.synthetic.suite import Suite, SuiteError
from tttvideo.video.synthetic.writing import Made, make

__all__ = [
    "SUITES",
    "CountEvents",
    "FlashOrder",
    "FlashRecall",
    "Made",
    "ShellGame",
    "Suite",
    "SuiteError",
    "ceiling_for",
    "find_suite",
    "make",
    "suite_from",
]

SUITES: dict[str, type[Suite]] = {suite.name: suite for suite in (FlashOrder, FlashRecall, ShellGame, CountEvents)}


def find_suite(name: str) -> type[Suite]:
    """The suite of that name. Raises SuiteError that names the nearest one."""
    if name in SUITES:
        return SUITES[name]
    near = difflib.get_close_matches(name, SUITES, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(SUITES)}."
    raise SuiteError(f"There is no suite {name!r}; {hint}")


def suite_from(description: dict[str, Any]) -> Suite:
    """The suite that a suite.json describes. Raises SuiteError."""
    try:
        return find_suite(description["name"])(**description["parameters"])
    except (KeyError, TypeError) as error:
        raise SuiteError(f"This suite.json was not written by this version of the program: {error}.") from None


def ceiling_for(description: dict[str, Any], sampling: str, frames: int | None = None) -> float:
    """Best possible top-1 on a set (contents of its suite.json) for one row of an evaluation: videos cut to
    their first `frames` frames (None: whole), then the sampling rule applied. Raises ValueError."""
    return suite_from(description).ceiling_under(sampling, frames)
