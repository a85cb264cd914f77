"""Scale-free summary features of windows, by which synthetic and real series are told apart or confused.

The list is that of the usual feature sets (catch22, tsfeatures) reduced to what is quick: moments, repeats, dependence,
spectrum, trend, roughness. Every feature keeps its value when a window is multiplied by a positive constant.
"""

from __future__ import annotations

import numpy as np

LAGS = (1, 2, 7, 24, 168)
BLOCKS = 16
SHORTEST = 256  # steps
_TINY = 1e-12


def features(windows: np.ndarray) -> dict[str, np.ndarray]:
    """Feature name -> float64 [n] of windows [n, T], T >= 256, NaN = missing.

    Dependence and spectrum are those of the window with its gaps filled by straight lines. Of a constant window they
    are 0. Raises ValueError where a window has no observed value or T is too short.
    """
    length = windows.shape[1]
    if length < SHORTEST:
        raise ValueError(f"windows must have at least {SHORTEST} steps, got {length}")
    missing = ~np.isfinite(windows)
    if missing.all(axis=1).any():
        raise ValueError("a window has no observed value")
    x = _filled(windows.astype(np.float64), missing)
    mean, deviation = x.mean(axis=1, keepdims=True), x.std(axis=1, keepdims=True)
    constant = deviation <= 1e-7 * np.abs(x).max(axis=1, keepdims=True)
    z = np.where(constant, 0, (x - mean) / np.where(constant, 1, deviation))
    change = np.diff(z)
    made = {"missing": missing.mean(axis=1), "constant": constant[:, 0].astype(np.float64)}
    made |= {"level": (np.abs(mean) / (np.abs(mean) + deviation + _TINY))[:, 0], "negative": (x < 0).mean(axis=1)}
    made |= _moments(z) | _repeats(x, change) | _dependence(z, change) | _spectrum(z)
    made |= _trend(z) | _roughness(change) | {"permutation_entropy": _permutation_entropy(z)}
    return made


def _filled(x: np.ndarray, missing: np.ndarray) -> np.ndarray:
    steps = np.arange(x.shape[1])
    for row in np.flatnonzero(missing.any(axis=1)):
        gap = missing[row]
        x[row, gap] = np.interp(steps[gap], steps[~gap], x[row, ~gap])
    return x


def _moments(z: np.ndarray) -> dict[str, np.ndarray]:
    low, median, high = np.quantile(z, (0.01, 0.5, 0.99), axis=1)
    quarter, three = np.quantile(z, (0.25, 0.75), axis=1)
    span = z.max(axis=1) - z.min(axis=1) + _TINY
    return {
        "skew": np.cbrt((z**3).mean(axis=1)),
        "kurtosis": np.log1p((z**4).mean(axis=1)),
        "median_in_range": (median - z.min(axis=1)) / span,
        "quartiles": three - quarter,
        "tails": (high - low) / span,
    }


def _repeats(x: np.ndarray, change: np.ndarray) -> dict[str, np.ndarray]:
    length = x.shape[1]
    ordered = np.sort(x, axis=1)
    same = change == 0
    since = np.arange(length - 1) - np.maximum.accumulate(np.where(same, -1, np.arange(length - 1)), axis=1)
    return {
        "zeros": (x == 0).mean(axis=1),
        "at_maximum": (x == ordered[:, -1:]).mean(axis=1),
        "at_minimum": (x == ordered[:, :1]).mean(axis=1),
        "repeats": same.mean(axis=1),
        "longest_run": since.max(axis=1) / length,
        "distinct": 1 - (np.diff(ordered) == 0).mean(axis=1),
    }


def _dependence(z: np.ndarray, change: np.ndarray) -> dict[str, np.ndarray]:
    length = z.shape[1]
    spectrum = np.abs(np.fft.rfft(z, 2 * length)) ** 2
    acf = np.fft.irfft(spectrum)[:, :length] / length
    made = {f"acf_{lag}": acf[:, lag] for lag in LAGS}
    squared = 1 - acf[:, 1] ** 2
    rough = np.maximum((change**2).mean(axis=1), _TINY)
    return made | {
        "pacf_2": np.where(squared > 1e-9, (acf[:, 2] - acf[:, 1] ** 2) / np.maximum(squared, 1e-9), 0),
        "acf_later": acf[:, 12 : length // 2].max(axis=1),
        "change_acf_1": (change[:, 1:] * change[:, :-1]).mean(axis=1) / rough,
        "change_acf_2": (change[:, 2:] * change[:, :-2]).mean(axis=1) / rough,
    }


def _spectrum(z: np.ndarray) -> dict[str, np.ndarray]:
    length = z.shape[1]
    power = np.abs(np.fft.rfft(z)[:, 1:]) ** 2
    power /= np.maximum(power.sum(axis=1, keepdims=True), _TINY)
    frequency = np.log(np.arange(1, power.shape[1] + 1))
    frequency -= frequency.mean()
    logs = np.log(power + 1e-10)
    entropy = -(power * np.log(power + _TINY)).sum(axis=1) / np.log(power.shape[1])
    bands = np.cumsum(power, axis=1)
    return {
        "spectral_slope": (logs * frequency).sum(axis=1) / (frequency**2).sum(),
        "spectral_entropy": entropy,
        "spectral_peak": power.max(axis=1),
        "power_slow": bands[:, max(1, length // 256) - 1],
        "power_fast": bands[:, -1] - bands[:, length // 8 - 1],
    }


def _trend(z: np.ndarray) -> dict[str, np.ndarray]:
    length = z.shape[1]
    t = np.linspace(-1, 1, length)
    t /= t.std()
    blocks = z[:, : length // BLOCKS * BLOCKS].reshape(len(z), BLOCKS, -1)
    inside = blocks.std(axis=2)
    return {
        "trend_r2": ((z * t).mean(axis=1)) ** 2,
        "block_means": blocks.mean(axis=2).var(axis=1),
        "block_deviations": inside.std(axis=1) / (inside.mean(axis=1) + _TINY),
        "largest_block_step": np.abs(np.diff(blocks.mean(axis=2))).max(axis=1),
    }


def _roughness(change: np.ndarray) -> dict[str, np.ndarray]:
    size = np.abs(change)
    turns = change[:, 1:] * change[:, :-1] < 0
    return {
        "change_deviation": change.std(axis=1),
        "largest_change": np.log1p(size.max(axis=1)),
        "change_tail": np.log1p(size.max(axis=1) / (size.mean(axis=1) + _TINY)),
        "change_skew": np.cbrt((change**3).mean(axis=1) / np.maximum(change.std(axis=1), 1e-6) ** 3),
        "turning_points": turns.mean(axis=1),
    }


def _permutation_entropy(z: np.ndarray) -> np.ndarray:
    """Of the 13 weak orders of three neighbours (ties count), over its maximum (Bandt and Pompe, PRL 88, 2002)."""
    a, b, c = z[:, :-2], z[:, 1:-1], z[:, 2:]
    code = (9 * (1 + np.sign(a - b)) + 3 * (1 + np.sign(b - c)) + 1 + np.sign(a - c)).astype(np.int64)
    counts = np.zeros((len(z), 27))
    np.add.at(counts, (np.arange(len(z))[:, None], code), 1)
    share = counts / code.shape[1]
    return -(share * np.log(share + _TINY)).sum(axis=1) / np.log(13)
