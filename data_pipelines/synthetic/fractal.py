"""Brown noise through three to six resonant low-pass filters, octaves apart (law: TempoPFN audio_multi_scale_fractal).

The sum of the filters is one response, and noise is made with it in the frequency domain: twice the length, half of it
returned, so that neither a start-up nor the transform's period shows.
"""

from __future__ import annotations

import numpy as np

from data_pipelines.synthetic.audio import BROWN_MEMORY, SAMPLE_RATE, peak_normalised
from data_pipelines.synthetic.draws import uniform, white

RATE = 4096.0  # Hz
SCALES = (3, 6)


def generate(rng: np.random.Generator, length: int, count: int, faithful: bool = False) -> np.ndarray:
    """float32 [count, length], at most 1 in magnitude.

    The noise's gain, U(.3, .8) in the published graph, is lost in the division by the peak.
    """
    rate = SAMPLE_RATE if faithful else RATE
    number = rng.integers(SCALES[0], SCALES[1] + 1, count)
    z = np.exp(-2j * np.pi * np.fft.rfftfreq(2 * length))
    z = z if faithful else z.astype(np.complex64)  # a filter of 1 Hz at 44 kHz needs more digits
    response = np.zeros((count, len(z)), np.complex64)
    for i in range(SCALES[1]):
        rows = np.flatnonzero(number > i)
        frequency, q = uniform(rng, 20, 2000, len(rows)) * 0.5**i, uniform(rng, 0.5, 3, len(rows))
        gain = uniform(rng, 0.5, 0.8, len(rows)) ** i
        response[rows] += gain.astype(np.float32) * low_pass(z, frequency / rate, q)
    response /= 1 - np.float32(np.exp(-1 / BROWN_MEMORY)) * z
    spectrum = np.fft.rfft(white(rng, count, 2 * length)) * response
    return peak_normalised(np.fft.irfft(spectrum, n=2 * length)[:, :length], faithful)


def low_pass(z: np.ndarray, frequency: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Response of a biquad low-pass at z = exp(-i w); frequency in cycles per step, [n, 1] (R. Bristow-Johnson)."""
    w = 2 * np.pi * frequency
    cosine, alpha = np.cos(w), np.sin(w) / (2 * q)
    b, a0, a1, a2 = (v.astype(z.real.dtype) for v in ((1 - cosine) / 2, 1 + alpha, -2 * cosine, 1 - alpha))
    return b * (1 + z) ** 2 / (a0 + z * (a1 + a2 * z))
