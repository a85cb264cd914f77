"""Small drawing, wave and filter helpers that the families share. Row vectors are [n, 1], ready to broadcast over time.

A family needs numpy alone: numba or any part of scipy would take a third of a second to import, which is as long as a
chunk takes to make.
"""

from __future__ import annotations

import numpy as np

ROWS_AT_ONCE = 16  # of a recursion; some fit into the cache together


def uniform(rng: np.random.Generator, low: float, high: float, n: int) -> np.ndarray:
    """U(low, high) as [n, 1]."""
    return rng.uniform(low, high, (n, 1))


def log_uniform(rng: np.random.Generator, low: float, high: float, n: int) -> np.ndarray:
    """exp(U(log low, log high)) as [n, 1]."""
    return np.exp(rng.uniform(np.log(low), np.log(high), (n, 1)))


def chance(rng: np.random.Generator, p: float, n: int) -> np.ndarray:
    """True with probability p, as [n, 1]."""
    return rng.random((n, 1)) < p


def white(rng: np.random.Generator, n: int, length: int) -> np.ndarray:
    """N(0, 1), float32 [n, length]."""
    return rng.standard_normal((n, length), dtype=np.float32)


def sine(cycles: np.ndarray) -> np.ndarray:
    """sin(2 pi cycles) as float32.

    Whole cycles are dropped in float64 first: the float32 sine is about 15 times faster and then exact to 4e-7.
    """
    return np.sin(np.float32(2 * np.pi) * (cycles - np.floor(cycles)).astype(np.float32))


def autoregression(rng: np.random.Generator, time_constants: np.ndarray, length: int) -> np.ndarray:
    """Stationary AR(1) paths of unit variance, float32 [n, length]; time_constants in steps, [n, 1]."""
    keep = np.exp(-1 / time_constants).astype(np.float32)
    shocks = white(rng, len(keep), length)
    shocks[:, 1:] *= np.sqrt(1 - keep**2)  # the first value is drawn from the stationary law
    leaky_sums(shocks, keep[:, 0])
    return shocks


def leaky_sums(rows: np.ndarray, keep: np.ndarray) -> None:
    """x[t] += keep x[t-1] along each row [n, T], in place; keep [n], from 0 to 1.

    By doubling: a sum over r steps plus keep^r times the one that ended r steps before is the sum over 2 r steps. What
    counts for less than 1e-10 of it is left out.
    """
    for first in range(0, len(rows), ROWS_AT_ONCE):
        block, weight = rows[first : first + ROWS_AT_ONCE], keep[first : first + ROWS_AT_ONCE, None]
        reach = 1
        while reach < block.shape[1] and weight.any():
            block[:, reach:] += weight * block[:, :-reach]
            weight = np.where(weight > 1e-5, weight**2, 0)
            reach *= 2


def moving_mean(row: np.ndarray, before: int, after: int, mode: str = "edge") -> np.ndarray:
    """Mean of each step [T] with the `before` steps before it and `after` after it, float64; beyond the ends as np.pad
    does in that mode."""
    window = before + 1 + after
    padded = np.pad(row.astype(np.float64), (before, after), mode=mode)  # type: ignore[call-overload]
    return np.correlate(padded, np.full(window, 1 / window))


def moving_maximum(row: np.ndarray, window: int) -> np.ndarray:
    """The greatest of the last `window` steps [T], which are mirrored at the first; window at most T + 1."""
    greatest, reach = np.pad(row, (window - 1, 0), mode="symmetric"), 1
    while reach < window:  # the greatest of twice as many steps each time
        more = min(reach, window - reach)
        greatest = np.maximum(greatest[:-more], greatest[more:])
        reach += more
    return greatest
