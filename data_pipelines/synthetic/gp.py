"""Gaussian processes under random sums and products of periodic, Matern and linear kernels.

Law: TempoPFN's gp prior with the parameters that its published corpus was made with. Where it has an accident:
- its covariances get a jitter of .001 to .1 until a float32 Cholesky succeeds, which is white noise of a variance that
  depends on length and machine. Here the process is exact; `noise` adds white noise of a stated sd, and `faithful` that
  of the published jitter, as measured;
- its lists of periods by sampling frequency never reach the kernels, so the periods here are those it really draws;
- spikes stand on the peaks, not (`faithful`) one step before them.

A monomial is x^a times a stationary process, and all monomials of one a together are one: spectral lines plus a part
with Matern factors that ends with the window (matern.py). Exact, O(T log T), no [T, T] matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np

from data_pipelines.synthetic import matern
from data_pipelines.synthetic.gaussian import (
    CONSTANT,
    Lines,
    circulant_path,
    fold,
    lines_covariance,
    lines_paths,
    periodic_lines,
    product,
)

MOST_KERNELS = 6
KINDS = {"periodic": 5.0, "matern": 1.5, "linear": 1.0}  # weights
LENGTH_SCALES = (0.1, 5.0)  # of the window for Matern; periodic: exp(-2 sin^2(pi d/p) / scale), not squared
SOFTPLUS_0 = np.log(2)  # gpytorch's untrained variance of a linear kernel and of an output scale
PERIODS = (3, 5, 7, 14, 20, 21, 24, 30, 60, 90, 120)  # means of the periods, in steps; long_periods adds to them
PEAK_SPIKES = 0.1  # probability
# Length -> variance that TempoPFN's jitter adds -> in how many of its series, as measured.
JITTER = {1024: {1e-3: 9, 1e-2: 14, 1e-1: 1}, 2048: {0.0: 1, 1e-3: 3, 1e-2: 5, 1e-1: 7}}


class Kernel(NamedTuple):
    kind: str
    scaled: bool
    """Times SOFTPLUS_0."""
    scale: float = 1.0
    period: int = 0
    """Shares 1/T of the window; periodic kernels only."""
    order: float = 0.0
    """Matern kernels only."""


def generate(
    rng: np.random.Generator, length: int, count: int, noise: float = 0.0, faithful: bool = False
) -> np.ndarray:
    """float32 [count, length]; `noise` is the sd of white noise that every series gets, unless it is `faithful`."""
    values = np.empty((count, length), dtype=np.float32)
    for row in values:
        kernels = draw_kernels(rng, length)
        row[:] = sample(rng, fold(rng, kernels), length)
        if rng.random() < 0.5:
            slope, level = rng.standard_normal(2)
            row += (slope * np.linspace(0, 1, length) + level).astype(np.float32)
        if faithful:
            noise = draw_jitter(rng, length)
        if noise:
            row += np.float32(noise) * rng.standard_normal(length, dtype=np.float32)
        longest = max(k.period for k in kernels)
        if rng.random() < PEAK_SPIKES and longest:
            _add_peak_spikes(rng, row, longest, faithful)
    return values


def draw_kernels(rng: np.random.Generator, length: int) -> list[Kernel]:
    """U{1..6} kernels, each with its parameters; half of them scaled."""
    means = period_means(length)
    weights = np.array(list(KINDS.values()))
    kernels = []
    for kind in rng.choice(list(KINDS), rng.integers(1, MOST_KERNELS + 1), p=weights / weights.sum()).tolist():
        scaled, scale = bool(rng.random() < 0.5), rng.uniform(*LENGTH_SCALES)
        if kind == "periodic":
            mean = means[rng.integers(0, len(means))]
            period = rng.normal(mean, mean**0.6)
            kernels.append(Kernel(kind, scaled, scale, period=int(period if period >= 1 else np.ceil(abs(period)))))
        elif kind == "matern":
            kernels.append(Kernel(kind, scaled, scale, order=matern.ORDERS[rng.integers(3)]))
        else:
            kernels.append(Kernel(kind, scaled))
    return kernels


def period_means(length: int) -> np.ndarray:
    """PERIODS, and long ones: every 100 steps from a quarter to half of the window, half of it where that is short."""
    half, longest = length // 2, PERIODS[-1]
    if half > 200:
        long = np.arange(half // 2 if half // 2 > longest else longest + 100, half, 100)
    else:
        long = np.arange(half, half + 1) if half > longest else np.arange(0)
    means = np.concatenate([PERIODS, long])
    return means[means <= half]


def sample(rng: np.random.Generator, monomials: Sequence[tuple[Kernel, ...]], length: int) -> np.ndarray:
    """One path of a sum of products of kernels, float32 [length]."""
    path = np.zeros(length, dtype=np.float32)
    for power, (lines, ending) in decompose(monomials, length).items():
        part = lines_paths(rng, lines, 1, length)[0]
        if ending.any():
            part += circulant_path(rng, ending)
        path += part * np.linspace(0, 1, length, dtype=np.float32) ** power
    return path


def decompose(monomials: Sequence[tuple[Kernel, ...]], length: int) -> dict[int, tuple[Lines, np.ndarray]]:
    """The covariance as sum over powers a of (x x')^a times (lines + a part that ends with the window, [length])."""
    distance = np.arange(length) * (length / (length - 1))
    lines: dict[int, list[Lines]] = {}
    ending: dict[int, np.ndarray] = {}
    for monomial in monomials:
        periodics = [k for k in monomial if k.kind == "periodic"]
        materns = [k for k in monomial if k.kind == "matern"]
        power = len(monomial) - len(periodics) - len(materns)
        variance = SOFTPLUS_0 ** (power + sum(k.scaled for k in monomial))
        smooth = [matern.window_lines(k.order, k.scale, length) for k in materns]
        factors = [*smooth, *(periodic_lines(k.period, 1 / k.scale) for k in periodics)]
        whole = reduce(product, factors or [CONSTANT])
        lines.setdefault(power, []).append(Lines(whole.frequencies, variance * whole.weights))
        part = ending.setdefault(power, np.zeros(length))
        if materns:
            rest = np.prod([matern.covariance(distance / length, k.order, k.scale) for k in materns], axis=0)
            rest -= np.prod([lines_covariance(s, distance) for s in smooth], axis=0)
            for k in periodics:
                rest *= np.exp(-2 / k.scale * np.sin(np.pi / k.period * distance) ** 2)
            part += variance * rest
    return {
        power: (Lines(*(np.concatenate(part) for part in zip(*all_of_it, strict=True))), ending[power])
        for power, all_of_it in lines.items()
    }


def draw_jitter(rng: np.random.Generator, length: int) -> float:
    """sd of the published jitter at the measured length that is nearest by ratio."""
    shares = JITTER[min(JITTER, key=lambda measured: abs(np.log(measured / length)))]
    chances = np.array(list(shares.values())) / sum(shares.values())
    return float(np.sqrt(rng.choice(list(shares), p=chances)))


def _add_peak_spikes(rng: np.random.Generator, row: np.ndarray, period: int, early: bool = False) -> None:
    """Spikes on the first peak, or a step `early`, and every period after it, in place: all of them .3, in patches .7.

    Seven in ten series are multiplied by 1 + the spikes, from the others the spikes are subtracted.
    """
    length = len(row)
    at = np.arange((row[:period].argmax() - early) % period, length, period)
    if rng.random() < 0.7 and length >= 64:
        patch = int(rng.integers(2, max(int(0.7 * np.ceil(length / period)), 3)))
        kept = int(rng.integers(np.ceil(0.4 * patch), patch))
        at = at[np.arange(len(at)) % patch < kept]
    chances = (1.0, 0.0, 0.0) if length < 120 else (0.7, 0.3, 0.0) if length < 250 else (0.4, 0.45, 0.15)
    build_up = int(rng.choice([1, 2, 3], p=chances))
    heights = rng.uniform(*((0.5, 2) if rng.random() < 0.7 else (2.5, 5)), len(at))
    spikes = np.zeros(length, dtype=np.float32)
    for away in range(1 - build_up, build_up):
        inside = (at + away >= 0) & (at + away < length)
        spikes[at[inside] + away] = heights[inside] * (build_up - abs(away))
    if rng.random() < 0.7:
        row *= 1 + spikes
    else:
        row -= spikes
