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
from toto_train.evaluation.examples import Example, checked, examples_of
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
from toto_train.evaluation.tasks import Forecaster, TaskSet


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


def draw_examples(forecaster: Forecaster, tasks: TaskSet, scores: Scores, count: int) -> list[Example]:
    """Best, median and worst window of `count` tasks that the overall score counts; of all where it counts none."""
    return examples_of(forecaster, tasks, scores.model, scores.compared or scores.members, count)
