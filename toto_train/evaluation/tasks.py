"""Fixed forecasting windows cut from a folder of shards by GIFT-Eval's rules.

Horizon and season follow from a series' interval, windows lie side by side at its end. A task set holds where its
windows are, not their values: those are read batch by batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

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
_WINDOW = np.dtype([(f, "i8") for f in ("source", "series", "start", "variates", "horizon", "context", "season")])


class Store(Protocol):
    """The part of `data_pipelines.shards.ShardSet` that tasks read."""

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


def window_starts(length: int, horizon: int, max_windows: int) -> np.ndarray:
    """First label step of each window of one series, ascending; empty where the series is too short.

    clip(ceil(0.1 * length / horizon), 1, max_windows) windows side by side, the last one ending with the series.
    Ours: a window needs at least one horizon of history, so that short series do not yield guesses.
    """
    count = min(max(math.ceil(TEST_SHARE * length / horizon), 1), max_windows, length // horizon - 1)
    return length - horizon * np.arange(max(count, 0), 0, -1)


@dataclass(frozen=True)
class Window:
    """One forecast to make. context [V, C] and label [V, H] float32, NaN = missing; seasonal_error [V]."""

    source: str
    item_id: str
    variate_names: tuple[str, ...]
    interval: float
    start: int
    """Step of the series at which the label begins."""
    season: int
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
    """Windows of every source in a store; `windows` is a structured array in order (source, series, start)."""

    def __init__(self, store: Store, config: TasksConfig, term: str = "short"):
        self.store = store
        self.term = term
        self.sources = tuple(sorted(store.sources))
        parts = [self._cut(k, config) for k in range(len(self.sources))]
        self.windows = np.concatenate(parts) if parts else np.empty(0, _WINDOW)
        if not len(self.windows):
            raise ValueError(
                f"no forecasting window in {config.path or 'this store'}; every series is shorter than two horizons "
                f"(sources: {', '.join(self.sources) or 'none'}; include={config.include}, exclude={config.exclude})"
            )

    @classmethod
    def open(cls, config: TasksConfig, term: str = "short") -> TaskSet:
        if not config.path:
            raise ValueError("tasks.path is empty; give a folder that scripts/build_shards.py wrote")
        return cls(ShardSet(config.path, config.include, config.exclude), config, term)

    def __len__(self) -> int:
        return len(self.windows)

    def _cut(self, source: int, config: TasksConfig) -> np.ndarray:
        rows: list[tuple[int, ...]] = []
        index = self.store.index(self.sources[source])
        for i in range(len(index)):
            interval, length = float(index["interval"][i]), int(index["length"][i])
            horizon, season = horizon_of(interval, self.term), season_of(interval)
            for start in window_starts(length, horizon, config.max_windows).tolist():
                variates = int(index["variates"][i])
                rows.append((source, i, start, variates, horizon, min(start, config.context), season))
        windows = np.array(rows, _WINDOW)
        if config.limit and len(windows) > config.limit:
            windows = windows[((np.arange(config.limit) + 0.5) * len(windows) / config.limit).astype(int)]
        return windows

    def source_facts(self, source: str) -> dict[str, Any]:
        """Domain and intervals (as '10 min') of a source with windows."""
        k = self.sources.index(source)
        series = np.unique(self.windows["series"][self.windows["source"] == k])
        intervals = np.unique(self.store.index(source)["interval"][series])
        labels = ["{} {}".format(*frequency(float(seconds))) for seconds in intervals]
        return {"domain": self.store.meta(source, int(series[0])).get("domain", "general"), "intervals": labels}

    def window(self, i: int) -> Window:
        """Read one window."""
        w = self.windows[i]
        source = self.sources[w["source"]]
        meta = self.store.meta(source, int(w["series"]))
        values, start = self._values(w), int(w["start"])
        return Window(
            source=source,
            item_id=str(meta["item_id"]),
            variate_names=tuple(meta.get("variate_names") or (f"v{v}" for v in range(len(values)))),
            interval=float(self.store.index(source)["interval"][w["series"]]),
            start=start,
            season=effective_season(int(w["season"]), start),
            context=values[:, start - w["context"] : start],
            label=values[:, start : start + w["horizon"]],
            seasonal_error=seasonal_scale(values[:, :start], int(w["season"]))[0],
        )

    def batches(self, max_points: int = 2**20, pad: int = 32, naive: bool = False) -> Iterator[Batch]:
        """All windows once, grouped by (variates, horizon, context rounded up to `pad`).

        A batch holds at most `max_points` values of context and label, but never less than one window.
        """
        w = self.windows
        context = -(-w["context"] // pad) * pad
        order = np.lexsort((np.arange(len(w)), context, w["horizon"], w["variates"]))
        shapes = np.stack([w["variates"], w["horizon"], context], 1)[order]
        edges = np.flatnonzero((np.diff(shapes, axis=0) != 0).any(1)) + 1
        for group in np.split(order, edges):
            first = w[group[0]]
            size = int(first["variates"] * (context[group[0]] + first["horizon"]))
            step = max(1, max_points // size)
            for at in range(0, len(group), step):
                yield self._read(group[at : at + step], int(context[group[0]]), naive)

    def _read(self, indices: np.ndarray, context: int, naive: bool) -> Batch:
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
            scale[n] = seasonal_scale(values[:, :start], season)[0]
            if baseline is not None:
                baseline[n] = seasonal_naive(values[:, :start], horizon, season)
        return Batch(indices, contexts, labels, scale, baseline)

    def _values(self, w: Any) -> np.ndarray:
        """The whole series of a window, [V, T]; a view of the mapped shard."""
        return self.store.values(self.sources[w["source"]], int(w["series"]))
