"""Work in parts whose rows outlive the process that makes them: a kernel that reads beyond its memory takes everything
its process held on the GPU along, and one that never ends the process itself."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from typing import Any

Row = dict[str, Any]
Work = Callable[[int], Iterable[Row | str]]


def results(work: Work, parts: int, silence: float, end: float) -> Iterator[tuple[int, Row | str]]:
    """(part, row) of every row of ``work(0)``, ``work(1)``, ... from one other process, as they come; (part, sentence)
    where that one ends or is silent for ``silence`` seconds, the rest of the part being lost and the next ones done in
    a fresh process; and where ``time.time()`` passes ``end``, for every part that is not finished.

    ``work`` must be picklable; strings that it yields between its rows say what is begun, and stand in the sentence.
    """
    context = multiprocessing.get_context("spawn")
    part = 0
    while part < parts:
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(work, part, parts, there), daemon=True)
        process.start()
        there.close()
        begun = "nothing was begun"
        try:
            while part < parts:
                left = end - time.time()
                if left <= 0 or not here.poll(min(silence, left)):
                    if time.time() >= end:
                        yield from ((p, "the time was up") for p in range(part, parts))
                        return
                    yield part, f"nothing was heard of it for {silence:.0f} seconds ({begun})"
                    break
                try:
                    row = here.recv()
                except (EOFError, OSError):
                    process.join(10)
                    yield part, f"its process ended with exit code {process.exitcode} ({begun})"
                    break
                if row is None:
                    part += 1
                elif isinstance(row, str):
                    begun = row
                else:
                    yield part, row
        finally:
            process.kill()
            process.join()
            here.close()
        part += 1


def _work(work: Work, first: int, parts: int, rows: Connection) -> None:
    for part in range(first, parts):
        for row in work(part):
            rows.send(row)
        rows.send(None)  # finished
