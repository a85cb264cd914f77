"""Observability-shaped series: what monitoring sees of 1 to 8 hosts that share a load.

Our own law (no published source), adjusted against real sources with scripts/realism.py. A group is a fleet (.6: one
metric, many hosts) or a service (.4: many metrics of one load). Seven metrics answer the load (telemetry_metrics), six
have a life of their own (telemetry_own). Then come the accidents of measuring (telemetry_measured).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data_pipelines.synthetic import telemetry_load
from data_pipelines.synthetic import telemetry_measured as measured
from data_pipelines.synthetic import telemetry_metrics as metrics
from data_pipelines.synthetic import telemetry_own as own
from data_pipelines.synthetic.chunk import Chunk
from data_pipelines.synthetic.draws import autoregression, log_uniform
from data_pipelines.synthetic.telemetry_load import Load, level_shifts
from data_pipelines.synthetic.telemetry_metrics import Hosts

GROUP_SIZES = {1: 0.4, 2: 0.12, 3: 0.1, 4: 0.1, 5: 0.07, 6: 0.07, 7: 0.07, 8: 0.07}
FLEET = 0.6


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
    measured.smooth(rng, values)
    measured.spoil(rng, values)
    measured.quantise(rng, values)
    measured.lose(rng, values, group)
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
    noise = np.exp(autoregression(rng, memory, length) * log_uniform(rng, 0.003, 0.08, n).astype(np.float32))
    alike = rng.random((n, 1), dtype=np.float32)
    driver = np.sqrt(alike) * load.driver[group]
    driver += np.sqrt(1 - alike) * autoregression(rng, load.memory[group], length)
    return Hosts(
        group=group,
        demand=demand * shared * weight * releases * noise,
        incident=_delayed(rng, load.incident[group]),
        driver=driver,
        replicas=replicas,
        interval=load.intervals[group, None],
    )


def _delayed(rng: np.random.Generator, incident: np.ndarray) -> np.ndarray:
    """An incident cascades: half of the hosts see it at once, most others up to 30 steps late, some never."""
    n, length = incident.shape
    delay = np.where(rng.random(n) < 0.5, 0, rng.integers(0, min(30, length), n))
    back = np.arange(length) - delay[:, None]
    seen = np.where(back >= 0, np.take_along_axis(incident, np.maximum(back, 0), axis=1), 0)
    return seen * (rng.random((n, 1), dtype=np.float32) < 0.9)


@dataclass(frozen=True)
class Metric:
    name: str
    weight: float
    observe: Callable[[np.random.Generator, Hosts], np.ndarray]


METRICS = (
    Metric("utilisation", 0.20, metrics.utilisation),
    Metric("requests", 0.18, metrics.request_rate),
    Metric("bytes", 0.12, metrics.counter_rate),
    Metric("latency", 0.10, metrics.latency),
    Metric("memory", 0.07, metrics.memory),
    Metric("errors", 0.05, metrics.errors),
    Metric("replicas", 0.03, metrics.replica_count),
    Metric("bursts", 0.09, own.bursts),
    Metric("cycles", 0.04, own.cycles),
    Metric("gauge", 0.05, own.gauge),
    Metric("events", 0.04, own.events),
    Metric("counter", 0.01, own.counter),
    Metric("availability", 0.02, own.availability),
)
