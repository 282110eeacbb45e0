"""Protocols of prediction: error by horizon, by context and on newly revealed pixels, beside predictions that need no
model."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from tttvideo.evaluation.bootstrap import Bootstrap, Interval, Samples
from tttvideo.evaluation.measured import Case, Errors, Measured, Video

UNITS = {
    "pixels": "squared error of a frame (sum over its pixels in 0..1)",
    "features": "squared error of a frame (sum over its features)",
}
ALIKE = 0.01
"""Copies of the last frame, of the same frames, differ by less than this share of their error."""


class Points(NamedTuple):
    """What one evaluation says of the x of a protocol, or of a part of them."""

    videos: list[Video]
    sums: dict[str, np.ndarray]  # method -> [V, points]
    counts: np.ndarray | None = None  # [V, points], how many values the sums are of; None: one each


class ErrorProtocols:
    """Makes the protocols of ``measured`` runs (their seeds by name).

    Raises:
        ValueError: where runs were not measured alike: in other units, or on other frames of the same videos.
    """

    def __init__(self, measured: dict[str, list[Measured]], bootstrap: Bootstrap):
        self.measured, self.bootstrap = measured, bootstrap
        self.cases = list(dict.fromkeys(case for seeds in measured.values() for one in seeds for case in one.errors))
        for data, context in dict.fromkeys(case[:2] for case in self.cases):
            self._check_alike(data, context)

    def all(self) -> dict[str, Any]:
        sets = list(dict.fromkeys(case.data for case in self.cases))
        found: dict[str, Any] = {}
        for data in sets:
            suffix = f", {data}" if len(sets) > 1 else ""
            contexts = sorted({case.context for case in self.cases if case.data == data})
            for context in contexts:
                name = f"horizon, context {context}" if len(contexts) > 1 else "horizon"
                found[name + suffix] = self._horizon(data, context)
            if len(contexts) > 1:
                found["context" + suffix] = self._context(data, contexts)
            if any(errors.revealed for context in contexts for errors in self._of(data, context)):
                protocol = self._revealed(data, contexts)
                found[f"by {protocol['x_label']}{suffix}"] = protocol
        return found

    def _horizon(self, data: str, context: int) -> dict[str, Any]:
        known = self._of(data, context)
        longest = max(errors.metrics["horizon"] for errors in known)

        def points(errors: Errors) -> Points:
            missing = longest - errors.metrics["horizon"]
            return _measured(errors, lambda mse: np.pad(mse, ((0, 0), (0, missing)), constant_values=np.nan))

        return {
            "title": f"{data}: error by horizon, {context} frames of context",
            "x_label": "frames after the context",
            "x": list(range(1, longest + 1)),
            "linear": True,
            **self._protocol(self._lines(data, [context], points), longest, known[0]),
        }

    def _context(self, data: str, contexts: list[int]) -> dict[str, Any]:
        known = [errors for context in contexts for errors in self._of(data, context)]
        horizon = min(errors.metrics["horizon"] for errors in known)

        def points(errors: Errors) -> Points:
            return _measured(errors, lambda mse: mse[:, :horizon].mean(1, keepdims=True))

        return {
            "title": f"{data}: error against context, mean of the next {horizon} frames",
            "x_label": "frames of context",
            "x": contexts,
            **self._protocol(self._lines(data, contexts, points), 1, known[0]),
        }

    def _revealed(self, data: str, contexts: list[int]) -> dict[str, Any]:
        known = [errors for context in contexts for errors in self._of(data, context) if errors.revealed]
        told, groups = known[0].metrics["revealed"], max(errors.values.shape[1] for errors in known)

        def points(errors: Errors) -> Points:
            rows = np.flatnonzero(errors.values.sum(1))
            missing = ((0, 0), (0, groups - errors.values.shape[1]))
            sums = {name: np.pad(own[rows], missing) for name, own in errors.revealed.items()}
            return Points([errors.videos[i] for i in rows], sums, np.pad(errors.values[rows], missing))

        # Whole videos are read, every frame predicted from true ones: context and writing make no difference.
        every = self._lines(data, contexts, points)
        lines: dict[tuple[str, str], list[list[Points]]] = {}
        for (run, _), blocks in every.items():
            told_of = [block for block in blocks if any(seed.videos for seed in block)]
            if told_of:
                lines.setdefault((run, ""), told_of[:1])

        bounds = dict(told["bounds"])
        best = bounds.pop("codec", None)
        return {
            "title": f"{data}: newly revealed pixels by {told['by']}, each frame predicted from all before it",
            "x_label": told["by"],
            "x": list(range(groups)),
            "linear": True,
            **self._protocol(lines, groups, known[0]),
            "unit": "mean squared error, newly revealed pixels",
            "ceiling": [best] * groups,
            "bounds": bounds,
        }

    def _lines(
        self, data: str, contexts: Sequence[int], points: Callable[[Errors], Points]
    ) -> dict[tuple[str, str], list[list[Points]]]:
        """Of every run and control, for each of the contexts the ``points`` of every seed."""
        controls = list(dict.fromkeys(case.control for case in self.cases if case.data == data))
        lines = {}
        for run in self.measured:
            for control in controls:
                blocks = [[points(e) for e in self._seeds(run, Case(data, c, control))] for c in contexts]
                if any(blocks):
                    lines[run, control] = blocks
        return lines

    def _protocol(self, lines: dict[tuple[str, str], list[list[Points]]], count: int, first: Errors) -> dict[str, Any]:
        """What all have; each block of a line holds ``count`` of the x."""
        series: dict[str, Any] = {}
        for (run, control), blocks in lines.items():
            parts = [self._interval(block, "model") for block in blocks]
            name = f"{run}, {control}" if control else run
            series[name] = {"run": run, "control": control, "seeds": max(map(len, blocks))} | _joined(parts, count)
        first_run = next(iter(self.measured))
        for run in list(self.measured)[1:]:
            if (run, "") in lines and (first_run, "") in lines:
                sides = zip(lines[run, ""], lines[first_run, ""], strict=True)
                parts = [self._difference(mine, other) for mine, other in sides]
                found = _joined(parts, count)
                series[run]["difference"] = {"to": first_run} | {name: found[name] for name in Interval._fields}
        shown = [next(filter(None, blocks), []) for blocks in zip(*lines.values())]
        for method in (name for name in first.mse if name != "model"):  # the same for every model
            parts = [self._interval(block[:1], method) for block in shown]
            name = method.replace("_", " ")
            series.setdefault(name, {"run": name, "control": "", "baseline": True, "seeds": 1} | _joined(parts, count))
        best = (first.metrics.get("suite") or {}).get("best_mse")
        return {
            "numeric": True,
            "joined": True,
            "unit": UNITS[first.metrics["space"]],
            "lower_is_better": True,
            "series": series,
            "ceiling": [best] * (count * len(shown)),
            "chance": None,
        }

    def _interval(self, seeds: list[Points], method: str) -> tuple[Interval, np.ndarray] | None:
        """And the number of videos of each point."""
        videos = _shared(seeds)
        if not videos:
            return None
        samples = _samples(seeds, videos, method)
        assert samples.counts is not None
        return self.bootstrap.interval(samples), (samples.counts > 0).all(0).sum(0)

    def _difference(self, mine: list[Points], other: list[Points]) -> tuple[Interval, None] | None:
        videos = _shared([*mine, *other]) if mine and other else []
        if not videos:
            return None
        sides = [_samples(seeds, videos, "model") for seeds in (mine, other)]
        return self.bootstrap.difference(*sides), None

    def _seeds(self, run: str, case: Case) -> list[Errors]:
        return [one.errors[case] for one in self.measured[run] if case in one.errors]

    def _of(self, data: str, context: int) -> list[Errors]:
        cases = [case for case in self.cases if case[:2] == (data, context)]
        return [errors for run in self.measured for case in cases for errors in self._seeds(run, case)]

    def _check_alike(self, data: str, context: int) -> None:
        """Models of other frame sizes or rates predict something else, which predictions without a model show."""
        first, *others = self._of(data, context)
        for errors in others:
            pair = [e.metrics["checkpoint"] for e in (first, errors)]
            if any(first.metrics[key] != errors.metrics[key] for key in ("space", "grey")):
                raise ValueError(
                    f"{pair[0]} and {pair[1]} were measured in different units on {data} (pixels or features, --grey "
                    "or not); measure them alike"
                )
            videos = _shared([_measured(e, lambda mse: mse[:, :1]) for e in (first, errors)])
            if not videos:
                continue
            sides = [_samples([_measured(e, lambda mse: mse[:, :1])], videos, "copy_last") for e in (first, errors)]
            one, two = (float(side.sums.mean()) for side in sides)
            if abs(one - two) > ALIKE * max(one, two):
                raise ValueError(
                    f"{pair[0]} and {pair[1]} were measured on other frames of {data} (copying the last one errs by "
                    f"{one:.4g} and {two:.4g}); compare models of one frame size and sampling rule"
                )


def _measured(errors: Errors, change: Callable[[np.ndarray], np.ndarray]) -> Points:
    """The videos that were measured, with what ``change`` makes of errors [V, horizon]."""
    rows = np.flatnonzero(~np.isnan(errors.mse["model"][:, 0]))
    return Points([errors.videos[i] for i in rows], {name: change(mse[rows]) for name, mse in errors.mse.items()})


def _shared(seeds: Sequence[Points]) -> list[Video]:
    return sorted(set.intersection(*(set(seed.videos) for seed in seeds))) if seeds else []


def _samples(seeds: Sequence[Points], videos: Sequence[Video], method: str) -> Samples:
    places = [{video: i for i, video in enumerate(seed.videos)} for seed in seeds]
    rows = [[place[video] for video in videos] for place in places]
    sums = np.stack([seed.sums[method][own] for seed, own in zip(seeds, rows)])
    if any(seed.counts is None for seed in seeds):
        return Samples.known(sums)
    return Samples(sums, np.stack([seed.counts[own] for seed, own in zip(seeds, rows) if seed.counts is not None]))


def _joined(parts: Sequence[tuple[Interval, np.ndarray | None] | None], count: int) -> dict[str, list[Any]]:
    """Lists over all x, ``count`` of each part; None where nothing was measured."""
    found: dict[str, list[Any]] = {}
    for part in parts:
        interval, videos = (None, None) if part is None else part
        for name in Interval._fields:
            values = [np.nan] * count if interval is None else getattr(interval, name).tolist()
            found.setdefault(name, []).extend(None if value != value else value for value in values)
        found.setdefault("n", []).extend([None] * count if videos is None else videos.tolist())
    return found
