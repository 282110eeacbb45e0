"""What tests of generated suites share: the rows of meta.csv, a file as it decodes, how good the oracle is."""

import csv
import functools

import av
import numpy as np


def rows_of(out):
    with (out / "meta.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def decoded(path) -> np.ndarray:
    """Frames int [F, H, W, 3], RGB."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)])


@functools.cache
def _examples(suite, count):
    """Label and row, as it comes back from meta.csv, of clips of the split val."""
    plans = (suite.plan("val", index) for index in range(count))
    return [(label, {key: str(value) for key, value in cause.items()}) for label, cause in plans]


def oracle_accuracy(suite, indices, count: int) -> float:
    """Share of ``count`` clips that the oracle answers rightly from the frames ``indices``."""
    return sum(suite.oracle(row, indices) == label for label, row in _examples(suite, count)) / count
