"""Clocks: frequency codes, the usual step between stamps, and the regular grid that rows are put on.

The step of a grid is the usual step between stamps, pulled to the round interval nearby (15.02 s -> 15 s). Stamps are
snapped to the grid: a slot nothing falls into is NaN, and of two rows in one slot the later wins.
"""

from __future__ import annotations

import re
from collections import Counter

import numpy as np

_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 86400.0
ROUND_INTERVALS = np.array(
    [1, 2, 5, 10, 15, 20, 30]
    + [_MINUTE * n for n in (1, 2, 3, 5, 10, 15, 20, 30)]
    + [_HOUR * n for n in (1, 2, 3, 4, 6, 8, 12)]
    + [_DAY * n for n in (1, 7, 30.4375, 91.3125, 365.25)]  # calendar units by their mean length
)
ROUND_WITHIN = 0.02  # relative; a month of 31 days is 1.8 % away from the mean month
MAX_SPARSITY = 50  # slots per row beyond which stamps are events, not samples

# Seconds per step of the frequency codes that appear in public archives; calendar units by their mean length.
FREQ_SECONDS = {
    "L": 1e-3,
    "S": 1.0,
    "T": _MINUTE,
    "H": _HOUR,
    "D": _DAY,
    "B": _DAY,
    "W": 7 * _DAY,
    "M": 30.4375 * _DAY,
    "Q": 91.3125 * _DAY,
    "A": 365.25 * _DAY,
    "Y": 365.25 * _DAY,
}
# Spellings of pandas 2.2 and later, and the start, end and business variants, which change no step.
_SAME = {"ms": "L", "s": "S", "min": "T", "h": "H", "d": "D", "w": "W", "q": "Q", "y": "Y", "a": "A"} | {
    f"{business}{unit}{side}": unit for unit in "MQAY" for business in ("", "B") for side in ("", "S", "E")
}
_CODE = re.compile(r"(\d*)([A-Za-z]+)(-[A-Za-z0-9]+)?")


def freq_to_seconds(freq: str) -> float:
    """'5T', '5min' -> 300.0. Raises ValueError on a code it does not know ('U', unknown, counts as one second)."""
    freq = str(freq)
    if freq == "U":
        return 1.0
    match = _CODE.fullmatch(freq)
    unit = _SAME.get(match[2], match[2]) if match else ""
    if not match or unit not in FREQ_SECONDS or match[1].strip("0") == "" != match[1]:
        raise ValueError(f"unknown frequency code {freq!r}; known units: {', '.join(FREQ_SECONDS)}, ms, s, min, h")
    return int(match[1] or 1) * FREQ_SECONDS[unit]


def seconds(freq: str | float) -> float:
    """A frequency code, or a number of seconds, as seconds > 0. ValueError on anything else."""
    try:
        found = float(freq)
    except ValueError:
        return freq_to_seconds(str(freq))
    if not (np.isfinite(found) and found > 0):
        raise ValueError(f"frequency {freq!r} is no positive number of seconds")
    return found


def steps(stamps: np.ndarray) -> np.ndarray:
    """Seconds between distinct stamps (datetime64 of any unit)."""
    return np.diff(np.unique(stamps)) / np.timedelta64(1, "s")


def usual_interval(steps: np.ndarray) -> float | None:
    """Usual step in seconds, or the round interval close to it; None without steps."""
    if not len(steps):
        return None
    median = np.median(steps)
    # Neighbouring steps share a stamp, so their jitter cancels in the mean; gaps and duplicates stay out of it.
    step = float(steps[(steps > 0.5 * median) & (steps < 1.5 * median)].mean())
    near = float(ROUND_INTERVALS[np.argmin(np.abs(ROUND_INTERVALS - step))])
    return near if abs(near - step) <= ROUND_WITHIN * near else step


def _day(stamp: np.datetime64) -> str:
    return str(stamp.astype("datetime64[s]"))


def to_grid(stamps: np.ndarray, values: np.ndarray, interval: float, counts: Counter[str], where: str) -> np.ndarray:
    """Rows of values [N, V] at stamps [N] (datetime64 of any unit) -> float32 [V, T] with a step of `interval` seconds.

    counts gains rows: duplicate, out_of_order; slots: gap. ValueError, beginning with `where`, on stamps that are
    events.
    """
    late = int((stamps < np.maximum.accumulate(stamps)).sum())
    order = np.argsort(stamps, kind="stable") if late else np.arange(len(stamps))
    elapsed = (stamps[order] - stamps[order[0]]) / np.timedelta64(1, "s")
    # The grid runs through the middle of the jitter (circular mean), so that no stamp sits on a slot's edge.
    angle = np.angle(np.exp(2j * np.pi * elapsed / interval).mean())
    slots = np.rint(elapsed / interval - angle / (2 * np.pi)).astype(np.int64)
    slots -= slots[0]
    length = int(slots[-1]) + 1
    if length > MAX_SPARSITY * len(stamps):
        raise ValueError(
            f"{where}: {len(stamps)} rows from {_day(stamps.min())} to {_day(stamps.max())} span {length} steps of "
            f"{interval:g} s; correct a wrong stamp, or, of events, count or average them per interval first"
        )
    last = np.append(slots[1:] != slots[:-1], True)  # of the rows in one slot
    used, rows = slots[last], order[last]
    counts["out_of_order"] += late
    counts["duplicate"] += len(stamps) - len(used)
    counts["gap"] += length - len(used)
    grid = np.full((values.shape[1], length), np.nan, dtype=np.float32)
    with np.errstate(over="ignore"):  # beyond float32 becomes inf, which quality counts as impossible
        for variate in range(len(grid)):  # one at a time: no second copy of a large table
            grid[variate, used] = values[rows, variate]
    return grid
