"""Windows follow GIFT-Eval's rules, and Seasonal Naive is what it says."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
from gluonts.time_feature import get_seasonality
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from data_pipelines.assemble import write_shards
from data_pipelines.series import Series
from data_pipelines.shards import ShardSet
from toto_train.config import TasksConfig
from toto_train.evaluation.baselines import seasonal_naive, seasonal_scale
from toto_train.evaluation.tasks import TaskSet, code_of, horizon_of, season_of, window_count

DAY = 86_400
HOUR = 3_600


def series(source: str, item: str, variates: int, length: int, interval: float = HOUR) -> Series:
    values = np.arange(variates * length, dtype=np.float32).reshape(variates, length)
    return Series(values=values, interval=interval, source=source, item_id=item, domain="observability")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tasks") / "set"
    write_shards(
        path,
        [
            series("a", "short", 1, 300),
            series("a", "long", 1, 5000),
            series("b", "wide", 3, 1000, 10.0),
            series("b", "tiny", 1, 20),  # less than two horizons
            *[series("c", f"i{k}", 2, 400, DAY) for k in range(30)],
        ],
        {},
    )
    return str(path)


@pytest.mark.parametrize(
    ("interval", "freq", "horizon"),
    [
        (1, "1s", 60),
        (10, "10s", 60),
        (60, "1min", 48),
        (300, "5min", 48),
        (600, "10min", 48),
        (900, "15min", 48),
        (1800, "30min", 48),
        (HOUR, "1h", 48),
        (6 * HOUR, "6h", 48),
        (7 * 60, "7min", 48),
        (0.004, "4ms", 60),
        (DAY, "1D", 30),
        (7 * DAY, "1W", 8),
        (30 * DAY, "1ME", 12),
        (31 * DAY, "1ME", 12),
        (2_629_800, "1ME", 12),
        (91 * DAY, "1QE", 8),
        (365.25 * DAY, "1YE", 6),
    ],
)
def test_horizon_and_season_by_interval(interval, freq, horizon, caplog):
    caplog.set_level(logging.ERROR)
    assert season_of(interval) == get_seasonality(freq)
    assert horizon_of(interval) == horizon
    assert horizon_of(interval, "medium") == 10 * horizon
    assert horizon_of(interval, "long") == 15 * horizon


def test_unknown_term_names_the_terms():
    with pytest.raises(ValueError, match="'huge' must be one of short, medium, long"):
        horizon_of(60, "huge")


@pytest.mark.parametrize(
    ("interval", "code"),
    [(0.004, "4L"), (1, "S"), (10, "10S"), (60, "T"), (900, "15T"), (HOUR, "H"), (6 * HOUR, "6H"), (DAY, "D"),
     (7 * DAY, "W"), (2_629_800, "M"), (91 * DAY, "Q"), (365.25 * DAY, "A")],
)  # fmt: skip
def test_frequencies_are_named_as_in_gift_eval(interval, code):
    assert code_of(interval) == code


@given(st.integers(1, 20_000), st.sampled_from([6, 8, 12, 30, 48, 60, 480, 900]), st.integers(1, 25))
def test_number_of_windows(shortest, horizon, most):
    count = window_count(shortest, horizon, most)
    if shortest < 2 * horizon:
        assert count == 0
        return
    assert count == min(max(math.ceil(0.1 * shortest / horizon), 1), most)
    assert shortest - count * horizon >= horizon  # history before the first


def test_windows_lie_side_by_side_at_the_end(tmp_path):
    write_shards(tmp_path / "s", [series("a", "x", 1, 5000), series("a", "y", 1, 3000), series("a", "z", 1, 90)], {})
    w = TaskSet.open(TasksConfig(path=str(tmp_path / "s"))).windows
    # the shortest that has a window gives every series ceil(300 / 48) = 7 of them; 90 steps are too few for one
    number = {ShardSet(tmp_path / "s").meta("a", i)["item_id"]: i for i in range(3)}
    for item, length in (("x", 5000), ("y", 3000)):
        assert w["start"][w["series"] == number[item]].tolist() == [length - 48 * k for k in range(7, 0, -1)]
    assert set(w["series"]) == {number["x"], number["y"]}


def test_windows_hold_what_the_series_holds(folder):
    tasks = TaskSet.open(TasksConfig(path=folder, context=128, max_windows=20))
    assert [t.name for t in tasks.tasks] == ["a/H/short", "b/10S/short", "c/D/short"]
    assert tasks.sources == ("a", "b", "c")
    # 300 steps, the shortest of a: 1 window of 48 for each; 1000 steps of 10 s: 2 of 60; 400 days: 2 of 30
    assert np.bincount(tasks.windows["task"]).tolist() == [2, 2, 60]
    w = tasks.window(2)
    assert (w.task.source, w.item_id, w.variate_names, w.task.interval) == ("b", "wide", ("v0", "v1", "v2"), 10.0)
    assert (w.start, w.season, w.task.domain) == (880, 360, "observability")
    np.testing.assert_array_equal(w.context[1], np.arange(1880 - 128, 1880))
    np.testing.assert_array_equal(w.label[2], np.arange(2880, 2940))
    np.testing.assert_array_equal(w.seasonal_error, 360.0)  # a ramp moves 360 in 360 steps, over the whole past
    np.testing.assert_array_equal(tasks.past(2)[0], np.arange(880))


def test_terms_are_tasks_of_their_own(folder):
    tasks = TaskSet.open(TasksConfig(path=folder, terms=["short", "medium", "long"]))
    assert [t.name for t in tasks.tasks] == ["a/H/short", "a/H/medium", "a/H/long", "b/10S/short", "c/D/short"]
    medium = tasks.windows[tasks.windows["task"] == 1]
    assert medium[["series", "start", "horizon"]].tolist() == [(1, 5000 - 960, 480), (1, 5000 - 480, 480)]
    with pytest.raises(ValueError, match="'huge' must be one of"):
        TaskSet.open(TasksConfig(path=folder, terms=["huge"]))
    with pytest.raises(ValueError, match="each wanted term once"):
        TaskSet.open(TasksConfig(path=folder, terms=["short", "short"]))


def test_frequencies_of_a_source_are_tasks_of_their_own(tmp_path):
    mixed = [series("m", "h", 1, 1000), series("m", "30d", 1, 100, 30 * DAY), series("m", "31d", 1, 100, 31 * DAY)]
    write_shards(tmp_path / "s", mixed, {})
    tasks = TaskSet.open(TasksConfig(path=str(tmp_path / "s")))
    assert [t.name for t in tasks.tasks] == ["m/H/short", "m/M/short"]
    assert [len(set(tasks.windows["series"][tasks.windows["task"] == k])) for k in (0, 1)] == [1, 2]


def test_split_groups_forecast_each_variate_alone(folder):
    whole = TaskSet.open(TasksConfig(path=folder, include=["b"]))
    split = TaskSet.open(TasksConfig(path=folder, include=["b"], groups="split"))
    assert len(split) == 3 * len(whole)
    assert set(split.windows["variates"]) == {1}
    both = whole.read(np.array([0])), split.read(np.array([2]))  # first window of the group, of its second variate
    for field in ("contexts", "labels", "seasonal_error"):
        np.testing.assert_array_equal(getattr(both[0], field)[:, 1:2], getattr(both[1], field))
    assert split.window(2).variate_names == ("v1",)
    table = split.table()
    assert table["variate"].tolist() == ["v0", "v0", "v1", "v1", "v2", "v2"]
    assert table["series"].nunique() == 1  # the bootstrap resamples groups


def test_fingerprint_knows_data_and_windows_but_not_the_context(folder, tmp_path):
    def of(**changes):
        return TaskSet.open(TasksConfig(**{"path": folder, **changes})).fingerprint

    write_shards(tmp_path / "s", [series("a", "short", 1, 300)], {})
    assert of() == of(context=100)
    different = [of(), of(limit=3), of(groups="split"), of(max_windows=1), of(exclude=["a"]), of(path=tmp_path / "s")]
    assert len(set(different)) == len(different)


def test_sources_are_chosen_by_glob(folder):
    assert TaskSet.open(TasksConfig(path=folder, include=["*"], exclude=["a"])).sources == ("b", "c")


def test_no_window_is_an_error_that_says_why(folder):
    with pytest.raises(ValueError, match="shorter than two horizons"):
        TaskSet.open(TasksConfig(path=folder, include=["c"], terms=["long"]))
    with pytest.raises(ValueError, match="path is empty"):
        TaskSet.open(TasksConfig())


def test_limit_takes_from_every_variate_and_start(tmp_path):
    """Every n-th window would take one variate of each group, or one start of each series."""
    write_shards(tmp_path / "s", [series("m", f"i{k}", 4, 500) for k in range(100)], {})
    for groups, field in (("split", "variate"), ("keep", "start")):
        cut = TaskSet.open(TasksConfig(path=str(tmp_path / "s"), groups=groups, limit=100))
        counts = np.unique(cut.windows[field], return_counts=True)[1]
        assert len(counts) == {"variate": 4, "start": 2}[field]
        assert counts.min() > 10
        assert (np.diff(cut.windows["series"]) >= 0).all()


def test_limit_is_deterministic_and_local_to_a_task(folder):
    whole = TaskSet.open(TasksConfig(path=folder))
    cut = TaskSet.open(TasksConfig(path=folder, limit=10))
    assert np.array_equal(cut.windows, TaskSet.open(TasksConfig(path=folder, limit=10)).windows)
    assert np.bincount(cut.windows["task"]).tolist() == [2, 2, 10]
    assert set(cut.windows.tolist()) <= set(whole.windows.tolist())
    alone = TaskSet.open(TasksConfig(path=folder, include=["c"], limit=10))
    assert np.array_equal(alone.windows["start"], cut.windows["start"][cut.windows["task"] == 2])


@pytest.mark.parametrize("max_points", [1, 3_000, 2**20])
def test_batches_cover_every_window_once_within_the_bound(folder, max_points):
    tasks = TaskSet.open(TasksConfig(path=folder, context=500))
    seen = []
    for indices in tasks.batches(max_points):
        batch = tasks.read(indices)
        n, variates, context = batch.contexts.shape
        assert batch.labels.shape == (n, variates, batch.horizon)
        assert context % 32 == 0
        assert n == 1 or n * variates * (context + batch.horizon) <= max_points
        for k, i in enumerate(batch.indices):
            w = tasks.window(int(i))
            steps = w.context.shape[1]
            np.testing.assert_array_equal(batch.contexts[k, :, context - steps :], w.context)
            assert np.isnan(batch.contexts[k, :, : context - steps]).all()
            np.testing.assert_array_equal(batch.labels[k], w.label)
            np.testing.assert_array_equal(batch.seasonal_error[k], w.seasonal_error)
        seen += indices.tolist()
    assert sorted(seen) == list(range(len(tasks)))


def test_naive_of_a_batch_sees_the_past_beyond_the_context(folder):
    tasks = TaskSet.open(TasksConfig(path=folder, include=["b"], context=32))  # season 360 > context 32
    (indices,) = tasks.batches()
    batch = tasks.read(indices, naive=True)
    assert batch.naive is not None
    np.testing.assert_array_equal(batch.naive[0, 4, 0], np.arange(880 - 360, 880 - 300))


def test_naive_is_exact_on_a_pure_season():
    wave = np.tile(np.float32([[1, 5, 2], [0, -3, 7]]), 20)
    forecast = seasonal_naive(wave[:, :50], 10, 3)
    np.testing.assert_array_equal(forecast, np.broadcast_to(wave[:, 50:], (9, 2, 10)))


def test_naive_fills_missing_phases():
    nan = np.nan
    past = np.float32([[1, 2, 3, 4, 5, nan], [nan, 2, 3, nan, nan, 4], [nan] * 6])
    forecast = seasonal_naive(past, 4, 3, intervals=False)
    np.testing.assert_array_equal(forecast[4], [[4, 5, 3, 4], [4, 2, 4, 4], [0, 0, 0, 0]])
    assert (forecast == forecast[:1]).all()


def test_naive_intervals_widen_with_every_season():
    past = np.random.default_rng(0).normal(size=(1, 120)).astype(np.float32)
    forecast = seasonal_naive(past, 36, 12)
    y = past[0].astype(float)
    sd = np.sqrt(np.mean((y[12:] - y[:-12]) ** 2)) * np.sqrt(np.arange(36) // 12 + 1)
    expected = np.tile(y[-12:], 3) + norm.ppf(0.9) * sd
    np.testing.assert_allclose(forecast[8, 0], expected, rtol=1e-5)
    np.testing.assert_allclose(forecast[8] - forecast[4], forecast[4] - forecast[0], rtol=1e-4)


def test_season_longer_than_the_past_falls_back_to_one_step():
    past = np.float32([[1, 4, 9]])
    np.testing.assert_array_equal(seasonal_naive(past, 2, 3, intervals=False)[0], [[9, 9]])
    assert seasonal_scale(past, 3)[0] == 4
