"""What a real Prometheus server rarely does, done by a small one that lies; and settings that cannot work."""

from __future__ import annotations

import gzip
import http.server
import json
import threading
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from data_pipelines.sources import prometheus_api
from data_pipelines.sources.prometheus import PrometheusSource
from data_pipelines.sources.prometheus_api import parse_selectors

Answer = tuple[int, bytes] | Callable[[dict[str, str]], tuple[int, bytes]]
START, STEP, POINTS = 1_760_000_040, 15, 8
KEY = "job=node,instance=a"


def ok(data: object, **more: object) -> tuple[int, bytes]:
    return 200, json.dumps({"status": "success", "data": data, **more}).encode()


def refused(status: int, message: str) -> tuple[int, bytes]:
    return status, json.dumps({"status": "error", "errorType": "bad_data", "error": message}).encode()


def series(*metrics: str) -> tuple[int, bytes]:
    return ok([{"__name__": metric, "job": "node", "instance": "a"} for metric in metrics])


def counting(parameters: dict[str, str]) -> tuple[int, bytes]:
    """A series that grows by 30 every 15 seconds, for whatever is asked."""
    begin, end = float(parameters["start"]), float(parameters["end"])
    values = [[t, str(2 * (t - START))] for t in np.arange(begin, end + 1, STEP).tolist()]
    return ok({"resultType": "matrix", "result": [{"metric": {}, "values": values}]})


@dataclass
class Fake:
    """Answers by path, in turn; the last one stays. asked: (method, path, parameters, headers) of every request."""

    url: str = ""
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    asked: list[tuple[str, str, dict[str, str], dict[str, str]]] = field(default_factory=list)

    def parameters(self, path: str) -> list[dict[str, str]]:
        return [parameters for _, asked, parameters, _ in self.asked if asked == path]


@pytest.fixture
def fake(monkeypatch) -> Iterator[Fake]:
    monkeypatch.setattr(prometheus_api, "BACKOFF", 0)
    state = Fake()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers["Content-Length"] or 0)
            path, _, query = self.path.partition("?")
            parameters = dict(urllib.parse.parse_qsl(query or self.rfile.read(length).decode()))
            path = path.removeprefix("/api/v1/")
            state.asked.append((self.command, path, parameters, dict(self.headers)))
            queue = state.answers[path]
            answer = queue.pop(0) if len(queue) > 1 else queue[0]
            status, body = answer(parameters) if callable(answer) else answer
            self.send_response(status)
            if status == 302:
                self.send_header("Location", body.decode())
            if body.startswith(b"\x1f\x8b"):
                self.send_header("Content-Encoding", "gzip")
            # a cut answer promises more than it holds
            self.send_header("Content-Length", str(len(body) + 100 * body.endswith(b"CUT")))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        state.url = f"http://127.0.0.1:{server.server_port}"
        state.answers = {
            "series": [series("ticks_total")],
            "query": [ok({"resultType": "vector", "result": [{"metric": {}, "value": [START, "2"]}]})],
            "metadata": [ok({})],
            "query_range": [counting],
        }
        yield state
        server.shutdown()


@pytest.fixture
def source(fake) -> PrometheusSource:
    return PrometheusSource(fake.url, '{job="node"}', str(START), str(START + STEP * POINTS), STEP)


def read(source: PrometheusSource):
    (unit,) = source.units()
    assert unit.key == KEY
    return list(source.read(unit, Counter()))


@pytest.mark.parametrize(
    "passing",
    [
        (503, b"starting"),
        (429, b""),
        refused(500, "oops"),
        (200, b'{"status": "succ'),
        (200, b"CUT"),
        (200, b"\x1f\x8bx"),
    ],
)
def test_what_may_pass_is_tried_again(fake, source, passing):
    for path in ("series", "query_range"):
        fake.answers[path] = [passing, passing, *fake.answers[path]]
    (found,) = read(source)
    np.testing.assert_array_equal(found.values, np.full((1, POINTS), 2.0))
    assert len(fake.parameters("query_range")) == 3


@pytest.mark.parametrize(
    ("answer", "message", "tries"),
    [
        (refused(503, "still loading"), "HTTP 503: still loading, 3 tries", 3),
        ((502, b"<html>"), "HTTP 502: Bad Gateway, 3 tries", 3),
        ((200, b'{"status": "success", "da'), "not JSON, or was cut off .*3 tries", 3),
        ((200, b'{"status": "suCUT'), r"no whole answer \(IncompleteRead", 3),
        (refused(422, "exceeded maximum resolution of 11,000 points"), "11,000 points; lower source.slice_points$", 1),
        (refused(422, "query would load too many samples into memory"), "memory; lower source.slice_points$", 1),
        (refused(400, "parse error: unexpected end"), "HTTP 400: parse error: unexpected end$", 1),
        ((401, b""), "HTTP 401: Unauthorized$", 1),
        ((200, b'{"status": "error", "error": "no quorum"}'), "no quorum$", 1),
        ((200, b"[]"), "the answer is not that of a Prometheus server$", 1),
    ],
)
def test_what_stays_is_an_error_that_names_url_and_query(fake, source, answer, message, tries):
    fake.answers["query_range"] = [answer]
    with pytest.raises(ValueError, match=message) as error:
        read(source)
    query = 'last_over_time({job="node",job="node",instance="a",__name__="ticks_total"}[14999ms])'
    assert str(error.value).startswith(f"{fake.url}/api/v1/query_range (query={query}, start=1760000010.000, ")
    assert len(fake.parameters("query_range")) == tries


def test_no_match_and_no_value(fake, source, caplog):
    fake.answers["query_range"] = [ok({"resultType": "matrix", "result": []})]
    assert read(source) == []
    fake.answers["series"] = [series("x"), ok([]), ok(None)]
    assert len(replace(source, match="a;b").units()) == 1
    assert 'no series match {__name__="b"}' in caplog.text
    with pytest.raises(ValueError, match=r'no series match source.match=\{job="node"\}'):
        source.units()


def test_the_token_is_sent_from_the_environment_and_kept_nowhere(fake, source, monkeypatch):
    monkeypatch.setenv("METRICS_TOKEN", "s3cret")
    held = replace(source, token="METRICS_TOKEN")
    read(held)
    assert {headers.get("Authorization") for *_, headers in fake.asked} == {"Bearer s3cret"}
    assert "s3cret" not in repr(held) + repr(vars(held))
    fake.asked.clear()
    fake.answers |= {"series": [(302, f"{fake.url}/api/v1/moved".encode())], "moved": [series("x")]}
    held.units()
    assert [headers.get("Authorization") for *_, headers in fake.asked] == ["Bearer s3cret", None]
    monkeypatch.delenv("METRICS_TOKEN")
    with pytest.raises(ValueError, match="names an environment variable that is not set"):
        held.units()
    with pytest.raises(ValueError, match="takes the name of an environment variable") as error:
        replace(source, token="s3cret-t.oken")
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize(
    ("metric", "kinds", "counter"),
    [
        ("ticks_total", {}, True),
        ("ticks_total", {"ticks_total": ["unknown"], "ticks": ["counter"]}, True),
        ("ticks_total", {"ticks_total": ["gauge"]}, False),
        ("ticks_total", {"ticks_total": ["gauge", "counter"]}, True),
        ("ticks", {}, False),
        ("ticks", {"ticks": ["counter"]}, True),
        ("size_bucket", {"size": ["histogram"]}, True),
        ("size_bucket", {"size": ["gaugehistogram"]}, False),
        ("size_count", {"size": ["summary"]}, True),
        ("size", {"size": ["summary"]}, False),
    ],
)
def test_types_come_before_names(fake, source, metric, kinds, counter):
    fake.answers["metadata"] = [ok({m: [{"type": k} for k in kind] for m, kind in kinds.items()})]
    fake.answers["series"] = [series(metric)]
    (found,) = read(source)
    assert (set(found.values[0].tolist()) == {2.0}) == counter
    assert found.values[0, 1] == (2 if counter else 30)


def test_without_metadata_names_decide(fake, source, caplog):
    fake.answers["metadata"] = [(404, b"")]
    assert read(source)[0].values.tolist() == [[2.0] * POINTS]
    assert "no metadata" in caplog.text
    fake.answers["metadata"] = [(403, b"")]
    with pytest.raises(ValueError, match="metadata: HTTP 403"):
        read(source)


@pytest.mark.parametrize(("in_a_second", "window"), [("2", "14999ms"), ("1", "15000ms")])
def test_a_sample_on_the_left_edge_counts_once_on_either_kind_of_server(fake, source, in_a_second, window):
    fake.answers["query"] = [ok({"result": [{"metric": {}, "value": [START, in_a_second]}]})]
    read(source)
    assert f"[{window}]" in fake.parameters("query_range")[0]["query"]


def test_warnings_are_logged_compression_is_read_and_native_histograms_are_left_out(fake, source, caplog):
    body = counting({"start": str(START), "end": str(START + 60)})[1]
    native = {"metric": {"pod": "p"}, "histograms": [[START, {"count": "1"}]]}
    reply = json.loads(body) | {"warnings": ["a store is missing"]}
    reply["data"]["result"].append(native)
    fake.answers["query_range"] = [(200, gzip.compress(json.dumps(reply).encode()))]
    (found,) = read(source)
    assert found.variate_names == ("ticks_total",)
    assert "a store is missing" in caplog.text
    assert 'ticks_total{pod="p"} holds native histograms' in caplog.text


def test_answers_that_cannot_be_placed_are_errors(fake, source):
    point = {"metric": {"job": "node"}, "values": [[START, "1"]]}
    fake.answers["query_range"] = [ok({"result": [point, point]})]
    with pytest.raises(ValueError, match="several series for the variate ticks_total"):
        read(source)
    for stamp in (START + 7, START + 10_000 * STEP):
        fake.answers["query_range"] = [ok({"result": [{"metric": {}, "values": [[stamp, "1"]]}]})]
        with pytest.raises(ValueError, match=r"off the grid .* multiple of source\.step"):
            read(source)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"url": "localhost:9090"}, "must look like http://host:9090"),
        ({"url": "http://me:pass@host"}, "must not hold a user or password"),
        ({"end": ""}, "source.end='' must be .* cannot be repeated"),
        ({"start": "yesterday"}, "source.start='yesterday' must be ISO 8601"),
        ({"start": "2026"}, "write 2026-11-01"),
        ({"start": "1760000040000"}, "not between 1973"),
        ({"end": str(START)}, "must be later than source.start"),
        ({"step": 0}, "source.step=0 must be"),
        ({"step": 0.0105}, "whole milliseconds"),
        ({"slice_points": 12_000}, "between 1 and 11000"),
        ({"timeout": 0}, "source.timeout=0"),
        ({"rates": "on"}, "source.rates=on is not one of auto, off"),
        ({"domain": "x"}, "source.domain=x is not one of"),
        ({"group": "job,job"}, "source.group='job,job'"),
        ({"match": " ; "}, "holds no series selector"),
        ({"match": "rate(x[5m])"}, "expressions are not taken"),
        ({"match": 'x{a="b}'}, "quotation mark is not closed"),
        ({"match": "{}"}, "would match every series"),
    ],
)
def test_settings_that_cannot_work_are_refused(source, change, message):
    with pytest.raises(ValueError, match=message):
        replace(source, **change)


def test_an_end_in_the_future_is_refused(source):
    with pytest.raises(ValueError, match="lies in the future"):
        replace(source, end="2999-01-01").units()


def test_selectors_split_outside_string_literals():
    text = """a{b="c;},\\"",d=~'e;"'};{"f.g", h=`;`} ;; {i!="j",};k"""
    assert [str(s) for s in parse_selectors(text)] == [
        """{__name__="a",b="c;},\\"",d=~'e;"'}""",
        """{__name__="f.g",h=`;`}""",
        """{i!="j"}""",
        """{__name__="k"}""",
    ]


@pytest.mark.parametrize(
    "start", ["2025-10-09T08:54", "2025-10-09T08:54:00Z", "2025-10-09T10:54+02:00", "1760000040.0"]
)
def test_times_are_utc_unless_they_say_otherwise(source, start):
    assert replace(source, start=start).units()[0].version == "2025-10-09T08:54:00/2025-10-09T08:56:00/15"
