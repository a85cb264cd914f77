"""A real server whose ranges leave out their left edge, as those of Prometheus from 3.0 on: the same points as on 2."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.sources.prometheus import PrometheusSource

START, STEP, POINTS = 1_760_000_040, 15, 60
NAN = float("nan")
LABELS = {"job": "node", "instance": "a:9100"}
ON_GRID = {START + STEP * k: 1.5 * k for k in range(-1, POINTS) if not 20 <= k < 46}  # every sample on an edge
BETWEEN = {START + STEP * k + 7: 100.0 - k for k in range(POINTS - 1)}
READINGS = [100, 130, 160, 10, 40, None, 100, None, None, 190, 205, 205]  # from the step before START
RATES = [2, 2, 10 / 15, 2, NAN, 2, NAN, NAN, NAN, 1, 0]
SAMPLES = {
    "load": ON_GRID,
    "http.server.active": BETWEEN,
    "requests_total": {START + STEP * (k - 1): float(v) for k, v in enumerate(READINGS) if v is not None},
}


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    program = shutil.which("victoria-metrics")
    if program is None:
        pytest.skip("needs a server of left-open ranges: apt-get install victoria-metrics")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    options = [f"-storageDataPath={tmp_path / 'data'}", f"-httpListenAddr={address}", "-retentionPeriod=100y"]
    with open(tmp_path / "log", "w") as log:
        server = subprocess.Popen(["timeout", "-k", "5", "120", program, *options], stdout=log, stderr=log)
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{address}/health", timeout=5):
                break
            time.sleep(0.1)
        lines = [
            {
                "metric": {"__name__": name} | LABELS,
                "values": [*values.values()],
                "timestamps": [1000 * t for t in values],
            }
            for name, values in SAMPLES.items()
        ]
        body = "\n".join(map(json.dumps, lines)).encode()
        urllib.request.urlopen(f"http://{address}/api/v1/import", data=body, timeout=10).close()
        urllib.request.urlopen(f"http://{address}/internal/force_flush", timeout=10).close()
        yield f"http://{address}"
    finally:
        server.terminate()
        server.wait(10)


@pytest.mark.slow
def test_points_and_rates_are_those_of_a_closed_range(url):
    source = PrometheusSource(url, '{job="node"}', str(START), str(START + STEP * POINTS), STEP)
    (unit,) = source.units()
    counts: Counter[str] = Counter()
    (series,) = source.read(unit, counts)
    rows = dict(zip(series.variate_names, series.values, strict=True))
    assert set(rows) == set(SAMPLES)
    assert (series.start, series.length) == ("2025-10-09T08:54:00", POINTS)
    for name in ("load", "http.server.active"):
        stamps = np.array(list(SAMPLES[name]))
        for k, found in enumerate(rows[name]):
            inside = stamps[(stamps > START + STEP * (k - 1)) & (stamps <= START + STEP * k)]
            np.testing.assert_equal(found, np.float32(SAMPLES[name][inside[-1]] if len(inside) else NAN))
    np.testing.assert_array_equal(rows["requests_total"], np.float32(RATES + [NAN] * (POINTS - len(RATES))))
    assert counts["counter_reset"] == 1
