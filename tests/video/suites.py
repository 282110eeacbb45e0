"""What tests of generated suites share: the rows of meta.csv, and a file as it decodes."""

import csv

import av
import numpy as np


def rows_of(out):
    with (out / "meta.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def decoded(path) -> np.ndarray:
    """Frames int [F, H, W, 3], RGB."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)])
