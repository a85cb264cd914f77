"""fev-bench and TIME: windows and metrics by their definitions, and by fev itself where it is installed."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from toto_train.evaluation.leaderboards import aggregate, fev_bench, job, results, time_bench
from toto_train.evaluation.leaderboards.benchmarks import Options
from toto_train.evaluation.leaderboards.measures import of_fev, of_time
from toto_train.evaluation.leaderboards.windows import score

from .pages import check_page
from .saved_datasets import SHARED, save, seasonal, shared_series

LEVELS = [k / 10 for k in range(1, 10)]
EXTRA = ["MASE", {"name": "WAPE", "epsilon": 1.0}, {"name": "WQL", "epsilon": 1.0}]


def guess(contexts: np.ndarray, horizon: int) -> np.ndarray:
    """A forecast that depends on nothing but the last 40 steps: mean and spread of what is known there."""
    recent = contexts[..., -40:].astype(np.float64)
    mean, spread = np.nan_to_num(np.nanmean(recent, -1)), np.nan_to_num(np.nanstd(recent, -1))
    steps = mean[..., None] + 0.01 * np.arange(horizon)
    return np.stack([steps + (k - 4) / 4 * spread[..., None] for k in range(9)], 1).astype(np.float32)


def write_fev(path: Path, name: str, series: dict[str, np.ndarray], freq: str = "h") -> None:
    """Item -> [V, T], columns c0, c1 ... (target where V is 1)."""
    variates = len(next(iter(series.values())))
    columns = ["target"] if variates == 1 else [f"c{v}" for v in range(variates)]
    rows: dict[str, list] = {"id": list(series)}
    clocks = [pd.date_range("2024-01-01", periods=x.shape[1], freq=freq) for x in series.values()]
    rows["timestamp"] = [clock.to_numpy("datetime64[us]") for clock in clocks]
    for v, column in enumerate(columns):
        rows[column] = [x[v].astype(np.float32) for x in series.values()]
    (path / name).mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(rows), path / name / "train-00000.parquet")


def task(name: str, **fields) -> dict:
    return {
        "dataset_path": "autogluon/fev_datasets", "dataset_config": name, "horizon": 12, "seasonality": 24,
        "eval_metric": "SQL", "extra_metrics": EXTRA, "quantile_levels": LEVELS,
    } | fields  # fmt: skip


@pytest.fixture
def fev_folder(tmp_path) -> Path:
    """Two datasets; ids not in order, series too short for some windows, constants, gaps."""
    lengths = {"b": 300, "c": 260, "a": 70, "d": 30, "e": 20}
    one = {k: seasonal([n], 1, 24, seed=n)[0] for k, n in lengths.items()}
    one["c"][:] = 3.0
    write_fev(tmp_path, "one", one)
    write_fev(tmp_path, "many", {k: seasonal([200], 3, 24, seed=ord(k))[0] for k in "zyx"})
    tasks = [
        task("one", num_windows=4),
        task("many", num_windows=3, target=["c2", "c0"], task_name="many/two"),
        task("many", num_windows=2, generate_univariate_targets_from=["c0", "c1"], task_name="many/alone"),
        task("one", num_windows=3, initial_cutoff="2024-01-03 05:00", horizon=5, window_step_size=7, task_name="dates"),
        task("one", num_windows=2, min_context_length=60, max_context_length=100, task_name="lengths"),
        task("elsewhere"),
    ]
    (tmp_path / fev_bench.TASKS).write_text(yaml.safe_dump({"tasks": tasks}))
    return tmp_path


def scored(folder: Path) -> dict[str, dict[str, float]]:
    found = {}
    for c in fev_bench.configurations(folder):
        rows = score(guess, fev_bench.windows(c, Options(folder), 4096))
        found[c.name] = of_fev(rows, rows.model, c.settings)
    return found


@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:Degrees of freedom")
def test_fev_scores_by_their_definitions(fev_folder):
    assert [c.name for c in fev_bench.configurations(fev_folder)] == [
        "many/two", "many/alone", "one", "dates", "lengths",
    ]  # fmt: skip
    found = scored(fev_folder)["one"]
    table = pq.read_table(fev_folder / "one").to_pydict()
    series = {i: np.array(x, np.float32) for i, x in zip(table["id"], table["target"], strict=True)}
    windows = []
    for window in range(4):
        ql, scaled_ql, scaled, labels, errors = [], [], [], [], []
        for y in series.values():
            start = len(y) - 12 * (4 - window)
            if start < 1:
                continue
            past, label = y[:start], y[start : start + 12].astype(np.float64)
            q = guess(past[None, None], 12)[0, :, 0].astype(np.float64)
            loss = np.mean([2 * np.abs((label - q[k]) * ((label <= q[k]) - LEVELS[k])) for k in range(9)], 0)
            steps = np.abs(past[24:] - past[:-24]) if len(past) > 24 else np.array([np.nan])
            scale = np.nanmean(steps)
            ql.append(loss)
            errors.append(np.abs(label - q[4]))
            labels.append(np.abs(label))
            if scale > 0:  # not a constant, not NaN
                scaled_ql.append(loss / scale)
                scaled.append(errors[-1] / scale)
        size = max(np.nanmean(labels), 1.0)
        windows.append(
            [np.nanmean(x) for x in (scaled_ql, scaled)] + [np.nanmean(ql) / size, np.nanmean(errors) / size]
        )
    expected = dict(zip(("SQL", "MASE", "WQL", "WAPE"), np.mean(windows, 0), strict=True))
    assert found == pytest.approx(expected, rel=2e-6)


@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:Degrees of freedom")
def test_fev_itself_gives_the_same_scores(fev_folder, monkeypatch):
    fev = pytest.importorskip("fev", reason="fev is not installed")
    import datasets

    monkeypatch.setenv("FEV_DATASETS_PREFIX", str(fev_folder))
    # its patch of this class fits older releases of datasets alone
    monkeypatch.setattr("fev.utils.PatchedDownloadConfig", datasets.DownloadConfig)
    found = scored(fev_folder)
    assert len(found) == 5
    for c in fev_bench.configurations(fev_folder):
        theirs, predictions = fev.Task(**c.settings), []
        assert theirs.to_dict() == dict(c.settings)
        for window in theirs.iter_windows(num_proc=1):
            past, _ = window.get_input_data()
            made: dict[str, list] = {column: [] for column in theirs.target_columns}
            for entry in past:
                context = np.stack([np.asarray(entry[column], np.float32) for column in theirs.target_columns])
                q = guess(context[None], theirs.horizon)[0]
                for v, column in enumerate(theirs.target_columns):
                    values = {str(level): q[k, v].tolist() for k, level in enumerate(LEVELS)}
                    made[column].append({"predictions": q[4, v].tolist()} | values)
            predictions.append(made)
        expected = theirs.evaluation_summary(predictions, model_name="m")
        assert found[c.name] == pytest.approx({m: expected[m] for m in fev_bench.COLUMNS}, rel=2e-6), c.name


def test_fev_itself_gives_the_same_leaderboard(tmp_path):
    fev = pytest.importorskip("fev", reason="fev is not installed")
    random, rows = np.random.default_rng(0), []
    settings = [fev_bench.complete(task(f"d{k:02d}", num_windows=2)) for k in range(12)]
    errors = {name: random.lognormal(0, 2, 12) for name in ("ours", "other", "seasonal_naive")}
    errors["other"][3] = errors["ours"][3]
    for name, values in errors.items():
        for of, value in zip(settings, values, strict=True):
            line = {"settings": of, "seconds": 1.0, "forecasts": 10}
            rows.append(fev_bench.row(name, line, dict.fromkeys(fev_bench.COLUMNS, float(value))))
    expected = fev.leaderboard(pd.DataFrame(rows), n_resamples=1000)
    found = aggregate.fev(pd.DataFrame(errors))
    for column in found:
        assert found[column].to_dict() == pytest.approx(expected[column].to_dict(), rel=1e-9), column


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"horizons": 3}, "unknown field 'horizons'"),
        ({"quantile_levels": [0.5]}, "are not 0.1"),
        ({"dataset_config": None}, "without dataset_config"),
    ],
)
def test_tasks_that_cannot_be_read(tmp_path, fields, message):
    (tmp_path / fev_bench.TASKS).write_text(yaml.safe_dump({"tasks": [task("one") | fields]}))
    with pytest.raises(ValueError, match=message):
        fev_bench.configurations(tmp_path)


def test_a_name_that_two_tasks_have_is_refused(tmp_path):
    (tmp_path / fev_bench.TASKS).write_text(yaml.safe_dump({"tasks": [task("one"), task("one", horizon=3)]}))
    with pytest.raises(ValueError, match="'one' is there twice"):
        fev_bench.configurations(tmp_path)


def test_missing_files_are_named(tmp_path, fev_folder):
    for load, name in ((fev_bench.configurations, "tasks.yaml"), (time_bench.configurations, "datasets.yaml")):
        with pytest.raises(ValueError, match=f"{name} is missing"):
            load(tmp_path / "nothing")
    elsewhere = (fev_folder / fev_bench.TASKS).rename(fev_folder / "mini.yaml")
    assert len(fev_bench.configurations(fev_folder, elsewhere)) == 5
    elsewhere.rename(fev_folder / fev_bench.TASKS)
    (fev_folder / "empty").mkdir()
    (fev_folder / "empty" / fev_bench.TASKS).write_text((fev_folder / fev_bench.TASKS).read_text())
    with pytest.raises(ValueError, match=r"holds no dataset of tasks\.yaml, such as one/"):
        fev_bench.configurations(fev_folder / "empty")
    (c,) = [c for c in fev_bench.configurations(fev_folder) if c.name == "one"]
    c.settings["target"] = "load"
    with pytest.raises(ValueError, match="there is no column 'load'"):
        fev_bench.windows(c, Options(fev_folder), 4096)


def time_folder(path: Path, targets: list[np.ndarray]) -> Path:
    save(path / "SG_PM25/H", targets, "H")
    terms = {
        "short": {"prediction_length": 24},
        "medium": {"prediction_length": 72},
        "long": {"prediction_length": 168},
    }
    settings = {"SG_PM25/H": {"test_length": 200, "val_length": 100} | terms, "Absent/D": {"test_length": 9} | terms}
    (path / time_bench.SETTINGS).write_text(yaml.safe_dump({"datasets": settings}))
    return path


def check_time(path: Path, targets: list[np.ndarray]) -> None:
    for c in time_bench.configurations(path):
        horizon = {"short": 24, "medium": 72, "long": 168}[c.term]
        rows = score(guess, time_bench.windows(c, Options(path), 4096))
        mase, crps, mae = [], [], []
        for target in targets:
            y = np.atleast_2d(target).astype(np.float32)
            for k in range(200 // horizon):
                start = y.shape[1] - 200 + k * horizon
                q = guess(y[None, :, :start], horizon)[0].astype(np.float64)
                for v in range(len(y)):
                    label, past = y[v, start : start + horizon].astype(np.float64), y[v, :start]
                    seen, past = np.isfinite(label), past[np.isfinite(past)]
                    if not seen.any():
                        continue
                    error = np.abs(label - q[4, v])[seen].mean()
                    scale = np.abs(past[24:] - past[:-24]).astype(np.float64).mean() if len(past) > 24 else math.nan
                    loss = [
                        2 * np.abs((label - q[j, v]) * ((label <= q[j, v]) - LEVELS[j]))[seen].sum() for j in range(9)
                    ]
                    mae.append(error)
                    mase.append(error / scale if scale > 0 else math.nan)
                    size = np.abs(label[seen]).sum()
                    crps.append(np.mean(loss) / size if size > 0 else math.nan)
        found = of_time(rows, rows.model, {})
        assert len(rows.variate) >= len(mae) > 0
        expected = {"MASE": np.nanmean(mase), "CRPS": np.nanmean(crps), "MAE": np.nanmean(mae)}
        assert {name: found[name] for name in expected} == pytest.approx(expected, rel=5e-6), c.name


@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:Degrees of freedom")
def test_time_scores_by_their_definitions(tmp_path):
    targets = seasonal([900, 700], 2, 24)
    targets[0][1] = 0.0  # no scale, no weight
    targets[1][0, -60:-20] = np.nan  # a window without labels
    path = time_folder(tmp_path, targets)
    assert [c.name for c in time_bench.configurations(path)] == [f"SG_PM25/H/{t}" for t in ("short", "medium", "long")]
    check_time(path, targets)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real series lie in ../shared/data, which is absent")
def test_time_scores_on_real_series(tmp_path):
    targets = [x[:3] for x in shared_series("beijing_multisite_air.parquet", 1, "H", 1500)]
    check_time(time_folder(tmp_path, targets), targets)


def test_other_settings_are_other_tasks(tmp_path):
    path = time_folder(tmp_path, seasonal([900], 0, 24))
    before = [time_bench.fingerprint(c, Options(path)) for c in time_bench.configurations(path)]
    settings = path / time_bench.SETTINGS
    settings.write_text(settings.read_text().replace("prediction_length: 72", "prediction_length: 48"))
    after = [time_bench.fingerprint(c, Options(path)) for c in time_bench.configurations(path)]
    assert [a == b for a, b in zip(after, before, strict=True)] == [True, False, True]


def test_time_refuses_a_series_shorter_than_its_test(tmp_path):
    path = time_folder(tmp_path, seasonal([150], 0, 24))
    with pytest.raises(ValueError, match="test_length=200 exceeds the shortest series of 150"):
        time_bench.windows(time_bench.configurations(path)[0], Options(path), 4096)


@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:Degrees of freedom")
def test_both_run_as_jobs(fev_folder, tmp_path, monkeypatch, capsys):
    from toto_train import hub
    from toto_train.config import ModelConfig
    from toto_train.model.toto import Toto

    model = tmp_path / "small"
    hub.save_pretrained(Toto.create(ModelConfig(d_model=32, num_layers=2, num_heads=2, d_ff=64), seed=0), model, "card")
    asked = job.LeaderboardJob(str(model), "fev", Options(fev_folder), tmp_path / "out", device="cpu")
    job.run(asked)
    table = pd.read_csv(tmp_path / "out" / "small" / "all_results.csv")
    assert table["task_name"].tolist() == ["many/two", "many/alone", "one", "dates", "lengths"]
    assert (table["test_error"] == table["SQL"]).all()
    assert results.read_table(tmp_path / "out" / "small" / "all_results.csv", fev_bench.COLUMNS).keys() == {
        *table["task_name"]
    }
    assert "fev-bench: SQL, 5 of 100 configurations" in capsys.readouterr().out
    time_folder(tmp_path / "time", seasonal([900, 700], 2, 24))
    job.run(
        job.LeaderboardJob(str(model), "time", Options(tmp_path / "time", limit=2), tmp_path / "of_time", device="cpu")
    )
    table = pd.read_csv(tmp_path / "of_time" / "small" / "all_results.csv")
    assert table.columns.tolist() == ["dataset", "model", "MASE", "CRPS", "MAE", "MSE", "domain", "num_variates"]
    for out in ("out", "of_time"):
        check_page((tmp_path / out / "report.html").read_text())
