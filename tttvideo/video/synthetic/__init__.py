"""Suites of generated videos with known ceilings: how well a perfect observer does (`tttvideo make-data`).

A new suite is one file with a subclass of `ClassificationSuite` or `PredictionSuite`, and its place in SUITES.
"""

from typing import Any

from ...printing import did_you_mean
from .classification import ClassificationSuite
from .count_events import CountEvents
from .flash_order import FlashOrder
from .flash_recall import FlashRecall
from .moving_digits import MovingDigits
from .moving_shapes import MovingShapes
from .occlusion import Occlusion
from .prediction import PredictionSuite
from .revisit import Revisit
from .shell_game import ShellGame
from .suite import Suite, SuiteError
from .writing import Made, make

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
    raise SuiteError(f"There is no suite {name!r}{did_you_mean(name, SUITES)}")


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
