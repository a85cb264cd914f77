"""Regime-switching Ornstein-Uhlenbeck paths whose parameters have trends and seasons (law: TempoPFN ou_process).

x[t+1] = x[t] + theta (mu - x[t]) dt + sigma sqrt(dt) N(0, 1), with theta, mu and sigma those of the regime at t. Trends
and seasonal periods are in units of time of 100 steps, as published. A trend can drive theta below zero, and then the
path runs away until it comes back; one that passes LARGEST is drawn again, which the published law does not ask for (it
happens to none of 4,000 paths of 2048 steps and to 1 in 2,000 of 4096).
"""

from __future__ import annotations

import numpy as np

from data_pipelines.synthetic.draws import ROWS_AT_ONCE, chance, sine, uniform, white

DT = 0.01  # units of time per step
STAY = (0.85, 0.999)  # probability of staying in a regime, uniform
PARAMETERS = ("theta", "mu", "sigma")
TREND_SHARE = {"theta": 0.2, "mu": 0.7, "sigma": 0.3}  # per regime
SEASON_SHARE = {"theta": 0.0, "mu": 0.6, "sigma": 0.3}  # for both regimes together
TRENDS = {
    "none": 0.3,
    "linear": 0.15,
    "exponential": 0.15,
    "logistic": 0.1,
    "sine": 0.15,
    "piecewise": 0.1,
    "polynomial": 0.05,
}
PERIODS = np.array([7, 30, 90, 365.25, 182.625])  # units of time
SHIFT_MARGIN, SHIFT_RATE = 2.0, 50.0  # units of time free of level shifts at both ends; steepness of a shift
LARGEST = 1e6  # of |x| before it is scaled
TRIES = 20


def generate(rng: np.random.Generator, length: int, count: int) -> np.ndarray:
    """float32 [count, length]."""
    x = paths(rng, length, count)
    for _ in range(TRIES):
        bad = np.flatnonzero(~(np.abs(x).max(axis=1) <= LARGEST))
        if not len(bad):
            break
        x[bad] = paths(rng, length, len(bad))
    x = np.clip(x, -LARGEST, LARGEST)
    level, scale, noise = uniform(rng, -100, 100, count), uniform(rng, 0.1, 50, count), uniform(rng, 0, 0.1, count)
    return (level + scale * x).astype(np.float32) + noise.astype(np.float32) * white(rng, count, length)


def paths(rng: np.random.Generator, length: int, count: int) -> np.ndarray:
    """Paths before level, scale and noise, float64 [count, length]; those that ran away may be infinite."""
    regime = regimes(rng, length, rng.uniform(*STAY, (count, 2)))
    start = rng.normal(0, 2, count)
    base = {
        "theta": (rng.uniform(1, 5, count), rng.uniform(0.05, 0.5, count)),
        "mu": (rng.normal(-2, 1, count), rng.normal(2, 1, count)),
        "sigma": (rng.lognormal(np.log(0.3), 0.3, count), rng.lognormal(np.log(1.5), 0.5, count)),
    }
    parameters = []
    for name in PARAMETERS:
        values = np.stack(base[name]).astype(np.float32)[..., None] + np.zeros(length, np.float32)
        seasonal = rng.random(count) < SEASON_SHARE[name]
        for of_regime in values:
            row = np.flatnonzero(rng.random(count) < TREND_SHARE[name])
            of_regime[row] += trends(rng, len(row), length)
            row = np.flatnonzero(seasonal)
            of_regime[row] += seasons(rng, len(row), length)
        parameters.append(np.where(regime, values[1], values[0]))
    theta, mu, sigma = parameters
    return euler(start, theta, mu, sigma, white(rng, count, length), DT)


def euler(
    start: np.ndarray, theta: np.ndarray, mu: np.ndarray, sigma: np.ndarray, normal: np.ndarray, dt: float
) -> np.ndarray:
    """The Euler-Maruyama recursion, float64 [count, length], of theta, mu, sigma and normal [count, length]; start is
    [count].

    x[t] = keep x[t-1] + add, by doubling: two steps of that form are one step of that form, and so on.
    """
    x = np.empty(theta.shape, np.float64)
    x[:, 0] = start
    x[:, 1:] = (theta * mu * dt + sigma * np.sqrt(dt) * normal)[:, :-1]
    for first in range(0, len(x), ROWS_AT_ONCE):
        block, reach = x[first : first + ROWS_AT_ONCE], 1
        keep = 1 - dt * theta[first : first + ROWS_AT_ONCE, :-1].astype(np.float64)
        while reach < block.shape[1]:
            block[:, reach:] += keep * block[:, :-reach]
            keep = keep[:, reach:] * keep[:, :-reach]
            reach *= 2
    return x


def regimes(rng: np.random.Generator, length: int, stay: np.ndarray) -> np.ndarray:
    """Two-state Markov chains from a fair first state, bool [n, length]; stay is [n, 2]."""
    first = rng.integers(0, 2, (len(stay), 1))
    coins = rng.random((len(stay), length), dtype=np.float32)[:, :-1]  # the last would be for the step after the window
    off, on = coins >= stay[:, :1], coins >= stay[:, 1:]  # which state is left
    # A coin that makes both states leave swaps them; one that makes a single state leave settles the other one. So the
    # state is the one that was settled last, swapped as often as came after that.
    swapped = np.logical_xor.accumulate(off & on, axis=1)
    settled = np.where(off != on, 2 * np.arange(1, length) + (off ^ swapped), first)  # ordered by time, then the state
    return np.concatenate([first == 1, (np.maximum.accumulate(settled, axis=1) % 2 == 1) ^ swapped], axis=1)


def trends(rng: np.random.Generator, n: int, length: int) -> np.ndarray:
    """Drifts of a parameter, each with 0 to 2 level shifts, float32 [n, length]."""
    t = (DT * np.arange(length)).astype(np.float32)
    span = DT * (length - 1)
    kind = rng.choice(list(TRENDS), size=n, p=list(TRENDS.values()))
    drift = np.zeros((n, length), np.float32)
    for name in TRENDS:
        rows = np.flatnonzero(kind == name)
        if len(rows) and name != "none":
            drift[rows] = _drift(rng, name, len(rows), t, span)
    row = np.repeat(np.arange(n), rng.integers(0, 3, n))
    margin = min(SHIFT_MARGIN, span / 4)
    at, size = uniform(rng, margin, span - margin, len(row)), uniform(rng, 1, 5, len(row))
    for k, r in enumerate(row):
        drift[r] += size[k].astype(np.float32) * _logistic(SHIFT_RATE * (t - at[k].astype(np.float32)))
    return drift


def _drift(rng: np.random.Generator, name: str, n: int, t: np.ndarray, span: float) -> np.ndarray:
    def draw(low: float, high: float) -> np.ndarray:
        return uniform(rng, low, high, n).astype(np.float32)

    if name == "linear":
        return draw(-0.01, 0.01) * t
    if name == "exponential":
        return draw(-5, 5) * -np.expm1(-draw(-0.005, 0.005) * t)
    if name == "logistic":
        return draw(5, 20) * _logistic(draw(0.01, 0.1) * (t - draw(0.3, 0.7) * np.float32(span)))
    if name == "sine":
        return draw(1, 5) * sine(t / (draw(0.1, 0.5) * np.float32(span)) + draw(0, 1))
    if name == "piecewise":
        cuts, used = rng.uniform(0, span, (n, 3)), np.arange(3) < rng.integers(1, 4, n)[:, None]  # 2 to 4 segments
        cuts = np.sort(np.where(used, cuts, np.inf), axis=1)
        slopes = rng.uniform(-0.02, 0.02, (n, 4))
        value = slopes[:, :1] * t
        for k in range(3):
            value += (slopes[:, k + 1] - slopes[:, k])[:, None] * np.maximum(t - cuts[:, k : k + 1], 0)
        return value.astype(np.float32)
    return draw(-1e-6, 1e-6) + draw(-1e-6, 1e-6) * t + draw(-1e-6, 1e-6) * t**2


def seasons(rng: np.random.Generator, n: int, length: int) -> np.ndarray:
    """One or two sines of different periods whose amplitude drifts, float32 [n, length]."""
    t = (DT * np.arange(length)).astype(np.float32)
    order = np.argsort(rng.random((n, len(PERIODS))), axis=1)
    second = chance(rng, 0.5, n)
    total = np.zeros((n, length), np.float32)
    for k, present in ((0, np.ones((n, 1), bool)), (1, second)):
        period = PERIODS[order[:, k]][:, None] * uniform(rng, 0.95, 1.05, n)
        amplitude, drift = uniform(rng, 0.5, 3, n), uniform(rng, -0.001, 0.001, n)
        wave = sine(t / period + uniform(rng, 0, 1, n))
        total += present * (amplitude.astype(np.float32) + drift.astype(np.float32) * t) * wave
    return total


def _logistic(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z.clip(-80, 80)))
