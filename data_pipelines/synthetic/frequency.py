"""Sampling intervals and start dates.

Law: the frequency weights of TempoPFN's prior, start uniform between 1700 and 2200. A frequency whose series would not
fit in those 500 years is left out. TempoPFN multiplies the weights by a "length fit"; here they hold as listed.
"""

from __future__ import annotations

import numpy as np

DAY = 86_400
MONTH = 2_629_746  # mean Gregorian month, seconds
MONTHS_PER_STEP = {MONTH: 1, 3 * MONTH: 3, 12 * MONTH: 12}

# Seconds per step -> weight.
WEIGHTS = {
    1: 4.8,
    60: 1.6,
    300: 9.7,
    600: 4.8,
    900: 9.7,
    1800: 0.1,
    3600: 25.0,
    DAY: 23.4,
    7 * DAY: 12.9,
    MONTH: 7.3,
    3 * MONTH: 0.8,
    12 * MONTH: 0.8,
}
_FIRST = np.datetime64("1700-01-01", "s")
_CALENDAR_SECONDS = int((np.datetime64("2200-01-01", "s") - _FIRST).astype(np.int64))


def draw(rng: np.random.Generator, length: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` intervals in seconds (int64) and starts (datetime64[s]) for series of `length` steps."""
    usable = {step: weight for step, weight in WEIGHTS.items() if step * length < _CALENDAR_SECONDS}
    if not usable:
        raise ValueError(f"length={length}: no sampling frequency fits between 1700 and 2200")
    weights = np.array(list(usable.values()))
    intervals = rng.choice(list(usable), size=count, p=weights / weights.sum())
    offsets = rng.random(count) * (_CALENDAR_SECONDS - intervals * length)
    # Days and longer start at midnight, the others on a multiple of their interval.
    grid = np.minimum(intervals, DAY)
    starts = _FIRST + (offsets // grid * grid).astype("timedelta64[s]")
    monthly = np.isin(intervals, list(MONTHS_PER_STEP))
    starts[monthly] = starts[monthly].astype("datetime64[M]").astype("datetime64[s]")
    return intervals, starts


def times(interval: int, start: np.datetime64, length: int) -> np.ndarray:
    """Time stamps datetime64[s] [length]; months, quarters and years step by the calendar."""
    steps = np.arange(length)
    if interval in MONTHS_PER_STEP:
        return (start.astype("datetime64[M]") + steps * MONTHS_PER_STEP[interval]).astype("datetime64[s]")
    return start + steps * np.timedelta64(interval, "s")
