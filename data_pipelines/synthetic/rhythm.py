"""Three to five tones struck on subdivisions of a common beat (law: TempoPFN audio_stochastic_rhythm)."""

from __future__ import annotations

import numpy as np

from data_pipelines.synthetic.audio import Points, clock, envelope, peak_normalised, since_tick
from data_pipelines.synthetic.draws import sine, uniform

RATE = 2048.0  # Hz
LAYERS = (3, 5)
SUBDIVISIONS = (1, 2, 3, 4, 6, 8)


def generate(rng: np.random.Generator, length: int, count: int, faithful: bool = False) -> np.ndarray:
    """float32 [count, length], at most 1 in magnitude."""
    seconds = clock(rng, length, count, RATE, faithful)
    beat = uniform(rng, 2, 8, count)
    number = rng.integers(LAYERS[0], LAYERS[1] + 1, count)
    values = np.zeros((count, length), np.float32)
    for layer in range(LAYERS[1]):
        rows = np.flatnonzero(number > layer)
        n, at = len(rows), seconds[rows]
        since = since_tick(at, 1 / (beat[rows] * rng.choice(SUBDIVISIONS, (n, 1))))
        points: Points = [(0, 1.0), (uniform(rng, 0.001, 0.01, n), 0.8), (uniform(rng, 0.05, 0.3, n), 0.0)]
        tone = sine(at * uniform(rng, 50, 800, n)) * uniform(rng, 0.2, 0.5, n).astype(np.float32)
        values[rows] += envelope(since, points) * tone
    return peak_normalised(values, faithful)
