"""A trend, brown noise whose size follows an envelope, and ringing jumps (law: TempoPFN audio_financial_volatility)."""

from __future__ import annotations

import numpy as np

from data_pipelines.synthetic.audio import SAMPLE_RATE, brown, clock, envelope, peak_normalised, rising, since_tick
from data_pipelines.synthetic.draws import chance, leaky_sums, sine, uniform

RATE = 256.0  # Hz
WARM_UP = 512  # steps in which the envelope follower forgets where it began


def generate(rng: np.random.Generator, length: int, count: int, faithful: bool = False) -> np.ndarray:
    """float32 [count, length], at most 1 in magnitude."""
    seconds = clock(rng, length, count, RATE, faithful)
    values = uniform(rng, 0.2, 0.5, count).astype(np.float32) * rising(seconds * uniform(rng, 0.1, 0.5, count))
    followed = follower(seconds, uniform(rng, 1, 5, count), uniform(rng, 1, 4, count), faithful)
    low, span = (0.45, 0.35) if faithful else (0.1, 0.7)
    values += brown(rng, count, length) * (np.float32(low) + np.float32(span) * followed)
    since = since_tick(seconds, uniform(rng, 0.3, 1, count))
    jump = envelope(since, [(0, uniform(rng, 0.5, 1, count)), (uniform(rng, 0.05, 0.2, count), 0)])
    sign = np.where(chance(rng, 0.5, count), np.float32(1), np.float32(-1))
    return peak_normalised(values + sign * jump * sine(seconds * uniform(rng, 20, 80, count)), faithful)


def follower(seconds: np.ndarray, carrier: np.ndarray, cutoff: np.ndarray, faithful: bool = False) -> np.ndarray:
    """The rectified sine of `carrier` Hz behind a one-pole low-pass of `cutoff` Hz, in [0, 1], float32.

    Its range maps onto volatilities from .1 to .8; pyo (faithful) takes the range to begin at -1, which halves the
    clusters, and a follower that starts at 0.
    """
    rate, warm_up = (SAMPLE_RATE, 0) if faithful else (RATE, WARM_UP)
    before = seconds[:, :1] - np.arange(warm_up, 0, -1) / rate
    rectified = np.abs(sine(np.concatenate([before, seconds], axis=1) * carrier))
    keep = np.exp(-2 * np.pi * cutoff[:, 0] / rate).astype(np.float32)
    leaky_sums(rectified, keep)
    return (1 - keep[:, None]) * rectified[:, warm_up:]
