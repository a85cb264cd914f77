"""Trend plus calendar seasonality with multiplicative Weibull noise (law: ForecastPFN as in TempoPFN's prior).

Where the reference has an accident: a rejected series is drawn again at its own frequency, so the label always matches
the values; spikes are always added; series are not mixed with one another, since a mix of frequencies has no label.
With `faithful` a rejected series is drawn again at another frequency under its first label, and a chunk in ten has two
to four series replaced by mixtures of them.
How far apart the augmentation's spikes stand is not published; the spacing here is ours.
"""

from __future__ import annotations

import numpy as np

from data_pipelines.synthetic import frequency
from data_pipelines.synthetic.chunk import Chunk
from data_pipelines.synthetic.frequency import DAY, MONTH

# Calendar feature -> harmonics and period.
FEATURES = {"minute": (10, 60), "hour": (10, 24), "weekday": (4, 7), "day_of_month": (10, 30.5), "month": (6, 12)}
# Seconds per step -> greatest amplitude of each feature, drawn from U(0, greatest). Below the hour: _MINUTES.
AMPLITUDES = {
    3600: {"minute": 0.2, "hour": 1.0},
    DAY: {"weekday": 1.0, "day_of_month": 0.2},
    7 * DAY: {"day_of_month": 0.3, "month": 0.3},
    MONTH: {"weekday": 0.1, "month": 0.5},
    3 * MONTH: {"month": 1.0},
    12 * MONTH: {"weekday": 0.2, "month": 1.0},
}
_MINUTES = {"minute": 1.0, "hour": 0.2}
LARGEST = 500.0  # of |x| and of the spread
TRIES = 100
MIXED = 0.1  # of the chunks, where faithful


def generate(rng: np.random.Generator, length: int, count: int, faithful: bool = False) -> Chunk:
    intervals, starts = frequency.draw(rng, length, count)
    # f is the share of the first configuration: .1 at a fifth of the series, .9 at four fifths.
    f = 1 / (1 + np.exp(-2 * np.log(9) / (0.6 * length) * (np.arange(length) - length / 2)))
    values = []
    for interval, start in zip(intervals, starts, strict=True):
        step = int(interval)
        for attempt in range(TRIES):
            if attempt and faithful:
                step = int(rng.choice([other for other in frequency.WEIGHTS if other != interval]))
            if not attempt or faithful:
                calendar, days = _calendar(step, start, length), np.arange(length) * (step / DAY)
            first, second = (_configuration(rng, calendar, days, step) for _ in range(2))
            x = _augment(rng, f * first + (1 - f) * second)
            if np.abs(x).max() <= LARGEST and np.ptp(x) <= LARGEST:  # False for NaN as well
                break
        values.append(x.astype(np.float32)[None])
    if faithful and rng.random() < MIXED:
        at = rng.permutation(count)[: rng.integers(2, 5)]
        parents = np.concatenate([values[i] for i in at])
        for i in at:
            weights = rng.random(len(at))
            values[i] = np.einsum("p,pt->t", weights / weights.sum(), parents).astype(np.float32)[None]
    return Chunk(values, intervals.astype(np.float64), starts)


def _calendar(interval: int, start: np.datetime64, length: int) -> dict[str, np.ndarray]:
    """The calendar features that this frequency uses, as integers [length]."""
    stamps = frequency.times(interval, start, length)
    wanted = AMPLITUDES.get(interval, _MINUTES)
    if "hour" in wanted:
        seconds = stamps.astype(np.int64)
        return {"minute": seconds // 60 % 60, "hour": seconds // 3600 % 24}
    days, months = stamps.astype("datetime64[D]"), stamps.astype("datetime64[M]")
    every = {
        "weekday": (days.astype(np.int64) + 3) % 7,  # 1970-01-01 was a Thursday; Monday is 0
        "day_of_month": (days - months.astype("datetime64[D]")).astype(np.int64) + 1,
        "month": months.astype(np.int64) % 12 + 1,
    }
    return {name: every[name] for name in wanted}


def _configuration(
    rng: np.random.Generator, calendar: dict[str, np.ndarray], days: np.ndarray, interval: int
) -> np.ndarray:
    """(trend + seasonal) x noise, float64 [length]."""
    span = days[-1]
    slope, offset, growth_offset = rng.normal(0, 0.01), rng.uniform(-0.1, 0.5), rng.uniform(-0.1, 0.5)
    most = min(np.log(10) / (1.1 * span), np.log(1e4))  # neither grows nor decays more than tenfold
    base = np.clip(rng.normal(1, 0.005 * DAY / interval), np.exp(-most), min(np.exp(most), 1.01))
    trend = (1 + slope * (days - offset * span)) * base ** (days - growth_offset * span)
    seasonal = np.ones(len(days))
    for name, greatest in AMPLITUDES.get(interval, _MINUTES).items():
        # A feature takes few values, so its waves are summed once per value.
        seasonal *= (1 + rng.uniform(0, greatest) * _waves(rng, *FEATURES[name]))[calendar[name]]
    kind = rng.random()
    low, high = (0, 0.1) if kind < 0.6 else (0.2, 0.5) if kind < 0.9 else (0.7, 0.9)
    shape = rng.uniform(1, 5)
    # Weibull of median 1 as a power of an exponential draw.
    weibull = (rng.standard_exponential(len(days), dtype=np.float32) / np.float32(np.log(2))) ** np.float32(1 / shape)
    return (trend + seasonal) * (1 + rng.uniform(low, high) * (weibull - 1))


def _waves(rng: np.random.Generator, harmonics: int, period: float) -> np.ndarray:
    """Sum of harmonics with coefficients of unit length, at each integer up to the period; decaying in half of them."""
    k = np.arange(1, harmonics + 1)
    coefficients = rng.normal(size=(2, harmonics)) * (1 / k if rng.random() < 0.5 else 1.0)
    coefficients /= np.linalg.norm(coefficients)
    angle = 2 * np.pi / period * k * np.arange(int(period) + 2)[:, None]
    return (coefficients[0] * np.cos(angle) + coefficients[1] * np.sin(angle)).sum(axis=1)


def _augment(rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
    """In order: warp .1, scaled segments .2, damping .1, added spikes .15, nothing but spikes .02."""
    length = len(x)
    if rng.random() < 0.1:
        knots = np.linspace(0, length - 1, max(3, length // 20))
        moved = knots + np.pad(rng.normal(0, 0.05 * length, len(knots) - 2), 1)
        t = np.arange(length)
        x = np.interp(np.clip(np.interp(t, knots, moved), 0, length - 1), t, x)
    if rng.random() < 0.2:
        cuts = np.sort(rng.integers(0, length, rng.integers(0, 3)))
        x = x * rng.uniform(0.9, 1.1, len(cuts) + 1)[np.searchsorted(cuts, np.arange(length), side="right")]
    if rng.random() < 0.1:
        x = x * _damping(rng, length)
    if rng.random() < 0.15:
        x = x + _spikes(rng, length)
    if rng.random() < 0.02:
        x = _spikes(rng, length)
    return x


def _damping(rng: np.random.Generator, length: int) -> np.ndarray:
    """A factor per stretch: equal stretches .4, two alternating lengths .5, one or two random cuts .1."""
    kind = rng.random()
    if kind < 0.1:
        cuts: np.ndarray = np.sort(rng.integers(0, int(0.9 * length), rng.integers(1, 3)))
        factors = rng.uniform(0.1, 2, len(cuts) + 1)
    else:
        if kind < 0.5:
            cuts = np.linspace(0, length, rng.integers(3, 7) + 2)[1:-1]
        else:
            pair = rng.integers(max(1, length // 64), length // 2, 2)  # shorter stretches would be noise
            cuts = np.cumsum(np.tile(pair, length // pair.sum() + 1))
        factors = np.where(
            np.arange(len(cuts) + 1) % 2, rng.uniform(1, 2, len(cuts) + 1), rng.uniform(0.4, 0.8, len(cuts) + 1)
        )
    return factors[np.searchsorted(cuts, np.arange(length), side="right")]


def _spikes(rng: np.random.Generator, length: int) -> np.ndarray:
    """Spikes of one sign after a build-up of 1 to 3 points: regular .4, in patches .5, scattered .1."""
    kind = rng.random()
    spacing = int(rng.integers(max(4, length // 64), max(5, length // 8)))
    at = np.arange(rng.integers(0, spacing), length, spacing)
    if kind >= 0.9:
        at = rng.integers(0, length, len(at))
    elif kind >= 0.4:
        runs = rng.random(-(-len(at) // 4)) < 0.5  # whole runs of four stay or go, but never all
        runs[rng.integers(len(runs))] |= not runs.any()
        at = at[runs.repeat(4)[: len(at)]]
    heights = (rng.uniform(0.5, 2) if rng.random() < 0.7 else rng.uniform(2.5, 5)) * rng.uniform(0.8, 1.2, len(at))
    sign, build_up = (1 if rng.random() < 0.7 else -1), int(rng.integers(1, 4))
    x = np.zeros(length)
    for before in range(build_up + 1):
        inside = at - before >= 0
        np.add.at(x, at[inside] - before, sign * heights[inside] * (1 - before / (build_up + 1)))
    return x
