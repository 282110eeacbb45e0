"""What several runs can be compared along: the conditions that were varied, and the axes of their tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from .bootstrap import Bootstrap, Interval, Samples
from .strata import BINS, Column, strata
from .table import ACCURACY, COPY_LAST, MODEL, Condition, Measured, Table, VideoKey, score_of

ALIKE = 0.01
"""Copies of the last frame, of the same frames, differ by less than this share of their error."""

Part = tuple[Interval, np.ndarray | None] | None
"""Intervals at some points, and the number of videos of each; None where nothing was measured."""
Lines = dict[tuple[str, str], list[list[Table]]]
"""Of each run and control: for each block of the x, the tables of its seeds."""


class Statistics:
    """Intervals and differences of tables, over the videos that all of them have."""

    def __init__(self, bootstrap: Bootstrap):
        self.bootstrap = bootstrap

    def interval(self, seeds: Sequence[Table], method: str = MODEL) -> Part:
        seeds = [seed for seed in seeds if seed.counts.any()]
        videos = _shared(seeds)
        if not videos:
            return None
        samples = _samples(seeds, videos, method)
        assert samples.counts is not None
        return self.bootstrap.interval(samples), (samples.counts > 0).all(0).sum(0)

    def difference(self, mine: Sequence[Table], other: Sequence[Table]) -> Part:
        videos = _shared([*mine, *other]) if mine and other else []
        if not videos:
            return None
        return self.bootstrap.difference(*(_samples(seeds, videos, MODEL) for seeds in (mine, other))), None

    def series(self, lines: Lines, first: str, differences: bool, points: int = 1) -> dict[str, Any]:
        """The lines of a protocol, each block of ``points`` of the x, with paired differences to the ``first`` run."""
        series: dict[str, Any] = {}
        for (run, control), blocks in lines.items():
            name = f"{run}, {control}" if control else run
            line = _concatenated([self.interval(block) for block in blocks], points)
            series[name] = {"run": run, "control": control, "seeds": max(map(len, blocks), default=0)} | line
        for (run, control), blocks in lines.items():
            if differences and not control and run != first and (first, "") in lines:
                parts = [self.difference(*pair) for pair in zip(blocks, lines[first, ""], strict=True)]
                line = _concatenated(parts, points)
                series[run]["difference"] = {"to": first} | {name: line[name] for name in Interval._fields}
        return series


def _shared(tables: Sequence[Table]) -> list[VideoKey]:
    """The videos that have a value in each of them."""
    return sorted(set.intersection(*(set(table.measured()) for table in tables))) if tables else []


def _samples(tables: Sequence[Table], videos: Sequence[VideoKey], method: str) -> Samples:
    order = [{video: i for i, video in enumerate(table.videos)} for table in tables]
    rows = [[index[video] for video in videos] for index in order]
    sums = np.stack([table.sums[method][order_of] for table, order_of in zip(tables, rows)])
    return Samples(sums, np.stack([table.counts[order_of] for table, order_of in zip(tables, rows)]))


def _concatenated(parts: Sequence[Part], points: int) -> dict[str, list[Any]]:
    """Lists over all x; None where nothing was measured."""
    line: dict[str, list[Any]] = {name: [] for name in (*Interval._fields, "n")}
    for part in parts:
        interval, videos = (None, None) if part is None else part
        for name in Interval._fields:
            values = [np.nan] * points if interval is None else getattr(interval, name).tolist()
            line[name].extend(None if value != value else value for value in values)
        line["n"].extend([None] * points if videos is None else videos.tolist())
    return line


class Protocols(Statistics):
    """Everything that was varied, from the tables of all runs (their seeds by name).

    Raises:
        ValueError: where runs were not measured alike: in other units, or on other frames of the same videos.
    """

    def __init__(self, measured: dict[str, list[Measured]], bootstrap: Bootstrap):
        super().__init__(bootstrap)
        self.measured = measured
        self.first = next(iter(measured))
        self.conditions = list(dict.fromkeys(table.condition for table in self._tables()))
        self.controls = list(dict.fromkeys(condition.control for condition in self.conditions))
        self.sets = list(dict.fromkeys(condition.data for condition in self.conditions))

    def all(self) -> dict[str, Any]:
        protocols = self._length() if len(self.sets) > 1 else {}
        for data in self.sets:
            suffix = f", {data}" if len(self.sets) > 1 else ""
            of_data = [condition for condition in self.conditions if condition.data == data]
            along = [table for condition in of_data for table in self._of(condition) if table.axis]
            of_set = self._along_axes(data, of_data) if along else self._of_conditions(of_data)
            protocols |= {name + suffix: protocol for name, protocol in of_set.items()}
        return protocols

    # Tables with one value for each video: what was varied is the condition.

    def _length(self) -> dict[str, Any]:
        """Whole videos of several data sets with the same classes, in order of their length."""
        mains = [self._main([s for s in self.conditions if s.data == data]) for data in self.sets]
        labels = {tuple(self._about(main).get("labels", ())) for main in mains}
        if len({main.sampling for main in mains}) > 1 or len(labels) > 1 or any(main.context for main in mains):
            return {}
        lengths = sorted((self._frames(main), main) for main in mains if main.frames == "all")
        if len({frames for frames, _ in lengths}) < 2:
            return {}
        xs, conditions = zip(*lengths)
        title = f"{self._measure(conditions[0]).capitalize()} against length: whole videos, {conditions[0].sampling}"
        return {"length": self._varied(title, "frames of a video", list(xs), list(conditions), trained=True)}

    def _of_conditions(self, conditions: list[Condition]) -> dict[str, Any]:
        """Everything that was varied on one data set; what is not varied is as in the main condition."""
        plain, main = [condition for condition in conditions if not condition.control], self._main(conditions)
        measure = self._measure(main)
        protocols: dict[str, Any] = {}
        for field, label, title in (
            ("frames", "frames of a video: its first n", f"{measure} against the number of frames, {main.sampling}"),
            ("sampling", "sampling rule", "which frames"),
            ("views", "how a video is divided", "views"),
        ):
            mine = [s for s in plain if s._replace(**{field: getattr(main, field)}) == main]
            lengths = field == "frames"
            if lengths:
                mine.sort(key=self._frames)
            if len(mine) > 1:
                xs = [self._frames(s) if lengths else getattr(s, field) for s in mine]
                protocols[field] = self._varied(f"{main.data}: {title}", label, xs, mine, trained=lengths)
        protocols |= self._tokens(plain, main) | self._strata(main)
        controlled = [main._replace(control=name) for name in self.controls]
        if any(self._rows(condition) for condition in controlled if condition.control):
            title = f"{main.data}: what is left with one thing taken away"
            lines = self._lines(controlled)
            protocol = self._protocol(main, title, "taken away", ["nothing", *filter(None, self.controls)], lines)
            protocols["controls"] = protocol | {
                "ceiling": [self._figure(main, "ceiling")] + [None] * (len(controlled) - 1)
            }
        return protocols

    def _main(self, conditions: list[Condition]) -> Condition:
        """What the other conditions of a data set are held against: whole videos, undivided, every frame, as far as
        that was measured."""
        plain = [condition for condition in conditions if not condition.control] or conditions
        return max(plain, key=lambda s: (s.frames == "all", s.views == "whole", s.sampling == "dense"))

    def _varied(
        self, title: str, label: str, xs: list[Any], conditions: list[Condition], *, trained: bool
    ) -> dict[str, Any]:
        """A protocol along the conditions; against length the controls have lines of their own."""
        lines = self._lines(conditions)
        for run in self.measured if trained else ():
            for control in filter(None, self.controls):
                blocks = self._lines([s._replace(control=control) for s in conditions])[run, ""]
                if any(blocks):
                    lines[run, control] = blocks
        protocol = self._protocol(conditions[0], title, label, xs, lines, differences=True)
        protocol["ceiling"] = [self._figure(condition, "ceiling") for condition in conditions]
        lengths = {about.get("clip_frames") for seeds in self.measured.values() for one in seeds for about in one.about}
        if trained and len(lengths) == 1:
            protocol["trained"] = sorted(filter(None, lengths))
        return protocol

    def _tokens(self, plain: list[Condition], main: Condition) -> dict[str, Any]:
        """Against what the model had to read: rules and models meet at equal tokens, or frames, per video."""
        mine = [condition for condition in plain if condition._replace(sampling=main.sampling) == main]
        read = {
            (run, condition): tuple(self._figure(condition, f"mean_{what}_used", run) for what in ("tokens", "frames"))
            for run in self.measured
            for condition in mine
            if self._rows(condition, run)
        }
        points = sorted(
            {(*used, condition) for (_, condition), used in read.items()}, key=lambda p: (p[0], p[2].sampling)
        )
        if len({condition for _, _, condition in points}) < 2:
            return {}
        lines: Lines = {
            (run, ""): [
                self._seeds(run, condition) if read.get((run, condition), (None,))[0] == tokens else []
                for tokens, _, condition in points
            ]
            for run in self.measured
        }
        title = f"{main.data}: {self._measure(main)} against what is read of a video"
        protocol = self._protocol(main, title, "tokens per video", [tokens for tokens, _, _ in points], lines)
        names = {
            "x_names": [f"{tokens:g}: {condition.sampling}, {frames:g} frames" for tokens, frames, condition in points],
            "point_names": [condition.sampling for _, _, condition in points],
            "joined": False,
            "ceiling": [self._figure(condition, "ceiling") for _, _, condition in points],
        }
        return {"tokens": protocol | names}

    def _strata(self, main: Condition) -> dict[str, Any]:
        columns: dict[str, dict[VideoKey, str]] = {}
        for one in (one for seeds in self.measured.values() for one in seeds):
            for name, values in one.columns.get(main.data, {}).items():
                columns.setdefault(name, {}).update(values)
        protocols = {}
        for name, values in columns.items():
            bins = [
                table.about.get("bins", {}).get(name, 0)
                for table in self._tables()
                if table.condition.data == main.data
            ]
            videos = list(values)
            groups = strata(Column(name, list(values.values()), max(bins, default=0) or BINS))
            if len(groups) < 2:
                continue
            parts = [{videos[i] for i in group.videos} for group in groups]
            lines: Lines = {
                (run, ""): [[table.only(part) for table in self._seeds(run, main)] for part in parts]
                for run in self.measured
            }
            title = f"{main.data}: {self._measure(main)} by {name}, {main.frames} frames, {main.sampling}"
            protocol = self._protocol(main, title, f"{name} (column of the data)", [g.name for g in groups], lines)
            stated = next((row["by"][name] for row in self._rows(main) if row.get("by", {}).get(name)), [])
            ceilings = {stratum["value"]: stratum["ceiling"] for stratum in stated}
            protocol |= {"joined": all(group.centre is not None for group in groups)}
            protocols[f"by {name}"] = protocol | {"ceiling": [ceilings.get(group.name) for group in groups]}
        return protocols

    def _protocol(
        self, of: Condition, title: str, label: str, xs: list[Any], lines: Lines, *, differences: bool = False
    ) -> dict[str, Any]:
        score, numeric = score_of(self._about(of)), all(isinstance(x, float | int) for x in xs)
        units = {"y_label": f"{score.title} (%)"} if score.title != ACCURACY.title else {}
        units = units if score.share else {"unit": score.title, "lower_is_better": score.lower}
        return {
            "title": title,
            "x_label": label,
            "x": xs,
            "numeric": numeric,
            "joined": numeric,
            **units,
            "series": self.series(lines, self.first, differences),
            "ceiling": [None] * len(xs),
            "chance": self._about(of).get("chance"),
        }

    # Tables along an axis: errors by horizon, and by groups of pixels.

    def _along_axes(self, data: str, conditions: list[Condition]) -> dict[str, Any]:
        contexts = sorted({condition.context for condition in conditions})
        for context in contexts:
            self._check_alike(self._with("horizon", data, [context]))
        protocols: dict[str, Any] = {}
        for context in contexts:
            tables = self._with("horizon", data, [context])
            longest = list(range(1, max(len(table.x) for table in tables) + 1))
            lines = self._blocks(data, [context], lambda table, x=longest: table.points(x), "horizon")
            title = f"{data}: error by horizon, {context} frames of context"
            name = f"horizon, context {context}" if len(contexts) > 1 else "horizon"
            protocols[name] = self._errors(tables, title, "frames after the context", longest, lines, len(longest))
            protocols[name]["linear"] = True
        if len(contexts) > 1:
            tables = self._with("horizon", data, contexts)
            shortest_x = min(len(table.x) for table in tables)
            lines = self._blocks(data, contexts, lambda table: table.mean(shortest_x), "horizon")
            title = f"{data}: error against context, mean of the next {shortest_x} frames"
            protocols["context"] = self._errors(tables, title, "frames of context", contexts, lines, 1)
        for axis in dict.fromkeys(t.axis for t in self._tables() if t.condition.data == data and t.axis != "horizon"):
            protocols[f"by {axis}"] = self._groups(data, contexts, axis)
        return protocols

    def _groups(self, data: str, contexts: list[int], axis: str) -> dict[str, Any]:
        """Errors on what is newly revealed. Whole videos are read, every frame predicted from true ones: context and
        writing make no difference, so one block of each run is taken."""
        tables = self._with(axis, data, contexts)
        groups = list(range(max(len(table.x) for table in tables)))
        every = self._blocks(data, contexts, lambda table: table.points(groups), axis)
        lines: Lines = {}
        for (run, _), blocks in every.items():
            if measured := [block for block in blocks if any(table.counts.any() for table in block)]:
                lines.setdefault((run, ""), measured[:1])
        title = f"{data}: newly revealed pixels by {axis}, each frame predicted from all before it"
        protocol = self._errors(tables, title, axis, groups, lines, len(groups))
        bounds = dict(tables[0].row["bounds"])
        return protocol | {
            "linear": True,
            "unit": "mean squared error, newly revealed pixels",
            "ceiling": [bounds.pop("codec", None)] * len(groups),
            "bounds": bounds,
        }

    def _errors(
        self, tables: list[Table], title: str, label: str, xs: list[Any], lines: Lines, points: int
    ) -> dict[str, Any]:
        """A protocol of errors, beside those of predictions that need no model, which are the same for every run."""
        series = self.series(lines, self.first, True, points)
        blocks = [next(filter(None, blocks), []) for blocks in zip(*lines.values())]
        for method in (name for name in tables[0].sums if name != MODEL):
            parts = [self.interval(block[:1], method) for block in blocks]
            name = method.replace("_", " ")
            line = {"run": name, "control": "", "baseline": True, "seeds": 1} | _concatenated(parts, points)
            series.setdefault(name, line)
        space = tables[0].about["space"]
        return {
            "title": title,
            "x_label": label,
            "x": xs,
            "numeric": True,
            "joined": True,
            "unit": f"squared error of a frame (sum over its {'pixels in 0..1' if space == 'pixels' else space})",
            "lower_is_better": True,
            "series": series,
            "ceiling": [tables[0].row.get("ceiling")] * len(xs),
            "chance": None,
        }

    def _blocks(self, data: str, contexts: Sequence[int], change: Callable[[Table], Table], axis: str) -> Lines:
        lines: Lines = {}
        for run in self.measured:
            for control in dict.fromkeys(s.control for s in self.conditions if s.data == data):
                conditions = [Condition(data, context=context, control=control) for context in contexts]
                blocks = [[change(table) for table in self._seeds(run, s, axis)] for s in conditions]
                if any(blocks):
                    lines[run, control] = blocks
        return lines

    def _check_alike(self, tables: list[Table]) -> None:
        """Models of other frame sizes or rates predict something else, which copying the last frame shows."""
        first, *others = tables
        for table in others:
            pair = [one.about["checkpoint"] for one in (first, table)]
            if any(first.about[key] != table.about[key] for key in ("space", "grey")):
                raise ValueError(
                    f"{pair[0]} and {pair[1]} were measured in different units on {first.condition.data} (pixels or "
                    "features, --grey or not); measure them alike"
                )
            if not (videos := _shared([first, table])):
                continue
            one, two = (float(_samples([t], videos, COPY_LAST).sums[..., 0].mean()) for t in (first, table))
            if abs(one - two) > ALIKE * max(one, two):
                raise ValueError(
                    f"{pair[0]} and {pair[1]} were measured on other frames of {first.condition.data} (copying the "
                    f"last one errs by {one:.4g} and {two:.4g}); compare models of one frame size and sampling rule"
                )

    # What was measured.

    def _tables(self, run: str | None = None) -> Iterator[Table]:
        runs = self.measured.values() if run is None else [self.measured[run]]
        return (table for seeds in runs for one in seeds for table in one.tables)

    def _of(self, condition: Condition, run: str | None = None) -> list[Table]:
        return [table for table in self._tables(run) if table.condition == condition]

    def _seeds(self, run: str, condition: Condition, axis: str = "") -> list[Table]:
        return [table for table in self._of(condition, run) if table.axis == axis]

    def _with(self, axis: str, data: str, contexts: Sequence[int]) -> list[Table]:
        """All tables along an axis, by run, then by context."""
        return [
            table
            for context in contexts
            for run in self.measured
            for condition in self.conditions
            if condition.data == data and condition.context == context
            for table in self._seeds(run, condition, axis)
        ]

    def _lines(self, conditions: Sequence[Condition]) -> Lines:
        return {(run, ""): [self._seeds(run, condition) for condition in conditions] for run in self.measured}

    def _rows(self, condition: Condition, run: str | None = None) -> list[dict[str, Any]]:
        return [table.row for table in self._of(condition, run)]

    def _figure(self, condition: Condition, name: str, run: str | None = None) -> Any:
        rows = self._rows(condition, run)
        return rows[0].get(name) if rows else None

    def _frames(self, condition: Condition) -> float:
        if condition.frames == "all":
            return self._figure(condition, "mean_frames_used") or 0.0
        return float(condition.frames)

    def _about(self, condition: Condition) -> dict[str, Any]:
        return next((table.about for table in self._of(condition)), {})

    def _measure(self, condition: Condition) -> str:
        return score_of(self._about(condition)).title.removeprefix("top-1 ")
