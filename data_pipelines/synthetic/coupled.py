"""Families made by couplers: groups of 2 to 32 variates whose bases are series of the univariate families."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from data_pipelines.synthetic import couplers as law
from data_pipelines.synthetic import frequency
from data_pipelines.synthetic.chunk import CHUNK, Chunk
from data_pipelines.synthetic.draws import log_uniform, white

LARGEST_GROUP = 32
Couple = Callable[[np.random.Generator, np.ndarray, int], np.ndarray]
"""(rng, z [V, before + T], before) -> [V, T]."""
GenerateChunk = Callable[[np.random.Generator, int, int], Chunk]


def widths(rng: np.random.Generator, count: int) -> np.ndarray:
    """Variates of each group, log-uniform from 2 to 32, int [count]."""
    return np.floor(log_uniform(rng, 2, LARGEST_GROUP + 1, count)[:, 0]).astype(np.int64)


def _linear_mix(rng: np.random.Generator, z: np.ndarray, _: int) -> np.ndarray:
    return law.linear_mix(law.draw_mixing(rng, len(z)), z)


def _nonlinear_mix(rng: np.random.Generator, z: np.ndarray, _: int) -> np.ndarray:
    y = law.nonlinear_mix(law.draw_nonlinear(rng, len(z)), z)
    return y + (log_uniform(rng, 1e-3, 0.3, len(z)) * y.std(axis=1, keepdims=True)).astype(np.float32) * white(
        rng, *z.shape
    )


def _regime_mix(rng: np.random.Generator, z: np.ndarray, _: int) -> np.ndarray:
    path = law.draw_regimes(rng, z.shape[1])
    return law.regime_mix([law.draw_mixing(rng, len(z)) for _ in range(path.max() + 1)], path, z)


def _lead_lag(rng: np.random.Generator, z: np.ndarray, before: int) -> np.ndarray:
    return law.lead_lag(law.draw_lags(rng, len(z), before), z, before)


def _cointegration(rng: np.random.Generator, z: np.ndarray, _: int) -> np.ndarray:
    return law.cointegration(rng, law.draw_loadings(rng, len(z)), z)


def _causal_graph(rng: np.random.Generator, z: np.ndarray, before: int) -> np.ndarray:
    graph = law.draw_graph(rng, len(z), max(1, before // 8))
    return law.causal_graph(graph, z, law.draw_regimes(rng, z.shape[1]), before)


COUPLERS: dict[str, tuple[Couple, float]] = {
    "linear_mix": (_linear_mix, 0),
    "nonlinear_mix": (_nonlinear_mix, 0),
    "regime_mix": (_regime_mix, 0),
    "lead_lag": (_lead_lag, 1 / 16),
    "cointegration": (_cointegration, 0),
    "causal_graph": (_causal_graph, 1 / 8),
}
"""Name -> the coupler and the steps before the window that it needs, as a share of the window."""


def generator(name: str, bases: Mapping[str, tuple[GenerateChunk, float]]) -> GenerateChunk:
    """The family of coupler `name` over `bases`: family -> (its `generate_chunk`, its share)."""
    couple, history = COUPLERS[name]

    def generate_chunk(rng: np.random.Generator, length: int, count: int) -> Chunk:
        sizes = widths(rng, count)
        intervals, starts = frequency.draw(rng, length, count)
        before = int(np.ceil(history * length))
        z = draw_bases(rng, bases, sizes, before + length)
        ends = np.cumsum(sizes)
        values = [_dressed(rng, couple(rng, z[e - n : e], before)) for e, n in zip(ends, sizes, strict=True)]
        return Chunk(values, intervals.astype(np.float64), starts)

    return generate_chunk


def draw_bases(
    rng: np.random.Generator, bases: Mapping[str, tuple[GenerateChunk, float]], sizes: np.ndarray, length: int
) -> np.ndarray:
    """A series for every variate of the groups, of mean 0 and variance 1 (a constant is 0), float32 [sum(sizes), T].

    Series come 64 of a family at a time. Half of the groups take theirs from one or two families, the others from all
    that were drawn. Of a multivariate base the first variate is taken; gaps are filled by straight lines.
    """
    total = int(sizes.sum())
    shares = np.array([share for _, share in bases.values()])
    drawn = rng.choice(len(shares), -(-total // CHUNK), p=shares / shares.sum())
    laws = [generate_chunk for generate_chunk, _ in bases.values()]
    pool = [values[0] for kind in drawn for values in laws[kind](rng, length, CHUNK).values][:total]
    shuffled = np.flatnonzero(np.repeat(rng.random(len(sizes)) < 0.5, sizes))
    order = np.arange(total)
    order[shuffled] = rng.permutation(shuffled)
    z = np.stack([pool[i] for i in order])
    steps = np.arange(length)
    for row in np.flatnonzero(np.isnan(z).any(axis=1)):
        gap = np.isnan(z[row])
        z[row, gap] = np.interp(steps[gap], steps[~gap], z[row, ~gap])
    mean = z.mean(axis=1, keepdims=True, dtype=np.float64)
    deviation = z.std(axis=1, keepdims=True, dtype=np.float64)
    constant = deviation <= 1e-6 * np.abs(mean)
    return np.where(constant, 0, (z - mean) / np.where(constant, 1, deviation)).astype(np.float32)


def _dressed(rng: np.random.Generator, y: np.ndarray) -> np.ndarray:
    """Levels and units of their own: offsets of up to some deviations, scales from .01 to 10,000."""
    n = len(y)
    offset = rng.normal(0, 3, (n, 1)) * y.std(axis=1, keepdims=True)
    return ((y + offset) * log_uniform(rng, 1e-2, 1e4, n)).astype(np.float32)
