"""GIFT-Eval, BOOM and BOOMLET: windows and all eleven metrics equal gluonts' on the same saved datasets."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import math
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from toto_train.config import ModelConfig
from toto_train.evaluation.leaderboards import boom, folders, gift_eval, job
from toto_train.evaluation.leaderboards.benchmarks import Configuration, Options
from toto_train.evaluation.leaderboards.gift_eval import GIFT_EVAL
from toto_train.evaluation.leaderboards.measures import COLUMNS, pooled
from toto_train.evaluation.leaderboards.windows import Cut, Windows, score, side_by_side
from toto_train.evaluation.tasks import Task
from toto_train.forecast import Forecaster
from toto_train.model.toto import Toto
from toto_train.predictor import create_predictor

from .saved_datasets import SHARED, save, seasonal, shared_series

LEVELS = [f"{k / 10:g}" for k in range(1, 10)]


def guess(contexts: np.ndarray, horizon: int) -> np.ndarray:
    """A forecast that depends on nothing but the last 40 steps: mean and spread of what is known there."""
    recent = contexts[..., -40:].astype(np.float64)
    mean, spread = np.nan_to_num(np.nanmean(recent, -1)), np.nan_to_num(np.nanstd(recent, -1))
    steps = mean[..., None] + 0.01 * np.arange(horizon)
    return np.stack([steps + (k - 4) / 4 * spread[..., None] for k in range(9)], 1).astype(np.float32)


def by_gluonts(path: Path, name: str, horizon: int, count: int, season: int) -> tuple[int, dict[str, float]]:
    """Windows and metrics as GIFT-Eval's own loader and notebooks take them from gluonts."""
    import datasets
    from gluonts.dataset.split import split
    from gluonts.ev.metrics import MAE, MAPE, MASE, MSE, MSIS, ND, NRMSE, RMSE, SMAPE, MeanWeightedSumQuantileLoss
    from gluonts.model.evaluation import evaluate_forecasts
    from gluonts.model.forecast import QuantileForecast

    logging.getLogger("gluonts").setLevel(logging.ERROR)
    clock = pd.Period("2024-01-01", "h")
    data = datasets.load_from_disk(str(path / name)).with_format("numpy")
    entries = [{"start": clock, "item_id": row["item_id"], "target": row["target"]} for row in data]
    template = split(entries, offset=-horizon * count)[1]
    pairs = template.generate_instances(prediction_length=horizon, windows=count, distance=horizon)
    made = []
    for past, label in pairs:
        q = guess(np.atleast_2d(past["target"])[None], horizon)[0]
        array = q[:, 0] if past["target"].ndim == 1 else q.swapaxes(1, 2)
        made.append(QuantileForecast(array.astype(np.float64), label["start"], LEVELS))
    metrics = [MSE(forecast_type="mean"), MSE(forecast_type=0.5), MAE(), MASE(), MAPE(), SMAPE(), MSIS(), RMSE(),
               NRMSE(), ND(), MeanWeightedSumQuantileLoss([k / 10 for k in range(1, 10)])]  # fmt: skip
    found = evaluate_forecasts(made, test_data=pairs, metrics=metrics, seasonality=season, batch_size=1)
    return len(made), {name: float(found[name].iloc[0]) for name in COLUMNS}


CASES = [
    ("electricity/H", "H", "short", [1000, 2500], 0, 24),
    ("electricity/H", "H", "medium", [9000, 9600], 0, 24),
    ("m4_monthly", "M", "short", [60, 90, 400], 0, 12),
    ("ett1/15T", "15T", "long", [8000], 3, 96),
    ("us_births/W", "W-SUN", "short", [700, 500], 0, 1),
    ("bizitobs_l2c/5T", "5T", "short", [2300, 2000], 4, 288),
]


@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:Degrees of freedom")
@pytest.mark.parametrize(("folder", "freq", "term", "lengths", "variates", "season"), CASES)
def test_scores_equal_gluonts_on_a_saved_dataset(tmp_path, folder, freq, term, lengths, variates, season):
    save(tmp_path / folder, seasonal(lengths, variates, max(season, 7)), freq)
    compare_with_gluonts(tmp_path, folder, term, season)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real series lie in ../shared/data, which is absent")
def test_scores_equal_gluonts_on_real_series(tmp_path):
    groups = shared_series("beijing_multisite_air.parquet", 2, "H", 4000)
    save(tmp_path / "electricity/H", groups, "H")
    compare_with_gluonts(tmp_path, "electricity/H", "short", 24)
    save(tmp_path / "m4_monthly", [g[0] for g in shared_series("m1_competition.parquet", 20, "M")], "M")
    compare_with_gluonts(tmp_path, "m4_monthly", "short", 12)


def compare_with_gluonts(path: Path, folder: str, term: str, season: int) -> None:
    (configuration,) = [c for c in gift_eval.configurations(path) if c.folder == folder and c.term == term]
    windows = gift_eval.windows(configuration, Options(path), 4096)
    horizon = int(windows.windows["horizon"][0])
    shortest = int(windows.store.index(folder)["length"].min())
    count = 1 if "m4" in folder else min(max(1, math.ceil(0.1 * shortest / horizon)), 20)
    assert int(windows.windows["season"][0]) == season
    rows = score(guess, windows)
    expected_windows, expected = by_gluonts(path, folder, horizon, count, season)
    assert rows.windows == expected_windows
    found = pooled(rows, rows.model)
    for name in COLUMNS:
        assert found[name] == pytest.approx(expected[name], rel=2e-6), name


def test_a_models_scores_are_those_of_gluonts_with_its_predictor(tmp_path):
    """As GIFT-Eval's and BOOM's notebooks run the official package, context and all."""
    import datasets
    from gluonts.dataset.split import split
    from gluonts.ev.metrics import MASE, MSIS, MeanWeightedSumQuantileLoss
    from gluonts.model import evaluate_model

    logging.getLogger("gluonts").setLevel(logging.ERROR)
    save(tmp_path / "ett1/H", seasonal([2600, 1500], 3, 24), "H")
    model = Toto.create(ModelConfig(d_model=32, num_layers=2, num_heads=2, d_ff=64), seed=0)
    for c in gift_eval.configurations(tmp_path):
        windows = gift_eval.windows(c, Options(tmp_path), 4096)
        horizon, count = int(windows.windows["horizon"][0]), len(windows) // 2
        found = job.scored(dataclasses.replace(GIFT_EVAL, context=1024), c, Options(tmp_path), Forecaster(model))
        clock = pd.Period("2024-01-01", "h")
        data = datasets.load_from_disk(str(tmp_path / "ett1/H")).with_format("numpy")
        entries = [{"start": clock, "target": row["target"]} for row in data]
        pairs = split(entries, offset=-horizon * count)[1].generate_instances(horizon, windows=count, distance=horizon)
        metrics = [MASE(), MSIS(), MeanWeightedSumQuantileLoss([k / 10 for k in range(1, 10)])]
        expected = evaluate_model(
            create_predictor(model, horizon, 1024, target_dim=3), test_data=pairs, metrics=metrics, seasonality=24
        )
        for name in expected:
            assert found["model"][name] == pytest.approx(float(expected[name].iloc[0]), rel=2e-6), (c.name, name)


def test_the_97_configurations_have_the_leaderboards_names():
    table = gift_eval.table()
    names = {c.name for c in table}
    assert len(table) == len(names) == 97
    assert len({c.folder for c in table}) == 55
    assert {"m4_yearly/A/short", "saugeen/D/short", "loop_seattle/5T/long", "kdd_cup_2018/H/medium",
            "temperature_rain/D/short", "hospital/M/short", "bizitobs_service/10S/long"} < names  # fmt: skip
    assert {c.num_variates for c in table if c.name.startswith("jena")} == {21}


@pytest.mark.parametrize(
    ("folder", "freq", "term", "horizon"),
    [
        ("bizitobs_application", "10S", "short", 60),
        ("bizitobs_application", "10s", "medium", 600),
        ("jena_weather/10T", "10T", "long", 720),
        ("jena_weather/H", "h", "short", 48),
        ("us_births/D", "D", "short", 30),
        ("hierarchical_sales/W", "W-WED", "short", 8),
        ("hospital", "ME", "short", 12),
        ("m4_yearly", "A-DEC", "short", 6),
        ("m4_yearly", "YE-DEC", "short", 6),
        ("m4_quarterly", "Q-DEC", "short", 8),
        ("m4_monthly", "M", "short", 18),
        ("m4_weekly", "W-SUN", "short", 13),
        ("m4_daily", "D", "short", 14),
        ("m4_hourly", "H", "short", 48),
    ],
)
def test_horizons(folder, freq, term, horizon):
    assert gift_eval.horizon_of(folder, freq, term) == horizon


def test_a_frequency_without_a_horizon_is_named():
    with pytest.raises(ValueError, match="no horizon for freq='Q-DEC'"):
        gift_eval.horizon_of("hospital", "Q-DEC", "short")
    with pytest.raises(ValueError, match="freq='2X' is no frequency"):
        gift_eval.horizon_of("hospital", "2X", "short")


@pytest.mark.parametrize(
    "freq", ["S", "s", "10S", "T", "5T", "10T", "15min", "30T", "H", "6h", "7T", "D", "B", "W", "W-WED", "M", "MS",
             "ME", "Q", "QE-DEC", "A", "YE-DEC"],
)  # fmt: skip
def test_seasons_are_gluonts(freq, caplog):
    from gluonts.time_feature import get_seasonality

    caplog.set_level(logging.ERROR)
    modern = {"S": "s", "T": "min", "H": "h", "M": "ME", "Q": "QE", "A": "YE"}
    count = "".join(itertools.takewhile(str.isdigit, freq))
    base, dash, rest = freq[len(count) :].partition("-")
    assert folders.season_of_freq(freq) == get_seasonality(count + modern.get(base, base) + dash + rest)


@pytest.mark.parametrize(("shortest", "horizon", "count"), [(100, 48, 1), (481, 48, 2), (9600, 48, 20), (30, 48, 1)])
def test_window_counts(shortest, horizon, count):
    assert gift_eval.window_count("electricity/H", shortest, horizon) == count
    assert gift_eval.window_count("m4_hourly", shortest, horizon) == 1


def test_features_of_the_past_go_in_as_variates_and_are_not_scored(tmp_path):
    targets = seasonal([1500], 2, 24)
    features = [np.cumsum(np.ones((3, 1500), np.float32), 1).tolist()]
    save(tmp_path / "ett1/H", targets, "H", past_feat_dynamic_real=features)
    windows = gift_eval.windows(Configuration("ett1/H/short", "ett1/H"), Options(tmp_path), 96)
    seen = []

    def forecaster(contexts, horizon):
        seen.append(contexts)
        return guess(contexts, horizon)

    rows = score(forecaster, windows, max_points=1)
    assert len(rows.variate) == 2 * len(windows) == 8
    for contexts, start in zip(seen, windows.windows["start"], strict=True):
        assert contexts.shape == (1, 5, 96)
        np.testing.assert_array_equal(contexts[0, 2], np.arange(start - 95, start + 1))


def test_each_variate_alone(tmp_path):
    save(tmp_path / "ett1/H", seasonal([1500, 1300], 3, 24), "H")
    configuration = Configuration("ett1/H/short", "ett1/H")
    kept = score(guess, gift_eval.windows(configuration, Options(tmp_path), 4096))
    split = score(guess, gift_eval.windows(configuration, Options(tmp_path, split=True), 4096))
    assert split.windows == 3 * kept.windows
    assert pooled(split, split.model) == pytest.approx(pooled(kept, kept.model), rel=1e-12)  # guess() sees no group


class Mixed:
    """A store in memory of series of any width and length; of an hour's interval."""

    def __init__(self, shapes: list[tuple[int, int]]):
        random = np.random.default_rng(0)
        self.arrays = [random.normal(3, 1, shape).astype(np.float32) for shape in shapes]
        self.rows = np.array([shape[::-1] for shape in shapes], [("length", "i8"), ("variates", "i8")])

    def index(self, source: str) -> np.ndarray:
        return self.rows

    def values(self, source: str, i: int) -> np.ndarray:
        return self.arrays[i]

    def past_features(self, i: int) -> np.ndarray:
        return np.empty((0, self.arrays[i].shape[1]), np.float32)


def cut_from(store: Mixed, horizon: int, count: int, context: int) -> Windows:
    starts = side_by_side(store.rows["length"].tolist(), count * horizon, horizon, count)
    return Windows(store, Task("mixed", 3600.0, "short", ""), Cut("mixed", horizon, 24, starts, context))


def test_batches_are_full_and_hold_no_padding_to_speak_of():
    random = np.random.default_rng(0)
    lengths = np.exp(random.uniform(np.log(300), np.log(5000), 120)).astype(int)
    widths = random.choice([1, 1, 1, 4, 16], 120)
    windows = cut_from(Mixed(list(zip(widths.tolist(), lengths.tolist(), strict=True))), 24, 3, 2048)
    calls = []

    def forecaster(contexts: np.ndarray, horizon: int) -> np.ndarray:
        calls.append(contexts.shape)
        return guess(contexts, horizon)

    most = 2**17
    rows = score(forecaster, windows, most)
    assert len(rows.variate) == windows.windows["variates"].sum()
    assert all(n == 1 or n * v * (c + 24) <= most for n, v, c in calls)
    real = (windows.windows["variates"] * windows.windows["context"]).sum()
    assert sum(n * v * c for n, v, c in calls) <= 1.1 * real
    # no call could take in the next one of its shape: as few as there can be
    shapes = [shape[1:] for shape in calls]
    for shape in set(shapes):
        each = shape[0] * (shape[1] + 24)
        total = sum(call[0] for call in calls if call[1:] == shape)
        assert shapes.count(shape) == -(-total // max(1, most // each))


def test_memory_is_bounded_on_a_wide_item():
    """One window is held, its context, label and two sets of quantiles, whatever the number of windows and steps; of
    each row nothing stays but its sums, some 80 numbers."""
    context, horizon = 2048, 48
    window = 112 * (context + horizon + 2 * 9 * horizon) * 4
    held = []
    for length, count in ((5_000, 2), (40_000, 10)):
        windows = cut_from(Mixed([(112, length)]), horizon, count, context)
        tracemalloc.start()
        score(guess, windows, 2**16)  # less than one window: one at a time
        held.append(tracemalloc.get_traced_memory()[1] - 112 * count * 80 * 8)
        tracemalloc.stop()
    assert max(held) < 4 * window, held
    assert held[1] < 1.1 * held[0], held


def test_a_limit_takes_the_same_windows_every_time(tmp_path):
    save(tmp_path / "electricity/H", seasonal([2500] * 5, 0, 24), "H")
    configuration = Configuration("electricity/H/short", "electricity/H")
    chosen = [gift_eval.windows(configuration, Options(tmp_path, limit=4), 4096).windows for _ in range(2)]
    assert len(chosen[0]) == 4
    np.testing.assert_array_equal(*chosen)


def test_boom_follows_its_properties(tmp_path):
    save(tmp_path / "ds-7-10S", seasonal([20_000], 3, 360), "10S")
    save(tmp_path / "ds-8-D", seasonal([400], 2, 7), "D")
    facts = {"domain": ["Database"], "frequency": "Short", "num_variates": 3, "term": "long", "type": "gauge"}
    with pytest.raises(ValueError, match=r"boom_properties\.json is missing"):
        boom.configurations(tmp_path)
    short = facts | {"term": "short", "frequency": "Long"}
    (tmp_path / boom.PROPERTIES).write_text(json.dumps({"ds-7-10S": facts, "ds-8-D": short, "ds-9-T": facts}))
    found = boom.configurations(tmp_path)
    assert [c.name for c in found] == [
        "ds-7-10S/Short/short", "ds-7-10S/Short/medium", "ds-7-10S/Short/long", "ds-8-D/Long/short",
    ]  # fmt: skip
    horizons = [int(gift_eval.windows(c, Options(tmp_path), 2048).windows["horizon"][0]) for c in found]
    assert horizons == [60, 600, 900, 30]
    assert found[0].domain == "['Database']"
    (tmp_path / boom.PROPERTIES).write_text('{"ds-7-10S": {}}')
    with pytest.raises(ValueError, match="cannot be read"):
        boom.configurations(tmp_path)


def test_boomlet_needs_no_file():
    table = boom.boomlet_table()
    assert len(table) == 96
    assert len({c.folder for c in table}) == 32
    by_name = {c.name: c for c in table}
    assert by_name["ds-496-10S/Short/long"].domain == "['Networking', 'Application Usage']"
    assert by_name["ds-1676-30T/Short/short"].num_variates == 100
    assert "ds-2187-H/Medium/short" in by_name
    assert {"ds-1520-10S", "ds-1564-10S"} < boom.LOW_VARIANCE
    assert len(boom.LOW_VARIANCE) == 80


def test_wrong_folders_are_named(tmp_path):
    for load in (gift_eval.configurations, boom.boomlet_configurations):
        with pytest.raises(ValueError, match="holds no dataset of"):
            load(tmp_path)
    (tmp_path / "hospital").mkdir()
    (tmp_path / "hospital" / "state.json").write_text("{}")
    with pytest.raises(ValueError, match="hospital cannot be read as a saved dataset"):
        folders.Folder(tmp_path, "hospital")
    import datasets

    datasets.Dataset.from_dict({"value": [1]}).save_to_disk(str(tmp_path / "restaurant"))
    with pytest.raises(ValueError, match="restaurant is no dataset with the columns target and freq"):
        folders.Folder(tmp_path, "restaurant")


def test_without_datasets_the_extra_is_named(tmp_path, monkeypatch):
    save(tmp_path / "hospital", seasonal([84], 0, 12), "M")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'toto-train\[eval\]'"):
        folders.Folder(tmp_path, "hospital")


def test_a_series_without_history_is_named(tmp_path):
    save(tmp_path / "electricity/H", seasonal([2000, 48], 0, 24), "H")
    with pytest.raises(ValueError, match="series 1 has 48 steps, none of them before its first window"):
        gift_eval.windows(Configuration("electricity/H/short", "electricity/H"), Options(tmp_path), 4096)
