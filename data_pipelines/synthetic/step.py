"""Staircases: 10 to 100 segments of seven patterns on top of daily and weekly sines (law: TempoPFN step).

All segments of a chunk are drawn at once as [segments, 20] padded change points; levels are one cumulative sum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_pipelines.synthetic.draws import sine, uniform, white

DAY, WEEK = 288, 2016  # steps


@dataclass(frozen=True)
class Pattern:
    """One way to place and size the change points of a segment; `drift` is the level gained over the segment."""

    weight: float
    points: tuple[int, int]
    sizes: tuple[float, float]
    drift: float = 0.0


STABLE, UP, DOWN, SPIKE_UP, SPIKE_DOWN, OSCILLATING, RANDOM = range(7)
PATTERNS = (
    Pattern(0.8, (0, 3), (-0.1, 0.1)),
    Pattern(0.6, (5, 15), (1, 5), 0.1),
    Pattern(0.6, (5, 15), (-5, -1), -0.1),
    Pattern(0.4, (3, 8), (3, 10)),
    Pattern(0.4, (3, 8), (-10, -3)),
    Pattern(0.3, (8, 20), (-4, 4)),
    Pattern(0.2, (5, 20), (-3, 3)),
)
SPIKE_DECAY = 0.7
JUMP = 5.0  # greatest step at a segment's first sample


def generate(rng: np.random.Generator, length: int, count: int) -> np.ndarray:
    """float32 [count, length]."""
    row, start, size = _segments(rng, length, count)
    weights = np.array([p.weight for p in PATTERNS])
    pattern = rng.choice(len(PATTERNS), size=len(row), p=weights / weights.sum())
    at, jumps = _change_points(rng, pattern, size)
    jumps = np.where(at == 0, np.clip(jumps, -JUMP, JUMP), jumps)
    changes = np.zeros((count, length))
    np.add.at(changes, (row[:, None], start[:, None] + at), jumps)
    # A drift is a constant gain per step of its segment.
    drift = np.array([p.drift for p in PATTERNS])[pattern] * rng.random(len(row)) / size
    edges = np.zeros((count, length + 1))
    np.add.at(edges, (row, start), drift)
    np.add.at(edges, (row, start + size), -drift)
    changes += np.cumsum(edges[:, :-1], axis=1)
    t = np.arange(length)
    values = (uniform(rng, 5, 15, count) + np.cumsum(changes, axis=1)).astype(np.float32)
    values += uniform(rng, 0.001, 0.01, count).astype(np.float32) * white(rng, count, length)
    for period, most in ((DAY, 0.8), (WEEK, 0.7)):
        values += uniform(rng, 0, most, count).astype(np.float32) * sine(t / period)
    return values * uniform(rng, 0.1, 10, count).astype(np.float32)


def _segments(rng: np.random.Generator, length: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, first step and size of every segment; a size is min(U{200..800}, remaining steps / remaining segments)."""
    segments = np.minimum(rng.integers(10, 101, count), max(1, length // 2))
    wanted = rng.integers(200, 801, (count, 100))
    sizes = np.zeros((count, 100), dtype=np.int64)
    used = np.zeros(count, dtype=np.int64)
    for i in range(100):
        left = segments - i
        share = (length - used) // np.maximum(left, 1)
        # The last segment takes what is left.
        sizes[:, i] = np.where(left > 1, np.minimum(wanted[:, i], share), np.where(left == 1, length - used, 0))
        used += sizes[:, i]
    row, column = np.nonzero(sizes)
    starts = np.cumsum(sizes, axis=1) - sizes
    return row, starts[row, column], sizes[row, column]


def _change_points(rng: np.random.Generator, pattern: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions inside the segment and level changes, [segments, 20]; unused places change by 0."""
    low, high = np.array([p.points for p in PATTERNS])[pattern].T
    n = rng.integers(low, high + 1)[:, None]
    rank = np.arange(20)
    used = rank < n
    size, kind = size[:, None], pattern[:, None]
    spread = np.minimum(rank, n - 1) / np.maximum(n - 1, 1)  # 0 at the first point, 1 at the last
    even = size * (0.1 + 0.8 * spread)
    spacing = np.maximum(1, size // np.maximum(2 * n, 1))
    jittered = even + spacing * rng.uniform(-1, 1, even.shape)
    # Spikes: half the points in the first third (the excursion), the rest after it (the way back).
    first = np.maximum(1, n // 2)
    excursion = 0.05 + (1 / 3 - 0.05) * rank / np.maximum(first - 1, 1)
    way_back = 1 / 3 + (0.9 - 1 / 3) * (rank - first) / np.maximum(n - first - 1, 1)
    spikes = size * np.where(rank < first, excursion, way_back)
    anywhere = rng.random(even.shape)
    scattered = size * np.where(kind == STABLE, 0.25 + 0.5 * anywhere, 0.1 + 0.8 * anywhere)
    is_spike = (kind == SPIKE_UP) | (kind == SPIKE_DOWN)
    at = np.select([is_spike, kind == OSCILLATING, (kind == UP) | (kind == DOWN)], [spikes, even, jittered], scattered)
    lowest, highest = np.array([p.sizes for p in PATTERNS])[pattern].T
    jumps = rng.uniform(lowest[:, None], highest[:, None], even.shape)
    returning = np.where(rank >= n // 2, -0.5, 1.0)
    jumps = np.where(is_spike, jumps * returning * SPIKE_DECAY**rank, jumps)
    jumps = np.where(kind == OSCILLATING, np.abs(jumps) * np.where(rank % 2, -1, 1), jumps)
    return np.clip(at, 0, size - 1).astype(np.int64), np.where(used, jumps, 0.0)
