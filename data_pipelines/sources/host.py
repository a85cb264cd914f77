"""Telemetry of the machine this runs on, one sample a second or slower: a source anyone can record for themselves.

Counters become rates per second; a metric the platform does not offer stays out of its group.
"""

from __future__ import annotations

import datetime as dt
import logging
import math
import time
from array import array
from collections.abc import Callable, Iterator

import numpy as np
import psutil

from data_pipelines.series import Series

log = logging.getLogger(__name__)

DISK = ("read_count", "write_count", "read_bytes", "write_bytes", "read_time", "write_time", "busy_time")
NETWORK = ("bytes_sent", "bytes_recv", "packets_sent", "packets_recv", "dropin", "errin")
Sample = dict[tuple[str, str], float]  # (group, metric) -> value
Columns = dict[tuple[str, str], array]  # (group, metric) -> float32 [T]: 4 bytes a value, a day of 100 metrics is 35 MB


def _fields(group: str, prefix: str, record: object, names: tuple[str, ...]) -> Sample:
    return {(group, f"{prefix}{n}"): float(getattr(record, n)) for n in names if hasattr(record, n)}


def read_gauges() -> Sample:
    """Values that are levels already."""
    out: Sample = {}
    memory = psutil.virtual_memory()
    names = ("used", "available", "free", "active", "inactive", "buffers", "cached", "shared", "slab", "percent")
    out |= _fields("memory", "", memory, names)
    if psutil.swap_memory().total:
        out |= _fields("memory", "swap_", psutil.swap_memory(), ("used",))
    for minutes, load in zip((1, 5, 15), psutil.getloadavg(), strict=True):
        out["cpu", f"load_{minutes}m"] = load
    out |= _fields("disk", "root_", psutil.disk_usage("/"), ("used", "free"))
    rss, threads, statuses = [], 0, []
    for process in psutil.process_iter(["memory_info", "num_threads", "status"]):
        info = process.info
        statuses.append(info["status"])
        threads += info["num_threads"] or 0
        rss.append(info["memory_info"].rss if info["memory_info"] else 0)
    out["processes", "count"] = len(statuses)
    out["processes", "running"] = statuses.count(psutil.STATUS_RUNNING)
    out["processes", "waiting_on_disk"] = statuses.count(psutil.STATUS_DISK_SLEEP)
    out["processes", "threads"] = threads
    out["processes", "rss_total"] = sum(rss)
    out["processes", "rss_largest"] = max(rss, default=0)
    return out


def read_counters() -> Sample:
    """Values that only grow; the recorder differentiates them."""
    out: Sample = {}
    times = ("user", "system", "iowait", "irq", "softirq", "steal", "idle")
    for i, cpu in enumerate(psutil.cpu_times(percpu=True)):
        out |= _fields("cpu", f"core{i}_", cpu, times if i < 2 else times[:2])
    out |= _fields("cpu", "", psutil.cpu_stats(), ("ctx_switches", "interrupts", "soft_interrupts"))
    disk = psutil.disk_io_counters()
    if disk:
        out |= _fields("disk", "", disk, DISK)
    for nic, counters in sorted(psutil.net_io_counters(pernic=True).items())[:4]:
        out |= _fields("network", f"{nic}_", counters, NETWORK)
    return out


def record(
    seconds: float,
    interval: float = 1.0,
    stop: Callable[[], bool] = lambda: False,
    on_sample: Callable[[int], None] = lambda n: None,
) -> tuple[dt.datetime, Columns]:
    """Sample for `seconds` (or until `stop()`), on a fixed grid; returns the time of its first step and the columns.

    A missed tick is NaN in all of them.
    """
    start = dt.datetime.now(dt.UTC).replace(microsecond=0) + dt.timedelta(seconds=interval)
    columns: Columns = {}
    taken = 0

    def add(sample: Sample) -> None:
        nonlocal taken
        for key in sample.keys() - columns.keys():
            columns[key] = array("f", [math.nan]) * taken
        for key, column in columns.items():
            column.append(sample.get(key, math.nan))
        taken += 1

    origin = time.monotonic()
    before, before_time = read_counters(), origin
    while taken < seconds / interval and not stop():
        due = origin + (taken + 1) * interval
        time.sleep(max(0.0, due - time.monotonic()))
        now = time.monotonic()
        while now - due > interval:  # the machine was too busy (or asleep): the grid keeps its gaps
            add({})
            due += interval
        counters = read_counters()
        sample = read_gauges()
        for key, value in counters.items():
            if key in before and value >= before[key]:  # a decrease is a reset: that step is missing
                sample[key] = (value - before[key]) / (now - before_time)
        before, before_time = counters, now
        add(sample)
        on_sample(taken)
    return start, columns


def to_series(start: dt.datetime, columns: Columns, interval: float, source: str = "host") -> Iterator[Series]:
    """One multivariate Series per group of metrics; metrics that never change are left out."""
    for group in sorted({group for group, _ in columns}):
        rows, names = [], []
        for key in sorted(k for k in columns if k[0] == group):
            row = np.array(columns[key], dtype=np.float32)
            if np.isfinite(row).any() and np.nanmin(row) < np.nanmax(row):
                rows.append(row)
                names.append(key[1])
        if not rows:
            log.info("host recorder: group %s never changed and is left out", group)
            continue
        yield Series(
            values=np.stack(rows),
            interval=interval,
            source=source,
            item_id=f"{group}-{start:%Y%m%dT%H%M%S}",
            domain="observability",
            start=start.replace(tzinfo=None).isoformat(),
            variate_names=tuple(names),
            licence="Apache-2.0",
        )
