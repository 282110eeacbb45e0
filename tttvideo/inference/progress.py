"""Progress bar of a long command, and this process's share of its work."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple


class Share(NamedTuple):
    """This process among those that torchrun or accelerate started."""

    rank: int
    processes: int
    local: int  # its number on this machine

    def of(self, things: list) -> list:
        """The part of ``things`` that this process does; the same whatever was done before."""
        return things[self.rank :: self.processes]


def share() -> Share:
    rank, processes, local = (int(os.environ.get(name) or d) for name, d in SHARE)
    return Share(rank, processes, local)


SHARE = (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))


@contextmanager
def progress(what: str, total: int, done: int = 0) -> Iterator[Callable[[bool], None]]:
    """A bar on standard error, where that is a screen, with rate and time left; gives a function to call after each
    with whether it failed."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]} a second, {task.fields[failures]} failed, left"),
        TimeRemainingColumn(),
    )
    failures = 0
    shown = sys.stderr.isatty() and os.environ.get("RANK", "0") == "0"
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not shown) as bar:
        task = bar.add_task(what, total=total, completed=done, rate="-", failures=0)

        def advance(failed: bool) -> None:
            nonlocal failures
            failures += failed
            speed = bar.tasks[0].speed
            bar.update(task, advance=1, failures=failures, rate="-" if speed is None else f"{speed:.3g}")

        yield advance
