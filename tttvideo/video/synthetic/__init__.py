"""Suites of generated videos of which it is known how well a perfect observer does (`tttvideo make-data`).

A new suite is one file with a subclass of `ClassificationSuite` or `PredictionSuite`, and its place in SUITES.
"""

import difflib
from typing import Any

from tttvideo.video.synthetic.classification import ClassificationSuite
from tttvideo.video.synthetic.count_events import CountEvents
from tttvideo.video.synthetic.flash_order import FlashOrder
from tttvideo.video.synthetic.flash_recall import FlashRecall
from tttvideo.video.synthetic.moving_digits import MovingDigits
from tttvideo.video.synthetic.moving_shapes import MovingShapes
from tttvideo.video.synthetic.occlusion import Occlusion
from tttvideo.video.synthetic.prediction import PredictionSuite
from tttvideo.video.synthetic.revisit import Revisit
from tttvideo.video.synthetic.shell_game import ShellGame
from tttvideo.video.synthetic.suite import Suite, SuiteError
from tttvideo.video.synthetic.writing import Made, make

__all__ = [
    "SUITES",
    "ClassificationSuite",
    "CountEvents",
    "FlashOrder",
    "FlashRecall",
    "Made",
    "MovingDigits",
    "MovingShapes",
    "Occlusion",
    "PredictionSuite",
    "Revisit",
    "ShellGame",
    "Suite",
    "SuiteError",
    "ceiling_for",
    "find_suite",
    "make",
    "suite_from",
]

SUITES: dict[str, type[Suite]] = {
    suite.name: suite
    for suite in (FlashOrder, FlashRecall, ShellGame, CountEvents, MovingShapes, MovingDigits, Occlusion, Revisit)
}


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
    suite = suite_from(description)
    if not isinstance(suite, ClassificationSuite):
        raise SuiteError(f"{suite.name} has no labels, so no accuracy.")
    return suite.ceiling_under(sampling, frames)
