"""The recorder: rates of counters, NaN where there is none, one number of steps for all metrics."""

from __future__ import annotations

import datetime as dt
import itertools
import time

import numpy as np

from data_pipelines.sources import host


def test_counters_become_rates_and_what_is_absent_is_missing(monkeypatch):
    clock = iter([100.0, *itertools.chain.from_iterable((100.0 + k, 100.0 + k) for k in (1, 2, 3, 6.5, 7))])
    monkeypatch.setattr(host.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(host.time, "sleep", lambda _: None)
    counts = iter([50.0, 60, 5, 25, 95, 96])  # the second reading is a reset, the fourth comes two ticks late
    monkeypatch.setattr(host, "read_counters", lambda: {("disk", "read"): next(counts)})
    gauges = iter([{}, {("cpu", "load"): 3.0}, {("cpu", "load"): 4.0}, {}, {("cpu", "load"): 5.0}])
    monkeypatch.setattr(host, "read_gauges", lambda: next(gauges))
    before = dt.datetime.now(dt.UTC).replace(microsecond=0)
    start, columns = host.record(7, 1.0)
    assert dt.timedelta(seconds=1) <= start - before < dt.timedelta(seconds=5)  # the first step is one interval later
    nan = np.nan
    np.testing.assert_array_equal(columns["cpu", "load"], [nan, 3, 4, nan, nan, nan, 5])
    np.testing.assert_array_equal(columns["disk", "read"], [10, nan, 20, nan, nan, 20, 2])
    cpu, disk = host.to_series(start, columns, 1.0)
    assert (cpu.variate_names, disk.variate_names, cpu.length) == (("load",), ("read",), 7)
    assert cpu.start == start.replace(tzinfo=None).isoformat()


def test_this_machine_has_what_every_machine_has():
    begun = time.monotonic()
    start, columns = host.record(0.4, 0.1)
    assert time.monotonic() - begun > 0.39
    assert {len(column) for column in columns.values()} == {4}
    assert {"cpu", "memory", "disk", "processes"} <= {group for group, _ in columns}
    assert all(np.isfinite(s.values).any() for s in host.to_series(start, columns, 0.1))
