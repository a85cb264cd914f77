"""Evaluation: speed of the metrics, memory of long wide items, padding of batches, cost around the model.

python scripts/bench/evaluation.py [--quick] [--json FILE]
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from table import Row, main

from data_pipelines.assemble import write_shards
from data_pipelines.series import Series
from toto_train.config import ModelConfig, TasksConfig
from toto_train.evaluation.baselines import LEVELS, seasonal_scale
from toto_train.evaluation.metrics import window_sums
from toto_train.evaluation.score import evaluate
from toto_train.evaluation.tasks import TaskSet
from toto_train.forecast import Forecaster
from toto_train.model.toto import Toto

HOUR = 3_600.0
HORIZON, SEASON = 48, 24
"""Of hourly series."""


def metrics(variates: int, windows: int, past: int = 1024) -> Row:
    """Windows per second of CPU time from past, label and quantiles to pooled MASE and MWQL.

    gluonts runs in its default batches of 100. With one variate it is its work per window that costs; with many both
    are bound by numpy, hence the lower target.
    """
    random = np.random.default_rng(0)
    series = random.normal(size=(windows, variates, past + HORIZON)).cumsum(2).astype(np.float32)
    series[random.random(series.shape) < 0.1] = np.nan
    quantiles = np.sort(random.normal(size=(windows, 9, variates, HORIZON)), 1).astype(np.float32)

    def ours() -> tuple[float, float]:
        scale = np.stack([seasonal_scale(s[:, :past], SEASON)[0] for s in series])
        sums = window_sums(quantiles, series[:, :, past:], scale)
        return sums.mase(), sums.mwql()

    name = f"metrics, {variates} variate{'s' * (variates > 1)}"
    target = ">= 20" if variates == 1 else ">= 4"
    row: Any = {"name": name, "ours": windows / fastest(ours), "unit": "windows/CPU s", "target": target}
    try:
        import pandas as pd
        from gluonts.dataset.split import split
        from gluonts.ev.metrics import MASE, MeanWeightedSumQuantileLoss
        from gluonts.model.evaluation import evaluate_forecasts
        from gluonts.model.forecast import QuantileForecast
    except ImportError:
        return Row(**row, peer=None, peer_name="gluonts is missing: make bench-peers")
    start = pd.Period("2024-01-01", "h")
    data = [{"start": start, "target": s[0] if variates == 1 else s} for s in series]
    pairs = split(data, offset=-HORIZON)[1].generate_instances(HORIZON)
    keys = [str(level) for level in LEVELS.tolist()]
    forecasts = [QuantileForecast(q[:, 0] if variates == 1 else q.swapaxes(1, 2), start, keys) for q in quantiles]
    wanted = [MASE(), MeanWeightedSumQuantileLoss(LEVELS.tolist())]

    def peer() -> tuple[float, ...]:
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
            return tuple(evaluate_forecasts(forecasts, test_data=pairs, metrics=wanted, seasonality=SEASON).iloc[0])

    np.testing.assert_allclose(ours(), peer(), rtol=1e-5)
    return Row(**row, peer=windows / fastest(peer), peer_name="gluonts")


def memory(variates: int, length: int, context: int = 4096) -> list[Row]:
    """Memory that scoring one long wide item adds to a process.

    The limit is what must be held: one batch. Four of them allow for the next batch while the last is still there,
    Seasonal Naive's quantiles and float64 copies of one level.
    """
    with tempfile.TemporaryDirectory() as folder:
        values = np.random.default_rng(0).normal(size=(variates, length)).astype(np.float32)
        write_shards(Path(folder) / "set", [Series(values=values, interval=HOUR, source="wide", item_id="item")], {})
        few, many = (apart(str(Path(folder) / "set"), context, windows) for windows in (3, 30))
    what = f"memory, {variates} x {length:,}"
    mib = 2**20
    return [
        Row(what, few["grown"] / mib, few["batch"] / mib, "context + quantiles + label of one batch", "MiB", "<= 4"),
        Row(f"{what}, 30 windows", many["grown"] / mib, few["grown"] / mib, "3 windows", "MiB", "<= 1.1"),
    ]


def apart(path: str, context: int, windows: int) -> dict[str, int]:
    """`grow` in a process of its own, whose peak is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(grow, (path, context, windows))


def grow(path: str, context: int, windows: int) -> dict[str, int]:
    """Most bytes that Python and numpy hold at once while scoring; pages of mapped files belong to the system."""
    tasks = TaskSet.open(TasksConfig(path=path, context=context, max_windows=windows))
    width = int(tasks.windows["variates"][0])
    batch = max(map(len, tasks.batches())) * width * (context + 10 * HORIZON) * 4
    tracemalloc.start()
    evaluate(last_value, tasks, draws=0)
    return {"grown": tracemalloc.get_traced_memory()[1], "batch": batch}


def last_value(contexts: np.ndarray, horizon: int) -> np.ndarray:
    """Every quantile is the last value: costs next to nothing."""
    return np.broadcast_to(contexts[:, None, :, -1:], (len(contexts), 9, contexts.shape[1], horizon)).astype(np.float32)


class Memory:
    """A store in memory of hourly series; shapes: (variates, length) of each."""

    fingerprint, sources = "none", ("mixed",)

    def __init__(self, shapes: list[tuple[int, int]]):
        self.random = np.random.default_rng(0)
        rows = [(HOUR, length, variates) for variates, length in shapes]
        self.rows = np.array(rows, [("interval", "f8"), ("length", "i8"), ("variates", "i4")])
        self.arrays = [self.random.normal(3, 1, shape).astype(np.float32) for shape in shapes]

    def index(self, source: str) -> np.ndarray:
        return self.rows

    def values(self, source: str, i: int) -> np.ndarray:
        return self.arrays[i]

    def meta(self, source: str, i: int) -> dict[str, Any]:
        return {"item_id": str(i), "domain": "general"}


def padding(count: int) -> Row:
    """Padding that a forecaster reads for one value of the series, over items of very different length and width."""
    random = np.random.default_rng(0)
    lengths = np.exp(random.uniform(np.log(100), np.log(5000), count)).astype(int)
    widths = random.choice([1, 1, 1, 4, 16], count)
    tasks = TaskSet(Memory(list(zip(widths.tolist(), lengths.tolist(), strict=True))), TasksConfig(context=4096))
    w = tasks.windows
    real = (w["variates"] * w["context"]).sum()
    read = sum(tasks.read(indices).contexts.size for indices in tasks.batches())
    longest = len(w) * w["variates"].max() * w["context"].max()
    peer = "all padded to the longest and widest"
    return Row("padding of mixed items", read / real - 1, longest / real - 1, peer, "padded/real", "<= 0.1")


def around_the_model(series: int, windows: int) -> Row:
    """What evaluate() adds to the forecasts of the smallest model: reading, baseline, metrics and bootstrap."""
    store = Memory([(1, 5000)] * series)
    tasks = TaskSet(store, TasksConfig(max_windows=windows))
    model = Forecaster(Toto.create(ModelConfig(), seed=0))
    evaluate(model, TaskSet(store, TasksConfig(limit=32)), draws=0)  # the first pass of torch is slow
    begin = time.perf_counter()
    forecasts = evaluate(model, tasks).seconds.sum()
    others = time.perf_counter() - begin - forecasts
    per_window = 1e3 / len(tasks)
    name, peer = "evaluate() around the model", "forecasts of the nano model"
    return Row(name, others * per_window, forecasts * per_window, peer, "ms/window", "<= 0.2")


def fastest(run: Callable[[], object], times: int = 3) -> float:
    """CPU seconds of the fastest run: the others only had company."""
    seconds = []
    for _ in range(times):
        begin = time.process_time()
        run()
        seconds.append(time.process_time() - begin)
    return min(seconds)


def measure(quick: bool) -> list[Row]:
    return [
        metrics(1, 200 if quick else 5000),
        metrics(32, 50 if quick else 500),
        *memory(112, 200_000),
        padding(200 if quick else 2000),
        around_the_model(*(25, 20) if quick else (50, 20)),
    ]


if __name__ == "__main__":
    main(__doc__, measure)
