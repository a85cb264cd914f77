"""Score a forecaster on a task set: per task, per source and overall, raw and relative to Seasonal Naive."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from toto_train.evaluation.baselines import LEVELS
from toto_train.evaluation.lines import without_nan
from toto_train.evaluation.metrics import (
    BANDS,
    METRICS,
    Interval,
    Member,
    Sums,
    mean_over_sources,
    overall,
    relative,
    sharpness,
    window_sums,
)
from toto_train.evaluation.processes import share
from toto_train.evaluation.rows import Parts
from toto_train.evaluation.tasks import Forecaster, TaskSet, Window

RANKS = ("best", "median", "worst")


@dataclass(frozen=True)
class Example:
    """One variate of one scored window, kept for the report."""

    task: str
    item_id: str
    variate: str
    interval: float
    rank: str
    """best, median or worst of its task by weighted quantile loss."""
    loss: float
    """Weighted quantile loss of the window."""
    context: np.ndarray
    """[C], NaN = missing."""
    label: np.ndarray
    """[H]."""
    quantiles: np.ndarray
    """[9, H]."""


@dataclass
class Scores:
    """Sums of every window for the model and for Seasonal Naive, and what follows from them."""

    table: pd.DataFrame
    """What each of the W windows is: `TaskSet.table()`."""
    model: Sums
    baseline: Sums
    seconds: np.ndarray
    """[W] time of forecasting, that of a batch spread over its windows."""
    draws: int = 1000
    seed: int = 0
    examples: list[Example] = field(default_factory=list)
    leave_out: Mapping[str, Collection[str]] = field(default_factory=dict)
    """Metric -> tasks that the overall score leaves out: another forecaster beside this one has no ratio there."""

    def __post_init__(self) -> None:
        scored = self.model.points > 0  # a window without any observed label says nothing
        series = self.table["series"].to_numpy()
        self.members: dict[str, Member] = {}
        for name, found in self.table.groupby("task", sort=False).indices.items():
            if len(windows := found[scored[found]]):
                first = self.table.iloc[windows[0]]
                stratum = f"{first['source']}/{first['frequency']}"
                self.members[str(name)] = Member(first["source"], stratum, windows, series[windows])
        self.overall: dict[str, Interval] = {
            metric: overall(
                metric, self.model, self.baseline, self.members, self.draws, self.seed,
                leave_out=self.leave_out.get(metric, ()),
            )
            for metric in METRICS
        }  # fmt: skip

    @property
    def windows(self) -> int:
        """Windows with at least one observed label."""
        return sum(len(member.windows) for member in self.members.values())

    @property
    def series_count(self) -> int:
        return self.table.loc[self.model.points > 0].groupby(["source", "series"]).ngroups

    @property
    def seconds_per_series(self) -> float:
        """Mean time to forecast one window of one variate."""
        return self._seconds_per_series(np.arange(len(self.table)))

    def _seconds_per_series(self, windows: np.ndarray) -> float:
        return float(self.seconds[windows].sum() / max(self.table["variates"].to_numpy()[windows].sum(), 1))

    @property
    def compared(self) -> dict[str, Member]:
        """Tasks without those that the overall score leaves out: on a constant every quantile is hit, which says
        nothing."""
        return {name: m for name, m in self.members.items() if name not in self.overall["mwql"].excluded}

    def coverage(self) -> np.ndarray:
        """Mean over the compared tasks of the share of points at or below each quantile, [9]."""
        kept = [self.model.coverage(m.windows) for m in self.compared.values()]
        return np.mean(kept or [np.full(len(LEVELS), np.nan)], axis=0)

    def tasks(self) -> dict[str, dict[str, Any]]:
        """One row a task with scored windows: what it is, counts, raw, baseline and relative scores, coverage."""
        return self._tasks

    @cached_property
    def _tasks(self) -> dict[str, dict[str, Any]]:
        rows = {}
        for name, member in self.members.items():
            windows, first = member.windows, self.table.iloc[member.windows[0]]
            model = {m: getattr(self.model, m)(windows) for m in METRICS}
            naive = {m: getattr(self.baseline, m)(windows) for m in METRICS}
            rows[name] = {
                **{key: first[key] for key in ("source", "domain", "frequency", "term")},
                "horizon": int(first["horizon"]),
                "windows": len(windows),
                "series": len(np.unique(member.series)),
                "points": int(self.model.points[windows].sum()),
                **model,
                "seasonal_naive": naive,
                "relative": {m: relative(model[m], naive[m]) for m in METRICS},
                "coverage": self.model.coverage(windows).tolist(),
                "width": sharpness(self.model, self.baseline, windows).tolist(),
                "seconds_per_series": self._seconds_per_series(windows),
            }
        return rows

    def by(self, column: str) -> dict[str, dict[str, Any]]:
        """Tasks grouped by source, domain, frequency or term: counts, and relative scores averaged as overall."""
        groups: dict[str, list[str]] = {}
        rows = self.tasks()
        for task, row in rows.items():
            groups.setdefault(row[column], []).append(task)
        return {
            name: {
                "tasks": len(tasks),
                "windows": sum(rows[task]["windows"] for task in tasks),
                "seconds_per_series": self._seconds_per_series(
                    np.concatenate([self.members[task].windows for task in tasks])
                ),
                "relative": {m: self._mean(m, {task: rows[task] for task in tasks}) for m in METRICS},
            }
            for name, tasks in groups.items()
        }

    def _mean(self, metric: str, rows: dict[str, dict[str, Any]]) -> float:
        ratios: dict[str, list[float]] = {}
        for task, row in rows.items():
            if task not in self.overall[metric].excluded:
                ratios.setdefault(row["source"], []).append(row["relative"][metric])
        return float(mean_over_sources(ratios))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; a score that does not exist is None."""
        total = {
            "tasks": len(self.members),
            "sources": len({member.source for member in self.members.values()}),
            "series": self.series_count,
            "windows": self.windows,
            "windows_without_label": len(self.table) - self.windows,
            "seconds_per_series": self.seconds_per_series,
            "levels": LEVELS.tolist(),
            "coverage": self.coverage().tolist(),
            "bands": list(BANDS),
            "relative": {
                m: {"value": o.value, "low": o.low, "high": o.high, "confidence": 0.95, "excluded": list(o.excluded)}
                for m, o in self.overall.items()
            },
        }
        groups = {f"by_{column}": self.by(column) for column in ("domain", "frequency", "term")}
        return without_nan({"overall": total, "sources": self.by("source"), **groups, "tasks": self.tasks()})


def evaluate(
    forecaster: Forecaster,
    tasks: TaskSet,
    *,
    baseline: Sums | None = None,
    examples: int = 0,
    max_points: int = 2**20,
    draws: int = 1000,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
    parts: Path | None = None,
    rank: int = 0,
    world: int = 1,
    gather: Callable[[np.ndarray], np.ndarray] | None = None,
    processes: int = 1,
    forecasters: Callable[[int], Forecaster] | None = None,
) -> Scores:
    """Forecast and score every window of `tasks`.

    baseline: sums of Seasonal Naive (`Scores.baseline` of an earlier call on the same tasks), so that it is computed
    once. examples: number of tasks (evenly spaced) whose best, median and worst forecasts are kept.
    max_points: values of context and label in one call of the forecaster. draws, seed: bootstrap over series.
    progress: called with the number of windows done so far. parts: folder that keeps what is scored until all is; the
    same call again goes on from there. rank, world, gather: this process scores every world-th window of each batch, so
    that all processes make the same number of calls, and gather(array) returns the sum over processes.
    processes: others to start, which share the batches; forecasters(rank), which can be pickled, is called in each.
    """
    count = len(tasks)
    model, naive = Sums.zeros(count), Sums.zeros(count) if baseline is None else baseline
    seconds = np.zeros(count)
    arrays = vars(model) | {"seconds": seconds}
    if baseline is None:
        arrays |= {f"naive_{name}": array for name, array in vars(naive).items()}
    filled = Parts(arrays, parts)
    try:
        todo = []
        for whole in tasks.batches(max_points):
            mine = whole[rank::world]
            if not len(mine):
                todo.append((whole[:1], False))  # nothing of a small batch: forecast to keep step, do not count
            elif not filled.done[mine].all():
                todo.append((mine, True))
        scorer = partial(_scorer, forecasters or (lambda _: forecaster), tasks, baseline is None)
        for (indices, counts), values in share(scorer, todo, processes):
            if counts:
                filled.put(indices, values)
            if progress:
                progress(int(filled.done.sum()))
    finally:
        filled.flush()
    if gather is not None:
        for array in arrays.values():
            array[:] = gather(array)
    scores = Scores(tasks.table(), model, naive, seconds, draws, seed)
    scores.examples = draw_examples(forecaster, tasks, scores, examples)
    return scores


def _scorer(
    forecasters: Callable[[int], Forecaster], tasks: TaskSet, naive: bool, rank: int
) -> Callable[[tuple[np.ndarray, bool]], dict[str, np.ndarray | float]]:
    return partial(_batch_sums, forecasters(rank), tasks, naive)


def _batch_sums(
    forecaster: Forecaster, tasks: TaskSet, naive: bool, item: tuple[np.ndarray, bool]
) -> dict[str, np.ndarray | float]:
    """What `evaluate` keeps of a batch."""
    indices, _ = item
    batch = tasks.read(indices, naive=naive)
    begin = time.perf_counter()
    quantiles = checked(forecaster, batch.contexts, batch.horizon)
    spent = (time.perf_counter() - begin) / len(indices)
    finite = np.isfinite(quantiles).all((1, 2, 3))
    if not finite.all():
        bad = tasks.window(int(indices[np.argmin(finite)]))
        raise ValueError(f"the forecast for {bad.task.name}, {bad.item_id} from step {bad.start} is not finite")
    values = vars(window_sums(quantiles, batch.labels, batch.seasonal_error)) | {"seconds": spent}
    if batch.naive is not None:
        sums = window_sums(batch.naive, batch.labels, batch.seasonal_error)
        values |= {f"naive_{name}": array for name, array in vars(sums).items()}
    return values


def checked(forecaster: Forecaster, contexts: np.ndarray, horizon: int) -> np.ndarray:
    """Quantiles [N, 9, V, H], their shape checked."""
    quantiles = np.asarray(forecaster(contexts, horizon))
    expected = (len(contexts), len(LEVELS), contexts.shape[1], horizon)
    if quantiles.shape != expected:
        raise ValueError(f"the forecaster returned shape {quantiles.shape}, expected [N, 9, V, H] = {expected}")
    return quantiles


def draw_examples(forecaster: Forecaster, tasks: TaskSet, scores: Scores, count: int) -> list[Example]:
    """Best, median and worst window of `count` tasks, forecast once more: keeping all forecasts would not fit."""
    names = [n for n in scores.members if n not in scores.overall["mwql"].excluded] or list(scores.members)
    picks = np.unique(np.linspace(0, len(names) - 1, min(count, len(names))).round().astype(int))
    found = []
    for name in (names[k] for k in picks):
        windows = scores.members[name].windows
        loss = scores.model.quantile_loss[windows].mean(1)
        weight = scores.model.absolute[windows]
        windows, loss = windows[weight > 0], loss[weight > 0] / weight[weight > 0]
        for rank, at in ranked(loss).items():
            found.append(_example(forecaster, tasks.window(int(windows[at])), rank, float(loss[at])))
    return found


def ranked(loss: np.ndarray) -> dict[str, int]:
    """Where the best, the median and the worst loss stand; fewer of them where two are the same, none of no losses."""
    order = np.argsort(loss, kind="stable")
    places = zip(RANKS, (0, (len(order) - 1) // 2, len(order) - 1), strict=True) if len(order) else ()
    return {rank: int(order[place]) for rank, place in places if place or rank == "best"}


def _example(forecaster: Forecaster, w: Window, rank: str, loss: float) -> Example:
    """Forecast one window and keep the variate that stands in the middle of those that move."""
    variates, horizon = w.label.shape
    contexts = np.full((1, variates, -(-w.context.shape[1] // 32) * 32), np.nan, np.float32)
    contexts[0, :, contexts.shape[2] - w.context.shape[1] :] = w.context
    quantiles = checked(forecaster, contexts, horizon)[0].swapaxes(0, 1)
    sums = window_sums(quantiles[:, :, None], w.label[:, None], w.seasonal_error[:, None])
    moving = np.array([len(np.unique(y[np.isfinite(y)])) > 1 for y in w.label])
    order = np.argsort(sums.quantile_loss.mean(1) / np.maximum(sums.absolute, 1e-12), kind="stable")
    order = order[moving[order]] if moving.any() else order[sums.points[order] > 0]
    v = int(order[(len(order) - 1) // 2])
    return Example(
        task=w.task.name,
        item_id=w.item_id,
        variate=w.variate_names[v],
        interval=w.task.interval,
        rank=rank,
        loss=loss,
        context=np.array(w.context[v]),
        label=np.array(w.label[v]),
        quantiles=quantiles[v],
    )
