"""Progress of a run: a rich bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import Any

from ..printing import printable

PLAIN_SECONDS = 10.0  # between two plain lines


class Display:
    """Bar or lines with loss, the task's figures, frames/s and time left. Silent on all but the main process."""

    def __init__(self, *, main: bool, total_steps: int, done_steps: int = 0):
        self.main = main
        self.total_steps = total_steps
        self._start_step = done_steps
        self._paused = 0.0
        self._start = time.monotonic()
        self._last_line = self._start
        self._bar: Any = None
        self._task: Any = None
        if main and sys.stdout.isatty():
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
            )
            self._task = self._bar.add_task("", total=total_steps, completed=done_steps, figures="")
            self._bar.start()

    def step(self, epoch: int, epochs: int, step: int, figures: dict[str, float], rate: float) -> str | None:
        """Show optimizer step `step` (steps done). figures: means so far. rate: frames per second. Returns the line, if
        it is one that stays."""
        if not self.main:
            return None
        now = time.monotonic()
        done = max(step - self._start_step, 1)
        left = (now - self._start - self._paused) / done * (self.total_steps - step)
        means = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        text = f"{means}  {rate:,.0f} frames/s  left {clock(left)}"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=f"epoch {epoch}/{epochs}", figures=text)
        elif now - self._last_line >= PLAIN_SECONDS:
            self._last_line = now
            line = f"epoch {epoch}/{epochs}  step {step}/{self.total_steps}  {text}"
            print(line, flush=True)
            return line
        return None

    def pause(self, seconds: float) -> None:
        """Time that belongs to no training step (validation, checkpoints): kept out of the estimate."""
        self._paused += seconds

    def say(self, text: str) -> None:
        """A line that stays."""
        if not self.main:
            return
        if self._bar is not None:
            self._bar.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)
        else:
            print(printable(text), flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def clock(seconds: float) -> str:
    """1:02:03"""
    return str(timedelta(seconds=round(max(seconds, 0))))
