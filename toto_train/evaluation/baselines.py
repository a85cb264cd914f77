"""Seasonal Naive: the denominator of every relative score, and the seasonal error inside MASE."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri

LEVELS = np.arange(1, 10) / 10
"""Quantile levels of every forecast, 0.1 ... 0.9."""


def effective_season(season: int, length: int) -> int:
    """The lag that a past of `length` steps can carry: `season`, or 1 where no full season has been seen."""
    return season if season < length else 1


def seasonal_scale(past: np.ndarray, season: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean absolute and root mean square of y[t] - y[t - season] for each variate.

    past [V, T] with NaN = missing -> two float64 [V]. Pairs with a missing end do not count; a variate without any
    complete pair gets 0 in both.
    """
    lag = effective_season(season, past.shape[1])
    steps = past[:, lag:] - past[:, :-lag]
    known = np.isfinite(steps)
    pairs = np.maximum(known.sum(1), 1)
    absolute = np.abs(steps).sum(1, dtype=np.float64, where=known) / pairs
    square = np.square(steps, dtype=np.float64).sum(1, where=known) / pairs
    return absolute, np.sqrt(square)


def seasonal_naive(past: np.ndarray, horizon: int, season: int, intervals: bool = True) -> np.ndarray:
    """Repeat the last season: past [V, T] with NaN = missing -> quantiles float32 [9, V, horizon].

    A phase whose last value is missing takes its latest observed value of earlier seasons, a phase never observed the
    latest observed value of the variate, and a variate never observed 0.

    With `intervals` the quantiles are normal around that, sd = rms seasonal step * sqrt(full seasons ahead + 1), as in
    statsforecast. That is the Seasonal Naive of GIFT-Eval and BOOM, and the denominator of our relative scores: a
    point forecast pays for every missed spread, so dividing by it would flatter the model. Without `intervals` all
    nine quantiles are the point forecast.
    """
    variates, length = past.shape
    lag = effective_season(season, length)
    ahead = np.arange(horizon)
    mean = _latest_by_phase(past, lag)[:, ahead % lag]
    if not intervals:
        return np.broadcast_to(mean, (len(LEVELS), variates, horizon)).astype(np.float32)
    sd = seasonal_scale(past, season)[1][:, None] * np.sqrt(ahead // lag + 1)
    return (mean + ndtri(LEVELS)[:, None, None] * sd).astype(np.float32)


def _latest_by_phase(past: np.ndarray, lag: int) -> np.ndarray:
    """Latest observed value at each of the next `lag` phases: [V, T] -> [V, lag]."""
    variates, length = past.shape
    padded = np.full((variates, -(-length // lag) * lag), np.nan, past.dtype)
    padded[:, padded.shape[1] - length :] = past
    latest = _last_finite(padded.reshape(variates, -1, lag).swapaxes(1, 2))
    latest = np.where(np.isfinite(latest), latest, _last_finite(past)[:, None])
    return np.where(np.isfinite(latest), latest, 0.0)


def _last_finite(values: np.ndarray) -> np.ndarray:
    """Last finite entry along the last axis, NaN where there is none: [..., T] -> [...]."""
    known = np.isfinite(values)
    last = values.shape[-1] - 1 - known[..., ::-1].argmax(-1)
    found = np.take_along_axis(values, last[..., None], -1)[..., 0]
    return np.where(known.any(-1), found, np.nan)
