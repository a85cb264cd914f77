"""What the laws that TempoPFN renders as sound share: a clock, metronomes, envelopes, brown noise.

The published series are the first 2048 samples, 46 ms at 44.1 kHz, of a sound whose events are up to 5 s apart, behind
a fade-in. Ours are windows of the same sound, begun at a random time, at a rate of which 2048 to 4096 steps hold what
the law names. The rate is a constant of the family, so a law means the same at every length; a series is divided by its
greatest magnitude, as published. `faithful` gives the published window: the first T samples, faded in.

| family | rate | 4096 steps | slowest part | fastest part |
|---|---|---|---|---|
| volatility | 256 Hz | 16 s | trend .1 to .5 Hz | jumps ring at 20 to 80 Hz |
| fractal | 4096 Hz | 1 s | filters down to .6 Hz | filters up to 2000 Hz |
| rhythm | 2048 Hz | 2 s | beats 2 to 8 Hz | tones 50 to 800 Hz |
| topology | 256 Hz | 16 s | attacks every 2 to 5 s | overhead 20 to 50 Hz |
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from data_pipelines.synthetic.draws import autoregression, uniform

SAMPLE_RATE, FADE_IN = 44_100.0, 441  # of the published sounds: Hz, samples
LONGEST_CYCLE = 10.0  # seconds; windows begin anywhere in it
BROWN_MEMORY = 350.0  # steps: a leak at 20 Hz of 44.1 kHz
# of pyo's BrownNoise, 20 y with y += (u - y) / 351 each step and u uniform within .99: 20 .99 / sqrt(3 (2 350 + 1))
BROWN_SD = 0.43
EXPONENT = 10  # of the segments of an envelope

Points = Sequence[tuple[np.ndarray | float, np.ndarray | float]]


def clock(rng: np.random.Generator, length: int, count: int, rate: float, faithful: bool = False) -> np.ndarray:
    """Seconds since the sound began, [count, length]; faithful: from 0 on, at SAMPLE_RATE."""
    if faithful:
        return np.broadcast_to(np.arange(length) / SAMPLE_RATE, (count, length))
    return uniform(rng, 0, LONGEST_CYCLE, count) + np.arange(length) / rate


def since_tick(seconds: np.ndarray, period: np.ndarray) -> np.ndarray:
    """Seconds since the last tick of a metronome that began with the sound, float32."""
    return (seconds - np.floor(seconds / period) * period).astype(np.float32)


def envelope(since: np.ndarray, points: Points) -> np.ndarray:
    """A curve through (seconds, value) points, the first at 0; it stays at the last value. float32, shape of `since`.

    A segment that falls drops at once and levels out, end + (start - end) (1 - u)^10; one that rises is late,
    start + (end - start) u^10.
    """
    value = np.broadcast_to(np.float32(points[-1][1]), since.shape).copy()
    for (begin, start), (end, stop) in pairwise(points):
        begin, start, end, stop = (np.asarray(v, np.float32) for v in (begin, start, end, stop))
        u = np.clip((since - begin) / (end - begin), 0, 1)
        u = np.where(stop < start, 1 - u, u)
        power = np.square(u * np.square(np.square(u)))  # u^10
        curve = np.where(stop < start, stop + (start - stop) * power, start + (stop - start) * power)
        value = np.where((since >= begin) & (since < end), curve, value)
    return value


def rising(cycles: np.ndarray) -> np.ndarray:
    """A sawtooth from -1 to 1 once a cycle, which is what the published slow oscillators are, float32."""
    return (2 * (cycles - np.floor(cycles)) - 1).astype(np.float32)


def square(cycles: np.ndarray) -> np.ndarray:
    """1 in the first half of a cycle, -1 in the second, float32."""
    return np.where(cycles - np.floor(cycles) < 0.5, np.float32(1), np.float32(-1))


def brown(rng: np.random.Generator, count: int, length: int) -> np.ndarray:
    """Brown noise, leaky and stationary, float32 [count, length]."""
    return np.float32(BROWN_SD) * autoregression(rng, np.full((count, 1), BROWN_MEMORY), length)


def peak_normalised(values: np.ndarray, faithful: bool = False) -> np.ndarray:
    """Rows divided by their greatest magnitude, float32; faithful: after a fade-in that is linear."""
    if faithful:
        values = values * np.minimum(np.arange(values.shape[1], dtype=np.float32) / FADE_IN, 1)
    peak = np.abs(values).max(axis=1, keepdims=True)
    return (values / np.maximum(peak, np.finfo(np.float32).tiny)).astype(np.float32)
