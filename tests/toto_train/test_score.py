"""Scores equal gluonts', hand-made cases and the promises about pooling, exclusion and intervals."""

from __future__ import annotations

import json
from dataclasses import fields
from functools import partial

import numpy as np
import pandas as pd
import pytest
from gluonts.dataset.common import ListDataset
from gluonts.dataset.split import split
from gluonts.ev.metrics import MASE, Coverage, MeanWeightedSumQuantileLoss
from gluonts.model.evaluation import evaluate_forecasts
from gluonts.model.forecast import QuantileForecast

from data_pipelines.assemble import write_shards
from data_pipelines.series import Series
from toto_train.config import TasksConfig
from toto_train.evaluation import rows
from toto_train.evaluation.baselines import LEVELS, seasonal_naive, seasonal_scale
from toto_train.evaluation.metrics import Member, Sums, overall, sharpness, window_sums
from toto_train.evaluation.score import Scores, evaluate
from toto_train.evaluation.tasks import TaskSet

HOUR = 3_600


def gluonts_scores(series: list[np.ndarray], quantiles: np.ndarray, horizon: int, season: int) -> dict[str, float]:
    """The reference: series [V, T] with the label at their end, quantiles [N, 9, V, H]."""
    start = pd.Period("2024-01-01", "h")
    single = len(series[0]) == 1
    entries = [{"start": start, "target": s[0] if single else s} for s in series]
    data = ListDataset(entries, freq="h", one_dim_target=single)
    _, template = split(data, offset=-horizon)
    pairs = template.generate_instances(horizon)
    keys = [str(level) for level in LEVELS.tolist()]
    forecasts = []
    for q, label in zip(quantiles, pairs.label, strict=True):
        arrays = q[:, 0] if single else q.swapaxes(1, 2)
        forecasts.append(QuantileForecast(arrays, label["start"], keys))
    metrics = [MASE(), MeanWeightedSumQuantileLoss(LEVELS.tolist()), *(Coverage(q) for q in LEVELS.tolist())]
    frame = evaluate_forecasts(forecasts, test_data=pairs, metrics=metrics, seasonality=season)
    return {str(k): float(v) for k, v in frame.iloc[0].items()}


@pytest.mark.parametrize("variates", [1, 4])
@pytest.mark.parametrize("missing", [0.0, 0.3])
@pytest.mark.parametrize("season", [1, 24, 500])  # 500 is more than the past holds
def test_kernel_equals_gluonts(variates, missing, season):
    random = np.random.default_rng([variates, int(10 * missing), season])
    horizon, lengths = 12, [60, 100, 61, 80, 90]
    series = [random.normal(3, 2, (variates, n)).cumsum(1).astype(np.float32) for n in lengths]
    for s in series:
        s[random.random(s.shape) < missing] = np.nan
    if missing:
        series[1][-1, -horizon:] = np.nan  # a label without any value
        series[2][0, :-horizon] = 5.0  # a past without any error
    quantiles = np.sort(random.normal(100, 60, (len(series), 9, variates, horizon)), 1).astype(np.float32)
    reference = gluonts_scores(series, quantiles, horizon, season)
    labels = np.stack([s[:, -horizon:] for s in series])
    scale = np.stack([seasonal_scale(s[:, :-horizon], season)[0] for s in series])
    sums = window_sums(quantiles, labels, scale)
    assert sums.mase() == pytest.approx(reference["MASE[0.5]"], rel=1e-6)
    assert sums.mwql() == pytest.approx(reference["mean_weighted_sum_quantile_loss"], rel=1e-6)
    if not missing:  # gluonts drops the mask in its coverage
        expected = [reference[f"coverage[{q}]"] for q in LEVELS.tolist()]
        np.testing.assert_allclose(sums.coverage(), expected, rtol=1e-6)


def test_kernel_by_hand():
    quantiles = np.zeros((1, 9, 1, 3))
    quantiles[0, :, 0, 0] = LEVELS
    labels = np.array([[[0.5, 2.0, np.nan]]])
    sums = window_sums(quantiles, labels, np.array([[4.0]]))
    expected = 2 * np.abs(0.5 - LEVELS) * np.where(LEVELS >= 0.5, 1 - LEVELS, LEVELS) + 2 * 2.0 * LEVELS
    np.testing.assert_allclose(sums.quantile_loss[0], expected)
    assert sums.below[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1]
    assert (sums.points[0], sums.absolute[0], sums.scaled_points[0]) == (2, 2.5, 2)
    np.testing.assert_allclose(sums.width[0], [0.8, 0.6, 0.4, 0.2])  # of the step whose quantiles differ
    np.testing.assert_allclose(sharpness(sums, sums), 1)
    assert np.isnan(sharpness(sums, Sums.zeros(1))).all()
    assert sums.mase() == (0 + 2 / 4) / 2


def test_missing_labels_and_constant_pasts_leave_no_trace():
    quantiles = np.ones((2, 9, 1, 3))
    labels = np.array([[[np.nan] * 3], [[5.0] * 3]])
    sums = window_sums(quantiles, labels, np.array([[1.0], [0.0]]))
    assert sums.points.tolist() == [0, 3]
    assert np.isnan(sums.mase())
    assert np.isnan(sums.mwql(np.array([0])))
    assert sums.mwql(np.array([1])) == pytest.approx(2 * 4 * LEVELS.mean() / 5)


def sums_of(loss: list[float]) -> Sums:
    """Windows with the given error, each over one unit of label."""
    sums = Sums.zeros(len(loss))
    sums.quantile_loss[:] = np.array(loss)[:, None]
    sums.scaled_error[:] = loss
    sums.absolute[:] = sums.scaled_points[:] = sums.points[:] = 1
    return sums


def member(source: str, windows, series, stratum: str = "") -> Member:
    return Member(source, stratum or f"{source}/H", np.asarray(windows), np.asarray(series))


@pytest.mark.parametrize("metric", ["mase", "mwql"])
def test_overall_is_the_geometric_mean_of_pooled_ratios_without_zero_error_tasks(metric):
    model, naive = sums_of([1, 3, 8, 1]), sums_of([2, 6, 2, 0])
    members = {"half": member("a", [0, 1], [0, 1]), "four": member("b", [2], [0]), "zero": member("c", [3], [0])}
    result = overall(metric, model, naive, members)
    assert result.value == pytest.approx(np.sqrt(0.5 * 4))
    assert result.excluded == ("zero",)
    assert result.low == pytest.approx(result.high) == pytest.approx(result.value)  # all series agree
    assert overall(metric, model, naive, members, leave_out={"half"}).value == pytest.approx(4)


def test_a_source_of_many_tasks_counts_once():
    model, naive = sums_of([2, 8, 1]), sums_of([1, 1, 1])
    members = {"a/H": member("a", [0], [0]), "a/D": member("a", [1], [1]), "b/H": member("b", [2], [0])}
    assert overall("mwql", model, naive, members).value == pytest.approx(np.sqrt(np.sqrt(2 * 8) * 1))


def test_tasks_of_one_window_claim_no_certainty():
    one = {"a": member("a", [0], [0])}
    result = overall("mwql", sums_of([0.5]), sums_of([1]), one)
    assert result.value == 0.5
    assert np.isnan([result.low, result.high]).all()


def test_bootstrap_is_reproducible_and_resamples_series_not_windows():
    random = np.random.default_rng(0)
    series = np.repeat(np.arange(40), 10)
    model = sums_of((np.exp(random.normal(0, 0.5, 40)))[series])  # windows of one series are copies
    naive = sums_of(np.ones(400))
    windows = np.arange(400)
    first = overall("mwql", model, naive, {"s": member("s", windows, series)}, seed=1)
    assert first == overall("mwql", model, naive, {"s": member("s", windows, series)}, seed=1)
    assert first != overall("mwql", model, naive, {"s": member("s", windows, series)}, seed=2)
    assert first.low < first.value < first.high
    means = model.quantile_loss[::10, 0]
    assert first.high - first.low == pytest.approx(2 * 1.96 * means.std() / np.sqrt(40), rel=0.15)
    apart = overall("mwql", model, naive, {"s": member("s", windows, windows)}, seed=1)
    assert apart.high - apart.low < 0.5 * (first.high - first.low)


def test_bootstrap_draws_the_same_series_for_every_term():
    """Two terms that say the same are no more evidence than one; two independent tasks are."""
    random = np.random.default_rng(1)
    losses = np.exp(random.normal(0, 0.5, 50))
    one = {"short": member("s", np.arange(50), np.arange(50))}
    two = one | {"long": member("s", np.arange(50, 100), np.arange(50))}
    model, naive = sums_of(np.tile(losses, 2)), sums_of(np.ones(100))
    assert overall("mwql", model, naive, two) == overall("mwql", model, naive, one)
    other = one | {"daily": member("s", np.arange(50, 100), np.arange(50), "s/D")}
    width = {k: (o := overall("mwql", model, naive, m)).high - o.low for k, m in {"one": one, "other": other}.items()}
    assert width["other"] == pytest.approx(width["one"] / np.sqrt(2), rel=0.15)


def test_bootstrap_is_paired():
    """A model that is 5 % better on every series is clearly better, however much the series differ."""
    losses = np.exp(np.random.default_rng(2).normal(0, 1, 60))
    members = {"s": member("s", np.arange(60), np.arange(60))}
    result = overall("mwql", sums_of(0.95 * losses), sums_of(losses), members)
    assert result.low == pytest.approx(0.95) == pytest.approx(result.high)


def wave(source: str, item: str, variates: int, noise: float, length: int = 600) -> Series:
    random = np.random.default_rng([len(source), len(item), variates])
    values = np.sin(np.arange(length) * 2 * np.pi / 24) + noise * random.normal(size=(variates, length)) + 3
    return Series(values=values.astype(np.float32), interval=HOUR, source=source, item_id=item)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    path = tmp_path_factory.mktemp("score") / "set"
    flat = np.full((1, 600), 2.0, np.float32)
    silent = wave("hourly", "silent", 1, 0.1)
    silent.values[:, -48:] = np.nan
    records = [
        wave("hourly", "x", 1, 0.5),
        wave("hourly", "yy", 2, 0.5),
        silent,
        wave("plain", "only", 1, 0.3),
        Series(values=flat, interval=HOUR, source="flat", item_id="const"),
    ]
    write_shards(path, records, {})
    return TaskSet.open(TasksConfig(path=str(path), context=480))


def naive_forecaster(contexts: np.ndarray, horizon: int) -> np.ndarray:
    return np.stack([seasonal_naive(c, horizon, 24) for c in contexts])


def sine_forecaster(contexts: np.ndarray, horizon: int) -> np.ndarray:
    """Phase mean: better than the last season wherever the noise is fresh each day."""
    mean = np.nanmean(contexts.reshape(*contexts.shape[:2], -1, 24), 2)[..., np.arange(horizon) % 24]
    sd = np.nanstd(contexts - np.tile(mean[..., :24], contexts.shape[2] // 24), axis=2)
    z = np.array([-1.28, -0.84, -0.52, -0.25, 0, 0.25, 0.52, 0.84, 1.28])[:, None, None]
    return mean[:, None] + z * sd[:, None, :, None]


def test_evaluate_end_to_end(tasks):
    seen: list[int] = []
    scores = evaluate(sine_forecaster, tasks, examples=9, progress=seen.append)
    assert seen[-1] == len(tasks)
    result = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert scores.windows == len(tasks) - 1
    assert result["overall"]["windows_without_label"] == 1
    assert result["overall"]["relative"]["mwql"]["excluded"] == ["flat/H/short"]
    assert result["tasks"]["flat/H/short"]["mase"] is None  # nothing to scale by
    ratios = [result["sources"][s]["relative"]["mwql"] for s in ("hourly", "plain")]
    total = result["overall"]["relative"]["mwql"]
    assert total["value"] == pytest.approx(np.sqrt(ratios[0] * ratios[1]))
    assert total["low"] < total["value"] < total["high"] < 1
    row = result["tasks"]["plain/H/short"]
    assert row["mwql"] / row["seasonal_naive"]["mwql"] == pytest.approx(row["relative"]["mwql"]) == ratios[1]
    assert result["by_frequency"]["H"]["relative"]["mwql"] == pytest.approx(total["value"])
    assert result["by_term"]["short"]["tasks"] == 3
    hourly = [e for e in scores.examples if e.task == "hourly/H/short"]
    assert [e.rank for e in hourly] == ["best", "median", "worst"]
    assert hourly[0].loss < hourly[1].loss < hourly[2].loss
    assert hourly[0].quantiles.shape == (9, 48)


def test_seasonal_naive_scores_one_against_itself_and_its_sums_can_be_reused(tasks):
    first = evaluate(naive_forecaster, tasks)
    # windows with more past than context see other intervals, the median is the same
    assert first.overall["mase"].value == pytest.approx(1, rel=1e-6)
    assert first.overall["mwql"].value == pytest.approx(1, rel=0.05)
    again = evaluate(sine_forecaster, tasks, baseline=first.baseline)
    fresh = evaluate(sine_forecaster, tasks)
    assert (again.overall, without_time(again)) == (fresh.overall, without_time(fresh))


def without_time(scores: Scores) -> str:
    return rows.to_frame(scores.table, scores.model, scores.seconds).drop(columns="seconds").to_csv()


def test_coverage_of_a_calibrated_forecast(tasks):
    scores = evaluate(lambda c, h: sine_forecaster(c, h) + 100, tasks)
    assert scores.coverage().tolist() == [1.0] * 9
    calibrated = evaluate(sine_forecaster, tasks).tasks()["plain/H/short"]["coverage"]
    np.testing.assert_allclose(calibrated, LEVELS, atol=0.2)


def test_batch_size_changes_no_score(tasks):
    small, large = (evaluate(sine_forecaster, tasks, max_points=n) for n in (1, 2**20))
    for sums in ("quantile_loss", "scaled_error", "points"):
        np.testing.assert_allclose(getattr(small.model, sums), getattr(large.model, sums))
        np.testing.assert_array_equal(getattr(small.baseline, sums), getattr(large.baseline, sums))


def test_wrong_forecasts_are_refused_with_their_place(tasks):
    with pytest.raises(ValueError, match=r"(hourly|flat|plain)/H/short, .* is not finite"):
        evaluate(lambda c, h: np.full((len(c), 9, c.shape[1], h), np.nan), tasks)
    with pytest.raises(ValueError, match=r"returned shape .* expected \[N, 9, V, H\]"):
        evaluate(lambda c, h: np.zeros((len(c), c.shape[1], h)), tasks)


class Killed(Exception):
    pass


def test_a_killed_evaluation_goes_on_where_it_was(tasks, tmp_path, monkeypatch):
    monkeypatch.setattr(rows.Parts, "FLUSH", 0.0)
    calls = []

    def counted(contexts: np.ndarray, horizon: int) -> np.ndarray:
        calls.append(len(contexts))
        return sine_forecaster(contexts, horizon)

    def dies(contexts: np.ndarray, horizon: int) -> np.ndarray:
        if len(calls) == 2:
            raise Killed
        return counted(contexts, horizon)

    with pytest.raises(Killed):
        evaluate(dies, tasks, max_points=1, parts=tmp_path / "parts")
    (tmp_path / "parts" / ".000000007-1.tmp").write_bytes(b"half a part")  # of a process that was killed writing
    (tmp_path / "parts" / "000000009-1.npz").write_bytes(b"")  # of a machine that went down
    again = evaluate(counted, tasks, max_points=1, parts=tmp_path / "parts")
    assert sum(calls) == len(tasks)
    whole = evaluate(sine_forecaster, tasks, max_points=1)
    assert without_time(again) == without_time(whole)
    np.testing.assert_array_equal(again.baseline.quantile_loss, whole.baseline.quantile_loss)


def test_processes_share_the_work(tasks):
    """Three ranks in turn: the sum over them is what one process finds, and all make the same number of calls."""
    names = [f.name for f in fields(Sums)]
    names += ["seconds", *(f"naive_{name}" for name in names)]  # in the order in which they are gathered
    found: list[list[np.ndarray]] = [[], [], []]
    calls = [0, 0, 0]

    def counted(contexts: np.ndarray, horizon: int, rank: int) -> np.ndarray:
        calls[rank] += 1
        return sine_forecaster(contexts, horizon)

    for rank in range(3):
        evaluate(
            partial(counted, rank=rank), tasks, max_points=1600, rank=rank, world=3, draws=0,
            gather=lambda array, rank=rank: found[rank].append(array.copy()) or array,
        )  # fmt: skip
    whole = evaluate(sine_forecaster, tasks, max_points=1600)
    assert calls[0] == calls[1] == calls[2] == len(tasks.batches(1600))
    assert min(len(b) for b in tasks.batches(1600)) < 3  # some batches leave a rank without a window
    assert all(0 < of[0].any(1).sum() < len(tasks) for of in found)
    np.testing.assert_array_equal(sum(of[0] for of in found), whole.model.quantile_loss)
    for part, sums in (("", whole.model), ("naive_", whole.baseline)):
        for name, value in vars(sums).items():
            np.testing.assert_array_equal(sum(of[names.index(part + name)] for of in found), value)


def test_rows_return_from_parquet_as_they_were(tasks, tmp_path):
    scores = evaluate(sine_forecaster, tasks)
    file = rows.write(tmp_path / "rows.parquet", rows.to_frame(scores.table, scores.model, scores.seconds))
    table, sums, seconds = rows.from_frame(rows.read(file))
    again = Scores(table, sums, scores.baseline, seconds)
    assert again.to_dict() == scores.to_dict()
    pd.testing.assert_frame_equal(rows.to_frame(table, sums, seconds), rows.read(file), check_exact=True)
    frame = pd.read_parquet(file)
    assert frame.loc[frame["points"] > 0, "mwql"].mul(frame["absolute"]).sum() == pytest.approx(
        scores.model.quantile_loss.mean(1).sum()
    )
    file.write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"rows\.parquet cannot be read"):
        rows.read(file)
