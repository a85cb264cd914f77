"""Windows of one configuration of a benchmark, forecast and scored variate by variate.

A row is one variate of one window. Every metric of the four benchmarks follows from sums over such rows: pooled over
all (GIFT-Eval, BOOM), over those of a variate (fev), or row by row (TIME).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Protocol

import numpy as np

from toto_train.config import TasksConfig
from toto_train.evaluation.baselines import LEVELS
from toto_train.evaluation.examples import checked
from toto_train.evaluation.metrics import MEDIAN, Sums, window_sums
from toto_train.evaluation.tasks import WINDOW, Batch, Forecaster, Store, Task, TaskSet, limited


class FeatureStore(Store, Protocol):
    """A store whose series may carry features known for the past alone."""

    def past_features(self, i: int) -> np.ndarray: ...


@dataclass
class Cut:
    """What is to be forecast in one configuration."""

    name: str
    horizon: int
    season: int
    starts: Sequence[tuple[int, int]]
    """(series, step at which the label begins), in order."""
    context: int
    """Most steps of history that the model sees."""
    split: bool = False
    """Every variate of a group is forecast alone."""
    rounds: Sequence[int] = ()
    """Which evaluation window of the benchmark each start belongs to, where scores are averaged over those."""


class Windows(TaskSet):
    """The windows of a `Cut` of one dataset."""

    store: FeatureStore

    def __init__(
        self,
        store: FeatureStore,
        task: Task,
        cut: Cut,
        limit: int = 0,
        scale: Callable[[np.ndarray, int], np.ndarray] | None = None,
    ):
        """limit: most windows, drawn by the configuration's name. scale: another seasonal error, past [V, T] -> [V]."""
        self.store, self.config, self.tasks = store, TasksConfig(context=cut.context, limit=limit), [task]
        self.scale, index = scale, store.index(task.source)
        rows, rounds = [], []
        for (series, start), number in zip(cut.starts, cut.rounds or [0] * len(cut.starts), strict=True):
            if start < 1:
                raise ValueError(
                    f"{cut.name}: series {series} has {int(index['length'][series])} steps, none of them before its "
                    f"first window of {cut.horizon}: not the benchmark's dataset, or cut short; download it again, or "
                    f"leave it out with tasks.exclude={cut.name}"
                )
            width = int(index["variates"][series])
            for variate in range(width) if cut.split else [-1]:
                variates = 1 if cut.split else width
                rows.append((0, series, variate, start, variates, cut.horizon, min(start, cut.context), cut.season))
                rounds.append(number)
        if not rows:
            raise ValueError(f"{cut.name}: no series is long enough for a window")
        kept = limited(np.arange(len(rows)), cut.name, limit)
        self.windows, self.rounds = np.array(rows, WINDOW)[kept], np.array(rounds)[kept]

    def features(self, indices: np.ndarray, width: int) -> np.ndarray:
        """Past features of windows, float32 [N, E, width], NaN on the left where there is less history."""
        found = []
        if not len(self.store.past_features(int(self.windows["series"][indices[0]]))):  # a dataset has them or not
            return np.empty((len(indices), 0, width), np.float32)
        for w in self.windows[indices]:
            values = self.store.past_features(int(w["series"]))[:, w["start"] - w["context"] : w["start"]]
            found.append(np.pad(values, ((0, 0), (width - values.shape[1], 0)), constant_values=np.nan))
        return np.stack(found)


@dataclass
class PointSums:
    """Further sums over the observed points of each of W windows: what GIFT-Eval reports beside MASE and MWQL."""

    squared_error: np.ndarray
    """(y - median)^2."""
    absolute_error: np.ndarray
    """|y - median|."""
    percentage_error: np.ndarray
    """|y - median| / |y|, where y is not 0."""
    percentage_points: np.ndarray
    symmetric_error: np.ndarray
    """2 |y - median| / (|y| + |median|), where one of them is not 0."""
    symmetric_points: np.ndarray
    interval_score: np.ndarray
    """Winkler score of the central 95 % / seasonal error, where that is above 0."""


def point_sums(quantiles: np.ndarray, labels: np.ndarray, seasonal_error: np.ndarray) -> PointSums:
    """quantiles [N, 9, V, H], labels [N, V, H] with NaN = missing, seasonal_error [N, V] -> sums of N windows.

    The quantiles 0.025 and 0.975 lie on the exponential tails that gluonts draws through the two outermost levels:
    y(x) = y2 + (y2 - y1) ln(x / x2) / ln(x2 / x1), which for 0.1 and 0.2 gives q(0.1) - 2 (q(0.2) - q(0.1)).
    """
    known = np.isfinite(labels)
    y = np.where(known, labels, 0).astype(np.float64)
    q = {k: quantiles[:, k].astype(np.float64) for k in (0, 1, MEDIAN, 7, 8)}
    error = np.abs(y - q[MEDIAN])

    def total(values: np.ndarray, where: np.ndarray) -> np.ndarray:
        return values.sum((1, 2), where=where)

    def over(values: np.ndarray, divisor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        where = known & (divisor > 0)
        shares = np.divide(values, divisor, out=np.zeros_like(y), where=where)
        return total(shares, where), where.sum((1, 2)).astype(np.float64)

    low, high = q[0] - 2 * (q[1] - q[0]), q[8] + 2 * (q[8] - q[7])
    winkler = high - low + 40 * (np.maximum(low - y, 0) + np.maximum(y - high, 0))  # 2 / alpha, alpha = 0.05
    return PointSums(
        total(np.square(error), known),
        total(error, known),
        *over(error, np.abs(y)),
        *over(2 * error, np.abs(y) + np.abs(q[MEDIAN])),
        over(winkler, np.broadcast_to(seasonal_error[:, :, None], y.shape))[0],
    )


@dataclass
class Forecasts:
    """What one forecaster scored on every row of a configuration."""

    sums: Sums
    points: PointSums


@dataclass
class Rows:
    """R rows (window, variate) of a configuration, scored."""

    window: np.ndarray
    """[R] position in the `Windows`."""
    round: np.ndarray
    """[R] evaluation window of the benchmark."""
    variate: np.ndarray
    """[R] position in its group."""
    scale: np.ndarray
    """[R] seasonal error."""
    moves: np.ndarray
    """[R] whether the label takes more than one value."""
    model: Forecasts
    """Of the forecaster that was asked."""
    naive: Forecasts | None
    """Of Seasonal Naive, where it was asked for, too."""
    seconds: float
    """Time of the forecasts."""

    @property
    def windows(self) -> int:
        return len(np.unique(self.window))


def score(forecaster: Forecaster, tasks: Windows, max_points: int = 2**20) -> Rows:
    """Forecast and score every window of a configuration, by the model and by Seasonal Naive.

    max_points: values of context and label in one call of the forecaster; a window is never split.
    """
    parts = []
    for indices in tasks.batches(max_points):
        batch = tasks.read(indices, naive=True)
        parts.append(rows_of(tasks, batch, *forecast(forecaster, tasks, batch)))
    return joined(parts)


def rows_of(tasks: Windows, batch: Batch, quantiles: np.ndarray, seconds: float) -> Rows:
    """A batch of windows with the quantiles [N, 9, V, H] forecast for them in so many seconds."""
    variates, own = batch.labels.shape[1], tasks.windows["variate"][batch.indices]
    position = np.where(own[:, None] >= 0, own[:, None], np.arange(variates))
    window = np.repeat(batch.indices, variates)
    observed = np.isfinite(batch.labels)
    high = batch.labels.max(2, where=observed, initial=-np.inf)
    moves = high > batch.labels.min(2, where=observed, initial=np.inf)
    naive = None if batch.naive is None else _by_variate(batch.naive, batch)
    scored, scale = _by_variate(quantiles, batch), batch.seasonal_error.ravel()
    return Rows(window, tasks.rounds[window], position.ravel(), scale, moves.ravel(), scored, naive, seconds)


def joined(parts: Sequence[Rows]) -> Rows:
    """All rows of some parts, one after another."""

    def column(get: Callable[[Rows], np.ndarray]) -> np.ndarray:
        return np.concatenate([get(part) for part in parts])

    def forecasts(of: str) -> Forecasts:
        sums = {f.name: column(attrgetter(f"{of}.sums.{f.name}")) for f in fields(Sums)}
        points = {f.name: column(attrgetter(f"{of}.points.{f.name}")) for f in fields(PointSums)}
        return Forecasts(Sums(**sums), PointSums(**points))

    return Rows(
        **{name: column(attrgetter(name)) for name in ("window", "round", "variate", "scale", "moves")},
        model=forecasts("model"),
        naive=forecasts("naive") if parts[0].naive is not None else None,
        seconds=sum(part.seconds for part in parts),
    )


def forecast(forecaster: Forecaster, tasks: Windows, batch: Batch) -> tuple[np.ndarray, float]:
    """Quantiles [N, 9, V, H] of a batch of windows, and the seconds that they took. ValueError unless all are finite.

    Features of the past go in as further variates of a group, as the official package gives them to the model, and are
    not part of what comes out.
    """
    contexts, variates = batch.contexts, batch.labels.shape[1]
    features = tasks.features(batch.indices, contexts.shape[2])
    if features.shape[1] and not tasks.windows["variate"][batch.indices[0]] >= 0:
        contexts = np.concatenate([contexts, features], 1)
    begin = time.perf_counter()
    quantiles = checked(forecaster, contexts, batch.horizon)[:, :, :variates]
    seconds = time.perf_counter() - begin
    if not np.isfinite(quantiles).all():
        raise ValueError(f"a forecast for {tasks.tasks[0].name} is not finite")
    return quantiles, seconds


def _by_variate(quantiles: np.ndarray, batch: Batch) -> Forecasts:
    """quantiles [N, 9, V, H] -> sums of N * V rows."""
    flat = quantiles.swapaxes(1, 2).reshape(-1, len(LEVELS), 1, batch.horizon)
    arguments = flat, batch.labels.reshape(-1, 1, batch.horizon), batch.seasonal_error.reshape(-1, 1)
    return Forecasts(window_sums(*arguments), point_sums(*arguments))


def side_by_side(lengths: Iterable[int], first: int, horizon: int, count: int) -> list[tuple[int, int]]:
    """(series, start) of `count` windows one after another, the first `first` steps before the end of each series."""
    return [(i, int(n) - first + k * horizon) for i, n in enumerate(lengths) for k in range(count)]
