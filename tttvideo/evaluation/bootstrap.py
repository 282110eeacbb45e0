"""Intervals of means over videos: the bootstrap, over seeds too where a run has several."""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LARGEST = 4_000_000
"""Weights of bootstrap samples that are held at a time."""


class Samples(NamedTuple):
    """What a mean is taken of, for any number of points at once.

    Attributes:
        sums: float64 [seeds, videos, points]; a point of one video, or a sum over the values that it has there.
        counts: float64 of the same shape, how many those were; None: one each.
    """

    sums: np.ndarray
    counts: np.ndarray | None = None

    @classmethod
    def known(cls, values: np.ndarray) -> "Samples":
        """Of values that are NaN where a video has none."""
        there = ~np.isnan(values)
        return cls(np.where(there, values, 0.0), there.astype(np.float64))


class Interval(NamedTuple):
    """Means over videos and seeds, and the 95 % percentiles of bootstrap samples; float64 [points], NaN where there is
    nothing."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


class Bootstrap:
    """Draws videos with replacement, and seeds where there are several."""

    def __init__(self, resamples: int = 2000, seed: int = 0):
        self.rng, self.resamples = np.random.default_rng(seed), resamples

    def interval(self, samples: Samples) -> Interval:
        (drawn,) = self._drawn([samples])
        return _interval(_mean(samples), drawn)

    def difference(self, samples: Samples, other: Samples) -> Interval:
        """Of the mean of ``samples`` minus that of ``other``, paired: both on the same videos, in the same order."""
        mine, theirs = self._drawn([samples, other])
        return _interval(_mean(samples) - _mean(other), mine - theirs)

    def _drawn(self, groups: Sequence[Samples]) -> list[np.ndarray]:
        """Bootstrap means [resamples, points] of each group: the same videos are drawn for all groups, seeds for each
        by itself."""
        videos = groups[0].sums.shape[1]
        at_once = max(1, LARGEST // videos)
        sizes = [min(at_once, self.resamples - done) for done in range(0, self.resamples, at_once)]
        parts: list[list[np.ndarray]] = [[] for _ in groups]
        for size in sizes:
            weights = self.rng.multinomial(videos, [1 / videos] * videos, size).astype(np.float64)
            for part, group in zip(parts, groups, strict=True):
                part.append(_weighted(group, weights))
        resampled = []
        for part in parts:
            means = np.concatenate(part)  # [resamples, seeds, points]
            drawn = self.rng.integers(means.shape[1], size=means.shape[:2])
            resampled.append(np.take_along_axis(means, drawn[:, :, None], axis=1).mean(1))
        return resampled


def _weighted(group: Samples, weights: np.ndarray) -> np.ndarray:
    """Means [w, seeds, points] under weights [w, videos], which are whole numbers: sums of answers that are right are
    exact then, and the mean of a model without a mistake is 1."""
    sums = np.stack([weights @ seed for seed in group.sums], 1)
    if group.counts is None:
        return sums / weights.sum(1)[:, None, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums / np.stack([weights @ seed for seed in group.counts], 1)


def _mean(group: Samples) -> np.ndarray:
    videos = group.sums.shape[1]
    return _weighted(group, np.ones((1, videos)))[0].mean(0)


def _interval(mean: np.ndarray, drawn: np.ndarray) -> Interval:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a point that no video has
        # a sample in which no video reaches a point says nothing of it
        low, high = np.nanpercentile(drawn, [2.5, 97.5], axis=0)
    # Of values that are all the same, rounding may put the mean a little outside.
    return Interval(mean, np.fmin(low, mean), np.fmax(high, mean))
