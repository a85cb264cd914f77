"""A flat or softly noisy baseline with a few V-shaped or flat-topped spikes (law: TempoPFN spike)."""

from __future__ import annotations

import numpy as np

from data_pipelines.synthetic.draws import chance, uniform, white

MARGIN = 100  # steps kept free at both ends
SEPARATION = 110  # least distance between two spikes, steps
NOISE_SD = 2.0
NOISE_CUTOFF = 0.1  # cycles per step


def generate(rng: np.random.Generator, length: int, count: int) -> np.ndarray:
    """float32 [count, length]."""
    t = np.arange(length, dtype=np.float32)
    amplitude, angle = uniform(rng, 50, 300, count), np.radians(uniform(rng, 70, 85, count))
    rise = np.clip(np.round(amplitude / np.tan(angle)), 15, 50)
    signed = np.where(chance(rng, 0.5, count), amplitude, -amplitude)
    centres = _centres(rng, length, count)
    kind = rng.random((count, 1))  # V only .4, flat-topped only .3, a coin per spike .3
    flat_topped = (kind >= 0.7) & (rng.random(centres.shape) < 0.5) | (kind >= 0.4) & (kind < 0.7)
    plateau = np.where(flat_topped, rng.integers(30, 50, centres.shape), 0)
    values = np.repeat(uniform(rng, -200, 200, count).astype(np.float32), length, axis=1)
    for row, spike in zip(*np.nonzero(np.isfinite(centres)), strict=True):
        reach = plateau[row, spike] / 2 + rise[row, 0]
        low, high = max(0, int(centres[row, spike] - reach)), int(centres[row, spike] + reach) + 1
        height = (reach - np.abs(t[low:high] - centres[row, spike])) / rise[row, 0]
        values[row, low:high] += signed[row, 0] * np.clip(height, 0, 1)
    noisy = np.flatnonzero(chance(rng, 0.5, count))
    values[noisy] += _coloured_noise(rng, len(noisy), length)
    return values


def _centres(rng: np.random.Generator, length: int, count: int) -> np.ndarray:
    """Spike centres in steps, [count, 6], NaN where there is none: 4 to 6 evenly spaced, or (.05) a burst of 2 or 3."""
    burst = rng.random(count) < 0.05
    wanted = np.where(burst, rng.integers(2, 4, count), rng.integers(4, 7, count))
    margin = min(MARGIN, length // 4)
    room = length - 2 * margin
    wanted = np.minimum(wanted, max(1, room // SEPARATION))
    width = np.clip(rng.uniform(0.1, 0.25, count) * length, np.minimum(wanted * SEPARATION, room), room)
    start = margin + rng.random(count) * (room - width)
    jitter = rng.uniform(-1, 1, (count, 6))
    centres = np.full((count, 6), np.nan)
    for row, n in enumerate(wanted):
        if n == 1:
            centres[row, 0] = length // 2
        elif burst[row]:
            gap = width[row] / (n - 1)
            reach = min(0.2 * gap, 0.3 * SEPARATION)
            jittered = start[row] + gap * np.arange(n) + reach * jitter[row, :n]
            # Push neighbours apart to the separation: the running maximum of positions in a frame that moves with it.
            apart = SEPARATION * np.arange(n)
            centres[row, :n] = np.clip(np.maximum.accumulate(jittered - apart) + apart, margin, length - margin)
        else:
            gap = room / (n - 1 + 0.4)  # an edge of .2 gaps on both sides
            centres[row, :n] = margin + gap * (0.2 + np.arange(n))
    return np.round(centres)


def _coloured_noise(rng: np.random.Generator, n: int, length: int) -> np.ndarray:
    """1/f amplitude with a Gaussian roll-off above the cut-off, each path scaled to NOISE_SD."""
    frequency = np.fft.rfftfreq(length)
    frequency[0] = frequency[1]
    over = np.maximum(frequency - NOISE_CUTOFF, 0) / NOISE_CUTOFF
    response = (np.exp(-(over**2)) / frequency).astype(np.float32)
    noise = np.fft.irfft(np.fft.rfft(white(rng, n, length)) * response, n=length)
    return np.float32(NOISE_SD) * noise / noise.std(axis=1, keepdims=True)
