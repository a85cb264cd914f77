"""Score a forecaster on a task set, per source and overall, raw and relative to Seasonal Naive."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from toto_train.evaluation.baselines import LEVELS
from toto_train.evaluation.metrics import METRICS, Interval, Sums, geometric_mean, overall, relative, window_sums
from toto_train.evaluation.tasks import Forecaster, TaskSet, Window

RANKS = ("best", "median", "worst")


@dataclass(frozen=True)
class Example:
    """One variate of one scored window, kept for the report."""

    source: str
    item_id: str
    variate: str
    interval: float
    rank: str
    """best, median or worst of its source by weighted quantile loss."""
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

    sources: tuple[str, ...]
    facts: dict[str, dict[str, Any]]
    """Per source: domain and intervals."""
    source: np.ndarray
    """[W] number of each window's source."""
    series: np.ndarray
    """[W] position of its series in the source."""
    start: np.ndarray
    """[W] step at which its label begins."""
    model: Sums
    baseline: Sums
    draws: int = 1000
    seed: int = 0
    examples: list[Example] = field(default_factory=list)

    def __post_init__(self) -> None:
        scored = np.flatnonzero(self.model.points > 0)  # a window without any observed label says nothing
        self.members = {}
        for k, name in enumerate(self.sources):
            windows = scored[self.source[scored] == k]
            if len(windows):
                self.members[name] = windows, self.series[windows]
        self.overall: dict[str, Interval] = {
            metric: overall(metric, self.model, self.baseline, self.members, self.draws, self.seed)
            for metric in METRICS
        }

    @property
    def windows(self) -> int:
        """Windows with at least one observed label."""
        return sum(len(windows) for windows, _ in self.members.values())

    @property
    def series_count(self) -> int:
        return sum(len(np.unique(series)) for _, series in self.members.values())

    def coverage(self) -> np.ndarray:
        """Mean over sources of the share of points at or below each quantile, [9].

        Without the sources that the overall score leaves out: on a constant every quantile is hit, which says nothing.
        """
        kept = [self.model.coverage(w) for s, (w, _) in self.members.items() if s not in self.overall["mwql"].excluded]
        return np.mean(kept or [np.full(len(LEVELS), np.nan)], axis=0)

    def table(self) -> dict[str, dict[str, Any]]:
        """One row per source with scored windows: facts, counts, raw, baseline and relative scores, coverage."""
        rows = {}
        for name, (windows, series) in self.members.items():
            model = {m: getattr(self.model, m)(windows) for m in METRICS}
            naive = {m: getattr(self.baseline, m)(windows) for m in METRICS}
            rows[name] = {
                **self.facts.get(name, {}),
                "windows": len(windows),
                "series": len(np.unique(series)),
                "points": int(self.model.points[windows].sum()),
                **model,
                "seasonal_naive": naive,
                "relative": {m: relative(model[m], naive[m]) for m in METRICS},
                "coverage": self.model.coverage(windows).tolist(),
            }
        return rows

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; a score that does not exist is None. Overall raw scores are geometric means over sources."""
        rows = self.table()

        def mean(metric: str, pick: Callable[[dict[str, Any]], dict[str, Any]]) -> float:
            kept = [pick(row)[metric] for name, row in rows.items() if name not in self.overall[metric].excluded]
            return float(geometric_mean(np.array(kept, float)))

        total = {
            "sources": len(rows),
            "series": self.series_count,
            "windows": self.windows,
            "windows_without_label": len(self.source) - self.windows,
            "levels": LEVELS.tolist(),
            "coverage": self.coverage().tolist(),
            **{m: mean(m, lambda row: row) for m in METRICS},
            "seasonal_naive": {m: mean(m, lambda row: row["seasonal_naive"]) for m in METRICS},
            "relative": {
                m: {"value": o.value, "low": o.low, "high": o.high, "confidence": 0.95, "excluded": list(o.excluded)}
                for m, o in self.overall.items()
            },
        }
        return _without_nan({"overall": total, "sources": rows})


def evaluate(
    forecaster: Forecaster,
    tasks: TaskSet,
    *,
    baseline: Sums | None = None,
    examples: int = 0,
    max_points: int = 2**20,
    draws: int = 1000,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Forecast and score every window of `tasks`.

    baseline: `Scores.baseline` of an earlier call on the same tasks, so that Seasonal Naive is computed once.
    examples: number of sources (evenly spaced) whose best, median and worst forecasts are kept.
    max_points: values of context and label in one call of the forecaster.
    draws, seed: bootstrap over series.
    progress: called with (windows done, windows in all).
    """
    model = Sums.zeros(len(tasks))
    naive = Sums.zeros(len(tasks)) if baseline is None else baseline
    done = 0
    for batch in tasks.batches(max_points, naive=baseline is None):
        quantiles = _forecast(forecaster, batch.contexts, batch.horizon)
        finite = np.isfinite(quantiles).all((1, 2, 3))
        if not finite.all():
            bad = tasks.window(int(batch.indices[np.argmin(finite)]))
            raise ValueError(f"the forecast for {bad.source}/{bad.item_id} from step {bad.start} is not finite")
        model.put(batch.indices, window_sums(quantiles, batch.labels, batch.seasonal_error))
        if batch.naive is not None:
            naive.put(batch.indices, window_sums(batch.naive, batch.labels, batch.seasonal_error))
        done += len(batch.indices)
        if progress:
            progress(done, len(tasks))
    w = tasks.windows
    scores = Scores(
        sources=tasks.sources,
        facts={tasks.sources[k]: tasks.source_facts(tasks.sources[k]) for k in np.unique(w["source"])},
        source=w["source"],
        series=w["series"],
        start=w["start"],
        model=model,
        baseline=naive,
        draws=draws,
        seed=seed,
    )
    scores.examples = list(_examples(forecaster, tasks, scores, examples))
    return scores


def _forecast(forecaster: Forecaster, contexts: np.ndarray, horizon: int) -> np.ndarray:
    """Quantiles [N, 9, V, H], their shape checked."""
    quantiles = np.asarray(forecaster(contexts, horizon))
    expected = (len(contexts), len(LEVELS), contexts.shape[1], horizon)
    if quantiles.shape != expected:
        raise ValueError(f"the forecaster returned shape {quantiles.shape}, expected [N, 9, V, H] = {expected}")
    return quantiles


def _examples(forecaster: Forecaster, tasks: TaskSet, scores: Scores, sources: int) -> list[Example]:
    """Best, median and worst window of some sources, forecast once more: keeping all forecasts would not fit."""
    names = [n for n in scores.members if n not in scores.overall["mwql"].excluded] or list(scores.members)
    picks = np.unique(np.linspace(0, len(names) - 1, min(sources, len(names))).round().astype(int))
    found = []
    for name in (names[k] for k in picks):
        windows = scores.members[name][0]
        loss = scores.model.quantile_loss[windows].mean(1)
        weight = scores.model.absolute[windows]
        windows, loss = windows[weight > 0], loss[weight > 0] / weight[weight > 0]
        order = np.argsort(loss, kind="stable")
        places = dict(zip(RANKS, (0, (len(order) - 1) // 2, len(order) - 1), strict=True)) if len(order) else {}
        for rank, place in places.items():
            if place != places["best"] or rank == "best":
                i = order[place]
                found.append(_example(forecaster, tasks.window(int(windows[i])), rank, float(loss[i])))
    return found


def _example(forecaster: Forecaster, w: Window, rank: str, loss: float) -> Example:
    """Forecast one window and keep the variate that stands in the middle of those that move."""
    variates, horizon = w.label.shape
    contexts = np.full((1, variates, -(-w.context.shape[1] // 32) * 32), np.nan, np.float32)
    contexts[0, :, contexts.shape[2] - w.context.shape[1] :] = w.context
    quantiles = _forecast(forecaster, contexts, horizon)[0].swapaxes(0, 1)
    sums = window_sums(quantiles[:, :, None], w.label[:, None], w.seasonal_error[:, None])
    moving = np.array([len(np.unique(y[np.isfinite(y)])) > 1 for y in w.label])
    order = np.argsort(sums.quantile_loss.mean(1) / np.maximum(sums.absolute, 1e-12), kind="stable")
    order = order[moving[order]] if moving.any() else order[sums.points[order] > 0]
    v = int(order[(len(order) - 1) // 2])
    return Example(
        source=w.source,
        item_id=w.item_id,
        variate=w.variate_names[v],
        interval=w.interval,
        rank=rank,
        loss=loss,
        context=np.array(w.context[v]),
        label=np.array(w.label[v]),
        quantiles=quantiles[v],
    )


def _without_nan(value: Any) -> Any:
    """NaN and infinity are no JSON; None is."""
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
