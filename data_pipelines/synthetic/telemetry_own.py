"""Metrics with a life of their own: bursts, cycles, gauges, rare events, raw counters, availability.

Our own law (no published source). Every function takes the generator and n `Hosts` and returns float32 [n, T]. What the
hosts of a group have in common here is `Hosts.driver`, the period of cycles and the incidents.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from data_pipelines.synthetic.draws import chance, log_uniform, uniform, white
from data_pipelines.synthetic.telemetry_load import level_shifts
from data_pipelines.synthetic.telemetry_metrics import Hosts, counted, round_some


def bursts(rng: np.random.Generator, hosts: Hosts) -> np.ndarray:
    """Work that comes in bursts (batches, inference, collective traffic): on a share of the time, heavy tails within.

    Log-normal in the group's driver beyond a threshold and in noise of its own; half are counts, half continuous above
    a floor; half follow the load as well.
    """
    n, length = hosts.driver.shape
    busy = np.where(chance(rng, 0.4, n), 1, log_uniform(rng, 0.02, 0.9, n))
    threshold = [[NormalDist().inv_cdf(1 - min(share, 1 - 1e-6))] for share in busy[:, 0]]
    above = hosts.driver - np.array(threshold, np.float32)
    spread = log_uniform(rng, 0.1, 1.2, n).astype(np.float32)
    noise = log_uniform(rng, 0.05, 1.2, n).astype(np.float32) * white(rng, n, length)
    size = np.exp(np.minimum(spread * hosts.driver + noise, 12)) * np.where(chance(rng, 0.5, n), hosts.demand, 1)
    size = np.where(above > 0, size, 0) / (size.mean(axis=1, keepdims=True) + np.float32(1e-9))
    many = counted(rng, np.minimum(size * log_uniform(rng, 0.5, 300, n).astype(np.float32), 1e6))
    floor = np.where(chance(rng, 0.5, n), 0, log_uniform(rng, 0.01, 1, n)).astype(np.float32)
    idle = np.exp(0.1 * white(rng, n, length)) * floor
    unit = np.where(chance(rng, 0.4, n), log_uniform(rng, 1, 5e3, n), 1).astype(np.float32)
    real = (size + idle) * log_uniform(rng, 1e-2, 1e9, n).astype(np.float32)
    return np.where(chance(rng, 0.5, n), many * unit, real)


def cycles(rng: np.random.Generator, hosts: Hosts) -> np.ndarray:
    """Jobs that repeat (training steps, checkpoints, compactions): square, saw or comb, with a period that wanders."""
    n, length = hosts.driver.shape
    leader = np.unique(hosts.group, return_index=True)[1][np.unique(hosts.group, return_inverse=True)[1]]
    period = log_uniform(rng, 4, length / 4, n)[leader]
    wander = log_uniform(rng, 1e-3, 0.3, n)[leader] * hosts.driver[leader]
    phase = np.arange(length) / period + wander + uniform(rng, 0, 1, n) * chance(rng, 0.5, n)
    number = np.floor(phase).astype(np.int64)
    within = (phase - number).astype(np.float32)
    duty = uniform(rng, 0.05, 0.95, n)
    kind = rng.random((n, 1))
    wave = np.where(within < duty, np.float32(1), np.float32(0))  # square
    wave = np.where(kind < 0.3, within, wave)  # saw
    wave = np.where(kind > 0.75, np.exp(-within * (period / log_uniform(rng, 0.3, 3, n)).astype(np.float32)), wave)
    heights = np.exp(log_uniform(rng, 5e-3, 0.5, n) * rng.standard_normal((n, int(np.ptp(number)) + 1)))
    wave *= np.take_along_axis(heights.astype(np.float32), number - number.min(), axis=1)
    wave += log_uniform(rng, 1e-3, 0.2, n).astype(np.float32) * white(rng, n, length)
    wave += np.where(chance(rng, 0.5, n), log_uniform(rng, 0.05, 30, n), 0).astype(np.float32)
    wave = np.maximum(wave + level_shifts(rng, n, length, mean=0.5, sd=0.3), 0)
    return round_some(rng, wave * 100, 0.3, (0.1, 1.0)) * log_uniform(rng, 1e-3, 1e8, n).astype(np.float32)


def gauge(rng: np.random.Generator, hosts: Hosts) -> np.ndarray:
    """Slow gauges: settings and sizes that rarely change, disks that fill and are cleaned, pools that breathe.

    In equal parts steps only (one in four of them never changes), a filling disk, whole numbers that wander, and a
    constant that flickers by one unit.
    """
    n, length = hosts.driver.shape
    steps = level_shifts(rng, n, length, mean=4.0, sd=1.0) * log_uniform(rng, 0.01, 3, n).astype(np.float32)
    fixed = np.where(chance(rng, 0.25, n), 0, steps)
    cleaned = rng.random((n, length), dtype=np.float32) < rng.poisson(2, (n, 1)) / length
    growth = rng.standard_exponential((n, length), dtype=np.float32) ** log_uniform(rng, 0.5, 3, n).astype(np.float32)
    filled = np.cumsum(growth, axis=1) / growth.sum(axis=1, keepdims=True)
    freed = np.maximum.accumulate(np.where(cleaned, filled, 0), axis=1)
    disk = filled - uniform(rng, 0, 1, n).astype(np.float32) * freed
    pool = np.round(hosts.driver * log_uniform(rng, 0.5, 30, n).astype(np.float32))
    flicker = (rng.random((n, length), dtype=np.float32) < log_uniform(rng, 1e-3, 0.5, n)).astype(np.float32)
    kind = rng.integers(0, 4, (n, 1))
    moving = np.choose(kind, (fixed, disk, pool / 10, flicker / 10))
    level = 10 ** uniform(rng, -1.0, 2.0, n).astype(np.float32)
    return np.maximum(level + moving, 0) * (10 ** rng.integers(0, 9, (n, 1))).astype(np.float32)


def events(rng: np.random.Generator, hosts: Hosts) -> np.ndarray:
    """Rare events on a constant, mostly 0 (restarts, retransmissions, timeouts): clustered, with heavy-tailed sizes."""
    n, length = hosts.driver.shape
    rate = log_uniform(rng, 3e-4, 0.05, n).astype(np.float32)
    intensity = np.exp(np.minimum(log_uniform(rng, 0.1, 2, n).astype(np.float32) * hosts.driver, 5))
    intensity *= rate * (1 + log_uniform(rng, 1, 100, n).astype(np.float32) * hosts.incident)
    happens = rng.random((n, length), dtype=np.float32) < intensity
    held = log_uniform(rng, 0.05, 8, n)
    since = np.arange(length) - np.maximum.accumulate(np.where(happens, np.arange(length), -(10**6)), axis=1)
    size = np.exp(log_uniform(rng, 0.1, 2, n).astype(np.float32) * white(rng, n, length))
    size = np.where(chance(rng, 0.5, n), np.ceil(size), size)
    base = np.where(chance(rng, 0.3, n), log_uniform(rng, 0.1, 10, n), 0).astype(np.float32)
    active = np.where(happens, size, size * (since < held))
    return (base + active) * log_uniform(rng, 0.01, 1e4, n).astype(np.float32)


def counter(rng: np.random.Generator, hosts: Hosts) -> np.ndarray:
    """A raw counter, as it is scraped: the running sum of what arrived, back to 0 at a restart."""
    n, length = hosts.demand.shape
    arrived = counted(rng, hosts.demand * log_uniform(rng, 0.2, 300, n).astype(np.float32))
    total = np.cumsum(arrived.astype(np.float64), axis=1)
    restart = rng.random((n, length), dtype=np.float32) < rng.poisson(1.0, (n, 1)) / length
    before = np.maximum.accumulate(np.where(restart, total, 0), axis=1)
    start = np.where(chance(rng, 0.5, n), uniform(rng, 0, 20, n) * total[:, -1:], 0)
    return np.where(before > 0, total - before, total + start).astype(np.float32)


def availability(rng: np.random.Generator, hosts: Hosts) -> np.ndarray:
    """Percent that succeeded or hit: near 100 and cut off there, with a long lower tail and deep incidents."""
    n, length = hosts.driver.shape
    lost = np.exp(np.minimum(log_uniform(rng, 0.3, 1.5, n).astype(np.float32) * hosts.driver, 6))
    lost *= np.exp(log_uniform(rng, 0.05, 1, n).astype(np.float32) * white(rng, n, length))
    lost = log_uniform(rng, 0.01, 10, n).astype(np.float32) * (lost + uniform(rng, 0, 100, n) * hosts.incident)
    kept = np.clip(100 - lost + uniform(rng, 0, 1, n) * np.median(lost, axis=1, keepdims=True), 0, 100)
    share = np.where(chance(rng, 0.4, n), np.float32(0.01), np.float32(1))
    return round_some(rng, kept.astype(np.float32), 0.3, (0.01, 0.1, 1.0)) * share
