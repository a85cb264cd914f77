"""Sums of one to three sines with slow frequency and amplitude modulation (law: TempoPFN sinewave)."""

from __future__ import annotations

import numpy as np

from data_pipelines.synthetic.draws import chance, sine, uniform, white

FREQUENCY_DEPTH = 0.05
AMPLITUDE_DEPTH = 0.1


def generate(rng: np.random.Generator, length: int, count: int) -> np.ndarray:
    """float32 [count, length]; periods in steps."""
    t = np.arange(length)
    components = rng.integers(1, 4, count)
    slope, level = uniform(rng, -0.01, 0.01, count), uniform(rng, 0, 2, count)
    values = (level + slope * t).astype(np.float32)
    total = np.zeros((count, 1))
    for k in range(3):
        rows = np.flatnonzero(components > k)
        n = len(rows)
        period, amplitude = uniform(rng, 10, 200, n), uniform(rng, 0.5, 3, n)
        slow, slow_phase = period * uniform(rng, 8, 15, n), uniform(rng, 0, 1, n)
        # The phase is the integral of (1 + depth sin)/period, in closed form.
        wobble = FREQUENCY_DEPTH * slow / (2 * np.pi * period) * sine(t / slow + slow_phase - 0.25)
        envelope = 1 + np.float32(AMPLITUDE_DEPTH) * sine(t / (period * uniform(rng, 5, 10, n)) + uniform(rng, 0, 1, n))
        values[rows] += amplitude.astype(np.float32) * envelope * sine(t / period + wobble + uniform(rng, 0, 1, n))
        total[rows] += amplitude
    sd = chance(rng, 0.7, count) * uniform(rng, 0.05, 0.2, count) * total
    return values + sd.astype(np.float32) * white(rng, count, length)
