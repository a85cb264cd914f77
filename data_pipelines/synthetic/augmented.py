"""Cascades of augmentations over series of other families (law: TempoPFN's two offline augmentation streams).

mixup -> edits -> random convolutions -> mixup, with parents from the chunk's own pool of 64. A result counts when it
differs from its source, after scaling, by at least CHANGE interquartile ranges in the mean and is not constant; else
another source is tried. Ours differ in two ways. The gate of the random convolutions is asked once (.3), not twice
(.09; so it is with `faithful`, which takes the faithful sources and edits, too). And where the published batch stream
builds 64 series to keep one at random, every series of ours is kept: the law of one series is the same, and nothing is
made to be thrown away.
"""

from __future__ import annotations

import numpy as np

from data_pipelines.synthetic import sources
from data_pipelines.synthetic.chunk import Chunk
from data_pipelines.synthetic.edits import Label, draw_categories, edit
from data_pipelines.synthetic.random_conv import random_conv

SCALER_SHARES = (0.5, 0.125, 0.125, 0.125, 0.125)  # in the order of sources.SCALERS
MIXUP, RANDOM_CONV = 0.5, 0.3
MOST_PARENTS = 10
CHANGE = 0.05
TRIES = 10


def per_sample(rng: np.random.Generator, length: int, count: int, laws: sources.Laws, faithful: bool = False) -> Chunk:
    """Every series is scaled in a way of its own (half are not), and so are the parents it is mixed with."""
    pool, gate = sources.draw(rng, length, count, laws), RANDOM_CONV**2 if faithful else RANDOM_CONV
    values, base = np.empty((count, length), np.float32), np.arange(count)
    for row, drawn in enumerate(draw_categories(rng, count)):
        for _ in range(TRIES):
            at, scaler = int(base[row]), str(rng.choice(sources.SCALERS, p=SCALER_SHARES))
            source = pool.scaled(at, scaler)
            x = _with_others(rng, source, pool, at, scaler) if rng.random() < MIXUP else source
            label = Label(pool.intervals[at], pool.starts[at])
            x = edit(rng, x, drawn, label, quantised=True, faithful=faithful)
            x = random_conv(rng, x) if rng.random() < gate else x
            values[row] = _with_others(rng, x, pool, at, scaler) if rng.random() < MIXUP else x
            if changed(source, values[row]):
                break
            base[row], drawn = rng.integers(count), draw_categories(rng, 1)[0]
    return Chunk(list(values[:, None]), pool.intervals[base], pool.starts[base])


def batch(rng: np.random.Generator, length: int, count: int, laws: sources.Laws, faithful: bool = False) -> Chunk:
    """The pool is scaled row by row, augmented as a batch, and mixed with itself; no calendar, no quantisation."""
    pool, gate = sources.draw(rng, length, count, laws), RANDOM_CONV**2 if faithful else RANDOM_CONV
    scalers = rng.choice(sources.SCALERS, count)
    scaled = np.stack([pool.scaled(row, str(scaler)) for row, scaler in enumerate(scalers)])

    def edited(at: int, drawn: np.ndarray) -> np.ndarray:
        x = _of_others(rng, scaled, at) if rng.random() < MIXUP else scaled[at]
        x = edit(rng, x, drawn, None, quantised=False, faithful=faithful)
        return random_conv(rng, x) if rng.random() < gate else x

    categories = draw_categories(rng, count)
    half_way = np.stack([edited(at, drawn) for at, drawn in enumerate(categories)])
    values, base = np.empty_like(scaled), np.arange(count)
    for row, drawn in enumerate(categories):
        for attempt in range(TRIES):
            at = int(base[row])
            x = half_way[at] if attempt == 0 else edited(at, drawn)
            values[row] = _of_others(rng, half_way, at) if rng.random() < MIXUP else x
            if changed(scaled[at], values[row]):
                break
            base[row], drawn = rng.integers(count), draw_categories(rng, 1)[0]
    return Chunk(list(values[:, None]), pool.intervals[base], pool.starts[base])


def _with_others(rng: np.random.Generator, x: np.ndarray, pool: sources.Pool, row: int, scaler: str) -> np.ndarray:
    """x, made of row `row`, and 1 to 9 other sources under the same scaler."""
    parents = sources.others(rng, row, len(pool.values), int(rng.integers(1, MOST_PARENTS)))
    weights = rng.dirichlet(np.full(len(parents) + 1, draw_concentration(rng)))
    return weighted([x, *(pool.scaled(int(p), scaler) for p in parents)], weights)


def _of_others(rng: np.random.Generator, series: np.ndarray, row: int) -> np.ndarray:
    """2 to 10 rows other than `row`, with weights that stay (.5) or move from one draw to another over time."""
    parents = sources.others(rng, row, len(series), int(rng.integers(2, MOST_PARENTS + 1)))
    concentration = np.full(len(parents), draw_concentration(rng))
    first = weighted(series[parents], rng.dirichlet(concentration))
    if rng.random() < 0.5:
        return first
    last = weighted(series[parents], rng.dirichlet(concentration))
    return first + (last - first) * np.linspace(0, 1, series.shape[1], dtype=np.float32)


def weighted(series: list[np.ndarray] | np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sum of weights times series, float32 [T]."""
    total = np.float32(weights[0]) * series[0]
    for x, weight in zip(series[1:], weights[1:], strict=True):
        total += np.float32(weight) * x
    return total


def draw_concentration(rng: np.random.Generator) -> float:
    """Of a Dirichlet law of mixing weights: log-uniform from .1 (one parent rules) to 5 (all alike)."""
    return float(np.exp(rng.uniform(np.log(0.1), np.log(5))))


def changed(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether a result is neither constant nor nearly its source."""
    at = np.array((len(before) // 4, 3 * len(before) // 4))  # np.quantile takes three times as long
    low, high = np.partition(before, at)[at]
    size = max(high - low, 1e-6 * np.ptp(before), 1e-8)
    return bool(np.ptp(after) > 0 and np.abs(after - before).mean() >= CHANGE * size)
