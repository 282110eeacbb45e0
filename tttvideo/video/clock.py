"""Presentation times: from the time stamps of a file to increasing seconds.

Stamps are kept wherever there are any. A missing one is placed between its neighbours, equal ones are spread over the
time to the next one, and gaps where recordings were joined are closed.
"""

import numpy as np

MISSING = -(2**63)  # a frame without a stamp
GAP = 10.0  # seconds; FFmpeg's limit, too, for a new start of the clock


def seconds(stamps: np.ndarray, base: float, rate: float, restarts: bool) -> tuple[np.ndarray, list[tuple[int, float]]]:
    """Times float64 [F] of frames, strictly increasing, first frame at 0; and the jumps that were closed, as
    (frame, seconds).

    Args:
        stamps: int64 [F] in presentation order, MISSING where there is none.
        base: seconds of a unit of the stamps.
        rate: frames a second where no stamps tell.
        restarts: whether the container's clock may start anew (transport and program streams).
    """
    stamped = stamps != MISSING
    if stamped.sum() < max(2, 0.5 * len(stamps)) or base <= 0:
        return np.arange(len(stamps)) / rate, []
    first = int(stamps[stamped][0])
    times = (stamps - first) * base
    step = _step(times[stamped], 1 / rate)
    jumps = _close_jumps(times, stamped, step) if restarts else []
    if stamped.all() and (np.diff(times) > 0).all():
        return times - times[0], jumps
    even = _even(np.sort(times)) if restarts and stamped.all() else None
    if even is not None:
        return even, jumps
    times[~stamped] = np.nan
    times = _part(np.sort(_fill(times, stamped, step)), step)
    return times - times[0], jumps


def holes(stamps: np.ndarray, constant: int | None = None) -> int:
    """Frames that are left out of stamps which are even elsewhere; 0 if a few gaps are nothing unusual, as at a
    variable rate. `constant`: time between two frames where the container has no variable rate.
    """
    steps = np.diff(np.sort(stamps[stamps != MISSING]))
    if constant:
        return max(0, round(int(steps.sum()) / constant) - len(steps))
    step = float(np.median(steps)) if len(steps) else 0.0
    if len(steps) < 100 or not step:
        return 0
    even = np.abs(steps - step) <= max(1.01, 0.02 * step)  # stamps of whole milliseconds are off by one
    gaps = steps[steps > 1.5 * step]
    if len(gaps) > max(2, len(steps) // 200) or (~even).sum() > len(gaps) + 4:
        return 0
    # A stamp that comes twice belongs into a gap: program streams stamp a part of the frames only, the rest is guessed.
    return max(0, int(np.round(gaps / step - 1).sum()) - int((steps == 0).sum()))


def passed_over(stamps: np.ndarray, unclaimed: np.ndarray, size: float) -> int:
    """Frames in parts of a file that the demuxer passed over as damaged: where the stamps leave a gap and at the same
    place more bytes than anywhere else are in no packet, enough for half of these frames.

    Args:
        stamps: int64 [F] of packets in the order of the file.
        unclaimed: bytes before each of them, since the packet before, that no packet of any stream holds.
        size: average bytes of a packet.
    """
    order = np.argsort(stamps, kind="stable")
    steps = np.diff(stamps[order])
    step = float(np.median(steps)) if len(steps) else 0.0
    if not step or not unclaimed.any():
        return 0
    gaps = np.flatnonzero(steps > 1.5 * step)
    # Frames are shown in another order than they are stored in, but not by much.
    parts = [slice(max(0, min(order[g : g + 2]) - 8), max(order[g : g + 2]) + 9) for g in gaps]
    elsewhere = np.ones(len(stamps), bool)
    elsewhere[0] = False  # before the first packet there is the header
    for part in parts:
        elsewhere[part] = False
    if elsewhere.mean() < 0.25:  # a variable rate
        return 0
    least, lost = max(512, 2 * int(unclaimed[elsewhere].max())), 0
    for gap, part in zip(gaps, parts):
        missing, between = round(steps[gap] / step) - 1, int(unclaimed[part].sum())
        if between >= max(least, 0.5 * missing * size):
            lost += missing
    return lost


def ends_in_gap(stamps: np.ndarray) -> bool:
    """Whether frames of an even rate have a gap among the last 16 only: frames that are shown before others, but come
    after them in the file, are missing there."""
    steps = np.diff(np.sort(stamps[stamps != MISSING]))
    if len(steps) < 32 or len(np.unique(steps[:-16])) > 1:
        return False
    return bool((steps[-16:] > 1.5 * steps[0]).any())


def _even(times: np.ndarray) -> np.ndarray | None:
    """Replaces sorted times by evenly spaced ones, where a constant rate was stamped with a few errors (one time
    twice, another missing); None where the rate is not constant.
    """
    grid = (times - times[0]) * ((len(times) - 1) / max(times[-1] - times[0], 1e-9))
    near, number = np.round(grid), np.arange(len(times))
    off = np.abs(near - number)
    if np.abs(grid - near).max() > 0.1 or off.max() > 16 or (off > 0).mean() > 0.5:
        return None
    return number * ((times[-1] - times[0]) / (len(times) - 1))


def _step(times: np.ndarray, default: float) -> float:
    steps = np.diff(times)
    steps = steps[steps > 0]
    return float(np.median(steps)) if len(steps) else default


def _close_jumps(times: np.ndarray, stamped: np.ndarray, step: float) -> list[tuple[int, float]]:
    """Shifts what comes after a jump, in place. Decoders stamp neighbours in another order, but not by this much."""
    places = np.flatnonzero(stamped)
    steps = np.diff(times[places])
    jumps = []
    for at in np.flatnonzero((steps > max(GAP, 100 * step)) | (steps < -max(0.5, 10 * step))):
        frame = int(places[at + 1])
        jumps.append((frame, float(steps[at])))
        times[frame:] += step - steps[at]
    return jumps


def _fill(times: np.ndarray, stamped: np.ndarray, step: float) -> np.ndarray:
    """Frames without a stamp between their neighbours; before the first and after the last one a step apart."""
    places = np.flatnonzero(stamped)
    filled = np.interp(np.arange(len(times)), places, times[places])
    first, last = places[0], places[-1]
    filled[:first] = times[first] - step * np.arange(first, 0, -1)
    filled[last + 1 :] = times[last] + step * np.arange(1, len(times) - last)
    return filled


def _part(times: np.ndarray, step: float) -> np.ndarray:
    """Equal times of a sorted array, evenly over the time to the next one."""
    values, starts, counts = np.unique(times, return_index=True, return_counts=True)
    if len(values) == len(times):
        return times
    room = np.append(np.diff(values), step * counts[-1])
    rank = np.arange(len(times)) - np.repeat(starts, counts)
    return np.repeat(values, counts) + rank * np.repeat(room / counts, counts)
