"""Series of other families as the raw material of a family: one pool a chunk (weights: TempoPFN's offline streams)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data_pipelines.synthetic.chunk import Chunk

Laws = Mapping[str, Callable[[np.random.Generator, int, int], Chunk]]

WEIGHTS = {
    "forecast_pfn": 1.0,
    "gp": 1.0,
    "kernel": 1.0,
    "sinewave": 1.0,
    "sawtooth": 1.0,
    "step": 0.1,
    "anomaly": 1.0,
    "spike": 1.0,
    "cauker": 2.0,
    "ou": 1.0,
    "volatility": 0.1,
    "fractal": 0.1,
    "rhythm": 1.0,
    "topology": 0.5,
}
WIDTHS = {"cauker": 6}  # variates, so that no more is made than used
SCALERS = ("none", "robust", "minmax", "median", "mean")
LEAST_RANGE = 1e-3  # of a robustly scaled series between its quartiles
FURTHEST = 50.0  # of a robustly scaled value


@dataclass(frozen=True)
class Pool:
    """values: float32 [count, T]; intervals and starts as in Chunk."""

    values: np.ndarray
    intervals: np.ndarray
    starts: np.ndarray

    @cached_property
    def quartiles(self) -> np.ndarray:
        """Float32 [3, count]."""
        return np.quantile(self.values, (0.25, 0.5, 0.75), axis=1).astype(np.float32)

    def scaled(self, row: int, scaler: str) -> np.ndarray:
        """A copy of a row: as it is, less its median or mean, on [-1, 1], or by its median and interquartile range."""
        x = self.values[row]
        if scaler == "robust":
            low, middle, high = self.quartiles[:, row]
            return np.clip((x - middle) / max(high - low, LEAST_RANGE), -FURTHEST, FURTHEST)
        if scaler == "minmax":
            low, high = x.min(), x.max()
            return (x - low) * np.float32(2 / (high - low) if high > low else 0) - 1
        if scaler == "none":
            return x.copy()
        return x - (self.quartiles[1, row] if scaler == "median" else x.mean())


def draw(rng: np.random.Generator, length: int, count: int, laws: Laws) -> Pool:
    """`count` univariate series of those families of WEIGHTS that `laws` has, each of a family drawn by weight.

    Of a family of several variates every variate is a series.
    """
    names = [name for name in WEIGHTS if name in laws]
    shares = np.array([WEIGHTS[name] for name in names])
    family = rng.choice(len(names), size=count, p=shares / shares.sum())
    values = np.empty((count, length), np.float32)
    intervals, starts = np.empty(count), np.empty(count, "datetime64[s]")
    for number, name in enumerate(names):
        rows = np.flatnonzero(family == number)
        while len(rows):
            chunk = laws[name](rng, length, -(-len(rows) // WIDTHS.get(name, 1)))
            owner = np.repeat(np.arange(len(chunk.values)), [len(v) for v in chunk.values])[: len(rows)]
            now, rows = rows[: len(owner)], rows[len(owner) :]
            values[now] = np.concatenate(list(chunk.values))[: len(now)]
            intervals[now], starts[now] = chunk.intervals[owner], chunk.starts[owner]
    return Pool(values, intervals, starts)


def others(rng: np.random.Generator, row: int, count: int, n: int) -> np.ndarray:
    """n different rows of the pool's `count` other than `row`, int [n]."""
    at = rng.permutation(count - 1)[:n]
    return at + (at >= row)
