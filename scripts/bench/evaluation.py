"""Evaluation: speed of the metrics, memory of long wide items, padding of batches, cost around the model, leaderboards.

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
from toto_train.evaluation.leaderboards import gift_eval
from toto_train.evaluation.leaderboards.benchmarks import Options
from toto_train.evaluation.leaderboards.measures import pooled
from toto_train.evaluation.leaderboards.windows import Rows, score
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


def leaderboard(variates: int, series: int, length: int = 4_000) -> list[Row]:
    """A dataset of GIFT-Eval as it lies on disk, from its files to the eleven metrics, on forecasts that cost nothing;
    and what scoring adds to the forecasts of the smallest model.

    gluonts runs as in GIFT-Eval's notebooks, on windows of one shape. Ours scores Seasonal Naive in the same time,
    hence targets of half of what the metrics alone have.
    """
    what = f"leaderboard, {variates} variate{'s' * (variates > 1)}"
    row: Any = {"unit": "series/CPU s", "target": ">= 5" if variates == 1 else ">= 2"}
    try:
        import datasets
    except ImportError:
        return [Row(what, 0.0, None, "datasets is missing: pip install -e '.[eval]'", **row)]
    datasets.disable_progress_bars()
    values = np.random.default_rng(0).normal(20, 1, (series, variates, length)).cumsum(2).astype(np.float32)
    rows = {"item_id": [f"i{k}" for k in range(series)], "freq": ["H"] * series}
    rows["target"] = [v[0].tolist() if variates == 1 else v.tolist() for v in values]
    with tempfile.TemporaryDirectory() as folder:
        path, name = Path(folder), "electricity/H" if variates == 1 else "ett1/H"
        datasets.Dataset.from_dict(rows).save_to_disk(str(path / name))
        (c,) = [c for c in gift_eval.configurations(path) if c.term == "short"]

        def ours() -> Rows:
            return score(steps, gift_eval.windows(c, Options(path), 4096))

        count = len(ours().window)
        found = pooled(ours(), ours().model)
        speed = count / fastest(ours)
        model = Forecaster(Toto.create(ModelConfig(), seed=0))
        tasks = gift_eval.windows(c, Options(path, limit=200), 4096)
        score(model, tasks)  # the first pass of torch is slow
        begin = time.perf_counter()
        spent = score(model, tasks).seconds
        others = time.perf_counter() - begin - spent
        each = 1e3 / len(tasks) / variates
        around = Row(
            f"{what}: around the model", others * each, spent * each, "forecasts of nano", "ms/series", "<= 0.5"
        )
        try:
            peer = gluonts_metrics(path / name, int(tasks.windows["horizon"][0]), count // series // variates)
        except ImportError:
            return [Row(what, speed, None, "gluonts is missing: make bench-peers", **row), around]
        expected = peer()
        for metric, value in found.items():
            np.testing.assert_allclose(value, expected[metric], rtol=1e-5, err_msg=metric)
        return [Row(what, speed, count / fastest(peer), "gluonts evaluate_model", **row), around]


def steps(contexts: np.ndarray, horizon: int) -> np.ndarray:
    """Quantiles [N, 9, V, horizon] one apart around the last value: cost next to nothing."""
    middle = np.nan_to_num(contexts[:, None, :, -1:]) + np.arange(-4, 5, dtype=np.float32)[:, None, None]
    return np.repeat(middle, horizon, 3)


def gluonts_metrics(path: Path, horizon: int, windows: int) -> Callable[[], dict[str, float]]:
    """gluonts' evaluate_model on a saved dataset, from its files to GIFT-Eval's metrics; the forecasts are ready."""
    import datasets
    import pandas as pd
    from gluonts.dataset.split import split
    from gluonts.ev.metrics import MAE, MAPE, MASE, MSE, MSIS, ND, NRMSE, RMSE, SMAPE, MeanWeightedSumQuantileLoss
    from gluonts.model import evaluate_model
    from gluonts.model.forecast import QuantileForecast

    clock, keys = pd.Period("2024-01-01", "h"), [str(level) for level in LEVELS.tolist()]
    metrics = [MSE(forecast_type="mean"), MSE(forecast_type=0.5), MAE(), MASE(), MAPE(), SMAPE(), MSIS(), RMSE(),
               NRMSE(), ND(), MeanWeightedSumQuantileLoss(LEVELS.tolist())]  # fmt: skip

    def pairs() -> Any:
        data = datasets.load_from_disk(str(path)).with_format("numpy")
        entries = [{"start": clock, "target": row["target"]} for row in data]
        return split(entries, offset=-horizon * windows)[1].generate_instances(horizon, windows, horizon)

    ready = []
    for past, label in pairs():
        made = steps(np.atleast_2d(past["target"])[None], horizon)[0]
        ready.append(QuantileForecast(made[:, 0] if len(made[0]) == 1 else made.swapaxes(1, 2), label["start"], keys))

    class Ready:
        """A predictor that has its forecasts."""

        def predict(self, dataset: Any, **options: Any) -> Any:
            return (forecast for forecast, _ in zip(ready, dataset, strict=True))

    def run() -> dict[str, float]:
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
            found = evaluate_model(Ready(), test_data=pairs(), metrics=metrics, seasonality=SEASON)
        return {str(name): float(found[name].iloc[0]) for name in found}

    return run


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
        *leaderboard(1, 20 if quick else 370),
        *leaderboard(7, 8 if quick else 40),
    ]


if __name__ == "__main__":
    main(__doc__, measure)
