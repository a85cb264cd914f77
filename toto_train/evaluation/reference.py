"""The scores of a task set computed by gluonts: the reference for our own windows and metrics (`engine=gluonts`).

gluonts cuts the windows, parts label from past, takes the seasonal errors and pools MASE and
MeanWeightedSumQuantileLoss over every axis, called as GIFT-Eval calls it. Only the forecasts come from here: a group is
forecast jointly and scored as one [V, H] label.

Both leave out missing labels, and from MASE the points whose seasonal error is 0 or has no complete pair: gluonts
divides masked arrays, which masks a division by 0. Two cases differ on purpose:

- A past of exactly one season: gluonts finds no pair and leaves the points out of MASE, we take lag 1 as for any
  shorter past.
- Labels that are all 0: gluonts' weighted quantile loss is infinite, or NaN for a perfect forecast; ours is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd

from toto_train.evaluation.baselines import LEVELS
from toto_train.evaluation.tasks import Forecaster, TaskSet, code_of, frequency, horizon_of, window_count

_OFFSETS = {"ms": "ms", "s": "s", "min": "min", "h": "h", "d": "D", "w": "W", "mo": "ME", "q": "QE", "y": "YE"}


def gluonts_scores(
    forecaster: Forecaster, tasks: TaskSet, max_points: int = 2**20, progress: Callable[[int], None] | None = None
) -> dict[str, dict[str, float]]:
    """Task name -> {'mase', 'mwql'} over exactly the windows of `tasks`, NaN where a score does not exist.

    max_points: values of context and label in one call of the forecaster; beside that call's contexts and forecasts
    memory holds the copies that gluonts makes of one series. progress: called with the number of windows forecast so
    far. ValueError where gluonts is missing, where it cuts other windows than `tasks` holds, and on forecasts of a
    wrong shape or with NaN.
    """
    try:
        from gluonts.ev.metrics import MASE, MeanWeightedSumQuantileLoss
        from gluonts.model import evaluation
        from gluonts.time_feature import get_seasonality
    except ImportError as error:
        raise ValueError(f"engine=gluonts needs gluonts ({error}); pip install 'toto-train[eval]'") from error
    done = 0

    def forecast(contexts: np.ndarray, horizon: int) -> np.ndarray:
        nonlocal done
        quantiles = np.asarray(forecaster(contexts, horizon))
        expected = (len(contexts), len(LEVELS), contexts.shape[1], horizon)
        if quantiles.shape != expected:
            raise ValueError(f"the forecaster returned shape {quantiles.shape}, expected [N, 9, V, H] = {expected}")
        done += len(contexts)
        if progress:
            progress(done)
        return quantiles

    scores = {}
    silent = partial(evaluation.tqdm, disable=True)  # gluonts shows a bar for every call and has no switch for it
    for k, task in enumerate(tasks.tasks):
        pairs, (step, unit) = _pairs(tasks, k), frequency(task.interval)
        context = int(tasks.windows["context"][tasks.windows["task"] == k].max())
        with mock.patch.object(evaluation, "tqdm", silent), np.errstate(invalid="ignore", divide="ignore"):
            result = evaluation.evaluate_forecasts_raw(
                _forecasts(forecast, pairs, context, max_points),
                test_data=pairs,
                metrics=[MASE(), MeanWeightedSumQuantileLoss(LEVELS.tolist())],
                batch_size=1,  # entries of a batch must have one shape; the groups of a task need not
                seasonality=get_seasonality(f"{step}{_OFFSETS[unit]}"),
            )
        mase, mwql = result["MASE[0.5]"], result["mean_weighted_sum_quantile_loss"]
        scores[task.name] = {"mase": float(mase), "mwql": float(mwql)}
    return scores


@dataclass
class _Anew:
    """Starts anew for every reader; of pairs (past, label), `input` and `label` as gluonts asks for them."""

    start: Callable[[], Iterator[Any]]

    def __iter__(self) -> Iterator[Any]:
        return self.start()

    input = property(lambda self: (past for past, _ in self))
    label = property(lambda self: (label for _, label in self))


def _pairs(tasks: TaskSet, k: int) -> _Anew:
    """What gluonts cuts from the series of task k: (past, label) entries, those of them that `tasks` holds."""
    from gluonts.dataset.split import split

    task, store, config, rows = tasks.tasks[k], tasks.store, tasks.config, tasks.windows[tasks.windows["task"] == k]
    horizon, index = horizon_of(task.interval, task.term), store.index(task.source)
    same = np.array([code_of(float(interval)) == task.frequency for interval in index["interval"]])
    series = np.flatnonzero(same & (index["length"] >= 2 * horizon)).tolist()
    count = window_count(int(index["length"][series].min()), horizon, config.max_windows)

    def entries() -> Iterator[dict[str, Any]]:
        clock = pd.Period("2000-01-01", "h")  # gluonts wants one, no score depends on it
        for i in series:
            values = store.values(task.source, i)
            for v in range(len(values)) if config.groups == "split" else [-1]:
                yield {"start": clock, "item_id": (i, v), "target": values if v < 0 else values[v : v + 1]}

    def key(past: dict[str, Any], label: dict[str, Any]) -> tuple[int, ...]:
        return (*past["item_id"], past["target"].shape[1], label["target"].shape[1])

    template = split(_Anew(entries), offset=-horizon * count)[1]
    pairs = template.generate_instances(horizon, windows=count, distance=horizon)
    wanted, cut = rows[["series", "variate", "start", "horizon"]].tolist(), [key(*pair) for pair in pairs]
    chosen = set(wanted)
    same_windows = [window for window in cut if window in chosen]
    if same_windows != wanted or len(wanted) != min(len(cut), config.limit or len(cut)):
        raise ValueError(
            f"{task.name}: the task set holds {len(wanted)} windows (limit={config.limit}), gluonts cuts {len(cut)}, "
            f"{len(same_windows)} of them the same (order counts, too); the windows of the task set are wrong"
        )
    return _Anew(lambda: (pair for pair in pairs if key(*pair) in chosen))


def _forecasts(forecast: Forecaster, pairs: _Anew, context: int, max_points: int) -> Iterator[Any]:
    """A QuantileForecast for every pair, in order; neighbours of one shape are forecast together."""
    from gluonts.model.forecast import QuantileForecast

    def shape(pair: tuple[dict[str, Any], dict[str, Any]]) -> tuple[int, int, int]:
        variates, length = pair[0]["target"].shape
        return variates, -(-min(length, context) // 32) * 32, pair[1]["target"].shape[1]  # padded as TaskSet.read does

    for (variates, width, horizon), group in groupby(pairs, shape):
        while chunk := list(islice(group, max(1, max_points // (variates * (width + horizon))))):
            contexts = np.full((len(chunk), variates, width), np.nan, np.float32)
            for n, (past, _) in enumerate(chunk):
                recent = past["target"][:, -context:]
                contexts[n, :, width - recent.shape[1] :] = recent
            for q, (_, label) in zip(forecast(contexts, horizon), chunk, strict=True):
                yield QuantileForecast(q.swapaxes(1, 2), label["start"], [str(level) for level in LEVELS.tolist()])
