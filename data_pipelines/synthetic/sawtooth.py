"""Noise-free sawtooths with a slight slope and a faint sine (law: TempoPFN sawtooth)."""

from __future__ import annotations

import numpy as np

from data_pipelines.synthetic.draws import chance, sine, uniform


def generate(rng: np.random.Generator, length: int, count: int) -> np.ndarray:
    """float32 [count, length]; 2 to 7 periods over the series, each a ramp from 0 to the amplitude or back."""
    t = np.arange(length)
    cycles = t * uniform(rng, 2, 7, count) / length + uniform(rng, 0, 1, count)
    ramp = cycles - np.floor(cycles)
    ramp = np.where(chance(rng, 0.5, count), 1 - ramp, ramp)
    values = uniform(rng, 0.5, 3, count) * ramp + uniform(rng, -0.001, 0.001, count) * t
    values += uniform(rng, 0, 0.02, count) * sine(t * uniform(rng, 2, 4, count) / length)
    return values.astype(np.float32)
