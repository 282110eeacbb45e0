"""Protocols of classification: accuracy against what was varied, with the ceiling."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tttvideo.evaluation.bootstrap import Bootstrap, Samples
from tttvideo.evaluation.measured import Cell, Measured, Video
from tttvideo.evaluation.strata import BINS, Column, strata


class AccuracyProtocols:
    """Makes the protocols of ``measured`` runs (their seeds by name)."""

    def __init__(self, measured: dict[str, list[Measured]], bootstrap: Bootstrap):
        self.measured, self.bootstrap = measured, bootstrap
        self.controls = list(
            dict.fromkeys(cell.control for seeds in measured.values() for one in seeds for cell in one.rows)
        )

    def all(self) -> dict[str, Any]:
        sets = list(dict.fromkeys(cell.data for seeds in self.measured.values() for one in seeds for cell in one.rows))
        found = self.length(sets) if len(sets) > 1 else {}
        for data in sets:
            suffix = f", {data}" if len(sets) > 1 else ""
            found |= {name + suffix: protocol for name, protocol in self.of_one_set(data).items()}
        return found

    def length(self, sets: list[str]) -> dict[str, Any]:
        """Whole videos of several data sets with the same classes, in order of their length."""
        mains = [self._main(data) for data in sets]
        if len({cell.sampling for cell in mains}) > 1 or len({self._labels(data) for data in sets}) > 1:
            return {}
        known = sorted((self._frames(cell), cell) for cell in mains if cell.frames == "all")
        if len({frames for frames, _ in known}) < 2:
            return {}
        title = f"Accuracy against length: whole videos, {known[0][1].sampling}"
        xs, cells = zip(*known)
        return self._protocol("length", title, "frames of a video", list(xs), list(cells), trained=True)

    def of_one_set(self, data: str) -> dict[str, Any]:
        """Everything that was varied on one data set; what is not varied is as in the main setting."""
        cells = [cell for cell in self._cells() if cell.data == data and not cell.control]
        main = self._main(data)
        found: dict[str, Any] = {}

        def vary(field: str, label: str, title: str, **how: Any) -> None:
            mine = [cell for cell in cells if cell._replace(**{field: getattr(main, field)}) == main]
            if field == "frames":
                mine.sort(key=self._frames)
            if len(mine) > 1:
                xs = [self._frames(cell) if field == "frames" else getattr(cell, field) for cell in mine]
                found.update(self._protocol(field, f"{data}: {title}", label, xs, mine, **how))

        rule = main.sampling
        vary("frames", "frames of a video: its first n", f"accuracy against the number of frames, {rule}", trained=True)
        vary("sampling", "sampling rule", "which frames")
        vary("views", "how a video is divided", "views")
        found |= self._tokens(cells, main) | self._strata(main)
        if any(self._rows(main._replace(control=name)) for name in self.controls if name):
            found |= self._control(main)
        return found

    def _main(self, data: str) -> Cell:
        """What the other settings of a data set are held against: whole videos, undivided, every frame, as far as that
        was measured."""
        cells = [cell for cell in self._cells() if cell.data == data and not cell.control]
        return max(cells, key=lambda c: (c.frames == "all", c.views == "whole", c.sampling == "dense"))

    def _tokens(self, cells: list[Cell], main: Cell) -> dict[str, Any]:
        """Accuracy against what the model had to read: rules and models meet at equal tokens, or frames, per video."""
        mine = [cell for cell in cells if cell._replace(sampling=main.sampling) == main]
        points = {
            (self._mean(cell, "mean_tokens_used", run), self._mean(cell, "mean_frames_used", run), cell)
            for run in self.measured
            for cell in mine
            if self._rows(cell, run)
        }
        if len({cell for _, _, cell in points}) < 2:
            return {}
        ordered = sorted(points, key=lambda point: (point[0], point[2].sampling))
        series = {
            run: self._line(
                run,
                "",
                [cell if self._mean(cell, "mean_tokens_used", run) == tokens else None for tokens, _, cell in ordered],
            )
            for run in self.measured
        }
        return {
            "tokens": {
                "title": f"{main.data}: accuracy against what is read of a video",
                "x_label": "tokens per video",
                "x": [tokens for tokens, _, _ in ordered],
                "x_names": [f"{tokens:g}: {cell.sampling}, {frames:g} frames" for tokens, frames, cell in ordered],
                "point_names": [cell.sampling for _, _, cell in ordered],
                "numeric": True,
                "joined": False,
                "series": series,
                "ceiling": [self._mean(cell, "ceiling") for _, _, cell in ordered],
                "chance": self._chance(main.data),
            }
        }

    def _strata(self, whole: Cell) -> dict[str, Any]:
        found = {}
        names = dict.fromkeys(
            name for seeds in self.measured.values() for one in seeds for name in one.columns.get(whole.data, {})
        )
        for name in names:
            values: dict[Video, str] = {}
            for seeds in self.measured.values():
                for one in seeds:
                    values |= one.columns.get(whole.data, {}).get(name, {})
            bins = max((about.get("bins", {}).get(name, 0) for about in self._about(whole.data)), default=0) or BINS
            videos = list(values)
            groups = strata(Column(name, [values[video] for video in videos], bins))
            if len(groups) < 2:
                continue
            lines = {}
            for run, seeds in self.measured.items():
                chosen = [{videos[i] for i in group.videos} for group in groups]
                parts = [self._interval([self._correct(one, whole, own) for one in seeds]) for own in chosen]
                lines[run] = self._series(run, "", parts)
            stated = [row["by"].get(name, []) for row in self._rows(whole) if "by" in row]
            tops = next(({s["value"]: s["ceiling"] for s in own} for own in stated if own), {})
            ceiling = [tops.get(g.name) for g in groups]
            found[f"by {name}"] = {
                "title": f"{whole.data}: accuracy by {name}, {whole.frames} frames, {whole.sampling}",
                "x_label": f"{name} (column of the data)",
                "x": [g.name for g in groups],
                "numeric": False,
                "joined": all(g.centre is not None for g in groups),
                "series": lines,
                "ceiling": ceiling,
                "chance": self._chance(whole.data),
            }
        return found

    def _control(self, whole: Cell) -> dict[str, Any]:
        names = [name for name in self.controls if name]
        cells = [whole, *(whole._replace(control=name) for name in names)]
        series = {run: self._line(run, "", cells) for run in self.measured}
        return {
            "controls": {
                "title": f"{whole.data}: what is left with one thing taken away",
                "x_label": "taken away",
                "x": ["nothing", *names],
                "numeric": False,
                "joined": False,
                "series": series,
                "ceiling": [self._mean(whole, "ceiling"), *(None for _ in names)],
                "chance": self._chance(whole.data),
            }
        }

    def _protocol(
        self, name: str, title: str, label: str, xs: list[Any], cells: list[Cell], *, trained: bool = False
    ) -> dict[str, Any]:
        lines = [(run, "") for run in self.measured]
        lines += [line for line in self._lines(*cells) if line[1]] if trained else []  # controls: against length
        series = {
            _title(run, control): self._line(run, control, [cell._replace(control=control) for cell in cells])
            for run, control in lines
        }
        first, *others = self.measured
        for run in others:
            series[run]["difference"] = self._difference(run, first, cells)
        ceiling = [self._mean(cell, "ceiling") for cell in cells]
        numeric = all(isinstance(x, float | int) for x in xs)
        lengths = {about.get("clip_frames") for seeds in self.measured.values() for one in seeds for about in one.about}
        return {
            name: {
                "title": title,
                "x_label": label,
                "x": xs,
                "numeric": numeric,
                "joined": numeric,
                "series": series,
                "ceiling": ceiling,
                "chance": self._chance(cells[0].data),
            }
            | ({"trained": sorted(filter(None, lengths))} if trained and len(lengths) == 1 else {})
        }

    def _lines(self, *cells: Cell) -> list[tuple[str, str]]:
        """Runs and controls that have at least one of the cells."""
        return [
            (run, control)
            for run, seeds in self.measured.items()
            for control in self.controls
            if any(cell._replace(control=control) in one.correct for one in seeds for cell in cells)
        ]

    def _line(self, run: str, control: str, cells: Sequence[Cell | None]) -> dict[str, Any]:
        parts = [
            None if cell is None else self._interval([self._correct(one, cell, None) for one in self.measured[run]])
            for cell in cells
        ]
        return self._series(run, control, parts)

    def _series(
        self, run: str, control: str, parts: Sequence[tuple[float, float, float, int] | None]
    ) -> dict[str, Any]:
        columns = zip(*((None,) * 4 if part is None else part for part in parts))
        found = dict(zip(("mean", "low", "high", "n"), map(list, columns)))
        return {"run": run, "control": control, "seeds": len(self.measured[run])} | found

    @staticmethod
    def _correct(one: Measured, cell: Cell, videos: set[Video] | None) -> dict[Video, bool]:
        found = one.correct.get(cell, {})
        return found if videos is None else {video: hit for video, hit in found.items() if video in videos}

    def _interval(self, seeds: list[dict[Video, bool]]) -> tuple[float, float, float, int] | None:
        """Mean, low, high and number of videos; None where there is nothing."""
        seeds = [seed for seed in seeds if seed]
        if not seeds:
            return None
        shared = sorted(set.intersection(*(set(seed) for seed in seeds)))
        if not shared:
            return None
        mean, low, high = self.bootstrap.interval(_hits(seeds, shared))
        return float(mean[0]), float(low[0]), float(high[0]), len(shared)

    def _difference(self, run: str, first: str, cells: Sequence[Cell]) -> dict[str, Any]:
        """Top-1 of ``run`` minus that of ``first`` on the videos of both, with an interval of the paired difference."""
        parts: list[tuple[float, float, float] | None] = []
        for cell in cells:
            sides = [[one.correct[cell] for one in self.measured[r] if cell in one.correct] for r in (run, first)]
            shared = sorted(set.intersection(*(set(seed) for side in sides for seed in side))) if all(sides) else []
            if not shared:
                parts.append(None)
                continue
            mean, low, high = self.bootstrap.difference(*(_hits(side, shared) for side in sides))
            parts.append((float(mean[0]), float(low[0]), float(high[0])))
        columns = zip(*((None,) * 3 if part is None else part for part in parts))
        return {"to": first} | dict(zip(("mean", "low", "high"), map(list, columns)))

    def _cells(self) -> list[Cell]:
        return list(dict.fromkeys(cell for seeds in self.measured.values() for one in seeds for cell in one.rows))

    def _rows(self, cell: Cell, run: str | None = None) -> list[dict[str, Any]]:
        runs = self.measured.values() if run is None else [self.measured[run]]
        return [one.rows[cell] for seeds in runs for one in seeds if cell in one.rows]

    def _mean(self, cell: Cell | None, key: str, run: str | None = None) -> float | None:
        rows = [] if cell is None else self._rows(cell, run)
        return rows[0].get(key) if rows else None

    def _frames(self, cell: Cell) -> float:
        return self._mean(cell, "mean_frames_used") or 0.0 if cell.frames == "all" else float(cell.frames)

    def _about(self, data: str) -> list[dict[str, Any]]:
        """What each metrics.json of a data set says but for its results."""
        return [
            one.about[list(one.columns).index(data)]
            for seeds in self.measured.values()
            for one in seeds
            if data in one.columns
        ]

    def _chance(self, data: str) -> float | None:
        return next((about["chance"] for about in self._about(data)), None)

    def _labels(self, data: str) -> tuple[str, ...]:
        return next((tuple(about["labels"]) for about in self._about(data)), ())


def _title(run: str, control: str) -> str:
    return f"{run}, {control}" if control else run


def _hits(seeds: Sequence[dict[Video, bool]], videos: Sequence[Video]) -> Samples:
    return Samples(np.array([[[seed[video]] for video in videos] for seed in seeds], dtype=np.float64))
