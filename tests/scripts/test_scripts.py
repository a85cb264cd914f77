"""The small commands as a user runs them: what they make, and how they fail."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from toto_train import hub
from toto_train.config import ModelConfig
from toto_train.forecast import PUBLISHED, Forecaster
from toto_train.model.toto import Toto

ROOT = Path(__file__).parents[2]
COMMANDS = sorted(p.name for p in (ROOT / "scripts").glob("*.py"))


def script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return hub.save_pretrained(Toto.create(ModelConfig(), seed=0), tmp_path_factory.mktemp("model") / "export", "card")


def wide(path: Path, **columns) -> Path:
    stamps = pd.date_range("2026-01-01", periods=len(next(iter(columns.values()))), freq="5min")
    pd.DataFrame({"timestamp": stamps, **columns}).to_csv(path, index=False)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command):
    done = script(command, "--help")
    assert done.returncode == 0
    assert command in done.stdout


def test_forecast_of_a_wide_csv(folder, tmp_path):
    rng = np.random.default_rng(0)
    cpu, mem = rng.normal(size=(2, 300)).cumsum(-1)
    cpu[100:110] = np.nan
    file = wide(tmp_path / "host.csv", cpu=cpu, mem=mem)
    done = script("forecast.py", f"model={folder}", f"input={file}", "horizon=40", f"out={tmp_path / 'f.csv'}")
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "f.csv", parse_dates=["timestamp"])
    assert list(table.columns) == ["item_id", "variate", "timestamp", *(f"q0.{i}" for i in range(1, 10))]
    assert len(table) == 80
    assert table["timestamp"].iloc[0] == pd.Timestamp("2026-01-02 01:00")
    expected = Forecaster(hub.load_pretrained(folder))(np.stack([cpu, mem]).astype(np.float32)[None], 40)[0]
    np.testing.assert_allclose(table[table["variate"] == "mem"]["q0.5"], expected[4, 1], rtol=1e-4)


def test_forecast_of_a_long_parquet(folder, tmp_path):
    stamps = pd.date_range("2026-01-01", periods=100, freq="h")
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"item_id": np.repeat(["a", "b"], 100), "timestamp": np.tile(stamps, 2), "x": rng.random(200)})
    frame.to_parquet(tmp_path / "long.parquet")
    out = tmp_path / "f.parquet"
    done = script("forecast.py", f"model={folder}", f"input={tmp_path / 'long.parquet'}", "horizon=8", f"out={out}")
    assert done.returncode == 0, done.stderr
    assert pd.read_parquet(out).groupby("item_id").size().tolist() == [8, 8]


def test_months_are_counted_and_not_measured(folder, tmp_path):
    stamps = pd.date_range("2020-01-31", periods=36, freq="ME")
    pd.DataFrame({"date": stamps, "x": np.arange(36.0) % 12}).to_csv(tmp_path / "m.csv", index=False)
    done = script("forecast.py", f"model={folder}", f"input={tmp_path / 'm.csv'}", "horizon=3", f"out={tmp_path}/f.csv")
    assert done.returncode == 0, done.stderr
    expected = ["2023-01-31", "2023-02-28", "2023-03-31"]
    assert (
        pd.read_csv(tmp_path / "f.csv", parse_dates=["timestamp"])["timestamp"].dt.date.astype(str).tolist() == expected
    )


@pytest.mark.slow
def test_history_beyond_what_the_model_was_trained_on_is_left_out_unless_asked_for(tmp_path):
    model = Toto.create(ModelConfig(), seed=0)
    trained = hub.save_pretrained(model, tmp_path / "export", "card", {"context_length": 256})
    x = np.random.default_rng(0).normal(size=1000).cumsum()
    base = [f"model={trained}", f"input={wide(tmp_path / 'x.csv', x=x)}", "horizon=32"]
    done = script("forecast.py", *base, f"out={tmp_path}/default.csv")
    asked = script("forecast.py", *base, f"out={tmp_path}/long.csv", "context=1000")
    assert done.returncode == asked.returncode == 0, done.stderr
    assert "longer than the 256 steps" in asked.stderr
    assert "longer" not in done.stderr
    expected = Forecaster(model)(x[None, None, -224:].astype(np.float32), 32)[0, 4, 0]
    np.testing.assert_allclose(pd.read_csv(tmp_path / "default.csv")["q0.5"], expected, rtol=1e-4)


@pytest.mark.slow
def test_known_columns_are_seen_but_not_forecast(folder, tmp_path):
    rng = np.random.default_rng(0)
    cpu, mem, plan = rng.normal(size=(3, 330)).cumsum(-1)
    cpu[300:], mem[290:] = np.nan, np.nan
    file = wide(tmp_path / "host.csv", cpu=cpu, plan=plan, mem=mem)
    base = [f"model={folder}", f"input={file}", "horizon=30"]
    done = script("forecast.py", *base, f"out={tmp_path / 'f.csv'}", "known=plan", "context=200")
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "f.csv", parse_dates=["timestamp"])
    assert table["variate"].unique().tolist() == ["cpu", "mem"]
    assert table["timestamp"].iloc[0] == pd.Timestamp("2026-01-02 01:00")
    target, known = np.stack([cpu, mem])[None, :, 100:300], plan[None, None, 100:]
    expected = Forecaster(hub.load_pretrained(folder))(target.astype(np.float32), 30, known.astype(np.float32))[0]
    np.testing.assert_allclose(table["q0.9"], expected[8].ravel(), rtol=1e-4)
    for known, message in (
        ("plans", "must name some, but not all, of the columns cpu, plan, mem"),
        ("cpu", "0 rows after the last value"),
    ):
        wrong = script("forecast.py", *base, f"out={tmp_path / 'x.csv'}", f"known={known}")
        assert wrong.returncode == 1
        assert message in wrong.stderr


@pytest.mark.slow
def test_long_horizons_are_forecast_in_blocks_unless_asked_otherwise(folder, tmp_path):
    x = np.random.default_rng(0).normal(size=400).cumsum()
    base = [f"model={folder}", f"input={wide(tmp_path / 'x.csv', x=x)}", "horizon=800"]
    model, context = hub.load_pretrained(folder), x[None, None].astype(np.float32)
    for name, arguments, block in (("default", [], 768), ("once", ["block=0"], None)):
        done = script("forecast.py", *base, f"out={tmp_path / name}.csv", *arguments)
        assert done.returncode == 0, done.stderr
        expected = Forecaster(model, options=replace(PUBLISHED, block=block))(context, 800)[0, 4, 0]
        np.testing.assert_allclose(pd.read_csv(tmp_path / f"{name}.csv")["q0.5"], expected, rtol=1e-4)
    wrong = script("forecast.py", *base, f"out={tmp_path / 'x.csv.csv'}", "block=100")
    assert wrong.returncode == 1
    assert "block=100 must be a positive multiple of the patch size 32" in wrong.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["horizon=0"], "horizon=0"),
        (["horizon=many"], "horizon='many' is not a valid int"),
        (["horizn=8"], "did you mean 'horizon'"),
        (["horizon=8", "model=/nowhere"], "no config.json"),
        (["horizon=8", "input=/nowhere.csv"], "input=/nowhere.csv does not exist"),
        (["horizon=8", "out=host.csv"], "exists; choose another name"),
        (["horizon=8", "out=host.csv", "replace=true"], "exists; choose another name"),
        (["horizon=8", "out=forecast.txt"], "must end in .csv or .parquet"),
        (["horizon=8", "out=/nowhere/f.csv"], "the folder /nowhere does not exist"),
    ],
)
def test_forecast_says_what_is_wrong(folder, tmp_path, arguments, message):
    file = wide(tmp_path / "host.csv", cpu=np.arange(100.0))
    given = {"model": folder, "input": file, "out": tmp_path / "f.csv"}
    given |= dict(a.split("=") for a in arguments)
    if given["out"] == "host.csv":  # the input itself
        given["out"] = file
    done = script("forecast.py", *(f"{k}={v}" for k, v in given.items()))
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["host.csv"]


@pytest.mark.slow
def test_a_metric_without_any_value_is_refused_and_a_constant_one_is_forecast(folder, tmp_path):
    base = [f"model={folder}", "horizon=8", f"out={tmp_path / 'f.csv'}"]
    dead = script("forecast.py", *base, f"input={wide(tmp_path / 'd.csv', cpu=np.arange(99.0), dead=[np.nan] * 99)}")
    assert dead.returncode != 0
    assert "variate dead has no value at all" in dead.stderr
    assert not (tmp_path / "f.csv").exists()
    flat = script("forecast.py", *base, f"input={wide(tmp_path / 'c.csv', flat=np.full(99, 7.5))}")
    assert flat.returncode == 0
    assert "variate flat is constant" in flat.stderr
    assert np.allclose(pd.read_csv(tmp_path / "f.csv")["q0.5"], 7.5, atol=1e-3)


def test_export_refuses_other_folders(tmp_path):
    done = script("export_hf.py", f"run={tmp_path}", f"out={tmp_path / 'e'}")
    assert done.returncode != 0
    assert "holds no complete checkpoint" in done.stderr
    assert not (tmp_path / "e").exists()


@pytest.mark.e2e
def test_export_takes_the_best_checkpoint_as_the_run_did_or_the_last(small_job, train_py, tmp_path):
    assert train_py(*small_job, "heldout.path=''", "schedule.max_steps=6").returncode == 0
    ruin = ("optimizer.adamw.lr=30", "schedule.decay_steps=0")
    assert train_py(*small_job, "heldout.path=''", *ruin).returncode == 0
    run = tmp_path / "runs" / "small"
    exported = {"run": hub.load_pretrained(run / "export")}
    for which in ("best", "last"):
        choice = ["checkpoint=last"] if which == "last" else []
        done = script("export_hf.py", f"run={run}", f"out={tmp_path / which}", *choice)
        assert done.returncode == 0, done.stderr
        assert f"exported step {6 if which == 'best' else 12} of" in done.stdout
        exported[which] = hub.load_pretrained(tmp_path / which)
    assert "step 6 of 12 (chosen by validation, MWQL" in (tmp_path / "best" / "README.md").read_text()
    assert "step 12 of 12" in (tmp_path / "last" / "README.md").read_text()
    for (name, a), b, c in zip(
        exported["run"].named_parameters(), *(exported[w].parameters() for w in ("best", "last")), strict=True
    ):
        assert torch.equal(a, b), name
        assert a.ndim < 2 or not torch.equal(a, c), name
    wrong = script("export_hf.py", f"run={run}", f"out={tmp_path / 'x'}", "checkpoint=first")
    assert wrong.returncode == 1
    assert "checkpoint='first' must be best or last" in wrong.stderr


def test_the_recorder_records_this_machine(tmp_path):
    from data_pipelines.sources.series_parquet import read

    out = tmp_path / "host.parquet"
    done = script("record_host.py", "seconds=2", "interval=0.5", f"out={out}")
    assert done.returncode == 0, done.stderr
    groups = list(read(out))
    assert {"cpu", "memory"} <= {s.item_id.split("-")[0] for s in groups}
    assert all((s.length, s.interval, s.domain) == (4, 0.5, "observability") for s in groups)
    wrong = script("record_host.py", "seconds=0", f"out={tmp_path / 'x.parquet'}")
    assert wrong.returncode != 0
    assert not (tmp_path / "x.parquet").exists()


@pytest.mark.slow
def test_a_stopped_recording_keeps_what_it_has(tmp_path):
    import signal
    import time

    from data_pipelines.sources.series_parquet import read

    out = tmp_path / "host.parquet"
    command = [sys.executable, str(ROOT / "scripts/record_host.py"), "seconds=600", "interval=0.2", f"out={out}"]
    process = subprocess.Popen(command, cwd=ROOT)
    time.sleep(5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0
    assert next(read(out)).length >= 2
