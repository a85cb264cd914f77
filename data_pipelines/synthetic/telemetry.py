"""Observability-shaped series: what monitoring sees of 1 to 8 hosts that share a load.

Our own law (no published source). A group is a fleet (.6: one metric, many hosts) or a service (.4: many metrics of
one load). Seven metrics answer the load: utilisation, request rate, counter rate, latency, memory, errors, replicas.
Then come the accidents of measuring: rounding, missed scrapes, outages of the collector.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data_pipelines.synthetic import telemetry_load
from data_pipelines.synthetic.chunk import Chunk
from data_pipelines.synthetic.draws import autoregression, chance, log_uniform, uniform, white
from data_pipelines.synthetic.telemetry_load import Load, incidents, level_shifts

GROUP_SIZES = {1: 0.4, 2: 0.12, 3: 0.1, 4: 0.1, 5: 0.07, 6: 0.07, 7: 0.07, 8: 0.07}
FLEET = 0.6


@dataclass(frozen=True)
class Hosts:
    """The series of one metric: each row sees its group's load through its own share and its own releases.

    demand: float32 [n, T], about the row's weight on average; incident: float32 [n, T] in [0, 1]; replicas: [n, T];
    interval: seconds, [n, 1].
    """

    demand: np.ndarray
    incident: np.ndarray
    replicas: np.ndarray
    interval: np.ndarray


def widths(rng: np.random.Generator, count: int) -> np.ndarray:
    """Hosts or metrics of each group, int [count]."""
    return rng.choice(list(GROUP_SIZES), size=count, p=list(GROUP_SIZES.values()))


def generate(rng: np.random.Generator, length: int, count: int) -> Chunk:
    sizes = widths(rng, count)
    load = telemetry_load.generate(rng, length, count)
    group = np.repeat(np.arange(count), sizes)
    kinds = rng.choice(len(METRICS), size=len(group), p=[m.weight for m in METRICS])
    first = np.cumsum(sizes) - sizes
    fleet = rng.random(count) < FLEET
    kinds = np.where(fleet[group], kinds[first[group]], kinds)
    values = np.empty((len(group), length), dtype=np.float32)
    for number, metric in enumerate(METRICS):
        rows = np.flatnonzero(kinds == number)
        if len(rows):
            values[rows] = metric.observe(rng, _hosts(rng, load, group[rows]))
    _lose_scrapes(rng, values, group)
    names = [f"{METRICS[kind].name}_{row - first[g]}" for row, (kind, g) in enumerate(zip(kinds, group, strict=True))]
    spans = [slice(begin, begin + size) for begin, size in zip(first, sizes, strict=True)]
    return Chunk([values[s] for s in spans], load.intervals, load.starts, [tuple(names[s]) for s in spans])


def _hosts(rng: np.random.Generator, load: Load, group: np.ndarray) -> Hosts:
    n, length = len(group), load.demand.shape[1]
    demand = load.demand[group]
    replicas = load.replicas[group]
    # Per-instance load: what autoscaling leaves of the rhythm is a saw.
    shared = np.where(load.scaled[group][:, None], replicas.mean(axis=1, keepdims=True) / replicas, np.float32(1))
    weight = np.exp(rng.normal(0, 1, (n, 1)) * log_uniform(rng, 0.03, 0.5, n)).astype(np.float32)
    releases = np.exp(level_shifts(rng, n, length, mean=0.5, sd=0.2))
    memory = log_uniform(rng, 2, 60, n)
    own = np.exp(autoregression(rng, memory, length) * log_uniform(rng, 0.005, 0.08, n).astype(np.float32))
    return Hosts(demand * shared * weight * releases * own, load.incident[group], replicas, load.intervals[group, None])


def _level_noise(rng: np.random.Generator, level: np.ndarray, low: float, high: float) -> np.ndarray:
    """Noise whose scale follows the level, or its root as in counting; relative sd log U(low, high) at the mean."""
    n, length = level.shape
    level = np.maximum(level, 0)
    mean = level.mean(axis=1, keepdims=True) + np.float32(1e-12)
    scale = np.where(chance(rng, 0.5, n), level, np.sqrt(level * mean))
    return level + log_uniform(rng, low, high, n).astype(np.float32) * scale * white(rng, n, length)


def _round_some(rng: np.random.Generator, values: np.ndarray, p: float, units: tuple[float, ...]) -> np.ndarray:
    """Round a share p of the rows to whole multiples of one of `units`."""
    unit = rng.choice(units, size=(len(values), 1)).astype(np.float32)
    return np.where(chance(rng, p, len(values)), np.round(values / unit) * unit, values)


def _utilisation(rng: np.random.Generator, hosts: Hosts) -> np.ndarray:
    """Percent or share of a capacity; peaks beyond the capacity are cut off."""
    n = len(hosts.demand)
    peak = hosts.demand.max(axis=1, keepdims=True)
    wanted = uniform(rng, 1, 15, n) + hosts.demand / peak * uniform(rng, 15, 140, n)
    wanted += uniform(rng, -20, 60, n) * hosts.incident
    used = np.clip(_level_noise(rng, wanted.astype(np.float32), 0.005, 0.15), 0, 100)
    used = _round_some(rng, used, 0.4, (0.1, 1.0))
    return used * np.where(chance(rng, 0.3, n), np.float32(0.01), np.float32(1))


def _counted(rng: np.random.Generator, mean: np.ndarray) -> np.ndarray:
    """Poisson counts; beyond 50 the normal limit (relative error of the law under 2 %), which is five times faster."""
    counts = np.maximum(0, np.round(mean + np.sqrt(mean) * white(rng, *mean.shape)))
    rare = np.flatnonzero(mean.mean(axis=1) < 50)
    counts[rare] = rng.poisson(mean[rare])
    return counts


def _request_rate(rng: np.random.Generator, hosts: Hosts) -> np.ndarray:
    """Requests per second: counts per interval, so that rare traffic is quantised and mostly zero."""
    n = len(hosts.demand)
    per_second = log_uniform(rng, 0.02, 2e4, n)
    # Below some events per interval a series is nothing but zeros; a scrape every 10 s has to see something.
    per_second = np.maximum(per_second, log_uniform(rng, 0.3, 30, n) / hosts.interval)
    mean = np.maximum(0, _level_noise(rng, hosts.demand, 0.005, 0.2)) * (per_second * hosts.interval).astype(np.float32)
    rate = _counted(rng, mean) / hosts.interval.astype(np.float32)
    # Batch consumers work in shifts and are silent in between.
    idle = chance(rng, 0.1, n) & (autoregression(rng, log_uniform(rng, 5, 300, n), hosts.demand.shape[1]) > 0.4)
    return np.where(idle, np.float32(0), rate)


def _counter_rate(rng: np.random.Generator, hosts: Hosts) -> np.ndarray:
    """Rate of a counter (bytes per second): bursty, and at a restart only part of the interval was counted."""
    n, length = hosts.demand.shape
    burst = np.exp(white(rng, n, length) * log_uniform(rng, 0.02, 0.6, n).astype(np.float32))
    rate = hosts.demand * burst * log_uniform(rng, 1e2, 1e8, n).astype(np.float32)
    restart = rng.random((n, length), dtype=np.float32) < rng.poisson(1.5, (n, 1)) / length
    counted = np.where(chance(rng, 0.5, n), rng.random((n, length), dtype=np.float32), np.float32(0))
    return np.where(restart, counted * rate, rate)


def _latency(rng: np.random.Generator, hosts: Hosts) -> np.ndarray:
    """Milliseconds: service time plus queueing, which explodes near saturation; log-normal noise, slow incidents."""
    n, length = hosts.demand.shape
    busy = hosts.demand / hosts.demand.max(axis=1, keepdims=True) * uniform(rng, 0.3, 0.95, n).astype(np.float32)
    queueing = 1 + uniform(rng, 0.1, 1, n).astype(np.float32) * busy / (1 - busy)
    slow = 1 + log_uniform(rng, 0.5, 10, n).astype(np.float32) * hosts.incident
    spread = np.exp(log_uniform(rng, 0.02, 0.35, n).astype(np.float32) * white(rng, n, length))
    service = log_uniform(rng, 0.5, 800, n).astype(np.float32)
    return _round_some(rng, service * queueing * slow * spread, 0.2, (0.1, 1.0))


def _memory(rng: np.random.Generator, hosts: Hosts) -> np.ndarray:
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
    used += log_uniform(rng, 1e-4, 2e-2, n).astype(np.float32) * white(rng, n, length)
    limit = np.where(chance(rng, 0.25, n), np.quantile(used, 0.9, axis=1, keepdims=True), np.inf).astype(np.float32)
    return np.minimum(used, limit) * log_uniform(rng, 1e6, 1e11, n).astype(np.float32)


def _errors(rng: np.random.Generator, hosts: Hosts) -> np.ndarray:
    """Errors per interval: mostly zero, proportional to the load, in bursts during incidents."""
    n, length = hosts.demand.shape
    burst = np.maximum(hosts.incident, incidents(rng, n, length, mean=2.0))
    mean = hosts.demand * log_uniform(rng, 0.05, 20, n) * (1 + log_uniform(rng, 5, 200, n) * burst)
    return rng.poisson(mean).astype(np.float32)


def _replica_count(rng: np.random.Generator, hosts: Hosts) -> np.ndarray:
    """Instances of the group; a host's own view differs by at most one."""
    return hosts.replicas + rng.integers(0, 2, (len(hosts.replicas), 1)).astype(np.float32)


@dataclass(frozen=True)
class Metric:
    name: str
    weight: float
    observe: Callable[[np.random.Generator, Hosts], np.ndarray]


METRICS = (
    Metric("utilisation", 0.24, _utilisation),
    Metric("requests", 0.30, _request_rate),
    Metric("bytes", 0.15, _counter_rate),
    Metric("latency", 0.12, _latency),
    Metric("memory", 0.07, _memory),
    Metric("errors", 0.07, _errors),
    Metric("replicas", 0.05, _replica_count),
)


def _lose_scrapes(rng: np.random.Generator, values: np.ndarray, group: np.ndarray) -> None:
    """Set NaN in place: outages of a group's collector (1 in 4), of one host (1 in 8), single misses (1 in 5 hosts).

    An outage lasts at most 1/16 of the window and there are at most 4 of a kind, so half of a series stays observed.
    """
    rows, length = values.shape
    for owner, p in ((group, 0.25), (np.arange(rows), 0.125)):
        lengths = log_uniform(rng, 2, max(3, length / 16), 4 * (owner[-1] + 1))[:, 0].astype(np.int64)
        number = np.where(rng.random(owner[-1] + 1) < p, np.minimum(1 + rng.poisson(1, owner[-1] + 1), 4), 0)
        begins = rng.integers(0, length, len(lengths))
        for o in np.flatnonzero(number):
            for outage in range(4 * o, 4 * o + number[o]):
                values[owner == o, begins[outage] : begins[outage] + lengths[outage]] = np.nan
    share = np.where(rng.random(rows) < 0.2, np.exp(rng.uniform(np.log(1e-4), np.log(0.02), rows)), 0)
    row = np.repeat(np.arange(rows), rng.binomial(length, share))
    values[row, rng.integers(0, length, len(row))] = np.nan
