"""Series of a Prometheus server, or of any store that speaks its HTTP API, on the grid start + k * step < end.

observed   The point at t is the last sample that arrived in (t - step, t]; without one it is NaN. Asked as
           last_over_time(selector[step]), since a plain selector repeats a value for 5 minutes after its last
           sample (the per-query lookback_delta came with 2.43). A sample of NaN is missing, +-Inf stays infinite.
counters   become increases per second between observed points. A drop is a reset: the increase is the new value.
           After one missing point the increase is spread over both steps and stands at the point that ends the gap;
           after a longer gap, and at the first sample, there is no rate (NaN).
groups     One Series per group of label values, from its first to its last observed step. Metric name and remaining
           labels name a variate; variates without a value, and native histograms, are left out.
"""

from __future__ import annotations

import datetime as dt
import logging
import math
import re
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from data_pipelines.series import DOMAINS, Series
from data_pipelines.sources import Unit
from data_pipelines.sources.prometheus_api import Api, PrometheusError, Selector, matcher, parse_selectors, quoted

log = logging.getLogger(__name__)

MAX_POINTS = 11_000
"""Points per series and query that Prometheus answers at most."""
VALUES_PER_QUERY = 200_000
"""Values of one answer: metrics of many series are asked for in shorter slices, which bounds the memory."""
RATE_GAP = 2
"""Steps between two observed points of a counter up to which their difference is a rate."""
COUNTER_SUFFIXES = ("_total", "_count", "_sum", "_bucket")


@dataclass(frozen=True)
class PrometheusSource:
    """Settings of the source, checked when made. ValueError names the key, its value and the way out."""

    url: str
    """http://host:9090, with a path prefix where the server has one."""
    match: str
    """Series selector, or several joined by ';': {job="node"};node_load1{job="edge"}."""
    start: str
    """First point of the grid: ISO 8601 (UTC unless it says otherwise) or seconds since 1970."""
    end: str
    """Exclusive; not in the future, so that a build can be repeated."""
    step: float
    """Seconds between two points. Choose the scrape interval or a multiple of it."""
    group: str = "job,instance"
    """Labels whose values make one multivariate series; '' puts everything into one."""
    rates: str = "auto"
    """auto: counters become rates per second; off: values as stored."""
    name: str = ""
    """Source of the series; '' = value of the job label where that is in group, else the host of the url."""
    domain: str = "observability"
    licence: str = "unknown"
    token: str = ""
    """Name of an environment variable that holds a bearer token; never the token, since settings are written down."""
    slice_points: int = 10_000
    """Points per series and query, at most MAX_POINTS."""
    timeout: float = 60
    """Seconds a request may take without an answer; each is tried three times."""

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"source.url={self.url!r} must look like http://host:9090 or https://host/prefix")
        if parts.username or parts.password:
            raise ValueError("source.url= must not hold a user or password, it is written down; see source.token=")
        if self.token and not re.fullmatch(r"[A-Za-z_]\w*", self.token):
            raise ValueError("source.token= takes the name of an environment variable, not the token itself")
        if not (self.step >= 0.01 and math.isfinite(self.step) and abs(self.step * 1000 - self._step) < 1e-6):
            raise ValueError(f"source.step={self.step!r} must be whole milliseconds, and 0.01 seconds or more")
        if self._first >= self._end:
            raise ValueError(f"source.end={self.end!r} must be later than source.start={self.start!r}")
        if not 1 <= self.slice_points <= MAX_POINTS:
            raise ValueError(f"source.slice_points={self.slice_points} must be between 1 and {MAX_POINTS}")
        if not 0 < self.timeout < math.inf:
            raise ValueError(f"source.timeout={self.timeout!r} must be a positive number of seconds")
        for key, value, allowed in (("rates", self.rates, ("auto", "off")), ("domain", self.domain, DOMAINS)):
            if value not in allowed:
                raise ValueError(f"source.{key}={value} is not one of {', '.join(allowed)}")
        if len(set(self._labels)) < len(self._labels) or "__name__" in self._labels:
            raise ValueError(f"source.group={self.group!r} must be different labels, without __name__, split by commas")
        parse_selectors(self.match)

    def units(self) -> list[Unit]:
        """One per group of label values that has series, sorted by them.

        ValueError where nothing matches, the server cannot be reached or refuses; it names url and selector.
        """
        if self._end > time.time() * 1000:
            raise ValueError(f"source.end={self.end!r} lies in the future; a build must find the same data again")
        series: Counter[tuple[str, ...]] = Counter()
        for selector in parse_selectors(self.match):
            found = self._series(self._api(), selector)
            if not found:
                log.warning("%s: no series match %s from %s to %s", self.url, selector, self.start, self.end)
            series.update(tuple(labels.get(label, "") for label in self._labels) for labels in found)
        if not series:
            raise ValueError(f"{self.url}: no series match source.match={self.match} from {self.start} to {self.end}")
        version = f"{_iso(self._first)}/{_iso(self._end)}/{self.step:g}"
        return [Unit(self._key(group), 4 * self._points * series[group], version) for group in sorted(series)]

    def read(self, unit: Unit, counts: Counter[str]) -> Iterator[Series]:
        """The one series [V, T] of a group, variates sorted by name; nothing where it has no value in the range.

        counts gains gap (steps without any value) and counter_reset. ValueError as in units(), and where the server
        gives two series for one variate or moves points off the grid.
        """
        api, group = self._api(), self._group(unit)
        own = tuple(matcher(label, value) for label, value in group.items())
        asked: dict[str, list[tuple[Selector, int]]] = {}  # metric -> selectors that find it, with their series
        for selector in parse_selectors(self.match):
            narrow = selector.narrowed(own)
            for metric, number in Counter(s["__name__"] for s in self._series(api, narrow)).items():
                asked.setdefault(metric, []).append((narrow.narrowed((matcher("__name__", metric),)), number))
        kinds = _kinds(api) if self.rates == "auto" else {}
        # Range selectors take a sample on their left edge up to 2.x and leave it out from 3.0 on: a point on the
        # grid would count twice. A sub-query, which needs no data, shows which kind this server is.
        probe = api.get("query", query="count_over_time(vector(1)[1s:1s])", time=str(self._first // 1000))
        closed = any(float(item["value"][1]) > 1 for item in probe["result"])
        rows: dict[str, np.ndarray] = {}
        slow = 0
        for metric, selectors in sorted(asked.items()):
            counter = self.rates == "auto" and _is_counter(metric, kinds)
            for variate, readings in self._readings(api, metric, selectors, self._step - closed).items():
                row, seen = readings[RATE_GAP:], np.flatnonzero(~np.isnan(readings))
                if counter:
                    row = per_second(readings, self.step)[RATE_GAP:]
                    counts["counter_reset"] += int((readings[seen[1:]] < readings[seen[:-1]]).sum())
                slow += len(seen) > 2 and float(np.median(np.diff(seen))) > 1
                if not np.isnan(row).all():
                    with np.errstate(over="ignore"):  # beyond float32 becomes inf, which quality counts as impossible
                        rows[variate] = row.astype(np.float32)
        if 2 * slow > len(rows):
            log.warning("%s: most metrics come less often than source.step=%g s; lengthen it", unit.key, self.step)
        if not rows:
            log.info("%s: no value from %s to %s, left out", unit.key, self.start, self.end)
            return
        names = tuple(sorted(rows))
        values = np.stack([rows.pop(name) for name in names])
        used = ~np.isnan(values).all(axis=0)
        first, last = int(used.argmax()), len(used) - int(used[::-1].argmax())
        counts["gap"] += int((~used[first:last]).sum())
        yield Series(
            values=np.ascontiguousarray(values[:, first:last]),
            interval=float(self.step),
            source=self.name or group.get("job") or str(urllib.parse.urlsplit(self.url).hostname),
            item_id=unit.key,
            domain=self.domain,
            start=_iso(self._first + first * self._step),
            variate_names=names,
            licence=self.licence,
        )

    def _readings(
        self, api: Api, metric: str, selectors: list[tuple[Selector, int]], window: int
    ) -> dict[str, np.ndarray]:
        """Values as stored, by variate: float64 [RATE_GAP + T], since rates look back. window in milliseconds."""
        out: dict[str, np.ndarray] = {}
        for selector, number in selectors:
            query = f"last_over_time({selector}[{window}ms])"
            size = min(self.slice_points, max(100, VALUES_PER_QUERY // number))
            for k in range(-RATE_GAP, self._points, size):
                begin, end = (self._first + i * self._step for i in (k, min(k + size, self._points) - 1))
                span = {"start": _seconds(begin), "end": _seconds(end), "step": _seconds(self._step)}
                answer = api.get("query_range", query=query, **span)
                seen: set[str] = set()
                for item in answer["result"]:
                    variate = _variate(metric, {n: v for n, v in item["metric"].items() if n not in self._labels})
                    if variate in seen:
                        raise ValueError(f"{self.url}: {query} gives several series for the variate {variate}")
                    seen.add(variate)
                    if item.get("histograms"):
                        log.warning("%s: %s holds native histograms, which are not read", self.url, variate)
                    stamps = np.rint(np.array([p[0] for p in item.get("values", ())], dtype=np.float64) * 1000)
                    slots = np.rint((stamps - begin) / self._step).astype(np.int64)
                    if (np.abs(begin + slots * self._step - stamps) > 1).any() or (stamps > end + 1).any():
                        raise ValueError(
                            f"{self.url}: {query} answers off the grid that was asked for; a front end that aligns "
                            "queries to the step needs a source.start that is a multiple of source.step"
                        )
                    if len(slots):
                        row = out.setdefault(variate, np.full(RATE_GAP + self._points, np.nan))
                        row[RATE_GAP + k + slots] = [float(p[1]) for p in item["values"]]
        return out

    def _series(self, api: Api, selector: Selector) -> list[dict[str, str]]:
        """Labels of all series with samples around the range."""
        begin, end = _seconds(self._first - (RATE_GAP + 1) * self._step), _seconds(self._end)
        return api.get("series", **{"match[]": str(selector)}, start=begin, end=end) or []

    def _api(self) -> Api:
        return Api(self.url.rstrip("/"), self.token, self.timeout)

    @cached_property
    def _labels(self) -> tuple[str, ...]:
        return tuple(label.strip() for label in self.group.split(",")) if self.group.strip() else ()

    @cached_property
    def _first(self) -> int:
        return _milliseconds("start", self.start)

    @cached_property
    def _end(self) -> int:
        return _milliseconds("end", self.end)

    @cached_property
    def _step(self) -> int:
        return round(self.step * 1000)

    @property
    def _points(self) -> int:
        return -((self._first - self._end) // self._step)

    def _key(self, values: tuple[str, ...]) -> str:
        """'job=node,instance=a:9100', from which _group gets the values back whatever they hold."""
        safe = (re.sub(r"[%,\x00-\x1f\x7f]", lambda c: f"%{ord(c[0]):02X}", value) for value in values)
        return ",".join(f"{label}={value}" for label, value in zip(self._labels, safe, strict=True)) or "all"

    def _group(self, unit: Unit) -> dict[str, str]:
        pairs = [part.partition("=") for part in unit.key.split(",")] if self._labels else []
        if tuple(label for label, _, _ in pairs) != self._labels:
            raise ValueError(f"{self.url}: {unit.key!r} is no unit of source.group={self.group}")
        return {label: urllib.parse.unquote(value) for label, _, value in pairs}


def per_second(readings: np.ndarray, step: float) -> np.ndarray:
    """Readings of a counter, float64 [T], step in seconds -> rates [T] by the rule at the top of this module."""
    rates = np.full(readings.shape, np.nan)
    seen = np.flatnonzero(~np.isnan(readings))
    steps = np.diff(seen)
    before, after = readings[seen[:-1]], readings[seen[1:]]
    with np.errstate(invalid="ignore"):  # inf - inf
        increase = np.where(after < before, after, after - before)
    near = steps <= RATE_GAP
    rates[seen[1:][near]] = increase[near] / (steps[near] * step)
    return rates


def _kinds(api: Api) -> dict[str, str]:
    """Metric -> its type, where the targets agree on one."""
    try:
        data = api.get("metadata") or {}
    except PrometheusError as error:
        if error.status != 404:
            raise
        log.warning("%s has no metadata; counters are told by their names", api.url)  # as some stores do
        return {}
    kinds = {metric: {entry["type"] for entry in entries} for metric, entries in data.items()}
    return {metric: kind.pop() for metric, kind in kinds.items() if len(kind) == 1}


def _is_counter(metric: str, kinds: dict[str, str]) -> bool:
    kind = kinds.get(metric, "unknown")
    if kind not in ("unknown", "untyped", ""):
        return kind == "counter"
    suffix = next((s for s in COUNTER_SUFFIXES if metric.endswith(s)), "")
    return bool(suffix) and kinds.get(metric.removesuffix(suffix)) != "gaugehistogram"


def _variate(metric: str, labels: dict[str, Any]) -> str:
    inner = ",".join(f"{k}={quoted(v)}" for k, v in sorted(labels.items()) if k != "__name__")
    return f"{metric}{{{inner}}}" if inner else metric


def _milliseconds(key: str, text: str) -> int:
    """Milliseconds since 1970; ValueError for what is no time."""
    try:
        seconds = float(text)
    except ValueError:
        try:
            stamp = dt.datetime.fromisoformat(text)
        except ValueError:
            hint = "; an open end would make a build that cannot be repeated" if key == "end" and not text else ""
            raise ValueError(f"source.{key}={text!r} must be ISO 8601 or seconds since 1970{hint}") from None
        seconds = (stamp if stamp.tzinfo else stamp.replace(tzinfo=dt.UTC)).timestamp()
    if not 1e8 <= seconds < 1e11:  # 2026 would be a second of 1970, and milliseconds the far future
        raise ValueError(f"source.{key}={text!r} is not between 1973 and 5138; write 2026-11-01T00:00:00 or seconds")
    return round(seconds * 1000)


def _seconds(milliseconds: int) -> str:
    return f"{milliseconds // 1000}.{milliseconds % 1000:03d}"


def _iso(milliseconds: int) -> str:
    return dt.datetime.fromtimestamp(milliseconds / 1000, dt.UTC).replace(tzinfo=None).isoformat()
