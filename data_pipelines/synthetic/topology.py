"""A network's traffic: flow, packet bursts, congestion, overhead, attacks (law: TempoPFN audio_network_topology)."""

from __future__ import annotations

import numpy as np

from data_pipelines.synthetic.audio import brown, clock, envelope, peak_normalised, rising, since_tick, square
from data_pipelines.synthetic.draws import uniform

RATE = 256.0  # Hz


def generate(rng: np.random.Generator, length: int, count: int, faithful: bool = False) -> np.ndarray:
    """float32 [count, length], at most 1 in magnitude."""
    seconds = clock(rng, length, count, RATE, faithful)

    def gain(low: float, high: float) -> np.ndarray:
        return uniform(rng, low, high, count).astype(np.float32)

    values = gain(0.2, 0.5) * rising(seconds * uniform(rng, 0.2, 1, count))
    since = since_tick(seconds, 1 / uniform(rng, 3, 12, count))
    burst = envelope(since, [(0, 0.8), (uniform(rng, 0.02, 0.1, count), 0.0)])
    values += gain(0.2, 0.6) * burst * (2 * rng.random((count, length), dtype=np.float32) - 1)
    since = since_tick(seconds, uniform(rng, 1, 3, count))
    values += envelope(since, [(0, uniform(rng, -0.6, -0.2, count)), (uniform(rng, 0.3, 0.8, count), 0.0)])
    values += gain(0.05, 0.15) * square(seconds * uniform(rng, 20, 50, count))
    since = since_tick(seconds, uniform(rng, 2, 5, count))
    values += gain(0.4, 0.8) * envelope(since, [(0, 1.2), (0.1, 0.8), (0.8, 0.0)]) * brown(rng, count, length)
    return peak_normalised(values, faithful)
