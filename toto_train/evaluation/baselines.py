"""Seasonal Naive: the denominator of every relative score, and the seasonal error inside MASE."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri

LEVELS = np.arange(1, 10) / 10
"""Quantile levels of every forecast, 0.1 ... 0.9."""
_BLOCK = 2**17
"""Values that are worked on at once."""


def effective_season(season: int, length: int) -> int:
    """The lag that a past of `length` steps can carry: `season`, or 1 where no full season has been seen."""
    return season if season < length else 1


def seasonal_scale(past: np.ndarray, season: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean absolute and root mean square of y[t] - y[t - season] for each variate.

    past [V, T] with NaN = missing -> two float64 [V]. Pairs with a missing end do not count; a variate without any
    complete pair gets 0 in both.
    """
    lag = effective_season(season, past.shape[1])
    scale = np.zeros((2, len(past)))
    few = max(1, _BLOCK // past.shape[1])  # rows at a time: temporaries of a long, wide group would not fit
    for at in range(0, len(past), few):
        steps = past[at : at + few, lag:] - past[at : at + few, :-lag]
        known = np.isfinite(steps)
        pairs = np.maximum(known.sum(1), 1)
        scale[0, at : at + few] = np.abs(steps).sum(1, dtype=np.float64, where=known) / pairs
        scale[1, at : at + few] = np.sqrt(np.square(steps, dtype=np.float64).sum(1, where=known) / pairs)
    return scale[0], scale[1]


def seasonal_naive(
    past: np.ndarray, horizon: int, season: int, intervals: bool = True, rms: np.ndarray | None = None
) -> np.ndarray:
    """Repeat the last season: past [V, T] with NaN = missing -> quantiles float32 [9, V, horizon].

    A phase whose last value is missing takes its latest observed value of earlier seasons, a phase never observed the
    latest observed value of the variate, and a variate never observed 0.

    With `intervals` the quantiles are normal around that, sd = rms seasonal step * sqrt(full seasons ahead + 1), as in
    statsforecast. That is the Seasonal Naive of GIFT-Eval and BOOM, and the denominator of our relative scores: a
    point forecast pays for every missed spread, so dividing by it would flatter the model. Without `intervals` all
    nine quantiles are the point forecast. rms: what `seasonal_scale` gives, where it is known.
    """
    variates, length = past.shape
    lag = effective_season(season, length)
    ahead = np.arange(horizon)
    mean = np.stack([_latest_by_phase(y, lag) for y in past])[:, ahead % lag]
    if not intervals:
        return np.broadcast_to(mean, (len(LEVELS), variates, horizon)).astype(np.float32)
    rms = seasonal_scale(past, season)[1] if rms is None else rms
    sd = rms[:, None] * np.sqrt(ahead // lag + 1)
    return (mean + ndtri(LEVELS)[:, None, None] * sd).astype(np.float32)


def _latest_by_phase(past: np.ndarray, lag: int) -> np.ndarray:
    """Latest observed value of one variate at each of the next `lag` phases: [T] -> [lag]."""
    seen = np.flatnonzero(np.isfinite(past))
    if not len(seen):
        return np.zeros(lag, past.dtype)
    latest = np.full(lag, past[seen[-1]])
    latest[(seen - len(past)) % lag] = past[seen]  # later ones overwrite earlier ones
    return latest
