"""Fixed forecasting windows cut from a folder of shards by GIFT-Eval's rules.

A task is a source at one frequency and one term. Horizon and season follow from the interval, windows lie side by side
at the end of each series. A task set holds where its windows are, not their values: those are read batch by batch.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd

from data_pipelines.shards import ShardSet
from toto_train.config import TasksConfig
from toto_train.evaluation.baselines import LEVELS, effective_season, seasonal_naive, seasonal_scale

Forecaster = Callable[[np.ndarray, int], np.ndarray]
"""(contexts float32 [N, V, C] with NaN = missing or padding on the left, horizon H) -> quantiles [N, 9, V, H]."""

HORIZONS = {"ms": 60, "s": 60, "min": 48, "h": 48, "d": 30, "w": 8, "mo": 12, "q": 8, "y": 6}
SEASONS = {"ms": 1, "s": 3600, "min": 1440, "h": 24, "d": 1, "w": 1, "mo": 12, "q": 4, "y": 1}
"""Steps of one season at one step a unit; a multiple that does not divide it has season 1 (as in gluonts)."""
TERMS = {"short": 1, "medium": 10, "long": 15}
TEST_SHARE = 0.1
"""Part of a series that its windows cover, as far as `max_windows` allows."""

_DAY = 86_400
_CALENDAR = (("y", 360, 366), ("q", 89, 92), ("mo", 28, 31))
"""Units whose length varies: fewest and most days of one."""
_CODES = {"ms": "L", "s": "S", "min": "T", "h": "H", "d": "D", "w": "W", "mo": "M", "q": "Q", "y": "A"}
_FIELDS = ("task", "series", "variate", "start", "variates", "horizon", "context", "season")
WINDOW = np.dtype([(field, "i8") for field in _FIELDS])
"""variate is -1 where the window holds the whole group."""


class Store(Protocol):
    """The part of `data_pipelines.shards.ShardSet` that tasks read."""

    @property
    def fingerprint(self) -> str: ...
    @property
    def sources(self) -> Any: ...
    def index(self, source: str) -> np.ndarray: ...
    def values(self, source: str, i: int) -> np.ndarray: ...
    def meta(self, source: str, i: int) -> dict[str, Any]: ...


def frequency(interval: float) -> tuple[int, str]:
    """Seconds between two steps -> (multiple, unit): 600 -> (10, 'min'), 2629800 -> (1, 'mo')."""
    days = interval / _DAY
    for unit, low, high in _CALENDAR:
        count = max(1, round(2 * days / (low + high)))
        if count <= 2 and low * count <= days <= high * count:
            return count, unit
    for unit, seconds in (("w", 7 * _DAY), ("d", _DAY), ("h", 3600), ("min", 60), ("s", 1)):
        count = round(interval / seconds)
        if count and math.isclose(count * seconds, interval, rel_tol=1e-6):
            return count, unit
    return max(1, round(1000 * interval)), "ms"


def code_of(interval: float) -> str:
    """GIFT-Eval's name of a frequency: 600 -> '10T'."""
    count, unit = frequency(interval)
    return f"{count if count > 1 else ''}{_CODES[unit]}"


def horizon_of(interval: float, term: str = "short") -> int:
    """Steps to forecast."""
    if term not in TERMS:
        raise ValueError(f"term={term!r} must be one of {', '.join(TERMS)}")
    return HORIZONS[frequency(interval)[1]] * TERMS[term]


def season_of(interval: float) -> int:
    """Steps of one season."""
    count, unit = frequency(interval)
    season, rest = divmod(SEASONS[unit], count)
    return 1 if rest else season


def window_count(shortest: int, horizon: int, max_windows: int) -> int:
    """Windows of every series of a task whose shortest series has `shortest` steps.

    clip(ceil(0.1 * shortest / horizon), 1, max_windows), as in GIFT-Eval; 0 where a window would have less than one
    horizon of history (ours, so that short series do not yield guesses).
    """
    return min(max(math.ceil(TEST_SHARE * shortest / horizon), 1), max_windows, max(shortest // horizon - 1, 0))


def limited(windows: np.ndarray, name: str, limit: int) -> np.ndarray:
    """At most `limit` of a task's windows (0: all), drawn by its name: the same ones every time."""
    if not limit or len(windows) <= limit:
        return windows
    # not every n-th: strides fall in step with variates and windows
    key = np.random.Philox(zlib.crc32(name.encode()))
    return windows[np.sort(np.random.Generator(key).permutation(len(windows))[:limit])]


@dataclass(frozen=True)
class Task:
    """What is pooled into one score: a source at one frequency and one term."""

    source: str
    interval: float
    """Seconds between two steps."""
    term: str
    domain: str

    @property
    def frequency(self) -> str:
        return code_of(self.interval)

    @property
    def name(self) -> str:
        return f"{self.source}/{self.frequency}/{self.term}"


@dataclass(frozen=True)
class Window:
    """One forecast to make. context [V, C] and label [V, H] float32, NaN = missing; seasonal_error [V]."""

    task: Task
    item_id: str
    variate_names: tuple[str, ...]
    start: int
    """Step of the series at which the label begins."""
    season: int
    """Lag of the seasonal error: the task's season, or 1 where no full season lies before `start`."""
    context: np.ndarray
    label: np.ndarray
    seasonal_error: np.ndarray


@dataclass(frozen=True)
class Batch:
    """Windows of one shape. N windows, V variates, C context steps (a multiple of the padding), H horizon."""

    indices: np.ndarray
    """[N] positions in the task set."""
    contexts: np.ndarray
    """float32 [N, V, C], shorter ones NaN on the left."""
    labels: np.ndarray
    """float32 [N, V, H]."""
    seasonal_error: np.ndarray
    """float64 [N, V], over the whole past."""
    naive: np.ndarray | None
    """Seasonal Naive from the whole past, float32 [N, 9, V, H]; None where it was not asked for."""

    @property
    def horizon(self) -> int:
        return self.labels.shape[-1]


class TaskSet:
    """Windows of every task of a store; `windows` is a structured array in order (task, series, variate, start)."""

    scale: Callable[[np.ndarray, int], np.ndarray] | None = None
    """Another seasonal error than ours: past [V, T], season -> [V]."""

    def __init__(self, store: Store, config: TasksConfig):
        if not config.terms or len(set(config.terms)) < len(config.terms):
            raise ValueError(f"terms={config.terms} must name each wanted term once")
        self.store, self.config = store, config
        self.tasks: list[Task] = []
        parts = [self._cut(source) for source in sorted(store.sources)]
        self.windows = np.concatenate([w for part in parts for w in part] or [np.empty(0, WINDOW)])
        if not len(self.windows):
            raise ValueError(
                f"no forecasting window in {config.path or 'this store'}; every series is shorter than two horizons "
                f"(sources: {', '.join(sorted(store.sources)) or 'none'}; include={config.include}, "
                f"exclude={config.exclude}, terms={config.terms})"
            )

    @classmethod
    def open(cls, config: TasksConfig) -> TaskSet:
        if not config.path:
            raise ValueError("tasks.path is empty; give a folder that scripts/build_shards.py wrote")
        return cls(ShardSet(config.path, config.include, config.exclude), config)

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def sources(self) -> tuple[str, ...]:
        """Sources with at least one window."""
        return tuple(dict.fromkeys(task.source for task in self.tasks))

    @property
    def fingerprint(self) -> str:
        """sha256 over the data and what is to be forecast from where; how much context is given does not count."""
        columns = np.stack([self.windows[field] for field in _FIELDS if field != "context"])
        names = json.dumps([self.store.fingerprint, [task.name for task in self.tasks]])
        return hashlib.sha256(names.encode() + columns.tobytes()).hexdigest()

    def _cut(self, source: str) -> Iterator[np.ndarray]:
        """Windows of one source, task by task."""
        index, c = self.store.index(source), self.config
        codes = np.array([code_of(float(seconds)) for seconds in index["interval"]])
        for code, term in ((code, term) for code in sorted(set(codes)) for term in c.terms):
            interval = float(index["interval"][codes == code][0])
            horizon, season = horizon_of(interval, term), season_of(interval)
            series = np.flatnonzero((codes == code) & (index["length"] >= 2 * horizon))
            if not len(series):
                continue
            count = window_count(int(index["length"][series].min()), horizon, c.max_windows)
            rows: list[tuple[int, ...]] = []
            for i in series.tolist():
                length, width = int(index["length"][i]), int(index["variates"][i])
                for variate in range(width) if c.groups == "split" else [-1]:
                    variates = 1 if c.groups == "split" else width
                    for start in range(length - count * horizon, length, horizon):
                        context = min(start, c.context)
                        rows.append((len(self.tasks), i, variate, start, variates, horizon, context, season))
            windows = np.array(rows, WINDOW)
            domain = str(self.store.meta(source, int(series[0])).get("domain", "general"))
            self.tasks.append(Task(source, interval, term, domain))
            yield limited(windows, self.tasks[-1].name, c.limit)

    def seasonal_error(self, past: np.ndarray, season: int) -> np.ndarray:
        """What MASE divides by: past [V, T] -> float64 [V], 0 where there is no scale."""
        return seasonal_scale(past, season)[0] if self.scale is None else self.scale(past, season)

    def table(self) -> pd.DataFrame:
        """One row a window: task, source, domain, frequency, term, item_id, variate ('' for a whole group), series,
        start, horizon, season, context, variates."""
        w = self.windows
        metas: dict[tuple[str, int], dict[str, Any]] = {}
        item, variate = [], []
        for task, series, v in zip(w["task"].tolist(), w["series"].tolist(), w["variate"].tolist(), strict=True):
            key = self.tasks[task].source, series
            if key not in metas:
                metas[key] = self.store.meta(*key)
            names = metas[key].get("variate_names")
            item.append(str(metas[key]["item_id"]))
            variate.append("" if v < 0 else str(names[v]) if names else f"v{v}")
        columns: dict[str, Any] = {}
        for column, field in {"task": "name", "source": "", "domain": "", "frequency": "", "term": ""}.items():
            columns[column] = np.array([getattr(t, field or column) for t in self.tasks], object)[w["task"]]
        columns |= {"item_id": item, "variate": variate}
        columns |= {f: w[f] for f in ("series", "start", "horizon", "season", "context", "variates")}
        return pd.DataFrame(columns)

    def window(self, i: int) -> Window:
        """Read one window."""
        w = self.windows[i]
        task, v = self.tasks[w["task"]], int(w["variate"])
        meta = self.store.meta(task.source, int(w["series"]))
        values, start = self._values(w), int(w["start"])
        names = tuple(map(str, meta.get("variate_names") or (f"v{k}" for k in range(max(v + 1, len(values))))))
        return Window(
            task=task,
            item_id=str(meta["item_id"]),
            variate_names=names if v < 0 else names[v : v + 1],
            start=start,
            season=effective_season(int(w["season"]), start),
            context=values[:, start - w["context"] : start],
            label=values[:, start : start + w["horizon"]],
            seasonal_error=self.seasonal_error(values[:, :start], int(w["season"])),
        )

    def past(self, i: int) -> np.ndarray:
        """Everything before a window, [V, start]; a view of the mapped shard."""
        return self._values(self.windows[i])[:, : int(self.windows[i]["start"])]

    def batches(self, max_points: int = 2**20, pad: int = 32) -> list[np.ndarray]:
        """Positions of all windows, each once, grouped by (variates, horizon, context rounded up to `pad`).

        A batch holds at most `max_points` values of context and label, but never less than one window.
        """
        w = self.windows
        context = -(-w["context"] // pad) * pad
        order = np.lexsort((np.arange(len(w)), context, w["horizon"], w["variates"]))
        shapes = np.stack([w["variates"], w["horizon"], context], 1)[order]
        edges = np.flatnonzero((np.diff(shapes, axis=0) != 0).any(1)) + 1
        batches = []
        for group in np.split(order, edges):
            first = w[group[0]]
            size = int(first["variates"] * (context[group[0]] + first["horizon"]))
            step = max(1, max_points // size)
            batches += [group[at : at + step] for at in range(0, len(group), step)]
        return batches

    def read(self, indices: np.ndarray, naive: bool = False, pad: int = 32) -> Batch:
        """Read windows of one shape; `naive` adds Seasonal Naive's forecast."""
        context = int(-(-self.windows["context"][indices].max() // pad) * pad)
        first, count = self.windows[indices[0]], len(indices)
        variates, horizon = int(first["variates"]), int(first["horizon"])
        contexts = np.full((count, variates, context), np.nan, np.float32)
        labels = np.empty((count, variates, horizon), np.float32)
        scale = np.empty((count, variates))
        baseline = np.empty((count, len(LEVELS), variates, horizon), np.float32) if naive else None
        for n, i in enumerate(indices):
            w = self.windows[i]
            values, start, season = self._values(w), int(w["start"]), int(w["season"])
            contexts[n, :, context - w["context"] :] = values[:, start - w["context"] : start]
            labels[n] = values[:, start : start + horizon]
            past = values[:, :start]
            absolute, rms = seasonal_scale(past, season)
            scale[n] = absolute if self.scale is None else self.scale(past, season)
            if baseline is not None:
                baseline[n] = seasonal_naive(past, horizon, season, rms=rms)
        return Batch(indices, contexts, labels, scale, baseline)

    def _values(self, w: Any) -> np.ndarray:
        """The whole series of a window (its variate alone in a split group), [V, T]; a view of the mapped shard."""
        values = self.store.values(self.tasks[w["task"]].source, int(w["series"]))
        return values if w["variate"] < 0 else values[int(w["variate"]) : int(w["variate"]) + 1]
