"""Metrics that answer the load of their host: utilisation, requests, bytes, latency, memory, errors, replicas.

Our own law (no published source). Every function takes the generator and n `Hosts` and returns float32 [n, T].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_pipelines.synthetic.draws import autoregression, chance, log_uniform, uniform, white
from data_pipelines.synthetic.telemetry_load import incidents


@dataclass(frozen=True)
class Hosts:
    """The series of one metric: each row sees its group's load through its own share and its own releases.

    group: [n]; demand: float32 [n, T], about the row's weight on average; incident: float32 [n, T] in [0, 1];
    driver: float32 [n, T], N(0, 1) at every step and correlated within a group; replicas: [n, T];
    interval: seconds, [n, 1].
    """

    group: np.ndarray
    demand: np.ndarray
    incident: np.ndarray
    driver: np.ndarray
    replicas: np.ndarray
    interval: np.ndarray


def short_memory(rng: np.random.Generator, n: int, length: int) -> np.ndarray:
    """N(0, 1) noise, AR(1) with a memory of .1 (as good as white) to 2 steps, float32 [n, length]."""
    return autoregression(rng, log_uniform(rng, 0.1, 2, n), length)


def level_noise(rng: np.random.Generator, level: np.ndarray, low: float, high: float) -> np.ndarray:
    """Noise whose scale follows the level, or its root as in counting; relative sd log U(low, high) at the mean.

    In 3 of 10 rows its size itself wanders, by a factor of 2 or so.
    """
    n, length = level.shape
    level = np.maximum(level, 0)
    mean = level.mean(axis=1, keepdims=True) + np.float32(1e-12)
    scale = np.where(chance(rng, 0.5, n), level, np.sqrt(level * mean))
    noise = log_uniform(rng, low, high, n).astype(np.float32) * short_memory(rng, n, length)
    rows = np.flatnonzero(rng.random(n) < 0.3)
    noise[rows] *= np.exp(np.float32(0.7) * autoregression(rng, log_uniform(rng, 5, length / 4, len(rows)), length))
    return level + scale * noise


def round_some(rng: np.random.Generator, values: np.ndarray, p: float, units: tuple[float, ...]) -> np.ndarray:
    """Round a share p of the rows to whole multiples of one of `units`."""
    unit = rng.choice(units, size=(len(values), 1)).astype(np.float32)
    return np.where(chance(rng, p, len(values)), np.round(values / unit) * unit, values)


def utilisation(rng: np.random.Generator, hosts: Hosts) -> np.ndarray:
    """Percent or share of a capacity; peaks beyond the capacity are cut off."""
    n = len(hosts.demand)
    peak = hosts.demand.max(axis=1, keepdims=True)
    wanted = uniform(rng, 0, 10, n) + hosts.demand / peak * uniform(rng, 15, 115, n)
    wanted += uniform(rng, -20, 60, n) * hosts.incident
    used = np.clip(level_noise(rng, wanted.astype(np.float32), 0.003, 0.12), 0, 100)
    used = round_some(rng, used, 0.4, (0.1, 1.0))
    return used * np.where(chance(rng, 0.3, n), np.float32(0.01), np.float32(1))


def counted(rng: np.random.Generator, mean: np.ndarray) -> np.ndarray:
    """Poisson counts; beyond 50 the normal limit (relative error of the law under 2 %), which is five times faster."""
    counts = np.maximum(0, np.round(mean + np.sqrt(mean) * white(rng, *mean.shape)))
    rare = np.flatnonzero(mean.mean(axis=1) < 50)
    counts[rare] = rng.poisson(mean[rare])
    return counts


def request_rate(rng: np.random.Generator, hosts: Hosts) -> np.ndarray:
    """Requests per second: counts per interval, so that rare traffic is quantised and mostly zero."""
    n = len(hosts.demand)
    per_second = log_uniform(rng, 0.02, 2e4, n)
    # Below some events per interval a series is nothing but zeros; a scrape every 10 s has to see something.
    per_second = np.maximum(per_second, log_uniform(rng, 0.3, 30, n) / hosts.interval)
    mean = np.maximum(0, level_noise(rng, hosts.demand, 0.004, 0.15)) * (per_second * hosts.interval).astype(np.float32)
    rate = counted(rng, mean) / hosts.interval.astype(np.float32)
    # Batch consumers work in shifts and are silent in between.
    idle = chance(rng, 0.1, n) & (autoregression(rng, log_uniform(rng, 5, 300, n), hosts.demand.shape[1]) > 0.4)
    return np.where(idle, np.float32(0), rate)


def counter_rate(rng: np.random.Generator, hosts: Hosts) -> np.ndarray:
    """Rate of a counter (bytes per second): bursty, and at a restart only part of the interval was counted."""
    n, length = hosts.demand.shape
    burst = np.exp(short_memory(rng, n, length) * log_uniform(rng, 0.005, 0.7, n).astype(np.float32))
    rate = hosts.demand * burst * log_uniform(rng, 1e2, 1e8, n).astype(np.float32)
    restart = rng.random((n, length), dtype=np.float32) < rng.poisson(1.5, (n, 1)) / length
    counted = np.where(chance(rng, 0.5, n), rng.random((n, length), dtype=np.float32), np.float32(0))
    return np.where(restart, counted * rate, rate)


def latency(rng: np.random.Generator, hosts: Hosts) -> np.ndarray:
    """Milliseconds: service time plus queueing, which explodes near saturation; log-normal noise, slow incidents."""
    n, length = hosts.demand.shape
    busy = hosts.demand / hosts.demand.max(axis=1, keepdims=True) * uniform(rng, 0.3, 0.95, n).astype(np.float32)
    queueing = 1 + uniform(rng, 0.1, 1, n).astype(np.float32) * busy / (1 - busy)
    slow = 1 + log_uniform(rng, 0.5, 10, n).astype(np.float32) * hosts.incident
    spread = np.exp(log_uniform(rng, 0.01, 0.5, n).astype(np.float32) * short_memory(rng, n, length))
    service = log_uniform(rng, 0.5, 800, n).astype(np.float32)
    return round_some(rng, service * queueing * slow * spread, 0.2, (0.1, 1.0))


def memory(rng: np.random.Generator, hosts: Hosts) -> np.ndarray:
    """Bytes: a base, a share of the load, and a leak that restarts give back; flat at the limit."""
    n, length = hosts.demand.shape
    steps = np.arange(length)
    restart = rng.random((n, length), dtype=np.float32) < rng.poisson(3, (n, 1)) / length
    age = steps - np.maximum.accumulate(np.where(restart, steps, 0), axis=1)
    leak = np.where(chance(rng, 0.6, n), log_uniform(rng, 0.05, 2, n), 0) * age / length
    # Garbage collection is a small regular saw.
    collection = chance(rng, 0.3, n) * uniform(rng, 0.02, 0.3, n) * np.mod(steps / uniform(rng, 6, 200, n), 1)
    share = log_uniform(rng, 0.02, 1, n).astype(np.float32)
    used = (1 + leak + collection).astype(np.float32) + share * hosts.demand
    used += log_uniform(rng, 2e-4, 4e-2, n).astype(np.float32) * short_memory(rng, n, length)
    limit = np.where(chance(rng, 0.25, n), np.quantile(used, 0.9, axis=1, keepdims=True), np.inf).astype(np.float32)
    base = np.where(chance(rng, 0.4, n), log_uniform(rng, 1, 300, n), 0).astype(np.float32)
    return (base + np.minimum(used, limit)) * log_uniform(rng, 1e6, 1e11, n).astype(np.float32)


def errors(rng: np.random.Generator, hosts: Hosts) -> np.ndarray:
    """Errors per interval: mostly zero, proportional to the load, in bursts during incidents."""
    n, length = hosts.demand.shape
    burst = np.maximum(hosts.incident, incidents(rng, n, length, mean=2.0))
    mean = hosts.demand * log_uniform(rng, 0.05, 20, n) * (1 + log_uniform(rng, 5, 200, n) * burst)
    return rng.poisson(mean).astype(np.float32)


def replica_count(rng: np.random.Generator, hosts: Hosts) -> np.ndarray:
    """Instances of the group; a host's own view differs by at most one."""
    return hosts.replicas + rng.integers(0, 2, (len(hosts.replicas), 1)).astype(np.float32)
