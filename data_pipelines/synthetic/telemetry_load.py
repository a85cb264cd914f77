"""The load that a group of hosts shares: clock, daily and weekly profile, wander, shifts, jobs, incidents, replicas.

Our own law (no published source). Times are in seconds, G is the number of groups in the chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_pipelines.synthetic.draws import autoregression, chance, log_uniform, moving_maximum, uniform, white

DAY = 86_400
# Scrape interval in seconds -> probability: daily periods of 86400, 8640, 1440, 288, 144, 96, 48, 24 steps.
INTERVALS = {1: 0.06, 10: 0.10, 60: 0.32, 300: 0.32, 600: 0.06, 900: 0.04, 1800: 0.02, 3600: 0.08}
_FIRST, _LAST = 1_420_070_400, 1_767_225_600  # starts between 2015 and 2026, seconds since 1970
_BINS = 288  # points of a daily profile
JOB_PERIODS = (30, 60, 300, 900, 3600, 6 * 3600, DAY)


@dataclass(frozen=True)
class Load:
    """What the hosts of each group have in common.

    demand: relative load, float32 [G, T], about 1 on average.
    incident: float32 [G, T], 0 in health, up to 1 in an incident.
    driver: float32 [G, T], N(0, 1) at every step, AR(1) with `memory` steps, [G, 1]: what bursts and pools follow.
    replicas: running instances, float32 [G, T], whole numbers.
    scaled: [G], whether the demand is spread over those replicas.
    """

    intervals: np.ndarray
    starts: np.ndarray
    demand: np.ndarray
    incident: np.ndarray
    driver: np.ndarray
    memory: np.ndarray
    replicas: np.ndarray
    scaled: np.ndarray


def generate(rng: np.random.Generator, length: int, count: int) -> Load:
    intervals = rng.choice(list(INTERVALS), size=count, p=list(INTERVALS.values()))
    starts = rng.integers(_FIRST, _LAST, count) // intervals * intervals
    clock = (starts + rng.integers(0, DAY, count))[:, None] + np.arange(length) * intervals[:, None]
    demand = _seasons(rng, clock)
    demand *= np.exp(_wander(rng, intervals, length) + level_shifts(rng, count, length, mean=0.6, sd=0.25))
    demand *= _jobs(rng, clock, intervals)
    incident = incidents(rng, count, length, mean=1.0)
    # Some incidents turn users away, others make clients retry.
    kind = rng.random((count, 1))
    answer = np.select([kind < 0.4, kind < 0.6], [-uniform(rng, 0.1, 0.9, count), uniform(rng, 0.2, 3, count)], 0)
    demand *= 1 + answer.astype(np.float32) * incident
    memory = log_uniform(rng, 0.5, 400, count)
    demand /= demand.mean(axis=1, keepdims=True)
    return Load(
        intervals=intervals.astype(np.float64),
        starts=starts.astype("datetime64[s]"),
        demand=demand,
        incident=incident,
        driver=autoregression(rng, memory, length),
        memory=memory,
        replicas=_replicas(rng, demand, intervals),
        scaled=rng.random(count) < 0.25,
    )


def level_shifts(rng: np.random.Generator, rows: int, length: int, mean: float, sd: float) -> np.ndarray:
    """Lasting changes of a log level, float32 [rows, length]: Poisson(mean) shifts of N(0, sd), 3 in 10 rolled back."""
    row = np.repeat(np.arange(rows), rng.poisson(mean, rows))
    at = rng.integers(1, length, len(row))
    size = rng.normal(0, sd, len(row))
    back = at + np.ceil(log_uniform(rng, 3, length / 4, len(row))[:, 0]).astype(np.int64)
    rolled_back = (rng.random(len(row)) < 0.3) & (back < length)
    changes = np.zeros((rows, length), dtype=np.float32)
    np.add.at(changes, (row, at), size)
    np.add.at(changes, (row[rolled_back], back[rolled_back]), -size[rolled_back])
    return np.cumsum(changes, axis=1)


def incidents(rng: np.random.Generator, rows: int, length: int, mean: float) -> np.ndarray:
    """Bursts in [0, 1], float32 [rows, length]: a sudden onset, a plateau, an exponential recovery."""
    track = np.zeros((rows, length), dtype=np.float32)
    events = np.repeat(np.arange(rows), rng.poisson(mean, rows))
    n = len(events)
    onset = rng.integers(0, length, n)
    plateau = log_uniform(rng, 1, max(2, length / 60), n)[:, 0]
    recovery = log_uniform(rng, 1, max(2, length / 100), n)[:, 0]
    height = rng.uniform(0.2, 1, n)
    for i, row in enumerate(events):
        reach = min(length, onset[i] + int(plateau[i] + 6 * recovery[i]) + 1)
        since_plateau = np.arange(reach - onset[i]) - plateau[i]
        burst = height[i] * np.exp(-np.maximum(since_plateau, 0) / recovery[i])
        np.maximum(track[row, onset[i] : reach], burst, out=track[row, onset[i] : reach])
    return track


def _seasons(rng: np.random.Generator, clock: np.ndarray) -> np.ndarray:
    """Daily profile times the factor of the day, float32 [G, T].

    The clock's midnight is the trough of the profile, so a day's factor changes where it matters least.
    """
    count = len(clock)
    profile = _daily_profiles(rng, count)
    position = (clock % DAY) * (_BINS / DAY)
    left = position.astype(np.int64)
    weight = (position - left).astype(np.float32)
    low = np.take_along_axis(profile, left, axis=1)
    daily = low + weight * (np.take_along_axis(profile, (left + 1) % _BINS, axis=1) - low)
    day = clock // DAY
    factor = np.take_along_axis(_day_factors(rng, day), day - day[:, :1], axis=1)
    # The share of the load that never sleeps; 1 in 12 groups has no rhythm at all.
    steady = np.where(chance(rng, 1 / 12, count), 1, uniform(rng, 0, 0.9, count) ** 2).astype(np.float32)
    return steady + (1 - steady) * factor * daily


def _daily_profiles(rng: np.random.Generator, count: int) -> np.ndarray:
    """Profiles from 0 at midnight to 1, float32 [G, 288].

    Smooth .5, office hours .25, two peaks .15, a nightly job .1.
    """
    hour = np.arange(_BINS) * (24 / _BINS)
    k = np.arange(1, 6)[:, None]
    smooth = np.zeros((count, _BINS))
    for harmonic, size in zip(k, 1.0 / k[:, 0] ** 1.5, strict=True):
        angle = 2 * np.pi * harmonic * hour / 24
        smooth += size * (rng.normal(size=(count, 1)) * np.cos(angle) + rng.normal(size=(count, 1)) * np.sin(angle))
    smooth = np.exp(smooth * uniform(rng, 0.1, 1.0, count))  # the exponent sharpens the peaks
    opens, closes, ramp = uniform(rng, 5, 10, count), uniform(rng, 15, 21, count), uniform(rng, 0.2, 1.2, count)
    office = 1 / (1 + np.exp((opens - hour) / ramp)) - 1 / (1 + np.exp((closes - hour) / ramp))
    lunch = uniform(rng, 0, 0.4, count) * _bump(hour, uniform(rng, 11.5, 13.5, count), uniform(rng, 0.4, 0.9, count))
    peaks = _bump(hour, uniform(rng, 6, 11, count), uniform(rng, 0.8, 2.5, count))
    peaks += uniform(rng, 0.3, 1.6, count) * _bump(hour, uniform(rng, 16, 22, count), uniform(rng, 0.8, 3, count))
    nightly = _bump(hour, uniform(rng, 0, 24, count), uniform(rng, 0.25, 1.2, count))
    kind = rng.random((count, 1))
    profile = np.select([kind < 0.5, kind < 0.75, kind < 0.9], [smooth, office - lunch * office, peaks], nightly)
    low, high = profile.min(axis=1, keepdims=True), profile.max(axis=1, keepdims=True)
    # Below 1 the exponent makes a broad day and a short night, above 1 a peak.
    profile = ((profile - low) / (high - low)) ** log_uniform(rng, 0.15, 1.1, count)
    turned = (np.arange(_BINS) + profile.argmin(axis=1)[:, None]) % _BINS
    return np.take_along_axis(profile, turned, axis=1).astype(np.float32)


def _bump(hour: np.ndarray, centre: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Gaussian on the circle of 24 hours."""
    distance = np.abs(hour - centre)
    return np.exp(-0.5 * (np.minimum(distance, 24 - distance) / width) ** 2)


def _day_factors(rng: np.random.Generator, day: np.ndarray) -> np.ndarray:
    """Factor of each day from the first on, float32 [G, days]: weekday pattern x holidays x day-to-day noise."""
    count = len(day)
    week = np.exp(rng.normal(0, 0.05, (count, 7)) * chance(rng, 0.7, count))
    kind = rng.random((count, 1))
    weekend = np.where(kind < 0.6, uniform(rng, 0.15, 0.95, count), 1.0)  # business load
    weekend = np.where(kind > 0.85, uniform(rng, 1.05, 1.6, count), weekend)  # leisure load
    week[:, 5:] *= weekend
    days = int((day[:, -1] - day[:, 0]).max()) + 1
    number = day[:, :1] + np.arange(days)
    factor = np.take_along_axis(week, number % 7, axis=1)
    holiday = rng.random((count, days)) < 0.02 * chance(rng, 0.3, count)
    factor = np.where(holiday, np.minimum(factor, weekend * uniform(rng, 0.5, 1, count)), factor)
    return (factor * np.exp(rng.normal(size=(count, days)) * log_uniform(rng, 0.005, 0.1, count))).astype(np.float32)


def _wander(rng: np.random.Generator, intervals: np.ndarray, length: int) -> np.ndarray:
    """Slow change of the log load: a trend in half of the groups, and AR(1) with half an hour to two days of memory."""
    count = len(intervals)
    memory = log_uniform(rng, 1800, 2 * DAY, count) / intervals[:, None]
    path = autoregression(rng, np.maximum(memory, 1), length) * log_uniform(rng, 0.005, 0.12, count).astype(np.float32)
    growth = chance(rng, 0.5, count) * rng.normal(0, 0.25, (count, 1))
    return path + (growth * np.linspace(0, 1, length)).astype(np.float32)


def _jobs(rng: np.random.Generator, clock: np.ndarray, intervals: np.ndarray) -> np.ndarray:
    """Scheduled jobs in 3 of 10 groups: a pulse of the load at a fixed period of at least 4 steps, float32 [G, T]."""
    factor = np.ones(clock.shape, dtype=np.float32)
    for row in np.flatnonzero(rng.random(len(clock)) < 0.3):
        period = int(rng.choice([p for p in JOB_PERIODS if p >= 4 * intervals[row]]))
        busy = max(int(intervals[row]), int(period * rng.uniform(0, 0.15)))
        factor[row] += np.float32(rng.uniform(0.1, 1.2)) * (clock[row] % period < busy)
    return factor


def _replicas(rng: np.random.Generator, demand: np.ndarray, intervals: np.ndarray) -> np.ndarray:
    """Autoscaling: instances follow the load at once upward and 5 to 60 minutes late downward, float32 [G, T]."""
    count, length = demand.shape
    most = rng.integers(3, 25, (count, 1))
    seen = demand * np.exp(np.float32(0.03) * white(rng, count, length))
    wanted = np.clip(np.ceil(seen * (most / demand.max(axis=1, keepdims=True))), 1, most).astype(np.float32)
    hold = np.clip(rng.uniform(300, 3600, count) / intervals, 2, length // 2).astype(np.int64)
    for row, window in zip(wanted, hold, strict=True):
        row[:] = moving_maximum(row, int(window))
    return wanted
