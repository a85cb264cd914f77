"""Single forecasts that a report shows: the best, the median and the worst window of some tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from toto_train.evaluation.baselines import LEVELS
from toto_train.evaluation.metrics import Member, Sums, window_sums
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


def checked(forecaster: Forecaster, contexts: np.ndarray, horizon: int) -> np.ndarray:
    """Quantiles [N, 9, V, H], their shape checked."""
    quantiles = np.asarray(forecaster(contexts, horizon))
    expected = (len(contexts), len(LEVELS), contexts.shape[1], horizon)
    if quantiles.shape != expected:
        raise ValueError(f"the forecaster returned shape {quantiles.shape}, expected [N, 9, V, H] = {expected}")
    return quantiles


def examples_of(
    forecaster: Forecaster, tasks: TaskSet, sums: Sums, members: Mapping[str, Member], count: int
) -> list[Example]:
    """Best, median and worst window of `count` of those tasks, evenly spaced, forecast once more: keeping all forecasts
    would not fit."""
    names = list(members)
    picks = np.unique(np.linspace(0, len(names) - 1, min(count, len(names))).round().astype(int))
    found = []
    for name in (names[k] for k in picks):
        windows = members[name].windows
        loss = sums.quantile_loss[windows].mean(1)
        weight = sums.absolute[windows]
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
