"""Convex combinations of one to three mean-scaled series of other families (law: TSMixup of Chronos, 2403.07815).

Chronos mixes crops of real series; the parents here are the chunk's pool of synthetic ones, at full length.
"""

from __future__ import annotations

import numpy as np

from data_pipelines.synthetic import sources
from data_pipelines.synthetic.chunk import Chunk

MOST = 3
CONCENTRATION = 1.5


def generate(rng: np.random.Generator, length: int, count: int, laws: sources.Laws) -> Chunk:
    """Labels are those of a series' first parent."""
    pool = sources.draw(rng, length, count, laws)
    size = np.abs(pool.values).mean(axis=1, keepdims=True)
    scaled = pool.values / np.where(size > 0, size, 1)
    parents, weights = draw_mixture(rng, count)
    values = np.zeros_like(scaled)
    for k in range(parents.shape[1]):
        values += weights[:, k : k + 1] * scaled[parents[:, k]]
    return Chunk(list(values[:, None]), pool.intervals, pool.starts)


def draw_mixture(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Parents [count, 3], first the row itself, and their weights float32 [count, 3]: Dirichlet(1.5) over U{1..3}."""
    order = rng.random((count, count))
    np.fill_diagonal(order, -1)
    parents = np.argsort(order, axis=1)[:, :MOST]
    used = np.arange(parents.shape[1]) < rng.integers(1, MOST + 1, count)[:, None]
    shares = np.where(used, rng.standard_gamma(CONCENTRATION, parents.shape), 0)
    return parents, (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)
