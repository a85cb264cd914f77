"""Statistical peers of the evaluation: AutoTheta and FLAIR, local methods that forecast each variate on its own.

Both come from the packages that define them, in the optional extra `eval`; nothing here imports them before use. A
forecaster takes past [V, T] with NaN = missing, the horizon and the season of the task in steps, and its frequency as
'5T', and returns float32 quantiles [9, V, horizon], finite and sorted by level, with the number of variates that it
could not forecast.

Gaps: leading ones are dropped, inner ones filled by linear interpolation, trailing ones carry the last value forward.
A variate with fewer than `SHORTEST` observed steps or a single observed value, or for which the package raises or
returns a value that is not finite, gets Seasonal Naive instead (0 where it was never observed) and is counted.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import importlib.util
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from toto_train.evaluation.baselines import LEVELS, effective_season, seasonal_naive

log = logging.getLogger(__name__)

RULES = 1
"""Version of this file's own rules (gaps, fallback, seeds); a higher one makes cached scores be computed anew."""

SHORTEST = 5
"""Fewest observed steps: AutoTheta drops three residuals and takes a standard deviation of the rest."""

SAMPLES = 200
"""Sample paths of FLAIR, its own default; AutoTheta draws as many for its intervals."""

_BANDS = (20, 40, 60, 80)
_COLUMNS = ("lo-80", "lo-60", "lo-40", "lo-20", "mean", "hi-20", "hi-40", "hi-60", "hi-80")
"""statsforecast's columns at LEVELS: lo-80 bounds the central 80 % from below, so it is the quantile 0.1."""


@dataclass(frozen=True)
class Peer:
    """One statistical forecaster."""

    name: str
    title: str
    package: str
    """Distribution and module to import."""
    forecast: Callable[[np.ndarray, int, int, str], tuple[np.ndarray, int]]
    """(past [V, T], horizon, season, frequency) -> quantiles float32 [9, V, horizon], variates that fell back."""
    seconds: float
    """About what a forecast of one variate takes a core from 1,024 steps (AutoTheta less from fewer): to say
    beforehand how long many will."""


def auto_theta(past: np.ndarray, horizon: int, season: int, frequency: str) -> tuple[np.ndarray, int]:
    """AutoTheta of statsforecast: past [V, T] -> quantiles [9, V, horizon], variates that fell back.

    The best of four theta models by mean square error (Fiorucci et al. 2016, "Models for optimising the theta method
    and their relationship to state space models"), deseasonalised where the season's autocorrelation is significant.
    The quantile 0.5 is its point forecast, the others are the bounds of its intervals.
    """
    from statsforecast.models import AutoTheta

    def quantiles(y: np.ndarray) -> np.ndarray:
        model = AutoTheta(season_length=effective_season(season, len(y)))
        bands = model.forecast(y=_fill(y), h=horizon, level=list(_BANDS))
        return np.stack([bands[column] for column in _COLUMNS])

    return _each(quantiles, past, horizon, season)


def flair(past: np.ndarray, horizon: int, season: int, frequency: str) -> tuple[np.ndarray, int]:
    """FLAIR of flaircast: past [V, T] -> quantiles [9, V, horizon], variates that fell back.

    Level x shape at a period that it chooses itself, level by ridge regression (Honda 2026, "Don't Learn the Shape:
    Forecasting Periodic Time Series by Rank-1 Decomposition", arXiv:2605.07222). Quantiles of its sample paths, seed 0.
    It takes the frequency and has periods of its own to try for it, so the season is not used. Inner and trailing gaps
    are left to FLAIR, which fills them by the rule above and keeps whole numbers whole.
    """
    import flaircast

    def quantiles(y: np.ndarray) -> np.ndarray:
        return np.quantile(flaircast.forecast(y, horizon, frequency, n_samples=SAMPLES, seed=0), LEVELS, axis=0)

    return _each(quantiles, past, horizon, season)


PEERS = {
    "auto_theta": Peer("auto_theta", "AutoTheta", "statsforecast", auto_theta, 0.6),
    "flair": Peer("flair", "FLAIR", "flaircast", flair, 0.05),
}


def check(names: list[str]) -> None:
    """Raise ValueError for a name that is not in PEERS or whose package cannot be imported."""
    for name in names:
        if name not in PEERS:
            near = difflib.get_close_matches(name, PEERS, 1, 0)[0]
            raise ValueError(f"unknown peer {name!r}: did you mean {near!r}? Peers: {', '.join(PEERS)}")
        package = PEERS[name].package
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ValueError(f"peer {name!r} needs {package} ({error}): pip install 'toto-train[eval]'") from error


def load(name: str) -> Peer:
    """A peer whose package is imported: the first forecast is timed without that."""
    importlib.import_module(PEERS[name].package)
    return PEERS[name]


def installed(name: str) -> bool:
    """Whether the package of a peer is there; it is not imported."""
    return importlib.util.find_spec(PEERS[name].package) is not None


def version(name: str) -> str:
    """Package and version of a peer, 'statsforecast 2.1.1'."""
    package = PEERS[name].package
    return f"{package} {importlib.metadata.version(package)}"


def _each(
    quantiles: Callable[[np.ndarray], np.ndarray], past: np.ndarray, horizon: int, season: int
) -> tuple[np.ndarray, int]:
    """Apply quantiles (float64 [T] from the first observed step on -> [9, H]) to every variate that it can take."""
    past = np.where(np.isfinite(past), past, np.nan)
    out = seasonal_naive(past, horizon, season)
    fallbacks = 0
    for v, y in enumerate(past):
        known = np.isfinite(y)
        forecast = None
        if known.sum() >= SHORTEST and np.ptp(y[known]) > 0:
            try:
                # what overflows is not finite, which is checked below
                with np.errstate(all="ignore"), warnings.catch_warnings():
                    warnings.filterwarnings("ignore", message="The optimal lambda")
                    forecast = np.asarray(quantiles(y[known.argmax() :].astype(np.float64)), np.float32)
            except Exception as error:  # the packages also raise bare Exception
                log.debug("variate %d fell back to Seasonal Naive: %r", v, error)
        if forecast is not None and np.isfinite(forecast).all():
            out[:, v] = np.sort(forecast, axis=0)
        else:
            fallbacks += 1
    return out, fallbacks


def _fill(y: np.ndarray) -> np.ndarray:
    """Interpolate inner gaps and carry the last value over trailing ones: [T] -> [T], y[0] is observed."""
    steps, known = np.arange(len(y)), np.isfinite(y)
    return np.interp(steps, steps[known], y[known])
