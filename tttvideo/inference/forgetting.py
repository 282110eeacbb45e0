"""Forgetting in endless streams: nothing, everything at times or at cuts, or gradually."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..printing import as_number

CUT = 0.2
"""Mean change of a pixel from one frame to the next, of 1, that counts as a cut."""


class Forgetting:
    """A policy; each stream has its own."""

    def restart(self) -> None:
        """As before the first frame."""

    def reset_before(self, frame: Tensor, time: float) -> str:
        """Why all is forgotten before ``frame`` uint8 [3, H, W], shown at ``time`` seconds; "" if it is not."""
        return ""

    def kept(self, seconds: float) -> float:
        """The share that is kept of the memory while so many seconds pass."""
        return 1.0

    def state(self) -> Any:
        """What a policy remembers, as JSON has it."""
        return None

    def restore(self, state: Any) -> None:
        """The inverse of ``state``."""


class Never(Forgetting):
    """Nothing is forgotten."""


class Every(Forgetting):
    """Everything is forgotten every so many seconds."""

    def __init__(self, seconds: float):
        self.seconds = _positive(seconds, "every")
        self.begun: float | None = None

    def restart(self) -> None:
        self.begun = None

    def reset_before(self, frame: Tensor, time: float) -> str:
        if self.begun is None:
            self.begun = time
        # a clock that was set back counts, too; to a microsecond, as times are sums
        if abs(time - self.begun) < self.seconds - 1e-6:
            return ""
        self.begun = time
        return f"{self.seconds:g} s have passed"

    def state(self) -> Any:
        return self.begun

    def restore(self, state: Any) -> None:
        self.begun = None if state is None else float(state)


class Cuts(Forgetting):
    """Everything is forgotten where the picture changes at once, in the mean by more than ``threshold`` of 1."""

    def __init__(self, threshold: float = CUT):
        self.threshold = _positive(threshold, "cut")
        self.before: Tensor | None = None

    def restart(self) -> None:
        self.before = None

    def reset_before(self, frame: Tensor, time: float) -> str:
        now, before = frame.float(), self.before
        self.before = now
        if before is None:
            return ""
        change = float((now - before).abs().mean()) / 255
        return f"a cut (change {change:.2f})" if change > self.threshold else ""


class Decay(Forgetting):
    """Half of what was learned is forgotten in so many seconds: fast weights and sums are led back to their start."""

    def __init__(self, half_life: float):
        self.half_life = _positive(half_life, "decay")

    def kept(self, seconds: float) -> float:
        return 0.5 ** (seconds / self.half_life)


def parse_forgetting(text: str) -> Forgetting:
    """ "never", "every=SECONDS", "cut", "cut=CHANGE" or "decay=SECONDS" -> a policy; ValueError for anything else."""
    name, equals, value = text.partition("=")
    kinds = {"every": Every, "cut": Cuts, "decay": Decay}
    if text == "never":
        return Never()
    if text == "cut":
        return Cuts()
    if name in kinds and equals:
        try:
            return kinds[name](as_number(value))
        except ValueError:
            return kinds[name](0.0)  # which is refused
    raise ValueError(f"--forget takes never, every=SECONDS, cut, cut=CHANGE or decay=SECONDS; got {text!r}")


def _positive(value: float, name: str) -> float:
    if not 0 < value < 1e12:
        raise ValueError(f"--forget {name}= takes a number above 0")
    return value
