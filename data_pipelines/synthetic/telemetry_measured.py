"""What measuring does to any metric: averaging windows, bad samples, limited resolution, missed scrapes and outages.

Our own law (no published source). `values` is float32 [n, T] and is changed in place.
"""

from __future__ import annotations

import numpy as np

from data_pipelines.synthetic.draws import chance, log_uniform, moving_mean


def smooth(rng: np.random.Generator, values: np.ndarray) -> None:
    """Mean over the last 2 to 10 steps in 1 of 8 rows: rates are often taken over windows longer than a scrape."""
    for row in np.flatnonzero(rng.random(len(values)) < 1 / 8):
        values[row] = moving_mean(values[row], before=int(rng.integers(2, 11)) - 1, after=0)


def spoil(rng: np.random.Generator, values: np.ndarray) -> None:
    """Single bad samples in 1 of 5 rows: Pareto spikes above, or drops towards 0, at 1 step in 100 at most."""
    length = values.shape[1]
    rows = np.flatnonzero(rng.random(len(values)) < 0.2)
    number = rng.poisson(log_uniform(rng, 0.5, max(1, 0.01 * length), len(rows))[:, 0])
    down = np.repeat(rng.random(len(rows)) < 0.3, number)
    spikes = 1 + 0.3 * rng.pareto(2, len(down)).clip(0, 50)
    drops = rng.choice((0.0, 0.5), len(down), p=(0.7, 0.3))
    values[np.repeat(rows, number), rng.integers(0, length, len(down))] *= np.where(down, drops, spikes)


def quantise(rng: np.random.Generator, values: np.ndarray) -> None:
    """Round 17 of 20 rows to a power of ten that is about 3e-6 to .1 of their standard deviation."""
    deviation = values.std(axis=1, keepdims=True, dtype=np.float64)
    fine = deviation * log_uniform(rng, 3e-6, 0.1, len(values))
    unit = 10 ** np.round(np.log10(np.maximum(fine, 1e-30)))
    rows = np.flatnonzero(chance(rng, 0.85, len(values)) & (deviation > 0))
    unit = unit[rows].astype(np.float32)
    values[rows] = np.round(values[rows] / unit) * unit


def lose(rng: np.random.Generator, values: np.ndarray, group: np.ndarray) -> None:
    """Set NaN: outages of a group's collector (1 in 7), of one host (1 in 12), single misses (1 in 8 hosts).

    An outage lasts at most 1/16 of the window and there are at most 4 of a kind, so half of a series stays observed.
    """
    rows, length = values.shape
    for owner, p in ((group, 1 / 7), (np.arange(rows), 1 / 12)):
        lengths = log_uniform(rng, 2, max(3, length / 16), 4 * (owner[-1] + 1))[:, 0].astype(np.int64)
        number = np.where(rng.random(owner[-1] + 1) < p, np.minimum(1 + rng.poisson(1, owner[-1] + 1), 4), 0)
        begins = rng.integers(0, length, len(lengths))
        for o in np.flatnonzero(number):
            for outage in range(4 * o, 4 * o + number[o]):
                values[owner == o, begins[outage] : begins[outage] + lengths[outage]] = np.nan
    share = np.where(rng.random(rows) < 1 / 8, np.exp(rng.uniform(np.log(1e-4), np.log(0.02), rows)), 0)
    row = np.repeat(np.arange(rows), rng.binomial(length, share))
    values[row, rng.integers(0, length, len(row))] = np.nan
