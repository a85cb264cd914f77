"""A constant with single-sample spikes at a fixed period, some clustered or joined by random ones (law: TempoPFN)."""

from __future__ import annotations

import numpy as np


def generate(rng: np.random.Generator, length: int, count: int) -> np.ndarray:
    """float32 [count, length]."""
    values = np.repeat(rng.uniform(-100, 100, (count, 1)), length, axis=1)
    for row in values:
        at = _positions(rng, length)
        sign = 1 if rng.random() < 0.5 else -1
        np.add.at(row, at, sign * _magnitudes(rng, len(at)))
    return values.astype(np.float32)


def _positions(rng: np.random.Generator, length: int) -> np.ndarray:
    """Every `period` steps; a quarter of the series adds clusters, a quarter adds random spikes, half stay clean."""
    period = min(int(rng.integers(100, 300)), length)
    base = np.arange(period // 2, length, period)
    kind = rng.random()
    if kind < 0.25:
        parents = rng.choice(base, max(1, round(0.3 * len(base))), replace=False)
        parents = np.repeat(parents, rng.integers(1, 4, len(parents)))
        extra = parents + rng.integers(1, 11, len(parents)) * rng.choice((-1, 1), len(parents))
        return np.concatenate([base, np.unique(extra[(extra >= 0) & (extra < length)])])
    if kind < 0.5:
        free = np.setdiff1d(np.arange(length), base)
        return np.concatenate([base, rng.choice(free, min(round(0.3 * len(base)), len(free)), replace=False)])
    return base


def _magnitudes(rng: np.random.Generator, n: int) -> np.ndarray:
    """m_i = .7 m_(i-1) + .3 m + N(0, .2 m), plus N(0, .1 m), clipped to [.1 m, 3 m]; m ~ U(10, 50)."""
    base = rng.uniform(10, 50)
    shocks = rng.normal(0, 0.2 * base, n)
    chain = np.empty(n)
    previous = base
    for i in range(n):
        previous = base if i == 0 else 0.7 * previous + 0.3 * base + shocks[i]
        chain[i] = previous
    return np.clip(chain + rng.normal(0, 0.1 * base, n), 0.1 * base, 3 * base)
