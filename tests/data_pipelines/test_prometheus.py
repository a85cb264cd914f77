"""A real Prometheus server, filled with known samples: what the source reads is what was stored."""

from __future__ import annotations

import contextlib
import http.server
import pickle
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.sources.prometheus import PrometheusSource

START = 1_760_000_040  # a whole minute, 2025-10-09T08:54:00
STEP, POINTS, LONG = 15, 60, 12_500
NAN, INF = float("nan"), float("inf")
PATH = 'a"b\\c\nd,e;f}{é'
ODD_INSTANCE = "c,d=1%:9100"

# seconds -> value. A gap of 6.5 minutes, longer than the 5 minutes that Prometheus looks back, and special values
GAUGE = {START + STEP * k: 1.5 * k for k in range(-1, POINTS) if not 20 <= k < 46}
GAUGE |= {START + STEP * 5: NAN, START + STEP * 6: INF, START + STEP * 7: -INF}
ENDING = {START + STEP * k + 7.25: 100.0 - k for k in range(10)}  # between two points, and over after 2.5 minutes
READINGS = [100, 130, 160, 10, 40, None, 100, None, None, 190, 205, 205]  # from the step before START
RATES = [2, 2, 10 / 15, 2, NAN, 2, NAN, NAN, NAN, 1, 0]
COUNTER = {START + STEP * (k - 1): float(v) for k, v in enumerate(READINGS) if v is not None}
LONG_COUNTER = {START + k: 3.0 * (k % 9_998) for k in range(LONG)}  # its reset lies where the first slice ends


def samples() -> Iterator[tuple[str, dict[str, str], dict[float, float]]]:
    a, b = {"job": "node", "instance": "a:9100"}, {"job": "node", "instance": "b:9100"}
    yield "load", a, GAUGE
    yield "load", b, ENDING
    yield "requests_total", a | {"path": PATH, "code": "200"}, COUNTER
    yield "latency_bucket", a | {"le": "+Inf"}, COUNTER
    yield "total_space", a, COUNTER
    yield "early", a, {START - 60 - STEP * k: 1.0 for k in range(9)}
    yield "load", {"job": "node", "instance": ODD_INSTANCE}, {START + STEP: 7.0}
    yield "load", {"job": "node"}, {START + STEP: 8.0}
    yield "ticks", {"job": "long", "instance": "x"}, {START + k: float(k % 1000) for k in range(LONG)}
    yield "ticks_total", {"job": "long", "instance": "x"}, LONG_COUNTER


def openmetrics() -> str:
    def escape(value: str) -> str:
        return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

    lines = []
    for metric, labels, values in samples():
        inner = ",".join(f'{k}="{escape(v)}"' for k, v in labels.items())
        lines += [f"{metric}{{{inner}}} {v!r} {t}" for t, v in sorted(values.items())]
    return "\n".join([*lines, "# EOF\n"]).replace("} inf ", "} +Inf ").replace("} -inf ", "} -Inf ")


def at_points(values: dict[float, float], step: float, count: int) -> np.ndarray:
    """The rule, word by word: the last sample in (t - step, t]."""
    points = []
    for t in (START + k * step for k in range(count)):
        inside = [s for s in values if t - step < s <= t]
        points.append(values[max(inside)] if inside else NAN)
    return np.float32(points)


class Target(http.server.BaseHTTPRequestHandler):
    """A counter without the usual suffix, and a gauge with one: only the types tell them apart."""

    scrapes = 0

    def do_GET(self) -> None:
        Target.scrapes += 1
        body = f"# TYPE odd counter\nodd {self.scrapes}\n# TYPE queue_total gauge\nqueue_total 5\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="session")
def programs(tmp_path_factory) -> Iterator[tuple[str, str]]:
    """Paths of prometheus and promtool: those installed, else those of Debian's package, unpacked for this session."""
    if (server := shutil.which("prometheus")) and (tool := shutil.which("promtool")):
        yield server, tool
        return
    folder = tmp_path_factory.mktemp("package")
    try:
        for command in (["apt-get", "download", "prometheus"], ["sh", "-c", "dpkg-deb -x prometheus_*.deb ."]):
            subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=120)
    except (OSError, subprocess.SubprocessError) as error:
        shutil.rmtree(folder)
        pytest.skip(f"no prometheus on PATH, and its package could not be fetched ({error})")
    yield str(folder / "usr/bin/prometheus"), str(folder / "usr/bin/promtool")
    shutil.rmtree(folder)  # 100 MB, which pytest would keep for three sessions


@contextlib.contextmanager
def running(command: list[str], url: str, log: Path) -> Iterator[None]:
    """The server while the block runs; `timeout` ends it should this process be killed."""
    with log.open("w") as stream:
        server = subprocess.Popen(["timeout", "-k", "5", "240", *command], stdout=stream, stderr=stream)
    try:
        for _ in range(150):
            assert server.poll() is None, log.read_text()[-2000:]
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/-/ready", timeout=5):
                break
            time.sleep(0.1)
        yield
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


@pytest.fixture(scope="module")
def target() -> Iterator[http.server.ThreadingHTTPServer]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Target) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def url(programs, target, tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("prometheus")
    (folder / "samples").write_text(openmetrics())
    create = [programs[1], "tsdb", "create-blocks-from", "openmetrics", "samples", "data"]
    subprocess.run(create, cwd=folder, check=True, capture_output=True, timeout=60)
    (folder / "config.yml").write_text(
        "scrape_configs: [{job_name: live, scrape_interval: 200ms, scrape_timeout: 200ms, "
        f"static_configs: [{{targets: ['127.0.0.1:{target.server_port}']}}]}}]\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    options = [f"--storage.tsdb.path={folder}/data", "--storage.tsdb.retention.time=100y"]
    command = [programs[0], f"--config.file={folder}/config.yml", f"--web.listen-address={address}", *options]
    with running(command, f"http://{address}", folder / "log"):
        yield f"http://{address}"


@pytest.fixture
def source(url) -> PrometheusSource:
    return PrometheusSource(url, '{job="node"}', str(START), str(START + STEP * POINTS), STEP)


def read(source: PrometheusSource, key: str, counts: Counter[str] | None = None):
    source = pickle.loads(pickle.dumps(source))  # as it travels to another process
    (unit,) = (u for u in source.units() if u.key == key)
    (series,) = source.read(unit, Counter() if counts is None else counts)
    return series, dict(zip(series.variate_names, series.values, strict=True))


NODE_A = "job=node,instance=a:9100"
COUNTED = 'requests_total{code="200",path="a\\"b\\\\c\\nd,e;f}{é"}'


def test_units_are_the_groups_sorted_with_the_range_as_their_version(source):
    units = source.units()
    instances = ("", "a:9100", "b:9100", "c%2Cd=1%25:9100")
    assert [u.key for u in units] == [f"job=node,instance={i}" for i in instances]
    assert {u.version for u in units} == {"2025-10-09T08:54:00/2025-10-09T09:09:00/15"}
    assert max(units, key=lambda u: u.size).key == NODE_A
    assert [u.key for u in replace(source, group="job").units()] == ["job=node"]
    assert [u.key for u in replace(source, group="", match="ticks").units()] == ["all"]


def test_gauges_keep_their_values_and_counters_become_rates(source):
    counts: Counter[str] = Counter()
    series, rows = read(source, NODE_A, counts)
    assert series.variate_names == ('latency_bucket{le="+Inf"}', "load", COUNTED, "total_space")  # without `early`
    assert (series.interval, series.source, series.item_id) == (15.0, "node", NODE_A)
    assert (series.domain, series.start) == ("observability", "2025-10-09T08:54:00")
    np.testing.assert_array_equal(rows["load"], at_points(GAUGE, STEP, POINTS))
    assert np.flatnonzero(np.isnan(rows["load"])).tolist() == [5, *range(20, 46)]
    assert rows["load"][6:8].tolist() == [INF, -INF]
    padded = np.float32(RATES + [NAN] * (POINTS - len(RATES)))
    np.testing.assert_array_equal(rows[COUNTED], padded)
    np.testing.assert_array_equal(rows['latency_bucket{le="+Inf"}'], padded)
    np.testing.assert_array_equal(rows["total_space"], at_points(COUNTER, STEP, POINTS))
    assert counts == {"gap": 26, "counter_reset": 2}


def test_without_rates_counters_stay_as_stored(source):
    np.testing.assert_array_equal(read(replace(source, rates="off"), NODE_A)[1][COUNTED], at_points(COUNTER, 15, 60))


def test_a_group_ends_with_its_last_sample_and_begins_with_its_first(source):
    series, rows = read(source, "job=node,instance=b:9100")
    assert series.start == "2025-10-09T08:54:15"
    assert rows["load"].tolist() == [100.0 - k for k in range(10)]
    assert read(source, "job=node,instance=c%2Cd=1%25:9100")[0].values.tolist() == [[7.0]]
    assert read(source, "job=node,instance=")[0].values.tolist() == [[8.0]]


@pytest.mark.parametrize(("step", "points"), [(7.5, 120), (30, 30), (60, 15), (0.5, 1800)])
def test_any_step_takes_the_last_sample_within_it(source, step, points, caplog):
    _, rows = read(replace(source, step=step), NODE_A)
    np.testing.assert_array_equal(rows["load"], at_points(GAUGE, step, points)[: len(rows["load"])])
    np.testing.assert_array_equal(rows["total_space"], at_points(COUNTER, step, points)[: len(rows["load"])])
    if step == 7.5:  # every second point is missing: rates stand at the others, while their gap stays one point
        np.testing.assert_array_equal(rows[COUNTED][:8:2], np.float32(RATES[:4]))
        assert np.isnan(rows[COUNTED][8:18]).all()
    assert ("lengthen it" in caplog.text) == (step < STEP)


@pytest.mark.parametrize("size", [1, 7, 61])
def test_slices_do_not_show(source, size):
    if size == 1:
        source = replace(source, match="requests_total", end=str(START + 8 * STEP))
    whole, _ = read(source, NODE_A)
    cut, _ = read(replace(source, slice_points=size), NODE_A)
    np.testing.assert_array_equal(cut.values, whole.values)


def test_spans_beyond_what_one_query_may_ask(source, caplog):
    long = replace(source, match='{job="long"}', end=str(START + LONG), step=1)
    _, rows = read(long, "job=long,instance=x")
    np.testing.assert_array_equal(rows["ticks"], np.arange(LONG) % 1000)
    expected = np.full(LONG, 3.0)
    expected[[0, 9_998]] = NAN, 0.0
    np.testing.assert_array_equal(rows["ticks_total"], expected)
    assert not caplog.records


def test_selectors_add_up_and_may_overlap_or_be_long(source):
    many = "|".join(f"none{i}" for i in range(600))
    match = f'requests_total;load{{job="node",instance!="b:9100"}} ; {{__name__=~"load|{many}"}};{{job="none"}};'
    series, rows = read(replace(source, match=match), NODE_A)
    assert series.variate_names == ("load", COUNTED)
    np.testing.assert_array_equal(rows["load"], at_points(GAUGE, STEP, POINTS))
    assert len(replace(source, match=match).units()) == 4


def test_names_and_groups_can_be_chosen(source):
    chosen = replace(source, group="instance", name="fleet", licence="MIT", domain="general", match="load")
    series, _ = read(chosen, "instance=a:9100")
    assert (series.source, series.domain, series.licence) == ("fleet", "general", "MIT")
    by_path = replace(source, group="path", match="requests_total")
    series, _ = read(by_path, "path=" + PATH.replace(",", "%2C").replace("\n", "%0A"))
    assert series.source == "127.0.0.1"
    assert series.variate_names == ('requests_total{code="200",instance="a:9100",job="node"}',)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"match": '{job="nowhere"}'}, 'no series match source.match={job="nowhere"} from'),
        ({"match": '{job=~"("}'}, r"series \(match.*HTTP 400.*missing closing \)"),
        ({"match": '{job=""}'}, "HTTP 400.*non-empty matcher"),
        ({"start": "2001-01-01", "end": "2001-01-02"}, "no series match .* from 2001-01-01 to 2001-01-02"),
        ({"url": "http://127.0.0.1:9/x"}, "http://127.0.0.1:9/x/api/v1/series .*refused.*3 tries"),
    ],
)
def test_what_the_server_refuses_is_explained(source, change, message, monkeypatch):
    monkeypatch.setattr("data_pipelines.sources.prometheus_api.BACKOFF", 0)
    with pytest.raises(ValueError, match=message):
        replace(source, **change).units()


@pytest.mark.slow
def test_a_live_target_has_types_and_leaves_no_values_behind(source, target):
    begin = time.time()
    while Target.scrapes < 2 and time.time() < begin + 20:  # targets are picked up five seconds after the start
        time.sleep(0.1)
    begin = time.time()
    time.sleep(2.2)
    live = replace(source, match='{job="live"}', start=str(begin), end=str(time.time() - 0.01), step=0.4)
    key = f"job=live,instance=127.0.0.1:{target.server_port}"
    _, rows = read(live, key)
    assert np.nanmin(rows["odd"]) > 0
    assert 3 < np.nanmedian(rows["odd"]) < 7  # five scrapes a second
    assert set(rows["queue_total"][~np.isnan(rows["queue_total"])].tolist()) == {5.0}
    target.shutdown()
    target.server_close()
    stopped = time.time()
    time.sleep(2.0)
    later = replace(live, end=str(time.time() - 0.01), rates="off")
    _, rows = read(later, key)
    last = {name: begin + 0.4 * int(np.flatnonzero(~np.isnan(row))[-1]) for name, row in rows.items()}
    assert last["odd"] < stopped + 0.8 < last["up"]
    assert rows["up"][-1] == 0
